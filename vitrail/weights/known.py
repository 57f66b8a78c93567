"""What tensors do not tell of a model, such as its number of heads: told by the architectures that are known.

A state dict fits some names of the zoo. Where those compute alike, their numerics are taken; where they do not, or none
fits, the model is refused: `--architecture NAME` says which it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vitrail.models import vit
from vitrail.models.zoo import canonical, zoo

# Fields that no shape shows.
HIDDEN = ("heads", "activation", "norm_eps", "pool", "rotary")
# Fields that shapes show, and that two models of one architecture may have apart: the size of the image and the head.
FREE = {"image_size", "classes", "channels", "resample", "remainder", "class_position", "representation", "layer_scale"}
FREE |= {"dropout", "attention_dropout", "drop_path", "positions", "patch_size", "depth", "stem"}
SEEN = sorted(set(vit.Config.__dataclass_fields__) - FREE - set(HIDDEN))


def named(name: str) -> vit.Config:
    """The configuration of a name of the zoo. ValueError where it is not known, or of a ResNet."""
    config = zoo()[canonical(name)]
    if not isinstance(config, vit.Config):
        raise ValueError(f"{name} is a ResNet; the architecture of a Vision Transformer is needed.")
    return config


def completed(
    seen: vit.Config,
    architecture: str | None,
    heads: int | None,
    of: Iterable[str] | None = None,
    told: bool = False,
) -> vit.Config:
    """`seen` with the fields that shapes do not show, those of `architecture` where it is given.

    seen: what shapes show; pool "map" where they show it. heads: where they are given. of: the names of the zoo that
    come into question. told: whether the positions are known to be others than the architecture's. ValueError where
    nothing known fits, or what fits computes differently.
    """
    if architecture is not None:
        known = named(architecture)
        bare = known.positions == "none", seen.positions == "none"
        if not told and (bare[0] != bare[1] or seen.relative != known.relative):
            of_both = [f"{c.positions}{' and relative' * (c.relative != 'none')}" for c in (seen, known)]
            raise ValueError(f"its positions are {of_both[0]}, but those of {architecture} are {of_both[1]}.")
        return _with(seen, known, heads)
    fitting = alike(seen, of)
    for field in ("depth", "patch_size"):  # models cut or patched otherwise are still of their family
        fitting = {n: c for n, c in fitting.items() if getattr(c, field) == getattr(seen, field)} or fitting
    ways: dict[tuple[Any, ...], list[str]] = {}
    for name, config in fitting.items():
        ways.setdefault(tuple(_hidden(seen, config, heads).values()), []).append(name)
    if len(ways) > 1:
        (one, first), (two, second) = list(ways.items())[:2]
        apart = [f for f, a, b in zip(HIDDEN, one, two, strict=True) if a != b]
        differ = ", ".join(f"{f} {_short(one[HIDDEN.index(f)])} or {_short(two[HIDDEN.index(f)])}" for f in apart)
        raise ValueError(
            f"its tensors fit {first[0]} and {second[0]}, which compute differently ({differ}); "
            f"say which it is: --architecture {first[0]}, or architecture={first[0]!r}."
        )
    if ways:
        return _with(seen, fitting[next(iter(ways.values()))[0]], heads)
    plain = vit.Config(layer_scale=seen.layer_scale, registers=0, qk_norm=seen.qk_norm)
    odd = [f for f in SEEN if f not in ("width", "mlp_dim") and getattr(seen, f) != getattr(plain, f)]
    if odd or seen.positions != "learned":
        what = ", ".join(f"{f} {getattr(seen, f)!r}" for f in odd or ["positions"])
        raise ValueError(
            f"its tensors are of no architecture that is known ({what}); name one that computes alike with "
            "--architecture, or use a folder whose config.json names it."
        )
    return replace(seen, heads=heads or _heads(seen.width))


def alike(seen: vit.Config, of: Iterable[str] | None = None) -> dict[str, vit.Config]:
    """The names of the zoo, or those `of` it, whose tensors have the shapes of `seen`."""
    every = {name: zoo()[name] for name in (zoo() if of is None else of)}
    return {name: config for name, config in every.items() if isinstance(config, vit.Config) and _fits(seen, config)}


def _with(seen: vit.Config, known: vit.Config, heads: int | None) -> vit.Config:
    """`seen` with what it does not show of `known`, whose image size and ways of resizing are there, too."""
    hidden = _hidden(seen, known, heads)
    return replace(seen, image_size=known.image_size, resample=known.resample, **hidden)


def _hidden(seen: vit.Config, known: vit.Config, heads: int | None) -> dict[str, Any]:
    hidden = {field: getattr(known, field) for field in HIDDEN}
    if seen.pool in ("map", "distilled") or not seen.class_token:
        hidden["pool"] = seen.pool
    if known.pool in ("map", "distilled") and seen.pool != known.pool:
        hidden["pool"] = seen.pool
    return (
        hidden | ({"heads": heads} if heads else {}) | ({"activation": "swiglu"} if seen.activation == "swiglu" else {})
    )


def _fits(seen: vit.Config, known: vit.Config) -> bool:
    """Whether a model of a known architecture has tensors of these shapes."""
    pools = [config.pool if config.pool in ("map", "distilled") else "any" for config in (seen, known)]
    gated = [config.activation == "swiglu" for config in (seen, known)]
    stems = [config.stem and config.stem.blocks for config in (seen, known)]
    scaled = [config.layer_scale is None for config in (seen, known)]
    tables = [config.positions != "none" for config in (seen, known)]
    pairs: Iterable[Any] = (pools, gated, stems, scaled, tables)
    return all(a == b for a, b in pairs) and all(getattr(seen, f) == getattr(known, f) for f in SEEN)


def _heads(width: int) -> int:
    """Of the plain ViTs of this width that are known. ValueError where there are none, or they differ."""
    plain = (c for c in zoo().values() if isinstance(c, vit.Config) and c.width == width and c.pool == "token")
    found = {c.heads for c in plain}
    if len(found) != 1:
        raise ValueError(f"a width of {width} does not tell the number of heads; give heads=..., or --heads.")
    return found.pop()


def _short(value: object) -> str:
    return str(value).rpartition(".")[2] if not isinstance(value, (int, float)) else str(value)


def checked(arguments: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """ValueError, naming it, for an argument of config.json that is not known."""
    if unknown := sorted(set(arguments) - set(known)):
        name = unknown[0]
        raise ValueError(f"{where} has {name} {arguments[name]!r}, which is not known; the model could be another.")
