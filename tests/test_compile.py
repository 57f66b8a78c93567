"""torch.compile, mixed and half precision: the same results as in eager float32, within stated bounds."""

import pytest
import torch
from reference import perturb

from vitrail.models import resnet
from vitrail.models.vit import Config, ViT

SMALL = {"image_size": (16, 16), "patch_size": (8, 8), "width": 32, "depth": 1, "heads": 2, "mlp_dim": 48, "classes": 5}
CASES = {
    "plain": {},
    "everything": {
        "registers": 2, "class_position": False, "pool": "map", "layer_scale": 1e-5, "qk_norm": True,
        "activation": "swiglu", "representation": 24,
    },
    "sin-cos": {"positions": "sincos"},
    "hybrid": {"patch_size": (2, 2), "stem": resnet.Config(blocks=(1,), classes=0), "image_size": (32, 32)},
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()


def tiny(case="plain", **overrides):
    return perturb(ViT(Config(**{**SMALL, **CASES[case], **overrides})), dtype=torch.float32)


def pixels(model, size=None, batch=2):
    return torch.randn(batch, 3, *(size or model.config.image_size), generator=torch.Generator().manual_seed(1))


def gradients(model, run, images):
    model.zero_grad()
    logits = run(images)
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


def same(model, images, backend, tolerance):
    run = torch.compile(model, fullgraph=True, backend=backend)
    eager = gradients(model, model, images)
    for expected, found in zip(eager, gradients(model, run, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(run(images), eager[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("other", [False, True], ids=["own size", "other size"])
@pytest.mark.parametrize("case", CASES)
def test_one_graph_gives_the_same_logits_and_gradients(case, other):
    model = tiny(case)
    height, width = model.config.image_size
    same(model, pixels(model, (height + 3, 2 * width) if other else None), "aot_eager", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "hybrid"])
def test_inductors_code_gives_the_same_logits_and_gradients(case):
    model = tiny(case)
    same(model, pixels(model), "inductor", 2e-5)


def test_a_size_is_compiled_once():
    model = tiny()
    with torch.compiler.set_stance("default"), torch.no_grad():
        run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
        for size in ((16, 16), (24, 16)):
            run(pixels(model, size))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in ((24, 16), (16, 16)):
                run(pixels(model, size))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_stays_near_float32_as_does_autocast_whose_gradients_are_in_float32(case):
    model = tiny(case, depth=2)
    images = pixels(model, batch=4)
    expected = model(images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    logits.float().square().mean().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    # bfloat16 has 8 bits: each of the few roundings on the way is of 2^-9 of the value.
    for found in (logits, model.to(torch.bfloat16)(images.to(torch.bfloat16))):
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() <= 0.03 * expected.norm()
