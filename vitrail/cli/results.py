"""What came of a run, for people and for programs.

outcome = Outcome(Path("runs/demo"), metrics, seconds=175.0)
print(outcome.text())                               # accuracy 86.9% (85.3% to 88.3%) on 2,000 held-back images, ...
print(json.dumps(outcome.document()))
ended(folder)                                       # the metrics of a run that has ended, or None
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.evaluate.results import accuracy_interval
from vitrail.log import read_history


@dataclass(frozen=True)
class Outcome:
    """A run that has ended. metrics: of its final evaluation. seconds: None where it had ended before."""

    folder: Path
    metrics: Mapping[str, float]
    seconds: float | None = None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": str(self.folder),
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "metrics": dict(self.metrics),
            "interval": interval(self.metrics),
            "report": str(self.folder / "report.html"),
            "model": str(self.folder / "model"),
        }

    def text(self) -> str:
        """The score, where everything is, and what to type next."""
        after = "" if self.seconds is None else f", after {self.seconds:.0f} s"
        return "\n".join(
            (
                f"{headline(self.metrics)} on {self.metrics['samples']:,.0f} validation images{after}",
                f"report: {self.folder / 'report.html'}",
                f"model: {self.folder / 'model'}",
                f"next: vitrail predict {shlex.quote(str(self.folder))} IMAGE",
            )
        )


def headline(metrics: Mapping[str, float]) -> str:
    """ "accuracy 86.9% (85.3% to 88.3%)", with the interval that holds the true one 95 times in 100; or "mAP 61.2%"; or
    the first metric that there is."""
    if (bounds := interval(metrics)) is None:
        return f"mAP {metrics['mAP']:.1%}" if "mAP" in metrics else "{} {:.4g}".format(*next(iter(metrics.items())))
    return f"accuracy {metrics['accuracy']:.1%} ({bounds[0]:.1%} to {bounds[1]:.1%})"


def interval(metrics: Mapping[str, float]) -> tuple[float, float] | None:
    """The accuracy's 95 % interval; None for mean average precision, which has none so simple."""
    if "accuracy" not in metrics:
        return None
    samples = round(metrics["samples"])
    return accuracy_interval(round(metrics["accuracy"] * samples), samples)


def ended(folder: Path) -> dict[str, float] | None:
    """The metrics of a run's final evaluation; None for one that has not ended: its page is what it writes last."""
    found = read_history(folder / "metrics.jsonl").evaluations
    if not found or not (folder / "report.html").is_file() or not (folder / "model").is_dir():
        return None
    last = max(steps[-1] for steps, _ in found.values())
    return {name: float(values[-1]) for name, (steps, values) in found.items() if steps[-1] == last}
