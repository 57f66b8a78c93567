"""Images as Python has them: paths, bytes, open files, Pillow's, arrays and tensors, one or several.

    listed(photos)              # an iterable of single images; None where it is one image
    content(image, 3, "cat")    # what decode.opened takes
    own(image)                  # a copy, where it may be changed

Arrays are (H, W), or (H, W, C) with the channels last; tensors are (C, H, W), as torchvision has them. One dimension
more, in front, makes a batch. Their numbers are uint8; or bool, where True is white; or floats in [0, 1], which become
bytes, rounded to the nearest. All else is refused: nothing says which number is white, and images that are normalised
would be normalised twice. Where a model has 1 or 3 channels, 2 channels are grey and alpha, 4 are RGB and alpha.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@runtime_checkable
class Readable(Protocol):
    """An open file, or what behaves like one."""

    def read(self, size: int = -1, /) -> Any:
        """Its bytes, from where it is."""
        ...


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy can read: tensors of other libraries, columns of a table."""

    def __array__(self) -> Any: ...


def listed(images: Any) -> Iterable[Any] | None:
    """The images one by one, where there are several; None for a single image. A table's column, or an array of texts,
    holds paths."""
    if isinstance(images, ArrayLike) and not isinstance(images, Tensor | Image.Image):
        images = np.asarray(images)
        if images.dtype.kind in "OUS":
            return np.atleast_1d(images).tolist()
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else None
    single = str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Readable | Mapping
    return images if isinstance(images, Iterable) and not isinstance(images, single) else None


def own(image: Any) -> Any:
    """A copy, where whoever gave the image may change it before it is read: frames of a film are often one object."""
    if isinstance(image, np.ndarray):
        return image.copy()
    if isinstance(image, Tensor):
        return image.detach().clone()
    if isinstance(image, Image.Image):
        try:
            made = image.copy()
            made.getexif().update(image.getexif())
            return made
        except Exception:  # a damaged one, of which `content`'s reader says what is wrong
            return image
    return image


def content(image: Any, channels: int, name: str) -> bytes | NDArray[np.uint8] | Image.Image:
    """A single image, which is no path, for a model with so many channels. ValueError where it cannot be one."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Readable):
        image = image.read()
        if isinstance(image, str):
            raise ValueError(f"{name} is a file that is open as text; open it with 'rb'.")
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, Tensor | ArrayLike):
        kinds = "a path, bytes, an open file, an image of Pillow's, an array or a tensor"
        raise ValueError(f"{name} is {'None' if image is None else f'of type {type(image).__name__}'}; give {kinds}.")
    if np.ma.is_masked(image):
        raise ValueError(f"{name} has masked pixels; fill them first.")
    image = image if isinstance(image, Tensor) else np.asarray(image)
    shape, first = tuple(np.shape(image)), isinstance(image, Tensor)
    fitting = {1, 2, 3, 4, channels}
    if len(shape) not in (2, 3) or 0 in shape:
        order = "(channels, height, width)" if first else "(height, width, channels)"
        raise ValueError(f"{name} has the shape {shape}; it must be {order}.")
    if len(shape) == 3 and shape[0 if first else 2] not in fitting and shape[2 if first else 0] in fitting:
        turn = "a tensor comes first: permute(2, 0, 1)" if first else "an array comes last: transpose(1, 2, 0)"
        raise ValueError(f"{name} has the shape {shape}, but the channel of {turn}.")
    values = _bytes(image, f"{name} is {str(image.dtype).removeprefix('torch.')} {shape}")
    values = values[..., None] if values.ndim == 2 else values.transpose(1, 2, 0) if first else values
    if values.shape[2] in (2, 4) and channels in (1, 3):
        return Image.fromarray(np.ascontiguousarray(values))
    return values


def _bytes(image: Any, what: str) -> NDArray[np.uint8]:
    """The numbers of an array or tensor as uint8, by the rules above."""
    try:
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            image = image.float().numpy() if image.is_floating_point() else image.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised or without memory
        raise ValueError(f"{what}, which cannot be read ({str(error).splitlines()[0][:80]}).") from None
    values = np.asarray(image)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind != "f":
        raise ValueError(f"{what}; give uint8 with 255 as white (of 16 bits, x >> 8), or floats in [0, 1].")
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        why = "neither normalised nor up to 255, because mean and std of the model are applied to them"
        raise ValueError(f"{what} with numbers from {low:.3g} to {high:.3g}; floats must be in [0, 1], {why}.")
    return (values * 255 + 0.5).astype(np.uint8)
