"""Costs: the figures of the paper's models, and every operation counted as torch's own counter counts them."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models import cost, resnet
from vitrail.models.vit import Config
from vitrail.models.zoo import configure


@pytest.mark.parametrize(
    ("name", "parameters", "at_224", "at_384"),
    [
        ("ViT-B/16", 86_567_656, 35.13, 110.97),
        ("ViT-L/16", 304_326_632, 123.11, 382.13),
        ("ViT-H/14", 632_045_800, 334.59, 1006.96),
        ("ViT-Ti/16", 5_717_416, None, None), ("ViT-S/16", 22_050_664, None, None),
        ("R50+ViT-B/16", 98_659_112, None, None),
    ],
)  # fmt: skip
def test_the_papers_models_cost_what_they_are_known_to_cost(name, parameters, at_224, at_384):
    config = configure(name, remainder="crop")  # 384 / 14 leaves 6 pixels over
    assert cost.parameters(config) == parameters
    for size, gflop in ((224, at_224), (384, at_384)):
        assert gflop in (None, round(cost.flops(config, (size, size)) / 1e9, 2))


def counted(config, size, training=False):
    model = config.build("meta").eval()
    images = torch.empty(1, config.channels, *size, device="meta")
    # The unfused form: matrix products, which the counter knows on every device.
    with torch.set_grad_enabled(training), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs = model(images)
        if training:
            outputs.sum().backward()
    return counter.get_total_flops()


STEM = resnet.Config(blocks=(1, 2), classes=0)
SMALL = {"image_size": (32, 48), "patch_size": (4, 4), "width": 32, "depth": 2, "heads": 2, "mlp_dim": 40, "classes": 7}
COUNTED = {
    "plain": Config(**SMALL),
    "MAP, SwiGLU": Config(**SMALL, pool="map", activation="swiglu", class_token=False),
    "mean, registers": Config(**SMALL, pool="avg", registers=3),
    "pre-logits": Config(**SMALL, representation=24),
    "no head": Config(**{**SMALL, "classes": 0}),
    "wide patch, grey": Config(**{**SMALL, "patch_size": (2, 8), "channels": 1}),
    "crop": Config(**SMALL, remainder="crop"),
    "hybrid": Config(**{**SMALL, "patch_size": (2, 2)}, stem=STEM),
    "hybrid, crop": Config(**{**SMALL, "patch_size": (1, 1)}, stem=STEM, remainder="crop"),
    "ResNet": resnet.Config(blocks=(1, 2, 1), classes=7),
    "ResNet x2": resnet.Config(blocks=(2,), width_factor=2, classes=0, channels=1),
    "R50+ViT-B/16": configure("R50+ViT-B/16"),
    "SigLIP": configure("vit_so400m_patch14_siglip_384"),
    "DINOv2-g": configure("vit_giant_patch14_reg4_dinov2"),
}


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (224, 384)])
@pytest.mark.parametrize("name", COUNTED)
def test_operations_are_those_that_torch_counts(name, size):
    assert cost.flops(COUNTED[name], size) == counted(COUNTED[name], size)


@pytest.mark.parametrize("name", [name for name in COUNTED if getattr(COUNTED[name], "stem", True) is None])
def test_training_costs_three_forward_passes_but_for_the_gradient_of_the_image(name):
    config, (rows, columns) = COUNTED[name], COUNTED[name].grid((32, 48))
    patches = 2 * rows * columns * config.channels * config.patch_size[0] * config.patch_size[1] * config.width
    assert counted(config, (32, 48), training=True) == 3 * cost.flops(config, (32, 48)) - patches


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
@pytest.mark.parametrize("name", [name for name in COUNTED if isinstance(COUNTED[name], Config)])
def test_tokens_are_the_length_of_the_sequence(name, size):
    config = COUNTED[name]
    images = torch.empty(1, config.channels, *size, device="meta")
    assert cost.tokens(config, size) == config.build("meta").tokens(images).shape[1]
