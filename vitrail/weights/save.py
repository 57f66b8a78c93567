"""Write weights in any public format; what was read from a format is written back to it bit for bit.

    weights = read(Path("ViT-B_16.npz"))
    save(weights, Path("out.npz"), "google")              # the same names, shapes and bits
    notes = save(weights, Path("folder"), "timm")         # what the format cannot hold, in words

google and torchvision are files, vitrail and huggingface are folders, timm is a file where the target is named like
one. Nothing is ever overwritten, and a target appears only when it is complete.
"""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from vitrail.models import vit
from vitrail.weights import FORMATS
from vitrail.weights.format import Asked, Weights
from vitrail.weights.load import read

# Fields of the configuration that change the answers, but that no tensor shows.
NUMERICS = ("activation", "norm_eps", "heads", "pool", "resample", "remainder")


def save(weights: Weights, target: Path, to: str) -> list[str]:
    """Write weights to a file or folder in the format `to`; return in words what that cannot hold.

    ValueError where the target exists, the format is not known, or it has no place for a part of the model.
    """
    formats = {form.name: form for form in FORMATS}
    if to not in formats:
        raise ValueError(f"there is no format {to!r}; choose one of {', '.join(formats)}.")
    if target.exists():
        raise ValueError(f"{target} exists already; name another target.")
    partial = target.with_name(f".partial-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        notes = formats[to].write(weights, partial) + _changed(weights, partial)
        if to != "vitrail" and weights.task["config"].get("none_below") is not None:
            notes.append('its answer "none of these"')
        partial.rename(target)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk raises one of each library's own
        raise ValueError(f"{target} could not be written ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return notes


def _changed(weights: Weights, written: Path) -> list[str]:
    """The numerics that are read back otherwise than the model has them; the tensors are complete all the same."""
    config, how = weights.config, weights.preprocessing
    if not isinstance(config, vit.Config):
        return []
    try:
        again = read(written, Asked(config.image_size, config.heads, strict=False))
    except ValueError as error:
        return [f"all of its numerics: read back, {str(error).removeprefix(f'{written}: ')}"]
    notes = []
    if again.preprocessing != how:
        fields = [n for n in how.__dataclass_fields__ if getattr(how, n) != getattr(again.preprocessing, n)]
        notes.append(f"its preprocessing ({', '.join(f'{n} {getattr(how, n)}' for n in fields)})")
    if weights.class_names and again.class_names != weights.class_names:
        notes.append(f"the names of its {len(weights.class_names)} classes")
    ours, theirs = ((task["kind"], task["config"].get("loss", "softmax")) for task in (weights.task, again.task))
    if ours != theirs:
        notes.append(f"its task ({' '.join(ours)})")
    pairs = [(name, getattr(config, name), getattr(again.config, name)) for name in NUMERICS]
    return notes + [f"{name} {ours!r} (read back as {theirs!r})" for name, ours, theirs in pairs if ours != theirs]
