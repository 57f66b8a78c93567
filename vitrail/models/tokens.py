"""What tokens and positions are: principal components of patch filters and tokens, similarity of positions.

The norm of a token is `tokens.norm(dim=-1)`: large models that were trained for long put what they know of the whole
image into a few tokens of the background, ten times longer than others (Darcet et al., 2023, arXiv 2309.16588).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.models import vit


def filters(model: vit.ViT, count: int = 28) -> Float[Tensor, "n C h w"]:
    """The first principal components of the patch projection E (Fig. 7, left), each of length 1; of a hybrid, they are
    of the stem's channels."""
    weight = model.patch_embed.proj.weight.detach()
    return _components(weight.flatten(1), min(count, len(weight))).unflatten(1, weight.shape[1:])


def similarity(model: vit.ViT, grid: tuple[int, int] | None = None) -> Float[Tensor, "rows columns rows columns"]:
    """The cosine between the position embeddings of each two patches of a grid (Fig. 7, centre). ValueError where the
    model has no such embeddings."""
    grid = grid or model.config.grid(model.config.image_size)
    table = model.position_table(grid)
    if table is None:
        raise ValueError("the model has no table of positions; it knows them by attention alone.")
    unit = F.normalize(table[0, model.config.prefix :].detach(), dim=-1)
    return (unit @ unit.T).unflatten(0, grid).unflatten(2, grid)


def colours(tokens: Sequence[Float[Tensor, "_ _ D"]], foreground: bool = True) -> list[Float[Tensor, "_ _ 4"]]:
    """The tokens (rows, columns, D) of each image as red, green and blue in [0, 1], their first three principal
    components, and 1 or 0 for foreground or background, as in DINOv2's figures (Oquab et al., 2023, Fig. 1).

    All is fitted over all images, so that equal colours mean equal things. The foreground is the side of the first
    component on which fewer of the images' edges lie; colours are fitted to it alone. foreground: whether it is looked
    for; without it all patches belong to it.
    """
    every = torch.cat([each.flatten(0, 1) for each in tokens]).double()
    every = every - every.mean(0)
    first = every @ _components(every, 1)[0]
    sizes = [each.shape[0] * each.shape[1] for each in tokens]
    edges = torch.cat([_edge(each.shape[0], each.shape[1]) for each in tokens]).to(first.device)
    front = (first > 0) if (first[edges] > 0).float().mean() < 0.5 else (first <= 0)
    front = front if foreground and front.sum() > 3 else torch.ones_like(front)
    three = every @ _components(every[front], 3).T
    low, high = torch.quantile(three[front], torch.tensor([0.02, 0.98]).to(three), dim=0)  # a few tokens are far away
    three = ((three - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    found = torch.cat([three, front[:, None]], 1).float().split(sizes)
    return [part.unflatten(0, (each.shape[0], each.shape[1])) for part, each in zip(found, tokens, strict=True)]


def _components(rows: Float[Tensor, "n D"], count: int) -> Float[Tensor, "k D"]:
    """The first principal components of the rows, each of length 1, its largest number positive."""
    exact = rows.double()
    exact = exact - exact.mean(0)
    vectors = torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(1).T[:count]
    signs = vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
    return (vectors * signs).to(rows.dtype)


def _edge(rows: int, columns: int) -> Tensor:
    """bool (rows * columns,): whether a patch is at the image's edge."""
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    return ~inside.flatten()
