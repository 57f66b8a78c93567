"""A Run: everything about a run in one frozen value, written into the run folder and read back.

run = recipes.demo.demo()
write(run, folder)          # run.json: the run, versions, machine
run = read(folder)          # equal to what was written
"""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from vitrail.data.source import Data
from vitrail.data.transforms import Preprocessing
from vitrail.models import vit
from vitrail.optim.build import Config as OptimConfig
from vitrail.optim.schedule import Duration
from vitrail.parse import parse


@dataclass(frozen=True)
class Run:
    """What is trained, on what, how and for how long. Recipes are functions that return one.

    batch: images per step. duration: of the training. evaluate_every, checkpoint_every: how often, on the held-back
    images and to the disk; the end is always evaluated and kept. keep: checkpoints on the disk.
    """

    recipe: str
    model: vit.Config
    preprocessing: Preprocessing
    data: Data = field(default_factory=Data)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: int = 64
    duration: Duration = "10 epochs"
    seed: int = 0
    log_every: int = 10
    evaluate_every: Duration = "1 epoch"
    checkpoint_every: Duration = "200 steps"
    keep: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more, and below 2**64.")
        channels = len(self.preprocessing.mean)
        if channels != self.model.channels:
            raise ValueError(f"the preprocessing has {channels} channels, the model reads {self.model.channels}.")


def vacant(folder: Path) -> None:
    """ValueError where the folder exists: nothing is ever overwritten."""
    if folder.exists():
        hint = f"continue it with `vitrail resume {folder}`, or " if (folder / "run.json").is_file() else ""
        raise ValueError(f"{folder} exists already; {hint}name another folder with --out.")


def write(run: Run, folder: Path) -> None:
    """Makes the run folder with run.json in it. ValueError where it exists."""
    vacant(folder)
    folder.mkdir(parents=True)
    packages = {name: version(name) for name in ("torch", "numpy", "vitrail")}
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
    text = json.dumps({"run": asdict(run), "versions": packages, "machine": machine}, indent=2)
    (folder / "run.json").write_text(text + "\n")


def read(folder: Path) -> Run:
    """The Run of a run folder. ValueError where there is none, or run.json is damaged."""
    path = folder / "run.json"
    try:
        return parse(Run, json.loads(path.read_text())["run"])
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run folder: it has no run.json.") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); a run cannot be resumed without it.") from error
