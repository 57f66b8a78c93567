"""What a model makes of some images: its tokens as colours, and what its task paints.

render("run.html", pictures=[gallery(found)], ...)     # found: the Pictures of an evaluation
"""

from collections.abc import Mapping
from typing import Any

import torch

from vitrail.evaluate.watch import Pictures
from vitrail.models.tokens import colours
from vitrail.report.html import Figure, short, thumbnail

SMALL, LARGE = 96, 224  # pixels of the page that an image is wide at least, and that its longer side is at most
ABOUT: Mapping[str, str] = {
    "tokens": "the first three principal components of its patches' tokens as red, green and blue, fitted over all of "
    "these images, so that patches of one colour are alike to the model",
    "masked": "what the model saw of it; hidden patches are grey",
    "reconstruction": "what the decoder paints in the hidden patches, between the visible ones",
    "mean colours": "the corrupted patches in the colour that the model is to name: their mean, in 3 bits a channel",
    "predicted colours": "the same patches in the colour that it names",
}


def gallery(found: Pictures) -> dict[str, Any]:
    """The values that the template lays out: figures, the side of the square that each picture is in, how many are
    beside each other, and (name, words) of the pictures besides the image."""
    drawn = {"image": found.images, **found.found}
    if tokens := [torch.from_numpy(each) for each in drawn.get("tokens", ())]:
        drawn["tokens"] = [(255 * each[..., :3]).round().byte().numpy() for each in colours(tokens, foreground=False)]
    figures, sides = list[Figure](), list[int]()
    for name, image, *others in zip(found.names, *drawn.values(), strict=True):
        height, width, _ = image.shape
        whole = thumbnail(image, min(LARGE, max(height, width) * -(-SMALL // width)))
        size = {"width": whole.width, "height": whole.height}
        shown = [whole, *(thumbnail(other, max(size.values()))._replace(**size) for other in others)]
        file = short(name)
        figures.append(([one._replace(alt=f"{kind} of {file}") for kind, one in zip(drawn, shown, strict=True)], file))
        sides.append(max(size.values()))
    words = [(kind, ABOUT.get(kind, "")) for kind in drawn if kind != "image"]
    return {"figures": figures, "side": max(sides), "across": len(drawn), "kinds": words}
