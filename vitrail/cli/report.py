"""`vitrail report`: a page about a run, with where it looks, or about runs beside each other."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vitrail.cli.options import Command, Given, Out
from vitrail.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitrail.data.sources.source import Source
    from vitrail.evaluate.results import SingleLabel
    from vitrail.report.html import Thumbnail
    from vitrail.run import Run
    from vitrail.tasks import Task

MOST = 4  # runs on a page


@dataclass(kw_only=True)
class Report(Command):
    """Write a page about a run, or about two to four runs beside each other.

    The models are judged again on the runs' own validation images. One run: as report.html in its folder, with what the
    model looked at beside each of its worst mistakes, and the mistakes of each class. Several: scores with intervals,
    paired differences, curves, what was set otherwise, and images on which they disagree. Tables can be sorted, images
    filtered; everything is in the one file.
    """

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...")]]
    """Run folders."""
    out: Out
    """The file to write, such as report.html."""

    def run(self, given: Given) -> None:
        from vitrail.log import records
        from vitrail.report import compare_page, run_page

        if not 1 <= len(self.runs) <= MOST:
            raise ValueError(f"a page has 1 to {MOST} runs, not {len(self.runs)}.")
        target = Path(self.out)
        if target.suffix != ".html" or target.is_dir() or not target.parent.is_dir():
            raise ValueError(f"--out is {target}; it is a file .html in a folder that exists, such as report.html.")
        found = [self._judged(Path(folder)) for folder in self.runs]
        folder, run, task, source, metrics, results = found[0]
        if len(found) == 1:
            looks = self._looks(task, source)
            logged = folder / "metrics.jsonl"
            notes = [record["note"] for record in records(logged) if "note" in record] if logged.is_file() else []
            text = run_page.page(folder, run, source, results, metrics, notes, looks)
        else:
            images, judged = _names(source), list[compare_page.Judged]()
            for f, r, _, other, m, results in found:
                if not (same := _names(other) == images):
                    say(f"{f} has other validation images than {folder}: they are not compared image by image.")
                judged.append(compare_page.Judged(f, r, m, _single(results) if same else None))
            text = compare_page.page(judged, source)
        target.write_text(text, encoding="utf-8")
        document = {"file": str(target), "runs": {str(f): m for f, _, _, _, m, _ in found}}
        self.answer(document, f"{target}: {len(text) / 1e6:.1f} MB")

    def _judged(self, folder: Path) -> "tuple[Path, Run, Task, Source, dict[str, float], dict[str, Any]]":
        """(folder, run, task, validation images, metrics, results) of a run that has ended."""
        from functools import partial

        from vitrail import run as runs
        from vitrail.data.sources.open import open_splits
        from vitrail.evaluate import Validation
        from vitrail.evaluate.evaluator import judge
        from vitrail.pipeline import Pipeline
        from vitrail.runtime.inference import batch_size, prepared

        run = runs.read(folder)
        if not (folder / "model").is_dir():
            raise ValueError(f"{folder} has no model yet; go on with: vitrail resume {folder}")
        device = "cpu" if run.device == "cpu" else "auto"
        task = Pipeline.load(folder, device=device).task
        splits = open_splits(replace(run.data, balance=False), run.task.needs)
        where = task.device
        say(f"judging {folder} on {len(splits.val):,} images, on {where}")
        size = batch_size(task.model.config, task.preprocessing.image_size, where)
        collate = partial(task.config.collate, source=splits.val)
        skipped = say if run.data.unreadable == "skip" else None
        data = Validation(
            splits.val, task.preprocessing, collate, size, where, skipped=skipped, train=splits.train, keep=True
        )
        return (folder, run, task, splits.val, *judge(run.evaluators(), prepared(task), data))

    def _looks(self, task: "Task", source: "Source") -> "Callable[[int], Thumbnail | None] | None":
        """Where the model looks for what it predicts in an image; None for a model that cannot be asked."""
        from vitrail.explain.explanation import explain
        from vitrail.models import vit
        from vitrail.pipeline import Pipeline
        from vitrail.report.html import heated

        if not isinstance(task.model, vit.ViT) or not task.class_names:
            return None
        pipeline = Pipeline(task)

        def looks(index: int) -> "Thumbnail | None":
            try:
                found = explain(pipeline, source[index].image, top=1, name=source.name(index))
            except ValueError:
                return None
            return heated(found.photo, found.maps[0].float().cpu().numpy(), found.box)

        return looks


def _single(results: dict[str, Any]) -> "SingleLabel | None":
    from vitrail.evaluate.results import SingleLabel

    return next((found for found in results.values() if isinstance(found, SingleLabel)), None)


def _names(source: "Source") -> tuple[str, ...]:
    return tuple(source.name(index) for index in range(len(source)))
