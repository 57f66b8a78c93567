"""Weights as the world has them: exact, or refused by name. Each family is compared with its authors' library."""

import argparse
import json
import pathlib
import re
import zipfile

import numpy as np
import pytest
import timm
import torch
import transformers
from command_line import printed, refused, status
from PIL import Image
from reference import perturb
from safetensors.torch import load_file, save_file

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.pipeline import Pipeline
from vitrail.tasks import ClassifyConfig
from vitrail.weights.adjust import class_file
from vitrail.weights.load import load, load_and_report, read
from vitrail.weights.save import save

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 128}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
TEXT = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
FAMILIES = {
    "ViT": ("ViTForImageClassification", "ViTConfig", WIDE),
    "DeiT": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", WIDE),
    "MSN": ("ViTMSNForImageClassification", "ViTMSNConfig", WIDE),
    "I-JEPA": ("IJepaForImageClassification", "IJepaConfig", WIDE),
    "DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", SIZES),
    "DINOv2 SwiGLU": ("Dinov2Model", "Dinov2Config", {**SIZES, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", SIZES),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WIDE, "num_register_tokens": 4}),
    "DINOv3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WIDE, **GATED}),
    "BEiT": ("BeitForImageClassification", "BeitConfig", {**WIDE, "use_relative_position_bias": True}),
    "BEiT shared": (
        "BeitForImageClassification",
        "BeitConfig",
        {**WIDE, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", WIDE),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", WIDE),
    "SigLIP classes": ("SiglipForImageClassification", "SiglipConfig", {"vision_config": WIDE, "text_config": TEXT}),
}


def theirs(name, folder, memory=False):
    kind, config, fields = FAMILIES[name]
    model = perturb(getattr(transformers, kind)(getattr(transformers, config)(**fields)).eval(), dtype=torch.float32)
    model.save_pretrained(folder)
    if memory:  # as state_dict() names them, not save_pretrained()
        save_file({n: t.clone() for n, t in model.state_dict().items()}, folder / "model.safetensors")
    return model


@pytest.mark.parametrize("memory", [False, True], ids=["disk", "memory"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_transformers_is_read_exactly_and_written_back_bit_for_bit(tmp_path, name, memory):
    model = theirs(name, tmp_path / "a", memory)
    ours = load(tmp_path / "a")
    for size in (32, 48):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        # DINOv2 and DINOv3 take any size as it is.
        other = {"interpolate_pos_encoding": True} if size == 48 and "DINO" not in name and name != "registers" else {}
        with torch.no_grad():
            found = model(pixel_values=images, **other)
            pooled = found.get("pooler_output")
            expected = found.logits if "logits" in found else pooled
            torch.testing.assert_close(ours(images), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    save(read(tmp_path / "a"), tmp_path / "b", "huggingface")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


@pytest.mark.parametrize(("field", "value", "words"), [
    ("model_type", "swin", "'swin'"), ("hidden_act", "relu", "'relu'"), ("window", 7, "window 7.*--ignore window"),
    ("problem_type", "ranking", "'ranking'"), ("pooler_act", "relu", "."),
    ("num_attention_heads", 10**30, "do not divide"), ("num_channels", 10**9, "num_channels 1000000000"),
])  # fmt: skip
def test_settings_that_are_not_known_are_refused_by_name(tmp_path, field, value, words):
    theirs("ViT", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if field == "pooler_act":  # of a pooler that this model does not have
        assert load(tmp_path).config.representation is None
        return
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{words}"):
        load(tmp_path)
    if field == "window":
        assert load(tmp_path, ignore="window").config.width == 64


@pytest.mark.parametrize("architecture", ["vit_relpos_small_patch16_224", "beit3_base_patch16_224", "cait_xxs24_224"])
def test_an_architecture_of_timm_that_is_not_known_is_refused(tmp_path, architecture):
    model = timm.create_model(architecture, depth=1, num_classes=2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    with pytest.raises(ValueError, match=architecture if architecture[:4] != "cait" else str(tmp_path)):
        load(tmp_path)


SMALL = {"img_size": 32, "depth": 2}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(name="vit_tiny_patch16_224", **fields):
    return perturb(timm.create_model(name, **SMALL, **fields).eval(), dtype=torch.float32)


def same(model, path, **options):
    found, report = load_and_report(path, **options)
    with torch.no_grad():
        torch.testing.assert_close(found(IMAGES), model(IMAGES), rtol=0, atol=2e-5)
    return report


AUTHORS = {
    "DeiT III": ("deit3_small_patch16_224", {}, [(r"ls([12])\.gamma", r"gamma_\1")]),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, [
        ("reg_token", "register_tokens"), (r"blocks\.(\d)", r"blocks.0.\1"),
    ]),
    "DINOv2 g": ("vit_giant_patch14_dinov2", {"img_size": 28, "depth": 1}, [
        (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"),
    ]),
    "EVA-02": ("eva02_base_patch14_224", {"img_size": 28}, [
        (r"mlp\.fc1_g", "mlp.w1"), (r"mlp\.fc1_x", "mlp.w2"), (r"mlp\.fc2", "mlp.w3"), (r"mlp\.norm", "mlp.ffn_ln"),
    ]),
    "DINOv3": ("vit_small_patch16_dinov3", {}, [("reg_token", "storage_tokens"), (r"gamma_([12])", r"ls\1.gamma")]),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTHORS)
def test_authors_spellings_are_read_and_written_back_bit_for_bit(tmp_path, name):
    architecture, fields, changes = AUTHORS[name]
    model = perturb(timm.create_model(architecture, **{**SMALL, **fields}).eval(), dtype=torch.float32)
    state = {}
    for key, tensor in model.state_dict().items():
        for pattern, new in changes:
            key = re.sub(pattern, new, key)
        state[key] = tensor
    computed = {"rope_embed.periods": torch.ones(4)} if name == "DINOv3" else {}
    torch.save({"model": {**state, **computed, "mask_token": torch.zeros(1, 384)}}, tmp_path / "a.pth")
    side = fields.get("img_size", 32)
    images = IMAGES[..., :side, :side]
    given = {"architecture": architecture} if name == "DINOv3" else {}
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "a.pth", **given)(images), model(images), rtol=0, atol=2e-5)
    if not given:
        save(read(tmp_path / "a.pth"), tmp_path / "b.pth", "timm")
        after = torch.load(tmp_path / "b.pth")
        assert state.keys() <= after.keys()
        assert all(torch.equal(state[n], after[n]) for n in state)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_the_state_dict_is_found_whatever_is_around_it(tmp_path):
    model, other = small(), small()
    state, path = model.state_dict(), tmp_path / "w.pth"
    for head in other.parameters():
        head.data.mul_(2)
    student = other.state_dict()
    around = {"args": argparse.Namespace(lr=1), "best": np.float64(3), "path": pathlib.PurePosixPath("x"), "epoch": 3}
    for content in (
        {"model_state_dict": state, **around},
        {"state_dict": prefixed(state, "model."), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"a": {"b": {"c": prefixed(state, "module.net.backbone.")}}},
        {"student": student, "teacher": prefixed(state, "backbone.")},
        {"state_dict": prefixed(state, "module.momentum_encoder.") | prefixed(student, "module.base_encoder.")},
        {"model": student, "model_ema": state},
    ):
        torch.save(content, path)
        report = same(model, path)
        assert ("section" in str(report)) == (sum(n.endswith("cls_token") for n in keys(content)) > 1)
    same(other, path, section="model")
    with pytest.raises(ValueError, match=r"w\.pth.*'modell'.* model"):
        load(path, section="modell")
    save_file(prefixed(state, "timm_model."), tmp_path / "w.safetensors")
    same(model, tmp_path / "w.safetensors")


def keys(content, place=""):
    for name, value in content.items():
        yield from keys(value, f"{place}{name}.") if isinstance(value, dict) else [f"{place}{name}"]


@pytest.mark.parametrize("name", ["fc", "head.0", "classifier", "backbone_head.linear"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_head_of_any_name_is_read_and_others_are_named(tmp_path, name, bias):
    model, path = small(), tmp_path / "w.pth"
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("head.")}
    if not bias:
        model.head.bias.data.zero_()
    head = {f"{name}.weight": model.head.weight} | ({f"{name}.bias": model.head.bias} if bias else {})
    torch.save(state | head, path)
    same(model, path)
    torch.save(prefixed(state, "0.") | head, path)
    same(model, path)
    two = {"head.0.weight": torch.ones(5, 192), "head.2.weight": torch.ones(3, 5)}
    torch.save(state | two, path)
    with pytest.raises(ValueError, match=r"w\.pth.*head\.0\.weight.*--ignore"):
        load(path)
    assert load(path, ignore=["head.*"]).config.classes == 0
    assert load(path, classes=7).config.classes == 7


def test_what_is_left_over_is_refused_unless_it_is_said(tmp_path):
    model, path = small(), tmp_path / "w.pth"
    more = {"blocks.0.attn.q_bias2": torch.ones(192), "criterion.weight": torch.ones(3)}
    torch.save(prefixed(model.state_dict(), "m.") | {"m.blocks.0.attn.q_bias2": torch.ones(192)} | more, path)
    with pytest.raises(ValueError, match=r"m?\.?blocks\.0\.attn\.q_bias2 \(192,\)"):
        load(path)
    assert "left out" in str(same(model, path, strict=False))
    with pytest.raises(ValueError, match="vitrail convert takes these options"):
        load(path, classes=2)


@pytest.mark.parametrize(("content", "words"), [
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"), (b"GGUF" + bytes(99), "GGUF"), (b"\x08\x07" + bytes(99), "ONNX"),
])  # fmt: skip
def test_files_of_other_libraries_are_named(tmp_path, content, words):
    path = tmp_path / ("w.onnx" if words == "ONNX" else "w.bin")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is .*{words}(?!.*fetch)"):
        load(path)
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/code/a.py", "")
    with pytest.raises(ValueError, match="TorchScript"):
        load(tmp_path / "w.pt")


def test_shards_of_pytorchs_own_files_are_put_together(tmp_path):
    model = theirs("ViT", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for part, names in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        torch.save({n: state[n] for n in names}, tmp_path / f"pytorch_model-{part}.bin")
    index = {n: f"pytorch_model-{i % 2}.bin" for i, n in enumerate(sorted(state))}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(IMAGES), model(IMAGES).logits)


@pytest.mark.parametrize(("problem", "loss"), [("multi_label_classification", "sigmoid"), (None, "softmax")])
def test_what_outputs_mean_travels(tmp_path, problem, loss):
    model = theirs("ViT", tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem}))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = {p.index: p.probability for p in Pipeline.load(tmp_path / "a")(pixels, top=2)}
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1).logits[0]
    expected = logits.sigmoid() if problem else logits.softmax(-1)
    assert [found[i] for i in range(2)] == pytest.approx(expected.tolist(), abs=1e-5)
    save(read(tmp_path / "a"), tmp_path / "b", "vitrail")
    save(read(tmp_path / "b"), tmp_path / "c", "huggingface")
    assert json.loads((tmp_path / "c/config.json").read_text()).get("problem_type") == problem
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": "regression"}))
    with pytest.raises(ValueError, match="regression"):
        Pipeline.load(tmp_path / "a")
    assert Pipeline.load(tmp_path / "b").task.config.loss == loss


def test_what_is_known_better_is_said(tmp_path):
    torch.save(small(num_classes=3).state_dict(), tmp_path / "w.pth")
    said = []
    how = Pipeline.load(tmp_path / "w.pth", say=said.append).preprocessing
    assert any("pixels are a guess" in note for note in said)
    given = {"mean": 0.25, "std": (0.5,), "resize": "crop", "interpolation": "bilinear", "image_size": (48, 64)}
    quiet = Pipeline.load(tmp_path / "w.pth", say=said.clear, **given, classes=["a", "b", "c"])
    other = quiet.preprocessing
    assert (other.mean, other.std, other.resize, other.image_size) == ((0.25,) * 3, (0.5,) * 3, "crop", (48, 64))
    assert (other.interpolation, how.interpolation, quiet.class_names) == ("bilinear", "bicubic", ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"w\.pth: .*2 numbers.* 3 channels"):
        Pipeline.load(tmp_path / "w.pth", mean=(0.5, 0.5))


@pytest.mark.parametrize(("name", "text", "ids", "names"), [
    ("c.txt", "cat\n\ndog\n", ("cat", "dog"), ("cat", "dog")),
    ("c.txt", "n00000002 a cat\nn00000001 dog", ("n00000002", "n00000001"), ("a cat", "dog")),
    ("c.json", '{"1": ["n00000001", "dog"], "0": ["n00000002", "cat"]}', ("n00000002", "n00000001"), ("cat", "dog")),
])  # fmt: skip
def test_class_names_come_from_a_list(tmp_path, name, text, ids, names):
    (tmp_path / name).write_text(text)
    assert class_file(tmp_path / name, 2) == (ids, names)
    with pytest.raises(ValueError, match=rf"{name} has 2 .* 3"):
        class_file(tmp_path / name, 3)


def test_other_channels_and_patches_are_read_by_a_stated_rule(tmp_path):
    model = small()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    grey = load(tmp_path / "w.pth", channels=1)
    with torch.no_grad():
        expected = model(IMAGES[:, :1].expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(IMAGES[:, :1]), expected, rtol=0, atol=2e-5)
    larger = load(tmp_path / "w.pth", patch_size=32, image_size=64)
    torch.testing.assert_close(
        larger.patch_embed.proj.weight,
        timm.layers.resample_patch_embed(model.patch_embed.proj.weight.detach(), [32, 32]),
        rtol=0,
        atol=1e-5,
    )


def test_a_hybrid_may_be_half_as_wide(tmp_path):
    stem = resnet.Config((1, 1, 1), 0.5, classes=0)
    config = vit.Config((64, 64), (1, 1), 3, 64, 1, 4, 64, 3, remainder="crop", stem=stem, activation="gelu_tanh")
    model = perturb(config.build().eval(), dtype=torch.float32)
    how = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)
    Pipeline(ClassifyConfig().task(model, how, ("a", "b", "c"))).save(tmp_path / "ours")
    save(read(tmp_path / "ours"), tmp_path / "w.npz", "google")
    again, images = load(tmp_path / "w.npz"), torch.randn(1, 3, 64, 64)
    assert again.config.stem == stem
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images))
    with pytest.raises(ValueError, match=r"0\.3.* 32"):
        resnet.Config((1,), 0.3)


def test_commands_take_what_is_known_better(tmp_path, capsys):
    model = perturb(timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=1), dtype=torch.float32)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(image)
    assert "--image-size" in refused(capsys, "predict", tmp_path / "w.pth", image)
    assert status("predict", tmp_path / "w.pth", image, "--image-size", 32, 64) == 0
    assert status("convert", tmp_path / "w.pth", tmp_path / "out", "--to", "timm", "--image-size", 32, 64) == 0
    card, said = printed(capsys, "info", tmp_path / "w.pth", "--image-size", 32, 64, "--mean", 0.25)
    assert card["preprocessing"]["mean"] == [0.25] * 3
    assert "guess" not in said
    assert "'x'" in refused(capsys, "predict", tmp_path / "w.pth", image, "--image-size", 32, 64, "--section", "x")
