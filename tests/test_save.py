"""What is read is written back bit for bit; one model goes through every format; other libraries load our folder."""

import json
import resource
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
import transformers
from model_folders import names_of, write_folder
from reference import perturb
from safetensors.torch import load_file, save_file
from test_load import HUGGING_FACE, hugging_face

from vitrail.models import resnet, vit
from vitrail.weights.format import Asked
from vitrail.weights.load import load, read
from vitrail.weights.save import save

SMALL = vit.Config((32, 48), (8, 8), 3, 32, 2, 4, 48, 5)
BIT = resnet.Config((1,), classes=5, image_size=(32, 48))
TASK = {"kind": "detect", "config": {"queries": 2}}


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_same_folder(found, expected):
    assert_same_tensors(load_file(found / "model.safetensors"), load_file(expected / "model.safetensors"))
    assert json.loads((found / "config.json").read_text()) == json.loads((expected / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted({row[0] for row in HUGGING_FACE.values()} | {"ViTMAEForPreTraining"}))
def test_hugging_faces_folders_are_written_back_bit_for_bit(tmp_path, kind, dtype):
    hugging_face(tmp_path / "a", kind, dtype, num_labels=3)
    save(read(tmp_path / "a"), tmp_path / "b", "huggingface")
    assert_same_folder(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"])
def test_transformers_loads_what_we_write_for_it(tmp_path, kind):
    model = hugging_face(tmp_path / "a", kind)
    save(read(tmp_path / "a"), tmp_path / "ours", "vitrail")
    save(read(tmp_path / "ours"), tmp_path / "theirs", "huggingface")
    again, images = getattr(transformers, kind).from_pretrained(tmp_path / "theirs"), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(images)[0], model(images)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_state_dicts_are_written_back_bit_for_bit(tmp_path, library, suffix, dtype):
    model = torchvision.models.VisionTransformer(32, 8, 1, 3, 192, 48, num_classes=5)
    model = timm.create_model("vit_tiny_patch16_224", depth=1) if library == "timm" else model
    tensors = {name: tensor.to(dtype) for name, tensor in perturb(model).state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, tmp_path / f"a{suffix}")
    save(read(tmp_path / f"a{suffix}", Asked(heads=3)), tmp_path / f"b{suffix}", library)
    back = load_file(tmp_path / "b.safetensors") if suffix == ".safetensors" else torch.load(tmp_path / "b.pth")
    assert_same_tensors(back, tensors)


@pytest.mark.parametrize(
    "name", ["vit_base_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "vit_tiny_r_s16_p8_224"]
)
def test_timms_folders_are_written_back_bit_for_bit(tmp_path, name):
    model = timm.create_model(name, embed_dim=64, depth=1, num_heads=4, num_classes=3)
    timm.models.save_for_hf(perturb(model, dtype=torch.float32), tmp_path / "a", safe_serialization=True)
    save(read(tmp_path / "a"), tmp_path / "b", "timm")
    assert_same_folder(tmp_path / "b", tmp_path / "a")


def predicted(path, config):
    """(images, logits) of a model folder of ours."""
    model, _ = write_folder(path, config)
    images = torch.randn(2, config.channels, *config.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, model(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, BIT], ids=["ViT", "ResNet"])
def test_our_folders_are_written_back_bit_for_bit_with_what_the_task_has_besides(tmp_path, config, dtype):
    extra = {"queries": torch.randn(2, 3), "steps": torch.tensor(7)}
    write_folder(tmp_path / "a", config, dtype, extra, TASK)
    save(read(tmp_path / "a"), tmp_path / "b", "vitrail")
    assert_same_folder(tmp_path / "b", tmp_path / "a")
    assert read(tmp_path / "b").task == TASK
    assert_same_tensors(load_file(tmp_path / "b" / "task.safetensors"), extra)


def test_one_model_goes_through_every_format_and_back(tmp_path):
    config = replace(SMALL, image_size=(32, 32), activation="gelu_tanh")
    tensors = write_folder(tmp_path / "0", config)[0].state_dict()
    path = tmp_path / "0"
    way = [("google", ".npz"), ("huggingface", ""), ("timm", ""), ("vitrail", ""), ("google", ".npz"), ("timm", ".pth")]
    for number, (form, suffix) in enumerate(way, 1):
        save(read(path, Asked(heads=4)), tmp_path / f"{number}{suffix}", form)
        path = tmp_path / f"{number}{suffix}"
        assert_same_tensors(dict(read(path, Asked(heads=4)).tensors), tensors)
    # torchvision's format does not tell that GELU is of the tanh form: the tensors are all there, and we are told.
    notes = save(read(tmp_path / "4"), tmp_path / "t.pth", "torchvision")
    assert any("gelu_tanh" in note for note in notes)
    assert_same_tensors(dict(read(tmp_path / "t.pth", Asked(heads=4)).tensors), tensors)


FOLDERS = {
    "plain, a size that timm has no name for": SMALL, "averaged": replace(SMALL, pool="avg", norm_first=False),
    "averaged, without [class]": replace(SMALL, pool="avg", class_token=False, class_position=False),
    "MAP, tanh": replace(SMALL, pool="map", class_token=False, class_position=False, activation="gelu_tanh"),
    "registers": replace(SMALL, registers=3, layer_scale=1e-5, class_position=False),
    "registers beside a position of [class]": replace(SMALL, registers=3, layer_scale=1e-5),
    "sin-cos": replace(SMALL, positions="sincos", pool="avg", class_token=False, class_position=False),
    "no positions": replace(SMALL, positions="none"), "gated": replace(SMALL, activation="swiglu"),
    "CLIP": replace(SMALL, pre_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu"),
    "norms for q and k, no bias": replace(SMALL, qk_norm=True, qkv_bias=False),
    "one channel": replace(SMALL, channels=1), "patch of 4 x 8": replace(SMALL, patch_size=(4, 8)),
}  # fmt: skip


@pytest.mark.parametrize("to", ["vitrail", "timm"])
@pytest.mark.parametrize("name", FOLDERS)
def test_our_folder_and_the_one_that_we_write_for_timm_are_loaded_by_timm(tmp_path, name, to):
    images, expected = predicted(tmp_path / "vitrail", FOLDERS[name])
    if to == "timm":
        save(read(tmp_path / "vitrail"), tmp_path / "timm", "timm")
    model = timm.create_model(f"local-dir:{tmp_path / to}", pretrained=True).eval()
    with torch.no_grad():
        assert (model(images) - expected).abs().max() <= 2e-5
        assert (load(tmp_path / to)(images) - expected).abs().max() <= 2e-5
    assert expected.std() > 0.1
    settings = timm.data.resolve_model_data_config(model)
    assert tuple(settings["mean"]) == (0.4,) * FOLDERS[name].channels
    assert (settings["crop_pct"], settings["interpolation"]) == (0.9, "bicubic")
    assert tuple(settings["input_size"]) == (FOLDERS[name].channels, *FOLDERS[name].image_size)
    weights, own = read(tmp_path / to), read(tmp_path / "vitrail")
    assert (weights.preprocessing, weights.class_names) == (own.preprocessing, names_of(SMALL))


@pytest.mark.parametrize("name", ["plain, a size that timm has no name for", "averaged", "registers"])
def test_our_folder_is_loaded_by_transformers_with_its_names(tmp_path, name):
    images, expected = predicted(tmp_path, FOLDERS[name])
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert (model(images).logits - expected).abs().max() <= 2e-5
    assert tuple(model.config.id2label.values()) == names_of(SMALL)


LOST = [
    (replace(SMALL, stem=resnet.Config(blocks=(), classes=0), patch_size=(2, 2), image_size=(16, 24)), []),
    (replace(SMALL, positions="sincos"), ["fixed positions"]),
    (replace(SMALL, representation=16, norm_eps=1e-3), ["pre-logits layer of 16", "0.001"]),
    (BIT, ["ResNet"]),
]


@pytest.mark.parametrize(("config", "lost"), LOST)
def test_what_timm_cannot_express_is_said(tmp_path, config, lost):
    _, notes = write_folder(tmp_path, config)
    assert len(notes) == len(lost)
    assert all(word in note for word, note in zip(lost, notes, strict=True))


UNHELD = [
    ("huggingface", {"pool": "avg"}, "pool 'avg'"), ("huggingface", {"class_position": False}, "class_position False"),
    ("huggingface", {"patch_size": (4, 8)}, r"patch_size \(4, 8\)"),
    ("huggingface", {"representation": 32}, "pre-logits"), ("huggingface", {"layer_scale": 1e-5}, "LayerScale"),
    ("huggingface", {"activation": "swiglu"}, "activation 'swiglu'"), ("huggingface", {"registers": 2}, "registers 2"),
    ("torchvision", {"registers": 2}, "reg_token"), ("google", {"layer_scale": 1e-5}, r"blocks\.0\.ls1\.gamma"),
    ("torchvision", {"pool": "map", "class_token": False}, "cls_token"), ("google", {"registers": 2}, "reg_token"),
    ("google", {"norm_first": False}, r"norm\.weight"), ("onnx", {}, "'onnx'.*vitrail, google"),
    *((form, BIT, f"{form} .*ResNet") for form in ("google", "timm", "huggingface", "torchvision")),
]  # fmt: skip


@pytest.mark.parametrize(("to", "config", "message"), UNHELD)
def test_what_a_format_cannot_hold_is_named_and_leaves_nothing_behind(tmp_path, to, config, message):
    write_folder(tmp_path / "model", replace(SMALL, **config) if isinstance(config, dict) else config)
    with pytest.raises(ValueError, match=message):
        save(read(tmp_path / "model"), tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("to", "name"), [("vitrail", "o"), ("timm", "o.pth"), ("google", "o")])
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path, to, name):
    write_folder(tmp_path / "model", SMALL)
    weights, limits = read(tmp_path / "model"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=rf"{name} could not be written"):
            save(weights, tmp_path / name, to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
