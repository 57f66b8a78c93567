"""Random views of a batch of images, for tasks that compare several views of each (LeJEPA, arXiv 2511.08544).

    how = ViewConfig(size=(96, 96), scale=(0.05, 0.3))              # a local view; preset="photo"
    views = [draw(images, batch["keys"], number, how) for number in range(6)]      # each float32 (B, C, 96, 96)

They are drawn on the images' device, without a loop over images and without waiting for the device. A view is a
function of the image's key and the view's number: the same however the batch is split, and in every order.

A crop is separable, so it is two matrices for each image, of rows and of columns, whose weights are the triangle filter
of Pillow's and torchvision's antialiased "bilinear": it is as wide as two of the crop's pixels or two of the result's,
whichever are larger, so that nothing aliases. Flips and the Gaussian blur are in the same matrices. Then come, in this
order, brightness, contrast, saturation, hue and grey, clipped once at their end, and solarising.

What a view keeps, a model learns not to see: colour means something in stained tissue, a flip in a line of text. So:

    photo   crop, mirror; jitter of colours, grey, blur, solarise: LeJEPA's and DINO's probabilities and strengths
    grey    crop, mirror; brightness and contrast up to 0.2: x-rays, depth, any number of channels
    micro   crop, mirror, flip, and where the result is square, quarter turns; brightness and contrast up to 0.1
    none    crop
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num
from torch import Tensor

from vitrail.models.layers import uniform

Preset = Literal["photo", "grey", "micro", "none"]

LUMINANCE = 0.299, 0.587, 0.114  # Y of YIQ and YUV (ITU-R BT.601), as of Pillow's mode "L"
U, V = 0.492, 0.877  # U = 0.492 (B - Y), V = 0.877 (R - Y)
BLUR = 0.1, 2.0  # sigma in pixels of a result of 224
UNBLURRED = 64  # the largest side without blur: small images are blurred enough (lightly and solo-learn on CIFAR)


class Colours(NamedTuple):
    """The probability of a jitter, and how far its factors go from 1 (hue: from 0, in turns); other probabilities."""

    jitter: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0


PRESETS: dict[Preset, Colours] = {
    "photo": Colours(0.8, 0.4, 0.4, 0.2, 0.1, grey=0.2, blur=0.5, solarise=0.2),
    "grey": Colours(brightness=0.2, contrast=0.2),
    "micro": Colours(brightness=0.1, contrast=0.1),
    "none": Colours(),
}


@dataclass(frozen=True)
class ViewConfig:
    """How a view is drawn. ValueError for a value out of its range."""

    size: tuple[int, int] = (224, 224)
    """(height, width) of the result, in pixels."""
    scale: tuple[float, float] = (0.3, 1.0)
    """The crop's fraction of the image's area, uniform. Local views of 224 px use (0.05, 0.3); images of 32 px want
    (0.3, 1) and (0.1, 0.4), because 0.05 of them is 7 pixels."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """The crop's width / height, log-uniform. Where such a crop would not fit, the nearest ratio that does."""
    preset: Preset = "photo"
    """photo, grey, micro (microscopy: cells have no upright) or none: the crop alone."""

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size}; it must be a height and a width of 1 pixel or more.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two fractions above 0, the smaller first.")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be two ratios above 0, the smaller first.")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; choose one of {', '.join(get_args(Preset))}.")


def draw(
    images: Num[Tensor, "B C H W"], keys: Int64[Tensor, "B"], view: int, how: ViewConfig
) -> Float32[Tensor, "B C h w"]:
    """View number `view` of each image, as numbers from 0 to 255.

    images: bytes, or numbers from 0 to 255. Saturation, hue and grey need three channels; with another number of them
    "photo" has brightness, contrast, blur and solarising.
    """
    colours, flips, micro = PRESETS[how.preset], how.preset != "none", how.preset == "micro"
    mirrored, upended, turned = (uniform(keys, f"view {view} turn", 3) < 0.5).unbind(1)
    sigma = None
    if colours.blur and min(how.size) > UNBLURRED:
        coin, drawn = uniform(keys, f"view {view} blur", 2).unbind(1)
        sigma = (BLUR[0] + (BLUR[1] - BLUR[0]) * drawn) * (min(how.size) / 224) * (coin < colours.blur)
    shown = boxes(keys, view, how, (images.shape[2], images.shape[3]))
    seen = crop(images, shown, how.size, mirrored if flips else None, upended if micro else None, sigma)
    if micro and how.size[0] == how.size[1]:
        seen = torch.where(turned[:, None, None, None], seen.transpose(2, 3), seen)  # with two flips: all eight ways
    if colours.brightness:
        seen = _jittered(seen, keys, view, colours)
    seen = seen.clamp(0, 255)
    if colours.solarise:
        # Bytes from 128 on are inverted, as in DINO; between bytes there is no step that rounding could fall over.
        solarised = uniform(keys, f"view {view} solarise", 1) < colours.solarise
        seen = torch.where(solarised[:, :, None, None], torch.minimum(seen, 255 - seen), seen)
    return seen.contiguous()


def boxes(keys: Int64[Tensor, "B"], view: int, how: ViewConfig, stored: tuple[int, int]) -> Float64[Tensor, "B 4"]:
    """The (top, left, height, width) that a view shows of images of (height, width) `stored`, in pixels, not rounded.

    An inception crop (Szegedy et al., arXiv 1409.4842) without rejection: the area is as drawn, and a ratio with which
    it would not fit gives way.
    """
    area, shape, down, across = uniform(keys, f"view {view} crop", 4).unbind(1)
    area = how.scale[0] + (how.scale[1] - how.scale[0]) * area
    # The ratio of width / W to height / H, neither of which may be above 1.
    low, high = (math.log(ratio * stored[0] / stored[1]) for ratio in how.ratio)
    shape = (low + (high - low) * shape).clamp(area.log(), -area.log())
    height, width = stored[0] * (area * (-shape).exp()).sqrt(), stored[1] * (area * shape.exp()).sqrt()
    return torch.stack([down * (stored[0] - height), across * (stored[1] - width), height, width], 1)


def crop(
    images: Num[Tensor, "B C H W"],
    shown: Float64[Tensor, "B 4"],
    size: tuple[int, int],
    mirrored: Bool[Tensor, "B"] | None = None,
    upended: Bool[Tensor, "B"] | None = None,
    sigma: Float[Tensor, "B"] | None = None,
) -> Float32[Tensor, "B C h w"]:
    """What the boxes of `boxes` show, resized to (h, w) as torchvision's resize of such an image does (bilinear,
    antialias=True), but that pixels beyond the box still count where the filter reaches them.

    sigma: of a Gaussian blur of the result, in its pixels; 0 is none.
    """
    count, channels, stored, (top, left, height, width) = *images.shape[:2], images.shape[2:], shown.unbind(1)
    # Under autocast the products would have bfloat16's 8 bits, and grey levels as large as 1.
    with torch.autocast(images.device.type, enabled=False):
        rows = _filters(top, height, stored[0], size[0], upended, sigma)
        columns = _filters(left, width, stored[1], size[1], mirrored, sigma)
        lines = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        seen = (rows @ lines.flatten(2)).view(count, size[0] * channels, stored[1]) @ columns.transpose(1, 2)
    return seen.view(count, size[0], channels, size[1]).transpose(1, 2)


def recolour(
    images: Float32[Tensor, "B C H W"],
    brightness: Float[Tensor, "B"],
    contrast: Float[Tensor, "B"],
    saturation: Float[Tensor, "B"] | None = None,
    hue: Float[Tensor, "B"] | None = None,
) -> Float32[Tensor, "B C H W"]:
    """Brightness, contrast, saturation and hue, in this order, not clamped: the first three as torchvision's adjust_*.

    contrast: about the mean luminance, or, unless there are three channels, about each channel's mean. saturation and
    hue (in turns): for three channels; the chroma plane of YIQ, which is that of YUV, is scaled and rotated, towards
    green from red. Luminance is kept, which HSV's hue does not do.
    """
    means = images.mean((2, 3))
    if images.shape[1] == 3:
        means = _luminance(means)[:, None]
    gain = (brightness * contrast).to(images.dtype)[:, None]
    shift = (brightness * (1 - contrast)).to(images.dtype)[:, None] * means
    if saturation is not None and hue is not None:
        along, across = (
            (saturation * wave).to(images.dtype)[:, None, None]
            for wave in ((2 * math.pi * hue).cos(), (2 * math.pi * hue).sin())
        )
        y = _luminance(images)
        red, blue = images[:, 0] - y, images[:, 2] - y  # V / 0.877 and U / 0.492
        red, blue = along * red + across * (U / V) * blue, along * blue - across * (V / U) * red
        green = (LUMINANCE[0] * red + LUMINANCE[2] * blue) / -LUMINANCE[1]
        images = torch.stack([red, green, blue], 1) + y[:, None]
    return torch.addcmul(shift[:, :, None, None], images, gain[:, :, None, None])


def _jittered(
    images: Float32[Tensor, "B C H W"], keys: Int64[Tensor, "B"], view: int, colours: Colours
) -> Float32[Tensor, "B C H W"]:
    coin, *drawn, grey = uniform(keys, f"view {view} colour", 6).unbind(1)
    reaches = colours.brightness, colours.contrast, colours.saturation, colours.hue
    jittered = coin < colours.jitter
    by = [(2 * number - 1) * reach * jittered for number, reach in zip(drawn, reaches, strict=True)]
    if images.shape[1] != 3 or not (colours.saturation or colours.hue or colours.grey):
        return recolour(images, 1 + by[0], 1 + by[1])
    return recolour(images, 1 + by[0], 1 + by[1], (1 + by[2]) * (grey >= colours.grey), by[3])


def _luminance(colours: Float[Tensor, "B 3 *rest"]) -> Float[Tensor, "B *rest"]:
    red, green, blue = colours.unbind(1)
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


def _filters(
    start: Float64[Tensor, "B"],
    length: Float64[Tensor, "B"],
    stored: int,
    count: int,
    flipped: Bool[Tensor, "B"] | None,
    sigma: Float[Tensor, "B"] | None,
) -> Float32[Tensor, "B n L"]:
    """The weights of `stored` pixels in each of `count` that show what lies from `start` on."""
    pixels, places = (torch.arange(n, device=start.device, dtype=torch.float32) for n in (stored, count))
    step = length / count
    centres = start[:, None] + step[:, None] * (places + 0.5)
    if flipped is not None:
        centres = torch.where(flipped[:, None], centres.flip(1), centres)
    reach = step.clamp(min=1).float()[:, None, None]
    weights = (1 - (centres.float()[:, :, None] - pixels - 0.5).abs() / reach).clamp(min=0)
    weights = weights / weights.sum(2, keepdim=True)
    if sigma is None:
        return weights
    away = (places[:, None] - places) / sigma.float().clamp(min=0.05)[:, None, None]  # at 0.05 nothing is blurred
    blur = (-away * away / 2).exp()
    return blur / blur.sum(2, keepdim=True) @ weights
