"""Counters and histograms, as Prometheus reads them (its text format 0.0.4).

    metrics = Metrics()
    metrics.count("requests", path="/predict", status="200")
    metrics.observe("request_seconds", 0.012)
    metrics.text()

Only the thread of the event loop writes.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable

HELP = {
    "requests": "Requests answered, by path and status.",
    "images": "Images answered, by model.",
    "request_seconds": "From the first byte of a request to its answer.",
    "batch_images": "Images that went through a model together.",
    "waiting_images": "Images that are decoded, wait or are computed now.",
}
BOUNDS = {
    "request_seconds": (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    "batch_images": (1, 2, 4, 8, 16, 32, 64, 128),
}


class Metrics:
    """What a server has done since it began."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.buckets = {name: [0] * (len(bounds) + 1) for name, bounds in BOUNDS.items()}
        self.gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self.counts[name, tuple(labels.items())] += amount

    def observe(self, name: str, value: float) -> None:
        self.sums[name] += value
        self.buckets[name][bisect_left(BOUNDS[name], value)] += 1

    def text(self) -> str:
        lines = []
        for name in dict.fromkeys(name for name, _ in self.counts):
            lines += [f"# HELP vitrail_{name}_total {HELP[name]}", f"# TYPE vitrail_{name}_total counter"]
            for (other, labels), value in self.counts.items():
                if other == name:
                    named = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                    lines.append(f"vitrail_{name}_total{{{named}}} {value}")
        for name, bounds in BOUNDS.items():
            lines += [f"# HELP vitrail_{name} {HELP[name]}", f"# TYPE vitrail_{name} histogram"]
            total = 0
            for bound, found in zip((*bounds, "+Inf"), self.buckets[name], strict=True):
                total += found
                lines.append(f'vitrail_{name}_bucket{{le="{bound}"}} {total}')
            lines += [f"vitrail_{name}_sum {self.sums[name]:.9g}", f"vitrail_{name}_count {total}"]
        for name, value in self.gauges.items():
            lines += [f"# HELP vitrail_{name} {HELP[name]}", f"# TYPE vitrail_{name} gauge"]
            lines.append(f"vitrail_{name} {value():g}")
        return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
