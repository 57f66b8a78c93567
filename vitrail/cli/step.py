"""The model of a checkpoint, for `vitrail convert`: its average where it has one, a tensor at a time.

lost, count = convert(Path("runs/pets/checkpoints/step-500"), Path("out"), "vitrail", Opening())
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vitrail.cli.opening import Opening
from vitrail.progress import say

if TYPE_CHECKING:
    from vitrail.run import Run


def convert(step: Path, target: Path, to: str, how: Opening) -> tuple[list[str], int]:
    """Writes it; returns (what is lost, in words; how many tensors the model has). A folder in our format, and a
    .safetensors file, under timm's names, need the memory of one tensor; where another format or an option of `how` is
    asked for, such a folder is opened.

    ValueError where the checkpoint is damaged or of another model, the run.json above it is missing, or the target
    exists or cannot be written.
    """
    from vitrail.weights.folder import TASK
    from vitrail.weights.save import save

    if target.exists():
        raise ValueError(f"{target} exists already; name another target.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".partial-{target.name}-") as partial:
            place = Path(partial, "model")
            lost, count = _write(step, place)
            file = target.suffix == ".safetensors" and to in ("vitrail", "timm")
            if any(how.options().values()) or not (file or to == "vitrail"):
                lost = save(how.weights(str(place)), target, to)
            elif file:
                lost = ["its configuration, preprocessing and class names in one file"]
                lost += ["what its task has besides the model"] if (place / TASK).exists() else []
                (place / "model.safetensors").rename(target)
            else:
                place.rename(target)
    except OSError as error:
        raise ValueError(f"{target} could not be written ({error}).") from error
    return lost, count


def _write(step: Path, target: Path) -> tuple[list[str], int]:
    import torch

    from vitrail import checkpoint
    from vitrail import run as runs
    from vitrail.config import dump
    from vitrail.weights import folder

    saved, home = checkpoint.Saved(step), step.resolve().parent.parent
    run = runs.read(home)
    names = _class_names(run, home) if run.model.classes else ()
    task = run.task.task(run.model.build("meta"), run.preprocessing, names)
    checkpoint.check(step, saved.like, task)
    task = task.finished()
    which = "ema" if any(name.startswith("ema/") for name in saved.like) else "task"
    like = {name: saved.like[f"task/{name}"] for name in task.state_dict()}

    def read(name: str) -> torch.Tensor:
        with saved.sound():
            found = torch.empty_like(saved.like[f"{which}/{name}"], device="cpu")
        saved.read({f"{which}/{name}": found})
        return found.to(like[name].dtype)

    model = {name.removeprefix("model."): tensor for name, tensor in like.items() if name.startswith("model.")}
    extra = {name: tensor for name, tensor in like.items() if not name.startswith("model.")}
    card = folder.Card(run.model, run.preprocessing, names, dump(task.config))
    return folder.write(target, model, card, extra, read), len(model)


def _class_names(run: "Run", home: Path) -> tuple[str, ...]:
    """The names of a run's classes, of its model or, before there is one, of its data; () where neither tells, which is
    said."""
    from vitrail import run as runs
    from vitrail.cli.launch import fingerprints
    from vitrail.data.sources.open import open_splits

    try:
        if (card := home / "model" / "config.json").is_file():
            return tuple(json.loads(card.read_text())["vitrail"]["class_names"])
        splits = open_splits(run.data, run.task.needs)
        if changed := runs.changes(home, fingerprints(splits))[0]:
            raise ValueError(f"{', '.join(changed)} changed")
        return splits.train.class_names
    except (ValueError, LookupError, TypeError, OSError) as error:
        say(f"the classes get numbers: no checkpoint has their names, and neither has the run's data ({error}).")
        return ()
