"""A student and its teacher."""

import json

import numpy as np
import pytest
import torch
from command_line import photos, refused, status
from reference import perturb
from safetensors.torch import load_file

from vitrail import Pipeline
from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.models import vit
from vitrail.tasks import Classify, DistillConfig

HOW = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
THEIRS = Preprocessing((24, 24), (0.4,) * 3, (0.3,) * 3)


def model(size, width, classes):
    return perturb(vit.ViT(vit.Config((size, size), (8, 8), 3, width, 2, 2, 32, classes)))


def pair(target, heat=2.0):
    teacher, outputs = model(24, 20, 5), {"features": 20, "logits": 5}[target]
    task = DistillConfig("somewhere", target, outputs, heat).task(model(16, 12, 0), HOW, ())
    task.init_weights(0)
    task.double()
    task.learn_from(teacher, THEIRS)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return task, teacher, Batch(images=images, keys=torch.arange(6))


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("target", ["features", "logits"])
def test_the_loss_is_that_of_the_equations(target):
    task, teacher, batch = pair(target)
    loss, metrics = task(batch)
    resized = torch.nn.functional.interpolate(batch["images"].float(), (24, 24), mode="bicubic", antialias=True)
    seen = normalise(resized.clamp(0, 255), THEIRS, torch.float64)
    with torch.no_grad():
        wanted = (teacher(seen) if target == "logits" else teacher.represent(seen)).float().double().numpy()
        said = task.extra.leave(task.model.represent(task.input(batch["images"]))).numpy()
    if target == "features":
        cosines = (said * wanted).sum(1) / np.linalg.norm(said, axis=1) / np.linalg.norm(wanted, axis=1)
        expected = 1 - cosines.mean()
        assert float(metrics["cosine"]) == pytest.approx(cosines.mean(), abs=1e-6)
    else:
        expected = -4 * (softmax(wanted / 2) * np.log(softmax(said / 2))).sum(1).mean()
        assert float(metrics["same"]) == pytest.approx((said.argmax(1) == wanted.argmax(1)).mean())
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert task.extra.leave.weight.grad.abs().max() > 0
    assert not [name for name in task.state_dict() if "teacher" in name]


def test_what_does_not_fit_is_said():
    task, teacher, _ = pair("features")
    with pytest.raises(ValueError, match=r"1 channels.* 3"):
        task.learn_from(vit.ViT(vit.Config((8, 8), (4, 4), 1, 12, 1, 2, 12, 0)), THEIRS)
    with pytest.raises(ValueError, match=r"has no head"):
        DistillConfig("x", "logits", 3).task(model(16, 12, 0), HOW, ()).learn_from(model(24, 20, 0), THEIRS)
    with pytest.raises(ValueError, match=r"20 numbers.*outputs is 7"):
        DistillConfig("x", outputs=7).task(model(16, 12, 0), HOW, ()).learn_from(teacher, THEIRS)


def test_the_command_makes_a_student_whose_checkpoints_have_no_teacher(tmp_path, capsys):
    data = photos(tmp_path / "photos", ["a", "b"], count=20)
    teacher = perturb(vit.ViT(vit.Config((32, 32), (8, 8), 3, 24, 2, 2, 48, 2)), dtype=torch.float32)
    Pipeline(Classify(teacher, HOW, None, ("a", "b"))).save(tmp_path / "teacher")
    words = ["--duration", "40 steps", "--batch", "16", "--optim.lr", "3e-3", "--json", "--workers", "0"]
    run = tmp_path / "run"
    assert status("pretrain", data, "--teacher", tmp_path / "teacher", "--out", run, *words) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["knn"] > 0.9
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in losses if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]
    (kept,) = (run / "checkpoints" / "step-40").glob("*.safetensors")
    assert {name.split(".")[0].rpartition("/")[2] for name in load_file(kept)} <= {"model", "extra"}
    assert status("convert", run / "checkpoints" / "step-40", tmp_path / "out") == 0
    assert Pipeline.load(tmp_path / "out").task.model.config.classes == 0
    capsys.readouterr()
    assert "belong together" in refused(capsys, "pretrain", data, "--task", "distill")
