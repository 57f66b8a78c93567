"""Exported files answer as PyTorch does, at every size, and say what they are."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from command_line import photos, printed, refused, status
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail import Pipeline
from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.explain.explanation import explain
from vitrail.export import TOLERANCE, difference, export, interpolation
from vitrail.models import resnet, vit
from vitrail.models.config import Resample, Rotary
from vitrail.models.positions import resample
from vitrail.tasks import Classify, ClassifyConfig
from vitrail.tasks.exported import NAME

CLASSES = ("ash", "beech", "elm")
VIT = vit.Config((32, 32), (8, 8), 3, 32, 2, 2, 64, 3)
STEM = resnet.Config(blocks=(1, 1), classes=0, width_factor=0.5)
MODELS = {
    "vit": VIT,
    "map, registers": replace(VIT, pool="map", registers=2, image_size=(24, 40)),
    "dinov2": replace(VIT, pool="token_avg", layer_scale=0.1, patch_size=(7, 7), image_size=(35, 35), registers=1),
    "sincos": replace(VIT, positions="sincos", pool="avg", norm_first=False),
    "rotary": replace(VIT, rotary=Rotary(), qk_norm=True, registers=1, positions="none"),
    "corners": replace(VIT, resample="bilinear_corners", representation=16, activation="gelu_tanh"),
    "crop": replace(VIT, remainder="crop", activation="swiglu"),
    "hybrid": replace(VIT, patch_size=(1, 1), stem=STEM),
    "resnet": resnet.Config(blocks=(1, 1), classes=3, width_factor=0.5, image_size=(32, 32)),
}
FAST = [("onnx", "vit"), ("onnx", "hybrid"), ("pt2", "dinov2")]
FORMATS = ("onnx", "pt2")  # OpenVINO has test_export_openvino.py
HARD = ("vit", "dinov2", "rotary", "resnet")  # for the runtimes that differ from ONNX's least
EVERY = [(to, name) for to in FORMATS for name in MODELS if to == "onnx" or name in HARD]
EVERY = [case for case in EVERY if case not in FAST]

pytestmark = pytest.mark.usefixtures("unchecked")  # symbols are not the whole numbers that sizes are


def pipeline(config=VIT, **how):
    """Weights as large as those of trained models, a head that is not 0."""
    torch.manual_seed(0)
    model = config.build().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 * name.endswith("norm.weight"), 0.2)
    prepare = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), **how}
    return Pipeline(Classify(model, Preprocessing(config.image_size, **prepare), class_names=CLASSES))


def images(count, *size, seed=0):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def apart(one, other, batch):
    """The largest difference of two tasks' logits and features."""
    found, wanted = (task.predict(Batch(images=batch)) for task in (one.task, other.task))
    assert found.keys() == wanted.keys() == {"features", "logits", "probabilities"}
    return max(
        float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max().clamp_min(1)) for name in found
    )


@pytest.mark.parametrize(("to", "name"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY)])
def test_a_file_for_any_size_answers_as_pytorch_at_sizes_that_patches_do_not_divide(tmp_path, to, name):
    """The silent one: a graph traced at a size that needs no padding is wrong at sizes that do."""
    torch_ = pipeline(MODELS[name])
    made = export(torch_, tmp_path / f"m.{to}", to, "any")
    (height, width), low = MODELS[name].image_size, made.task.session.about.low
    for count, size in ((1, (height, width)), (3, (height + 1, width)), (2, (2 * height - 3, width + 5)), (1, low)):
        assert apart(made, torch_, images(count, *size)) < TOLERANCE, size
    with pytest.raises(ValueError, match=f"{low[0]} x {low[1]}.*{low[0] - 1} x {width}"):
        made.task.predict(Batch(images=images(1, low[0] - 1, width)))


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_for_one_size_answers_as_pytorch_for_every_number_of_images(tmp_path, to):
    """Here at a size that is not the model's own, and that patches do not divide."""
    torch_ = pipeline()
    made = export(torch_, tmp_path / f"m.{to}", to, (45, 30))
    for count in (1, 2, 7):
        assert apart(made, torch_, images(count, 45, 30)) < TOLERANCE
    with pytest.raises(ValueError, match=r"45 x 30, not 32 x 32.*--image-size any"):
        made.task.predict(Batch(images=images(1, 32, 32)))


def test_no_path_of_this_machine_is_in_a_file(made):
    with zipfile.ZipFile("m.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for text in (content, (made / "m.onnx").read_bytes()):
        assert b"vitrail" in text
        assert str(Path(__file__).parents[1]).encode() not in text
        assert b"site-packages" not in text


def test_a_wrong_graph_is_not_kept(tmp_path, monkeypatch):
    """By a graph that pads as the traced size needs it, and by one that normalises otherwise."""
    torch_, target = pipeline(), tmp_path / "m.onnx"
    target.write_text("an earlier file")
    monkeypatch.setattr(vit, "symbolic", lambda *sizes: False)
    monkeypatch.setattr(vit.Config, "grid", lambda self, size: (4, 4))
    with pytest.raises(ValueError, match=r"from PyTorch|cannot trace"):
        export(torch_, target, "onnx", "any")
    assert target.read_text() == "an earlier file"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", Resample.__args__)
@given(old=st.integers(1, 20), new=st.integers(2, 30), seed=st.integers(0, 9))
def test_interpolation_is_that_of_torch(kind, old, new, seed):
    table = torch.randn(old * 3, 4, generator=torch.Generator().manual_seed(seed)).double()
    wanted = resample(table, (old, 3), (new, 3), kind).view(new, -1)
    found = interpolation(old, new, kind).double() @ table.view(old, -1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_a_file_says_everything_that_an_answer_needs(tmp_path):
    torch_ = pipeline(resize="crop", crop_fraction=0.8, interpolation="bicubic")
    photos(tmp_path / "photos", CLASSES, count=2, size=50)
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    for to in ("onnx", "pt2"):
        export(torch_, tmp_path / f"m.{to}", to)
        made = Pipeline.load(tmp_path / f"m.{to}")
        assert made.preprocessing == torch_.preprocessing
        assert made.class_names == CLASSES
        for found, wanted in zip(made(paths), torch_(paths), strict=True):
            assert [(p.label, p.index) for p in found] == [(p.label, p.index) for p in wanted]
            assert [p.probability for p in found] == pytest.approx([p.probability for p in wanted], abs=1e-5)
    assert not list(tmp_path.glob("*.data"))  # one file
    model = onnx.load(tmp_path / "m.onnx")
    about = json.loads({prop.key: prop.value for prop in model.metadata_props}[NAME])
    assert about["class_names"] == list(CLASSES)
    assert about["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert len(about["weights"]) == 64
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "features", "logits"]
    assert model.opset_import[0].version == 23
    assert {"Attention", "LayerNormalization", "Gelu"} <= {node.op_type for node in model.graph.node}


def test_sigmoid_and_none_of_these_stay_outside_the_graph(tmp_path):
    torch_ = pipeline()
    for config in (ClassifyConfig(loss="sigmoid"), ClassifyConfig(none_below=0.5)):
        task = Classify(torch_.task.model, torch_.preprocessing, config, CLASSES)
        made = export(Pipeline(task), tmp_path / "m.onnx")
        image = images(1, 32, 32)[0].permute(1, 2, 0).numpy()
        assert [p.label for p in Pipeline(task)(image)] == [p.label for p in made(image)]
        targets = torch.tensor([2, 1])
        batch = Batch(images=images(2, 32, 32), targets=targets)
        torch.testing.assert_close(made.task.predict(batch)["losses"], task.predict(batch)["losses"], rtol=0, atol=1e-4)


def test_features_without_a_head(tmp_path):
    model = replace(VIT, classes=0).build().eval()
    torch_ = Pipeline(Classify(model, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)))
    made = export(torch_, tmp_path / "m.onnx")
    assert difference(torch_.task, made.task) < TOLERANCE
    with pytest.raises(ValueError, match="no head"):
        made(images(1, 32, 32)[0].numpy().transpose(1, 2, 0))


def test_models_that_one_graph_cannot_hold(tmp_path):
    relative = pipeline(replace(VIT, relative="geometric", positions="none"))
    with pytest.raises(ValueError, match=r"relative positions.*--image-size H W"):
        export(relative, tmp_path / "m.onnx", "onnx", "any")
    made = export(relative, tmp_path / "m.onnx", "onnx", (40, 32))
    assert apart(made, relative, images(2, 40, 32)) < TOLERANCE
    with pytest.raises(ValueError, match="33 x 32"):
        export(pipeline(replace(VIT, remainder="refuse")), tmp_path / "n.onnx", "onnx", (33, 32))
    with pytest.raises(ValueError, match=r"pt2.*onnx or openvino"):
        export(relative, tmp_path / "m.pt2", "pt2", int8=[])
    with pytest.raises(ValueError, match="native"):
        export(pipeline(resize="native"), tmp_path / "n.onnx", "onnx", (32, 32))
    assert export(pipeline(resize="native"), tmp_path / "n.onnx").task.session.about.size is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each format. Made once, because that takes seconds."""
    folder = tmp_path_factory.mktemp("files")
    pipeline().save(folder / "model")
    photos(folder / "photos", CLASSES, count=8, size=32)
    return folder


@pytest.fixture
def made(files, monkeypatch):
    monkeypatch.chdir(files)
    for to in FORMATS:
        if not (files / f"m.{to}").exists():
            export(Pipeline.load("model"), files / f"m.{to}", to)
    return files


def test_damaged_foreign_and_newer_files_are_named(made, capsys):
    photo = next((made / "photos").rglob("*.png"))
    for to in ("onnx", "pt2"):
        content = (made / f"m.{to}").read_bytes()
        for cut in (0, 10, len(content) // 2, len(content) - 1):
            (made / f"cut.{to}").write_bytes(content[:cut])
            assert f"cut.{to}" in refused(capsys, "predict", f"cut.{to}", photo)
    graph = onnx.load("m.onnx")
    prop = next(one for one in graph.metadata_props if one.key == NAME)
    prop.value = prop.value.replace('"format": 1', '"format": 7')
    onnx.save(graph, "newer.onnx")
    assert "newer.onnx was written by Vitrail" in refused(capsys, "predict", "newer.onnx", photo)
    prop.value = "{}"
    onnx.save(graph, "empty.onnx")
    assert "empty.onnx" in refused(capsys, "predict", "empty.onnx", photo)
    graph.metadata_props.remove(prop)
    onnx.save(graph, "foreign.onnx")
    assert "foreign.onnx" in refused(capsys, "evaluate", "foreign.onnx", "photos")
    assert "none.onnx" in refused(capsys, "predict", "none.onnx", photo)


def test_what_only_weights_can_do_is_refused(made, capsys):
    photo = next((made / "photos").rglob("*.png"))
    assert "m.onnx" in refused(capsys, "explain", "m.onnx", photo, "--out", "e")
    assert "m.onnx" in refused(capsys, "fewshot", "m.onnx", "photos", "--out", "f")
    assert "m.onnx" in refused(capsys, "predict", "m.onnx", photo, "--int8")
    assert "m.onnx" in refused(capsys, "finetune", "photos", "--weights", "m.onnx")
    for evaluator in ("linear", "attentive"):
        assert "exported file" in refused_late(capsys, "evaluate", "m.onnx", "photos", "--with", evaluator)
    assert "--mean" in refused(capsys, "predict", "m.onnx", photo, "--mean", "0.5")
    assert "32 x 32" in refused(capsys, "predict", "m.onnx", photo, "--image-size", "64")
    found = Pipeline.load("m.onnx")
    with pytest.raises(ValueError, match=r"m\.onnx"):
        found.save("again")
    with pytest.raises(ValueError, match=r"m\.onnx"):
        explain(found, photo)
    with pytest.raises(ValueError, match=r"m\.onnx"):
        found.task(Batch(images=images(1, 32, 32)))
    assert Pipeline.load("m.onnx", classes=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_the_command_judges_what_it_writes(made, capsys):
    wanted, _ = printed(capsys, "evaluate", "model", "photos")
    found, said = printed(capsys, "export", "model", "photos", "--out", "judged.onnx")
    first, second = found["rows"]
    assert first["metrics"] == second["metrics"] | {"loss": pytest.approx(first["metrics"]["loss"], abs=1e-5)}
    assert first["metrics"]["accuracy"] == wanted["metrics"]["accuracy"]
    assert (second["same"], second["difference"][0]) == (1.0, 0.0)
    assert second["bytes"] == (made / "judged.onnx").stat().st_size
    assert (found["image_size"], found["precision"]) == ([32, 32], "float32")
    assert "judged.onnx" in said
    for name in ("judged.onnx", "m.pt2"):
        again, _ = printed(capsys, "evaluate", name, "photos")
        assert again["metrics"] == wanted["metrics"] | {"loss": pytest.approx(wanted["metrics"]["loss"], abs=1e-5)}


def test_int8_that_loses_too_much_is_not_written(made, capsys):
    small, _ = printed(capsys, "export", "model", "photos", "--int8", "--out", "small.onnx", "--max-loss", "100")
    assert "int8" in small["precision"]
    assert small["rows"][1]["same"] > 0.5
    before = (made / "small.onnx").read_bytes()
    assert Pipeline.load("small.onnx").task.session.about.precision == small["precision"]
    arguments = ("export", "model", "photos", "--int8", "--out", "small.onnx", "--max-loss", "-101")  # none can gain it
    assert status(*arguments) == 1
    assert "points" in capsys.readouterr().err
    assert status(*arguments, "--json") == 1
    assert json.loads(capsys.readouterr().out)["file"] is None
    assert (made / "small.onnx").read_bytes() == before
    assert "--int8" in refused_late(capsys, "export", "model", "--int8", "--out", "s.onnx")
    assert not (made / "s.onnx").exists()


@pytest.mark.slow
def test_a_file_is_written_beside_its_model_and_for_triton(made, capsys):
    found, _ = printed(capsys, "export", "model")
    assert found["file"] == "model.onnx"
    assert found["rows"][0]["metrics"] == {}
    printed(capsys, "export", "model", "--triton", "--out", "repository/pets", "--image-size", "any")
    config = (made / "repository" / "pets" / "config.pbtxt").read_text()
    assert 'name: "images" data_type: TYPE_UINT8 dims: [ 3, -1, -1 ]' in config
    assert 'name: "logits" data_type: TYPE_FP32 dims: [ 3 ]' in config
    assert (made / "repository" / "pets" / "1" / "model.onnx").is_file()
    assert "--out" in refused(capsys, "export", "model", "--triton")


def refused_late(capsys, *arguments):
    """The last line of a command that says something before it refuses."""
    assert status(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_images_of_any_kind_and_size_go_through_the_pipeline(made):
    torch_ = Pipeline.load("model", resize="native")
    made_ = export(torch_, made / "native.onnx")
    given = [
        np.zeros((20, 50, 3), np.uint8),
        Image.new("L", (33, 41), 200),
        str(next((made / "photos").rglob("*.png"))),
    ]
    for found, wanted in zip(made_(given, top=1), torch_(given, top=1), strict=True):
        assert found[0].label == wanted[0].label
        assert found[0].probability == pytest.approx(wanted[0].probability, abs=1e-5)


def test_padding_is_what_it_was():
    """SAME padding and the grid are computed otherwise since sizes may be symbols."""
    for n in range(1, 40):
        for kernel, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2)):
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            wanted = F.pad(torch.ones(1, 1, n, n), (total // 2, total - total // 2) * 2)
            assert torch.equal(resnet.same_padding(torch.ones(1, 1, n, n), kernel, stride), wanted)
        assert vit.Config((8, 8), (8, 8)).grid((n, 2 * n)) == (-(-n // 8), -(-2 * n // 8))
