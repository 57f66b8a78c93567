"""What the shapes of a checkpoint tell of its model, and what they leave open: the grid, and the number of heads."""

import math
from collections.abc import Mapping
from dataclasses import replace

from vitrail.models import vit
from vitrail.models.zoo import zoo

Shapes = Mapping[str, tuple[int, ...]]


def square(config: vit.Config, rows: int, image_size: tuple[int, int] | None) -> vit.Config:
    """`config` at the image size that a table of `rows` positions was made for: square, or the one that is said.

    ValueError where no square fits, and none or another size is said.
    """
    count = rows - int(config.class_token and config.class_position)
    side = math.isqrt(count)
    if side * side == count:
        return replace(config, image_size=(side * config.stride[0], side * config.stride[1]))
    if image_size is None or math.prod(config.grid(image_size)) != count:
        raise ValueError(f"{count} positions make no square grid; say which image_size=(height, width) they are for.")
    return replace(config, image_size=image_size)


def head_count(width: int, depth: int) -> int:
    """The number of heads of the models of this width and depth that are known; otherwise one for 64 channels.

    ValueError where neither can be: state dicts do not say how many heads there are.
    """
    known = {c.heads for c in zoo().values() if isinstance(c, vit.Config) and (c.width, c.depth) == (width, depth)}
    if len(known) == 1:
        return known.pop()
    if width % 64:
        raise ValueError(f"a width of {width} does not tell the number of heads; say heads=...")
    return width // 64
