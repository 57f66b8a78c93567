"""Every public layout loads and predicts what its own library does: at most 2e-5 from it, every parameter moved."""

import json
import math
import os
import pickle
import re

import pytest
import timm
import torch
import torchvision
import transformers
from reference import perturb
from safetensors.torch import save_file

from vitrail.models import resnet
from vitrail.weights.load import load, load_and_report, read

SIZES = [(224, 224), (384, 384), (160, 288)]
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}


def pixels(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_same(ours, theirs, images):
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1, "logits of no size prove nothing"
    assert found.shape == expected.shape
    difference = (found - expected).abs().max().item()
    print(f"largest difference {difference:.1e}")  # pytest -rP shows it
    assert difference <= 2e-5


TIMM = {
    "plain": ("vit_base_patch16_224", {}),
    "averaged": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "registers and LayerScale": ("vit_base_patch14_reg4_dinov2", {"num_classes": 7, "img_size": 224}),
    "MAP": ("vit_base_patch16_siglip_224", {"num_classes": 7}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 7}),
    "no bias in qkv": ("vit_base_patch16_224_miil", {}),
    "gated": ("vit_giant_patch14_dinov2", {"num_classes": 7, "img_size": 224, "mlp_ratio": 4.0}),
    "registers with positions": ("vit_base_patch16_224", {"reg_tokens": 2}),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TIMM)
def test_timm(tmp_path, name, size):
    architecture, more = TIMM[name]
    model = perturb(timm.create_model(architecture, **SMALL, **more, dynamic_img_size=True), dtype=torch.float32)
    timm.models.save_for_hf(model, tmp_path)
    if any(n % model.patch_embed.patch_size[0] for n in size):
        size = tuple(n // 14 * 14 for n in size)
    assert_same(load(tmp_path), model, pixels(size))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_bare_state_dict_of_timms(tmp_path, suffix):
    model = perturb(timm.create_model("vit_tiny_patch16_224", depth=2, dynamic_img_size=True), dtype=torch.float32)
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        save_file(model.state_dict(), path)
    assert_same(load(path), model, pixels((224, 224)))
    # As many patches as the table has rows, and another grid all the same.
    assert_same(load(path, image_size=(112, 448)), model, pixels((112, 448)))


@pytest.mark.parametrize("classes", [0, 5])
def test_timms_resnet_that_has_our_names_is_not_taken_for_ours(tmp_path, classes):
    """Its kernels are standardised by another epsilon, so it would be wrong and silent."""
    model = timm.models.resnetv2.ResNetV2((1,), num_classes=classes, preact=False, conv_layer=timm.layers.StdConv2dSame)
    ours = set(resnet.ResNet(resnet.Config((1,), classes=classes), torch.device("meta")).state_dict())
    assert ours ^ set(model.state_dict()) == {
        f"head.{a}{b}" for a in ("", "fc.") for b in ("weight", "bias") if classes
    }
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetv2_50x1_bit"}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=f"{path} is of an architecture that is not known"):
            load(path)


def hugging_face(path, kind="ViTForImageClassification", dtype=torch.float32, **more):
    """A small model of transformers, saved."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 224}
    sizes |= {"patch_size": 14} if "Dino" in kind else {"patch_size": 16, "intermediate_size": 96}
    if "MAE" in kind:
        sizes |= {"mask_ratio": 0.0, "decoder_num_hidden_layers": 1}
    config = getattr(transformers, kind.partition("Model")[0].partition("For")[0] + "Config")(**sizes | more)
    model = perturb(getattr(transformers, kind)(config), dtype=torch.float32).to(dtype)
    model.save_pretrained(path)
    return model


# What of the library's answer is held against what of ours.
HUGGING_FACE = {
    "ViT": ("ViTForImageClassification", {}, "logits", "forward"),
    "ViT, no bias": ("ViTForImageClassification", {"layer_norm_eps": 1e-3, "qkv_bias": False}, "logits", "forward"),
    "ViT, tanh": ("ViTForImageClassification", {"hidden_act": "gelu_new", "num_labels": 7}, "logits", "forward"),
    "ViT's pooler": ("ViTModel", {}, "pooler_output", "represent"),
    "DeiT": ("DeiTForImageClassification", {"num_labels": 7}, "logits", "forward"),
    "DINOv2": ("Dinov2Model", {}, "last_hidden_state", "tokens"),
    "DINOv2, gated": ("Dinov2Model", {"use_swiglu_ffn": True}, "last_hidden_state", "tokens"),
    "registers": ("Dinov2WithRegistersModel", {}, "last_hidden_state", "tokens"),
    "MAE": ("ViTMAEForPreTraining", {}, "last_hidden_state", "tokens"),
}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(tmp_path, name, number):
    kind, more, answer, ours = HUGGING_FACE[name]
    model = hugging_face(tmp_path, kind, **more)
    dino = "Dino" in kind  # which resizes its positions unasked
    asked = {} if dino else {"interpolate_pos_encoding": True}
    size = ([(224, 224), (378, 378), (154, 280)] if dino else SIZES)[number]
    if name == "MAE":
        order = torch.arange(size[0] * size[1] // 256).expand(2, -1) / 4096  # in which patches are kept
        model, asked = model.vit, asked | {"noise": order}
    loaded, report = load_and_report(tmp_path)
    assert_same(getattr(loaded, ours), lambda images: getattr(model(images, **asked), answer), pixels(size))
    assert name != "MAE" or all(lost.startswith("decoder.") for lost in report["ignored"])


@pytest.mark.parametrize("size", [224, 384])  # torchvision knows squares only
def test_torchvision(tmp_path, size):
    model, theirs = (
        torchvision.models.VisionTransformer(side, 16, 2, 4, 64, 96, num_classes=7, representation_size=32)
        for side in (224, size)
    )
    torch.save(perturb(model, dtype=torch.float32).state_dict(), tmp_path / "w.pth")
    resize = torchvision.models.vision_transformer.interpolate_embeddings
    theirs.load_state_dict(resize(size, 16, model.state_dict()))
    assert_same(load(tmp_path / "w.pth", heads=4), theirs.eval(), pixels((size, size)))


def test_preprocessing_and_names_come_with_the_weights(tmp_path):
    hugging_face(tmp_path, id2label={i: f"kind {i}" for i in range(5)})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    weights = read(tmp_path)
    assert weights.class_names == tuple(f"kind {i}" for i in range(5))
    assert weights.preprocessing.mean == (0.1, 0.1, 0.1)
    model = timm.create_model("vit_base_patch32_clip_224", **SMALL, num_classes=3)
    timm.models.save_for_hf(model, tmp_path / "timm", model_config={"label_names": ["a", "b", "c"]})
    weights = read(tmp_path / "timm")
    assert (weights.class_names, weights.preprocessing.mean) == (("a", "b", "c"), model.pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("side", "edge", "fraction"),
    # DINOv2's own; timm's; and 7 / 0.28 is just below 25.
    [(224, None, 0.875), (518, None, 0.875), (224, 248, 0.9), (224, 235, 0.95), (7, 25, 0.27), (224, 224, 1.0)],
)
def test_the_fraction_that_a_crop_leaves_is_a_number_as_a_person_writes_it(tmp_path, side, edge, fraction):
    hugging_face(tmp_path, "Dinov2Model", **({} if side == 7 else {"image_size": side}))
    if edge:
        processor = {"size": {"shortest_edge": edge}, "crop_size": {"height": side, "width": side}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    how = read(tmp_path).preprocessing
    assert (how.resize, how.image_size, how.crop_fraction) == ("crop", (side, side), fraction)
    assert math.floor(side / fraction) == (edge or side * 256 // 224)  # as timm computes it


def test_a_new_head_is_zero_and_the_old_one_goes_whole(tmp_path):
    model = hugging_face(tmp_path, "ViTModel")
    ours, report = load_and_report(tmp_path, classes=4, image_size=(64, 96))
    assert torch.equal(ours.head.weight, torch.zeros(4, 64))
    assert (report["reset"], report["resized"]) == (["head.weight", "head.bias"], ["pos_embed"])
    assert report["ignored"] == ["pre_logits.fc.weight", "pre_logits.fc.bias"]
    kept = load(tmp_path, classes=4, representation=64)
    assert torch.equal(kept.pre_logits.fc.weight, model.pooler.dense.weight)
    assert "pos_embed: resized (1, 197, 64) -> (1, 25, 64)" in str(report)


WHOLE = "is not a whole file of tensors"
DAMAGED = [
    (b"", "is empty"), (b"<!DOCTYPE html><html>", "is a web page"), (b"\xff" * 100, WHOLE),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"), (b"PK\x03\x04" + b"\0" * 60, WHOLE),
    (b"\x10\0\0\0\0\0\0\0{", WHOLE), (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", WHOLE),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), DAMAGED)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "a/model.safetensors"])
def test_what_is_no_file_of_weights_is_named(tmp_path, name, content, message):
    hugging_face(tmp_path / "a")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        load(tmp_path / name.removesuffix("/model.safetensors"))


class Runs:
    """Unpickling this would leave a trace."""

    def __reduce__(self):
        return (os.mkdir, ("trace-of-a-pickle",))


@pytest.mark.parametrize("name", ["w.pth", "a/model.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, monkeypatch, save, name):
    monkeypatch.chdir(tmp_path)
    hugging_face(tmp_path / "a")
    save({"model": Runs()}, tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is .*(damaged|not a whole file|not read)"):
        load(tmp_path / name.removesuffix("/model.safetensors"))
    assert not (tmp_path / "trace-of-a-pickle").exists()


@pytest.mark.parametrize(("without", "overrides", "message"), [
    ("blocks.1.norm1.weight", {}, r"w\.safetensors: .*blocks\.1\.norm1\.weight"),
    ("patch_embed.proj.weight", {}, r"w\.safetensors is of an architecture"),
    ("", {"mlp_dim": 8}, r"w\.safetensors: blocks\.0\.mlp\.fc1\.weight is .*64.* \(8, 64\)"),
    ("", {"class": 3}, "'class'.* classes"),
])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, without, overrides, message):
    state = timm.create_model("vit_base_patch16_224", **SMALL).state_dict()
    save_file({name: tensor for name, tensor in state.items() if name != without}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w.safetensors", **{"heads": 4} | overrides)


MISTYPED = [
    ("config", "hidden_size", "64"), ("config", "hidden_size", None), ("config", "image_size", {}),
    ("config", "layer_norm_eps", "small"), ("config", "hidden_act", ["gelu"]), ("config", "model_type", ["vit"]),
    ("config", "id2label", ["cat"]), ("config", "hidden_size", ...), ("preprocessor_config", "image_mean", "0.5"),
    ("preprocessor_config", "size", {"height": "224"}),
]  # fmt: skip


@pytest.mark.parametrize(("file", "field", "value"), MISTYPED)
def test_settings_of_another_type_are_a_sentence(tmp_path, file, field, value):
    hugging_face(tmp_path)
    path = tmp_path / f"{file}.json"
    settings = (json.loads(path.read_text()) if path.exists() else {}) | {field: value}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path)


def test_weights_in_several_files_are_put_together(tmp_path):
    whole = hugging_face(tmp_path / "whole")
    whole.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found, expected = read(tmp_path).tensors, read(tmp_path / "whole").tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json .*outside its folder"):
        load(tmp_path)


def test_a_header_whose_length_begins_like_a_pickle_is_no_pickle(tmp_path):
    tensors = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    path, length = tmp_path / "w.safetensors", 0
    while not path.exists() or path.read_bytes()[:1] != b"\x80":
        save_file(tensors, path, metadata={"note": "x" * (length := length + 8)})
    assert torch.equal(load(path).cls_token, tensors["cls_token"])


@pytest.mark.parametrize(
    ("field", "value"), [("num_hidden_layers", 10**30), ("image_size", 10**12), ("hidden_size", -1)]
)
def test_a_number_without_bounds_is_refused_at_once(tmp_path, field, value):
    hugging_face(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"^{tmp_path}[^\n]*$"):
        load(tmp_path)


def test_an_architecture_of_other_positions_is_refused(tmp_path):
    made = {
        "d.pth": timm.create_model("vit_small_patch16_dinov3", depth=1, num_classes=2),
        "b.pth": timm.create_model("beit_base_patch16_224", depth=1, num_classes=2, embed_dim=192, num_heads=3),
        "v.pth": timm.create_model("vit_small_patch16_224", img_size=32, depth=1),
    }
    for name, model in made.items():
        torch.save(model.state_dict(), tmp_path / name)
    others = ("vit_small_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224")
    for name, known in (("d.pth", 1), ("b.pth", 2), ("v.pth", 0)):
        for architecture in (other for place, other in enumerate(others) if place != known):
            with pytest.raises(ValueError, match=f"its positions are .*{architecture}"):
                load(tmp_path / name, architecture=architecture)
    load(tmp_path / "d.pth", architecture=others[1])
