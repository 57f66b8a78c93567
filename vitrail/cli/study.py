"""`vitrail study`: the paper's comparison of ViT, hybrid and ResNet on the user's data, run by run.

FOLDER/plan.json is what was asked for, FOLDER/runs/NAME a run folder each (launch.py), and FOLDER/study.json and
study.html what follows once all have ended, in whichever process that is noticed.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from vitrail.cli.options import Command, DataPlace, Flag, Given, Out, Part
from vitrail.progress import few, say

if TYPE_CHECKING:
    from vitrail.study.findings import Row
    from vitrail.study.grid import Cell, Grid

Number = Annotated[int, arg(metavar="N")]


@dataclass(kw_only=True)
class Study(Command):
    """Compare ViT, hybrid and ResNet at equal cost on your images, as the paper's Figures 3 to 5 do.

    data-size: five numbers of images, up to all of them, equal examples seen. compute: five sizes of models, four
    durations. fewshot: as data-size, judged by few-shot classification, too. First it says what will be run, and how
    long that takes. After an interruption the same command continues; on several machines each takes a --part.
    """

    data: DataPlace
    preset: Annotated[Literal["data-size", "compute", "fewshot"], arg(help_behavior_hint="(required)")]
    """Whether the number of images or the cost of training is varied, and how the runs are judged."""
    out: Out = ""
    """The folder of the study. Without it runs/study-PRESET."""
    seeds: Number = 3
    """Runs of each kind; intervals are over them."""
    examples: Number = 300_000
    """That the longest runs see."""
    batch: Number = 128
    """Images in a step."""
    scale: float = 1.0
    """Multiplies the cost of all models; at 1, that of a ViT of width 96, depth 4 and about 16 patches."""
    families: tuple[Literal["vit", "hybrid", "resnet"], ...] = ("vit", "hybrid", "resnet")
    """Which are compared."""
    rates: Annotated[tuple[float, ...], arg(metavar="R...")] = (1e-3,)
    """AdamW's learning rate at scale 1, which falls as 1 / width; or several, of which each family's smallest and
    largest size choose on the validation images."""
    part: Part = ""
    dry: Flag = False
    """Only say what would be run."""

    def run(self, given: Given) -> None:
        from vitrail.data.parts import part

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("a study's runs are of one process each; start it without torchrun, with --part I/N.")
        part(self.part, 1)  # what cannot be read is refused now
        grid = self._grid()
        folder = Path(self.out or f"runs/study-{self.preset}")
        if not self.dry:
            _begin(folder, self._plan(grid))
        seconds = foretold(grid)
        lines, total = self._lines(grid, seconds), len(grid.cells(_any_rates(grid))) + len(grid.trials())
        if self.dry:
            rows = {f"{f}-{size}": asdict(model) for (f, size), model in grid.models.items()}
            self.answer({"plan": self._plan(grid), "runs": total, "models": rows}, "\n".join(lines))
            return
        say("\n".join(lines))
        work = Progress(grid, folder, seconds)
        work.train(_groups(grid.trials()), self.part)
        if missing := [cell for cell in grid.trials() if work.outcome(cell) is None]:
            self._wait(folder, len(missing), "learning rates are not chosen before they have ended")
            return
        cells = grid.cells(work.chosen())
        work.train(_groups(cells), self.part)
        if missing := [cell for cell in cells if work.outcome(cell) is None]:
            self._wait(folder, len(missing), "the page is made when all have ended")
            return
        document = work.write(self._plan(grid), cells)
        where = f"{folder / 'study.html'}\nresults: {folder / 'study.json'}"
        self.answer(document["findings"], f"{len(cells)} runs have ended\nreport: {where}")

    def _grid(self) -> "Grid":
        from vitrail.data.sources.open import open_splits
        from vitrail.recipes.fast import fast
        from vitrail.study.grid import Grid

        base = fast(self.data)
        splits = open_splits(base.data)
        if splits.train.targets != "class":
            kind = splits.train.targets
            raise ValueError(f"{self.data} has targets of {kind!r}; a study compares accuracies of one class an image.")
        if self.batch < 1:
            raise ValueError(f"--batch is {self.batch}; it must be 1 or more.")
        how = {"families": tuple(dict.fromkeys(self.families)), "seeds": self.seeds, "scale": self.scale}
        counts = len(splits.train), len(splits.train.class_names), self.examples
        rates = tuple(dict.fromkeys(self.rates))
        return Grid(replace(base, batch=self.batch), self.preset, *counts, **how, rates=rates)

    def _plan(self, grid: "Grid") -> dict[str, Any]:
        """All that decides the runs."""
        names = ("preset", "images", "classes", "examples", "families", "seeds", "scale", "rates")
        plan = {name: getattr(grid, name) for name in names}
        return json.loads(json.dumps({"data": self.data, "batch": self.batch, **plan}))

    def _lines(self, grid: "Grid", seconds: Mapping[tuple[str, int], float]) -> list[str]:
        """What will be run."""
        lines = [
            f"{family} {size}: {grid.parameters[family, size]:,} parameters without embeddings and head, "
            f"{grid.flops[family, size] / 1e6:,.1f} MFLOP an image, {1000 * seconds[family, size]:,.0f} ms a step"
            for family, size in grid.models
        ]
        cells = grid.trials() + grid.cells(_any_rates(grid))
        cost, time = sum(map(grid.work, cells)), sum(_seconds(grid, cell, seconds) for cell in cells)
        about = f"{len(cells)} runs, {cost / 1e12:,.3g} TFLOP, about {_time(time)} in one process here"
        return [*lines, about + " (by the gradient of a few images)"]

    def _wait(self, folder: Path, missing: int, why: str) -> None:
        said = f"{missing} runs of other parts are missing; {why}: run the same command again then"
        self.answer({"folder": str(folder), "missing": missing}, said)


@dataclass(eq=False)
class Progress:
    """Trains the runs of a study in its folder. seconds: that a step of each model was foretold to take."""

    grid: "Grid"
    folder: Path
    seconds: Mapping[tuple[str, int], float]
    foretold: float = 0.0
    taken: float = 0.0

    def place(self, cell: "Cell") -> Path:
        """The run folder of a cell."""
        return self.folder / "runs" / cell.name

    def outcome(self, cell: "Cell") -> dict[str, float] | None:
        """The metrics of a run that has ended, empty where the loss became NaN; None for one that has not ended."""
        from vitrail.cli.launch import DIVERGED, ended

        trunk = replace(cell, steps=cell.trunk, trunk=0) if cell.trunk else cell
        found = ended(self.place(cell))
        gone = any((self.place(one) / DIVERGED).exists() for one in (cell, trunk))
        return {} if found is None and gone else found

    def train(self, groups: Sequence[Sequence["Cell"]], words: str) -> None:
        """Trains what has not ended of a part. Raises and exits as launch.begin does, but for a loss that is NaN."""
        from vitrail.data.parts import part

        mine = part(words, len(groups))
        todo = [cell for group in groups[mine.start : mine.stop] for cell in group]
        for number, cell in enumerate(todo, 1):
            if self.outcome(cell) is None:
                left = sum(self._left(one) for one in todo[number - 1 :] if self.outcome(one) is None)
                say(f"run {number} of {len(todo)}: {cell.name}; about {_time(left)} left")
                started = time.perf_counter()
                self._one(cell)
                self.taken += time.perf_counter() - started
                self.foretold += _seconds(self.grid, cell, self.seconds)
            group = next(group for group in groups if cell in group)
            if all(self.outcome(one) is not None for one in group):
                for one in group:  # what branches began from is not needed any more
                    shutil.rmtree(self.place(one) / "checkpoints", ignore_errors=True)

    def _left(self, cell: "Cell") -> float:
        """Seconds that a run will take, by those that have been trained."""
        factor = self.taken / self.foretold if self.foretold else 1.0
        return factor * _seconds(self.grid, cell, self.seconds)

    def _one(self, cell: "Cell") -> None:
        from vitrail.cli.launch import AGAIN, DIVERGED, settle

        place = self.place(cell)
        if cell.trunk and not place.exists():
            self._branch(cell)
        try:
            settle(self.grid.run(cell), place, AGAIN)
        except ValueError:
            if not (place / DIVERGED).exists():
                raise
            say(f"the loss of {cell.name} became NaN; it is left out.")

    def _branch(self, cell: "Cell") -> None:
        """Makes the folder of a run that has done its first steps as those of its trunk, all or nothing."""
        from vitrail import run as runs
        from vitrail.runtime.folders import filled

        trunk = self.place(replace(cell, steps=cell.trunk, trunk=0))
        step = Path("checkpoints", f"step-{cell.stem}")
        if not (trunk / step).is_dir():
            raise ValueError(f"{trunk / step} is missing; delete {trunk}, and the same command trains it again.")
        with filled(self.place(cell)) as partial:
            shutil.copytree(trunk / step, partial / step)
            shutil.copy(trunk / "metrics.jsonl", partial)
            runs.record(self.grid.run(cell), partial, json.loads((trunk / "run.json").read_text())["data"])

    def chosen(self) -> dict[tuple[str, int], float]:
        """The best of several rates, by family and size. ValueError where the loss became NaN with all of them."""
        found = dict[tuple[str, int], float]()
        by = sorted(self.grid.trials(), key=lambda cell: (cell.family, cell.size))
        for (family, size), group in groupby(by, lambda cell: (cell.family, cell.size)):
            scores = {cell.rate: outcome["accuracy"] for cell in group if (outcome := self.outcome(cell))}
            if not scores:
                raise ValueError(f"the loss of {family} {size} became NaN at every rate; give lower --rates.")
            found[family, size] = max(scores, key=lambda rate: scores[rate])
            say(f"{family} {size}: learning rate {found[family, size]:g} of {few(scores)}")
        return found

    def row(self, cell: "Cell", metrics: Mapping[str, float]) -> "Row":
        """What the findings need of a run that has ended."""
        from vitrail.log import read_history
        from vitrail.study.findings import Row

        seconds = read_history(self.place(cell) / "metrics.jsonl").speed(self.grid.base.batch)[0]
        size = self.grid.parameters[cell.family, cell.size]
        return Row(cell, self.grid.cost(cell), size, cell.steps * self.grid.base.batch, seconds, metrics)

    def write(self, plan: Mapping[str, Any], cells: Sequence["Cell"]) -> dict[str, Any]:
        """Writes study.json and study.html; returns the former. ValueError where no run is left."""
        from vitrail.report import study_page
        from vitrail.study.findings import findings

        outcomes = [(cell, self.outcome(cell)) for cell in cells]
        rows = [self.row(cell, metrics) for cell, metrics in outcomes if metrics]
        if not rows:
            raise ValueError("the loss of every run became NaN; give lower --rates and another --out.")
        diverged = [cell.name for cell, metrics in outcomes if not metrics]
        document = {"plan": {**plan, "diverged": diverged}, "findings": findings(rows, self.grid.preset)}
        document["runs"] = [{"name": row.cell.name, **asdict(row)} for row in rows]
        _put(self.folder / "study.json", document)
        study_page.write(document, self.folder / "study.html")
        return document


def foretold(grid: "Grid") -> dict[tuple[str, int], float]:
    """Seconds that a step of each model takes here, by family and size."""
    from vitrail.runtime.blocks import pick_device
    from vitrail.study.grid import calibrated

    image = grid.base.preprocessing.image_size
    steps = calibrated(grid.models.values(), image, grid.base.batch, pick_device("auto"))
    return dict(zip(grid.models, steps, strict=True))


def _seconds(grid: "Grid", cell: "Cell", seconds: Mapping[tuple[str, int], float]) -> float:
    steps = cell.steps - (cell.stem if cell.trunk else 0)
    return steps * seconds[cell.family, cell.size]


def _any_rates(grid: "Grid") -> dict[tuple[str, int], float]:
    """Rates before any are chosen, for what does not depend on them."""
    return dict.fromkeys(grid.models, grid.rates[0]) if len(grid.rates) > 1 else {}


def _groups(cells: Sequence["Cell"]) -> list[list["Cell"]]:
    """Runs that one process must train: a trunk and its branches."""
    groups = list[list["Cell"]]()
    for cell in cells:
        groups[-1].append(cell) if cell.trunk else groups.append([cell])
    return groups


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Makes the folder, or sees that it was begun for the same."""
    file = folder / "plan.json"
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists already, and is no study; name another folder with --out.")
        folder.mkdir(parents=True, exist_ok=True)
        _put(file, plan)
    try:
        before = dict(json.loads(file.read_text()))
    except ValueError:
        raise ValueError(f"{file} is damaged; delete {folder}, or name another folder with --out.") from None
    for name in {**before, **plan}:
        if before.get(name) != plan.get(name):
            was, now = before.get(name), plan.get(name)
            raise ValueError(
                f"{folder} was begun with {name} {was}, but now it is {now}; say the same again, or name another "
                "folder with --out."
            )


def _put(path: Path, document: Mapping[str, Any]) -> None:
    """Writes JSON, all or nothing, though several processes may at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))
