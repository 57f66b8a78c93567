"""One of our tensors and the tensors of another layout that it is made of: a line of a name table, both directions.

for entry in entries(config): ...
tensors, origin = gather(entries, get, config)        # theirs -> ours
theirs = scatter(entries, tensors)                    # ours -> theirs
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.models import Config
from vitrail.progress import few

# Tables that are computed, not learned, and what is there for training alone; their like is never missed.
COMPUTED = re.compile(
    r"(relative_position_index|position_ids|(^|\.)rope\w*\.(periods|freqs_(cos|sin))|\.qkv\.bias_mask)$"
)
TRAINING = re.compile(r"^(mask_token|decoder\w*|dino_head|ibot_head|lm_head|predictor)\b|^head\.(mlp|last_layer)\.")


@dataclass(frozen=True)
class Entry:
    """One of our tensors and the arrays that it is made of; `out` and `back` map values, one tensor a name.

    exact: whether `back` gives every bit again.
    """

    ours: str
    theirs: tuple[str, ...]
    out: Callable[[list[Tensor]], Tensor]
    back: Callable[[Tensor], list[Tensor]]
    exact: bool = True


def same(theirs: str, ours: str) -> Entry:
    """The same numbers in the same order."""
    return Entry(ours, (theirs,), lambda found: found[0], lambda tensor: [tensor])


def layers(names: Mapping[str, str]) -> Iterator[Entry]:
    """Weight and bias of layers, theirs -> ours, that have the same numbers."""
    for theirs, ours in names.items():
        yield same(f"{theirs}.weight", f"{ours}.weight")
        yield same(f"{theirs}.bias", f"{ours}.bias")


def rows(theirs: tuple[str, ...], ours: str) -> Entry:
    """Several tensors that are rows of one of ours: query, key and value."""
    return Entry(ours, theirs, torch.cat, lambda tensor: list(tensor.chunk(len(theirs))))


def zeros(ours: str, count: int) -> Entry:
    """A bias that a layer of theirs does not have."""
    return Entry(ours, (), lambda _: torch.zeros(count), lambda _: [])


def part(theirs: str, ours: str, first: int, end: int) -> Entry:
    """Some of three equal parts of a tensor's rows. There is no way back: the file's own tensor is kept."""
    return Entry(ours, (theirs,), lambda found: torch.cat(found[0].chunk(3)[first:end]), lambda _: [], exact=False)


def heads_of_two(names: Mapping[str, str]) -> Iterator[Entry]:
    """DeiT's head of [class] and that of the distillation token, whose mean is the answer, as one head of both tokens.

    names: the layer of [class] -> that of the distillation token.
    """
    for first, second in names.items():
        yield Entry(
            "head.weight",
            (f"{first}.weight", f"{second}.weight"),
            lambda found: torch.cat(found, 1) / 2,
            lambda weight: [part * 2 for part in weight.chunk(2, 1)],
        )
        yield Entry(
            "head.bias",
            (f"{first}.bias", f"{second}.bias"),
            lambda found: (found[0] + found[1]) / 2,
            lambda bias: [bias, bias.clone()],  # a file may not hold one tensor twice
            exact=False,
        )


def added(token: str, table: str, count: int) -> Iterator[Entry]:
    """Registers whose positions are rows 1 to `count` of the table: ours are the registers with these rows added."""
    yield Entry("reg_token", (token, table), lambda a: a[0] + a[1][:, 1 : 1 + count], lambda t: [t, t[:, :0]])
    yield Entry(
        "pos_embed",
        (table,),
        lambda a: torch.cat([a[0][:, :1], a[0][:, 1 + count :]], 1),
        lambda t: [torch.cat([t[:, :1], t.new_zeros(1, count, t.shape[2]), t[:, 1:]], 1)],
    )


def gather(
    entries: Iterable[Entry], get: Callable[[str], Tensor | None], config: Config
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """(the tensors of a model of `config`, our name -> their names). get: their tensor, None where there is none.

    ValueError where one is missing, or has another shape than the configuration asks for.
    """
    expected = {name: tensor.shape for name, tensor in config.build("meta").state_dict().items()}
    tensors: dict[str, Tensor] = {}
    origin: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        found: list[Tensor] = []
        if entry.ours not in expected:
            raise ValueError(f"the configuration has no {entry.ours}, which is in the file.")
        for name in entry.theirs:
            if (tensor := get(name)) is None:
                raise ValueError(f"there is no tensor {name}: the file is incomplete, or of another architecture.")
            found.append(tensor)
        tensors[entry.ours] = _ours(entry, found, expected[entry.ours])
        origin[entry.ours] = entry.theirs
    return tensors, origin


def _ours(entry: Entry, found: list[Tensor], expected: torch.Size) -> Tensor:
    try:
        value = entry.out(found)
    except (RuntimeError, IndexError):
        value = None
    # Some files keep ones around a vector, (1, 1, 1, C).
    if value is None or [n for n in value.shape if n != 1] != [n for n in expected if n != 1]:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(entry.theirs, found, strict=True))
        raise ValueError(f"{shapes} cannot become {entry.ours} {tuple(expected)}.")
    return value.reshape(expected).contiguous()


def scatter(entries: Iterable[Entry], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors by their names. ValueError where one of ours has no place in their layout, or it needs another."""
    theirs: dict[str, Tensor] = {}
    left = set(tensors)
    for entry in entries:
        if entry.ours not in tensors:
            raise ValueError(f"the format needs {entry.ours}, which the model does not have; choose another.")
        left.discard(entry.ours)
        if back := entry.back(tensors[entry.ours]):
            theirs |= dict(zip(entry.theirs, back, strict=True))
    if left:
        raise ValueError(f"the format has no place for {few(sorted(left), 3)}; choose another, or a model without it.")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in theirs.items()}
