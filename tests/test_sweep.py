"""Every architecture of timm whose tensors a loader takes for a ViT's: what it computes, or a refusal; never another.

pytest -m slow tests/test_sweep.py -rP      # prints the counts
"""

import gc
import json

import pytest
import timm
import torch

from vitrail.weights.load import load

LARGEST = 16_500_000  # parameters, cut to two blocks: what is wider has narrower siblings
MODULES = ["vision_transformer", "deit", "beit", "eva", "cait", "vision_transformer_relpos", "vision_transformer_sam"]
MODULES += ["vision_transformer_hybrid", "naflexvit", "xcit", "volo", "vitamin"]


def built(name):
    """(a small model of an architecture, its arguments); None where it cannot be cut, or is large all the same."""
    with torch.device("meta"):
        patch = getattr(timm.create_model(name), "patch_embed", None)
    stride = patch.feat_ratio() if isinstance(patch, timm.layers.PatchEmbed) else 16
    for arguments in ({"depth": 2, "img_size": 4 * stride}, {"depth": 2}, {}):
        try:
            with torch.device("meta"):
                count = sum(p.numel() for p in timm.create_model(name, **arguments).parameters())
            return (timm.create_model(name, **arguments).eval(), arguments) if count <= LARGEST else None
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError):
            continue
    return None


def verdict(path, model, images, expected):
    try:
        found = load(path)
    except ValueError:
        return "refused"
    with torch.no_grad():
        error = (found(images) - expected).abs().max()
    return "exact" if error <= 2e-5 * expected.abs().max().clamp_min(0.1) else "wrong"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of timm, about its own deprecations
@pytest.mark.parametrize("module", MODULES)
def test_no_architecture_of_timm_comes_through_wrong(tmp_path, module):
    found = {}
    for name in timm.list_models(module=module):
        if (made := built(name)) is None:
            continue
        model, arguments = made
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter + noise * 0.02 if parameter.ndim == 1 else noise * parameter[0].numel() ** -0.5
        channels, *size = model.pretrained_cfg["input_size"]
        side = arguments.get("img_size")
        images = torch.randn(2, channels, *((side, side) if side else size), generator=generator)
        with torch.no_grad():
            expected = model(images)
        torch.save(model.state_dict(), tmp_path / "w.pth")
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps({"architecture": name, "model_args": arguments}))
        found[name] = [verdict(path, model, images, expected) for path in (tmp_path / "w.pth", folder)]
        del model, made
        gc.collect()
    for place, form in enumerate(("bare", "folder")):
        kinds = [verdicts[place] for verdicts in found.values()]
        print(module, form, *(f"{kind} {kinds.count(kind)}" for kind in ("exact", "refused", "wrong")))
    assert {name: verdicts for name, verdicts in found.items() if "wrong" in verdicts} == {}
