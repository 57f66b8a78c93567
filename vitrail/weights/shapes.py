"""What the shapes of a checkpoint tell about its model, and what they leave open: the grid, and the number of heads."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from vitrail.models import resnet, vit
from vitrail.models.zoo import zoo


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
        return resnet.Config(tuple(counts[s] for s in sorted(counts)), width // 64, channels, classes=0)


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
    raise ValueError(f"{candidates[0][1]} positions make no square grid; give their image_size=(height, width).")


def head_count(width: int, depth: int) -> int:
    """The number of heads of the models of this width and depth that are known; otherwise one for 64 channels.

    ValueError where neither can be: state dicts do not tell how many heads there are.
    """
    known = {c.heads for c in zoo().values() if isinstance(c, vit.Config) and (c.width, c.depth) == (width, depth)}
    if len(known) == 1:
        return known.pop()
    if width % 64:
        raise ValueError(f"a width of {width} does not tell the number of heads; give heads=...")
    return width // 64
