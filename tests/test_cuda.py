"""What holds on a CPU holds on a GPU: run where there is one (`pytest tests/test_cuda.py`), skipped elsewhere.

VITRAIL_TRY=1 puts the CPU in the GPU's place, which tries these tests themselves.
"""

import io
import os
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import CONFIG, judged, samples, source, task
from reference import perturb
from small_runs import EVERYTHING, crash_at, goes_on, history, logged, small, start

from vitrail import Pipeline
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.evaluate import Attentive, Calibration, Fewshot, Knn, Linear
from vitrail.explain.explanation import explain
from vitrail.explain.figures import components, inside, overlay, sheet
from vitrail.models import vit
from vitrail.models.layers import drawing
from vitrail.models.zoo import configure, override
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.runtime.blocks import checkpoint_blocks, compile_blocks, pick_device
from vitrail.runtime.inference import prepared
from vitrail.tasks import Classify
from vitrail.train import Backward

TRIED = "VITRAIL_TRY" in os.environ
GPU = "cpu" if TRIED else "cuda"
pytestmark = pytest.mark.skipif(not TRIED and not torch.cuda.is_available(), reason="needs a GPU")

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def _chosen(monkeypatch):
    """As every command does; cuDNN would round fp32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pick_device(GPU)


def built(name, size=SIZE, **more):
    more |= {} if "BiT" in name else {"image_size": size}
    config = override(configure(name), name, {"classes": 10, **more})
    model = config.build("cpu")
    model.init_weights(0)
    return perturb(model, dtype=torch.float32)


def images(count=4, size=SIZE):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["ViT-Ti/16", "R50+ViT-B/16", "BiT-R50x1"])
def test_logits_are_the_cpus_in_fp32(name):
    model = built(name)
    with torch.no_grad():
        expected = model(images())
        for how in (model.to(GPU), prepared(model.to(GPU))):
            found = how(images().to(GPU)).cpu()
            assert float((found - expected).abs().max() / expected.std()) < 1e-4


def test_dropout_and_stochastic_depth_draw_the_same(tmp_path):
    model, keys = built("ViT-Ti/16", dropout=0.2, drop_path=0.2).train(), torch.arange(4) * 7 + 2**40
    with torch.no_grad():
        with drawing(model, keys):
            expected = model(images())
        model.to(GPU)
        with drawing(model, keys.to(GPU)):
            found = model(images().to(GPU)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_run_in_fp32_is_the_cpus(tmp_path, quick, name):
    run = small(
        **EVERYTHING,
        precision="fp32",
        optim=optim.Config(name, lr=1e-3, weight_decay=0.0, schedule=Schedule(warmup="2 steps")),
    )
    for name, device in (("one", "cpu"), ("other", GPU)):
        start(replace(run, device=device), tmp_path / name).fit()
    losses, others = (logged(tmp_path / name, "loss") for name in ("one", "other"))
    np.testing.assert_allclose(others, losses, rtol=2e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(tmp_path, quick, exact):
    run = small(**EVERYTHING, device=GPU, exact=exact, workers=2)
    start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "cut"), 7)
    goes_on(tmp_path)


@pytest.mark.parametrize("how", [{"precision": "fp64"}, {"precision": "bf16"}, {"checkpointing": True}])
def test_other_ways_to_compute_train(tmp_path, quick, how):
    start(small(device=GPU, duration="40 steps", **how), tmp_path / "run").fit()
    losses = logged(tmp_path / "run", "loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    (line, *_) = [r for r in history(tmp_path / "run") if "loss" in r]
    assert line["gradient_norm"] > 0


@pytest.mark.parametrize(
    "precision", ["bf16", pytest.param("fp8", marks=pytest.mark.skipif(TRIED, reason="no fp8 on a CPU"))]
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_runs_train(tmp_path, quick, unchecked, precision):
    run = small(device=GPU, duration="40 steps", compile=True, precision=precision, augment=Augment(mixup=0.2))
    start(replace(run, model=replace(run.model, width=32, mlp_dim=64)), tmp_path / "run").fit()
    losses = logged(tmp_path / "run", "loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_checkpointing_and_compiling_leave_the_gradient(unchecked):
    grads = {}
    for name, change in (("plain", lambda _: None), ("kept", checkpoint_blocks), ("compiled", compile_blocks)):
        owner = task(vit.Config((8, 8), (4, 4), 3, 32, 3, 2, 64, 3)).to(GPU).train()
        change(owner)
        some = source(8)
        batch = owner.config.collate(samples(some), source=some).to(GPU)
        Backward(8, nullcontext())(owner, owner, batch)
        grads[name] = torch.cat([p.grad.flatten() for p in owner.parameters()])
    torch.testing.assert_close(grads["kept"], grads["plain"], rtol=0, atol=0)
    torch.testing.assert_close(grads["compiled"], grads["plain"], rtol=1e-3, atol=1e-5)


def test_predictions_are_the_cpus(tmp_path):
    owner = task()
    Pipeline(owner).save(tmp_path / "model")
    pictures = [np.random.default_rng(n).integers(0, 255, (20 + n, 24, 3), np.uint8) for n in range(5)]
    found = {name: Pipeline.load(tmp_path / "model", device=name)(pictures) for name in ("cpu", GPU, "auto")}
    for name in (GPU, "auto"):
        for ours, theirs in zip(found[name], found["cpu"], strict=True):
            assert [p.label for p in ours] == [p.label for p in theirs]
            np.testing.assert_allclose([p.probability for p in ours], [p.probability for p in theirs], atol=1e-5)


@pytest.mark.parametrize("evaluator", [Fewshot(), Knn(), Linear(), Attentive(), Calibration()])
def test_evaluators_find_what_they_find_on_a_cpu(tmp_path, monkeypatch, evaluator):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    found = {}
    for device in ("cpu", GPU):
        owner = task().to(device)
        metrics, _ = judged(evaluator, owner, source(120), train=source(240, seed=3), device=torch.device(device))
        found[device] = metrics
    assert found[GPU].keys() == found["cpu"].keys()
    for name, value in found["cpu"].items():
        if isinstance(value, float):
            assert found[GPU][name] == pytest.approx(value, abs=0.03), name


@pytest.mark.parametrize("method", ["gradient", "legrad", "rollout", "attention"])
def test_explanations_are_the_cpus_and_are_drawn(method):
    config, grey = replace(CONFIG, image_size=(32, 32)), Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    some, found = np.random.default_rng(0).integers(0, 255, (40, 36, 3), np.uint8), []
    for name in ("cpu", GPU):
        torch.manual_seed(1)
        owner = Classify(config.build("cpu"), grey, class_names=("a", "b", "c")).to(name)
        torch.nn.init.normal_(owner.model.head.weight)
        owner.load_state_dict(found[0][1] if found else owner.state_dict())
        each = explain(Pipeline(owner), some, method=method, labels=["a", "b"], faithfulness=True)
        found.append((each, {key: value.cpu() for key, value in owner.state_dict().items()}))
        for figure in (overlay([each]), sheet(each), components([each]), inside(owner.model, each.distances)):
            figure.savefig(io.BytesIO())
    for name, value in found[0][0].arrays().items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[1][0].arrays()[name], value, rtol=1e-2, atol=1e-3, err_msg=name)
