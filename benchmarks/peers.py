"""The same Vision Transformer in four libraries, so that only the code differs and never the model.

    from benchmarks.peers import Case, build
    model = build("timm", Case.parse("B/16@224"))        # images (B, 3, H, W) -> logits (B, 1000)

Weights are random and nothing is downloaded. Every model is the paper's: learned positions, [class] token, exact
GELU, LayerNorm with eps 1e-6, no dropout, no pre-logits layer; each library runs its fused attention. `build` fails
when a model's parameter count is not the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = 1000


@dataclass(frozen=True)
class Architecture:
    """One row of the paper's table of sizes; `parameters` at 224 pixels with 1000 classes."""

    width: int
    heads: int
    word: str
    parameters: int
    layers: int = 12
    patch: int = 16

    @property
    def mlp(self) -> int:
        """Width of the hidden layer."""
        return 4 * self.width


ARCHITECTURES = {
    "Ti": Architecture(192, 3, "tiny", 5_717_416),
    "S": Architecture(384, 6, "small", 22_050_664),
    "B": Architecture(768, 12, "base", 86_567_656),
    "L": Architecture(1024, 16, "large", 304_326_632, 24),
    "H": Architecture(1280, 16, "huge", 632_045_800, 32, 14),
}
SMALL_PATCHES = ("Ti/4",)  # beside the paper's: 65 tokens from images of 32 pixels


@dataclass(frozen=True)
class Case:
    """A model at an image size, written "B/16@384"."""

    size: str
    patch: int
    resolution: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Reads "B/16@384"."""
        name, _, resolution = text.strip().partition("@")
        size, _, patch = name.partition("/")
        known = [f"{size}/{found.patch}" for size, found in ARCHITECTURES.items()] + list(SMALL_PATCHES)
        if name not in known or not resolution.isdigit():
            raise ValueError(f"case {text!r} is not one of {', '.join(known)}, then @ and a size")
        if int(resolution) % int(patch):
            raise ValueError(f"case {text!r}: the patch, {patch}, does not divide {resolution}")
        return cls(size, int(patch), int(resolution))

    def __str__(self) -> str:
        return f"{self.name}@{self.resolution}"

    @property
    def name(self) -> str:
        """The model without the image size: "B/16"."""
        return f"{self.size}/{self.patch}"

    @property
    def architecture(self) -> Architecture:
        """Its row of the table."""
        return ARCHITECTURES[self.size]

    @property
    def tokens(self) -> int:
        """How many patches there are, and the [class] token."""
        return (self.resolution // self.patch) ** 2 + 1

    @property
    def parameters(self) -> int:
        """The exact count: only the table of positions depends on the image size, only the embedding on the patch."""
        paper = self.architecture
        tokens_at_224 = (224 // paper.patch) ** 2 + 1
        pixels = 3 * (self.patch**2 - paper.patch**2)
        return paper.parameters + (self.tokens - tokens_at_224 + pixels) * paper.width

    @property
    def gflop(self) -> float:
        """2 x multiply-adds of a forward pass of one image, to choose a batch by; results use what torch counts."""
        D, M, P, n = self.architecture.width, self.architecture.mlp, self.patch, self.tokens
        layer = n * (4 * D * D + 2 * D * M) + 2 * n * n * D
        return 2 * ((n - 1) * 3 * P**2 * D + self.architecture.layers * layer + D * CLASSES) / 1e9


def build_vitrail(case: Case) -> nn.Module:
    """Vitrail, by the paper's name."""
    import vitrail

    name, size, patch = f"ViT-{case.size}/{case.architecture.patch}", (case.resolution,) * 2, (case.patch,) * 2
    return vitrail.create(name, classes=CLASSES, image_size=size, patch_size=patch)


def build_timm(case: Case) -> nn.Module:
    """timm, by its own name for this architecture."""
    import timm

    name = f"vit_{case.architecture.word}_patch{case.architecture.patch}_224"
    sizes = {"img_size": case.resolution, "patch_size": case.patch}
    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **sizes)


def build_transformers(case: Case) -> nn.Module:
    """Hugging Face transformers, without its pooler, with the fastest attention that it has on a CPU."""
    from torch import nn
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=case.architecture.width,
        num_hidden_layers=case.architecture.layers,
        num_attention_heads=case.architecture.heads,
        intermediate_size=case.architecture.mlp,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        image_size=case.resolution,
        patch_size=case.patch,
        qkv_bias=True,
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )

    class Logits(nn.Module):
        """Unpacks the output object: the other libraries return a tensor."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(pixel_values=images).logits

    return Logits(ViTForImageClassification(config))


def build_torchvision(case: Case) -> nn.Module:
    """torchvision, by its class: it has no function for Ti and S."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=case.resolution,
        patch_size=case.patch,
        num_layers=case.architecture.layers,
        num_heads=case.architecture.heads,
        hidden_dim=case.architecture.width,
        mlp_dim=case.architecture.mlp,
        num_classes=CLASSES,
    )


BUILDERS: dict[str, Callable[[Case], nn.Module]] = {
    "vitrail": build_vitrail,
    "timm": build_timm,
    "transformers": build_transformers,
    "torchvision": build_torchvision,
}


def build(library: str, case: Case) -> nn.Module:
    """The model of one library. AssertionError where its parameters are not as many as the paper's."""
    import torch

    torch.manual_seed(0)
    model = BUILDERS[library](case)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != case.parameters:
        raise AssertionError(f"{library}'s {case} has {count:,} parameters, the paper's has {case.parameters:,}")
    with torch.no_grad():
        # A head of zeros sends zeros through the whole backward pass, and zeros cost less power on a GPU.
        for parameter in model.parameters():
            if parameter.shape == (CLASSES, case.architecture.width):
                parameter.normal_(std=0.02)
    return model
