"""`vitrail convert` on files of every format, as a person would type it."""

import shutil
import weakref
from dataclasses import replace

import google_files
import numpy as np
import pytest
import timm
import torch
from command_line import photos, printed, refused, status
from reference import perturb
from safetensors.torch import save_file
from small_runs import small, start
from test_sharded_checkpoint import as_two

from vitrail import checkpoint
from vitrail.config import dump
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data
from vitrail.models import vit
from vitrail.pipeline import Pipeline
from vitrail.tasks import Classify, ClassifyConfig
from vitrail.weights.folder import Card, write

LOST = ["its preprocessing", "activation 'gelu_tanh'", "resample 'bilinear_corners'", "remainder 'crop'"]


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "w.npz", **google_files.arrays())
    return tmp_path / "w.npz"


def test_a_file_goes_to_every_format_and_back_and_what_is_lost_is_told(npz, tmp_path, capsys):
    done, _ = printed(capsys, "convert", npz, tmp_path / "out.safetensors", "--to", "timm")
    assert (done["from"], done["to"], done["tensors"]) == ("google", "timm", 32)
    assert all(words in lost for words, lost in zip(LOST, done["lost"], strict=True))
    source = npz
    for to, target in [("vitrail", "a"), ("timm", "b"), ("huggingface", "c"), ("google", "d.npz")]:
        assert status("convert", source, tmp_path / target, "--to", to) == 0
        assert f"{target}: 32 tensors, from" in capsys.readouterr().out
        source = tmp_path / target
    with np.load(npz) as before, np.load(source) as after:
        assert set(before) == set(after)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_heads_are_given_where_the_file_does_not_tell_them(tmp_path, capsys):
    model = perturb(timm.create_model("vit_base_patch16_224", embed_dim=48, depth=1, num_heads=4), dtype=torch.float32)
    source, target = tmp_path / "w.safetensors", tmp_path / "out"
    save_file(model.state_dict(), source)
    assert "width of 48" in refused(capsys, "convert", source, target)
    assert status("convert", source, target, "--heads", "4") == 0
    again = timm.create_model(f"local-dir:{target}", pretrained=True)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("arguments", "words"), [
    ("gone.npz out", ["gone.npz"]), ("page.pth out", ["page.pth", "web page"]), ("page.pth", ["convert"]),
    ("w.npz out --to onnx", ["'onnx'", "vitrail", "google", "timm", "huggingface", "torchvision"]),
    ("w.npz w.npz --to google", ["w.npz exists"]),
])  # fmt: skip
def test_bad_input_is_one_sentence(npz, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    said = refused(capsys, "convert", *arguments.split())
    assert all(word in said for word in words)
    assert not (tmp_path / "out").exists()


BARE = ((16, 16), (8, 8), 3, 24, 2, 2, 36, 10)


@pytest.mark.parametrize("more", [
    {}, {"registers": 2}, {"registers": 2, "activation": "swiglu"}, {"positions": "sincos"},
    {"pool": "distilled", "registers": 1},
])  # fmt: skip
def test_a_stream_of_tensors_is_the_file_that_is_written_at_once(tmp_path, more):
    model = perturb(vit.Config(*BARE, **more).build(), dtype=torch.float32)
    task = Classify(model, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3), ClassifyConfig(), tuple("abcdefghij"))
    Pipeline(task).save(tmp_path / "once")
    alive, most = [], 0

    def read(name):
        nonlocal most
        found = task.state_dict()[name].clone()
        alive[:] = [*(one for one in alive if one() is not None), weakref.ref(found)]
        most = max(most, len(alive))
        return found

    card = Card(model.config, task.preprocessing, task.class_names, dump(task.config))
    write(tmp_path / "stream", {name: tensor.to("meta") for name, tensor in model.state_dict().items()}, card, {}, read)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "stream" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    assert most <= 2


def test_a_checkpoint_becomes_the_model_that_its_run_would_write(tmp_path, capsys):
    trainer = start(small(ema=0.9), tmp_path / "run")
    for tensor in trainer.ema.tensors.values():
        tensor.add_(0.5)
    tensors = checkpoint.tensors(trainer.task, trainer.optimizer, trainer.ema)
    one = checkpoint.write(tmp_path / "run" / "checkpoints", 1, tensors, keep=1)
    several = as_two(tensors, tmp_path / "run" / "checkpoints" / "step-2")
    with trainer.ema.swapped():
        trainer.pipeline().save(tmp_path / "expected")
    wanted = {name: (tmp_path / "expected" / name).read_bytes() for name in ("model.safetensors", "config.json")}
    for step in (one, several):
        printed(capsys, "convert", step, tmp_path / step.name)  # the classes are the data's
        assert {name: (tmp_path / step.name / name).read_bytes() for name in wanted} == wanted
    done, _ = printed(capsys, "convert", several, tmp_path / "out.safetensors")
    assert (done["from"], done["tensors"], len(done["lost"])) == ("a checkpoint", 32, 1)
    assert (tmp_path / "out.safetensors").read_bytes() == wanted["model.safetensors"]
    assert status("convert", several, tmp_path / "theirs", "--to", "huggingface") == 0
    assert status("convert", several, tmp_path / "large", "--image-size", "48") == 0


def test_a_checkpoint_that_cannot_be_converted_is_one_sentence(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "photos", ("ash", "beech"))
    run = small(data=Data(str(tmp_path / "photos")), model=replace(small().model, classes=2), ema=0.0)
    step = tmp_path / "run" / "checkpoints" / "step-1"
    trainer = start(run, tmp_path / "run")
    checkpoint.write(step.parent, 1, checkpoint.tensors(trainer.task, trainer.optimizer), keep=1)
    assert "exists already" in refused(capsys, "convert", step, tmp_path)
    shutil.rmtree(tmp_path / "photos")
    assert status("convert", step, tmp_path / "out") == 0
    assert "the classes get numbers" in capsys.readouterr().err
    (tmp_path / "run" / "run.json").rename(tmp_path / "run" / "moved.json")
    assert "no run.json" in refused(capsys, "convert", step, tmp_path / "b")
    (tmp_path / "run" / "moved.json").rename(tmp_path / "run" / "run.json")
    (step / "tensors.safetensors").write_bytes(b"cut")
    assert "tensors.safetensors has 3 bytes" in refused(capsys, "convert", step, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
