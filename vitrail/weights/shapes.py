"""What the shapes of a checkpoint tell about its model."""

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from vitrail.models import resnet, vit
from vitrail.weights.mapping import TRAINING

V = TypeVar("V")


class Shapes(dict[str, tuple[int, ...]]):
    """name -> shape of every tensor, and what can be read from them."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Shapes":
        """Those of tensors."""
        return cls((name, tuple(tensor.shape)) for name, tensor in tensors.items())

    def sizes(self, name: str, count: int) -> tuple[int, ...]:
        """The dimensions of a tensor. ValueError where it is missing, or has not `count` of them."""
        if name not in self:
            raise ValueError(f"there is no tensor {name}: the file is incomplete, or of another architecture.")
        if len(self[name]) != count:
            raise ValueError(f"{name} is {self[name]}; a Vision Transformer's has {count} dimensions.")
        return self[name]

    def size(self, name: str, axis: int = 0, count: int = 2) -> int:
        """One dimension of a tensor that has `count`; 0 where there is no such tensor."""
        return self.sizes(name, count)[axis] if name in self else 0

    def depth(self, pattern: str) -> int:
        """How many numbers the pattern's group finds at the beginning of the names."""
        return len({found[1] for name in self if (found := re.match(pattern, name))})

    def stem(self, pattern: str, width: int, channels: int) -> resnet.Config:
        """The stem of a hybrid. pattern: finds (stage, bottleneck) in the names. width: of the first convolution."""
        units = {tuple(map(int, found.groups())) for name in self if (found := re.search(pattern, name))}
        counts = Counter(stage for stage, _ in units)
        return resnet.Config(
            tuple(counts[s] for s in sorted(counts)),
            width // 64 if width % 64 == 0 else width / 64,
            channels,
            classes=0,
        )


def placed(
    candidates: Sequence[tuple[vit.Config, int]], asked: tuple[int, int] | None, own: tuple[int, int] | None = None
) -> vit.Config:
    """The first (configuration, positions of patches) that fit, with the image size that the positions were made for:
    the file's own, otherwise a square, otherwise the one that is asked for.

    ValueError where none fits.
    """
    for kind, size in (("own", own), ("square", None), ("asked", asked)):
        for config, count in candidates:
            side = math.isqrt(max(count, 0))
            if kind == "square" and side and side * side == count:
                return replace(config, image_size=(side * config.stride[0], side * config.stride[1]))
            if size and math.prod(config.grid(size)) == count:
                return replace(config, image_size=size)
    raise ValueError(
        f"{candidates[0][1]} positions make no square grid; give their image_size=(height, width), or --image-size H W."
    )


def linear_head(shapes: Mapping[str, tuple[int, ...]], features: Container[int]) -> str | None:
    """The name of the one linear layer that could read the model's answer, where it is not called `head`: "fc",
    "classifier", "head.0". features: widths of the answer. None where there is none, or more than one."""
    own = re.compile(
        r"^(blocks|patch_embed|attn_pool|pre_logits|norm\w*|fc_norm|rel_pos_bias|head_dist|encoder|conv_proj|decoder\w*)\."
    )
    if "head.weight" in shapes:
        return None
    found = [n for n, shape in shapes.items() if not own.match(n) and len(shape) == 2 and n.endswith(".weight")]
    if len(found) != 1 or shapes[found[0]][1] not in features or TRAINING.search(found[0]):
        return None
    return found[0].removesuffix(".weight")


def renamed(found: Mapping[str, V], head: str | None, name: str = "head") -> dict[str, V]:
    """The same by other names: the layer `head` is called `name`."""
    if head is None:
        return dict(found)
    back = {f"{head}.{leaf}": f"{name}.{leaf}" for leaf in ("weight", "bias")}
    return {back.get(name, name): value for name, value in found.items()}
