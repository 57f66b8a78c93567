"""What preparing a model for inference is worth: Vitrail plain and in int8 beside timm, eager and compiled.

    python -m benchmarks.inference --json inference.json     six minutes on two cores; --repeats 3 for more
    python -m benchmarks.inference --cases Ti/16@224 --batches 1 --libraries timm,vitrail:plain,vitrail:int8
    python -m benchmarks.inference --no-speed --data photos --weights runs/photos     only what int8 loses there

Interleaved rounds in fresh processes, as benchmarks/measure.py has them; every ratio is taken within a round, against
the first library. `vitrail` alone is the model as training has it, `vitrail:plain` what predict and evaluate use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, headline, table, write_json
from benchmarks.measure import DISTURBED, matrix_worker, open_matrix, speed
from benchmarks.plan import Options, Progress, Setting, expected_seconds, settings
from benchmarks.pool import KEEP_FREED, WorkerError
from benchmarks.report import Record, groups, library_summary, quartiles, ratios, seconds_of
from benchmarks.throughput import names

LIBRARIES = ("timm", "timm:compiled", "vitrail:plain", "vitrail:int8")
CASES = ("Ti/16@224", "S/16@224", "B/16@224")
BATCHES = (1, 16)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `options` in it is what benchmarks/plan.py understands."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--libraries", type=names, default=LIBRARIES, help="the first is what the others are held against"
    )
    parser.add_argument("--cases", type=names, default=CASES)
    parser.add_argument("--batches", type=names, default=tuple(map(str, BATCHES)))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds in one run")
    parser.add_argument("--repeats", type=int, default=1, help="runs in fresh processes")
    parser.add_argument("--burst", type=float, default=default.burst, help="seconds of one library's turn")
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--timeout", type=float, default=default.timeout)
    parser.add_argument("--default-allocator", action="store_true", help="do not keep freed memory mapped")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--data", type=Path, metavar="DATA", help="labelled images, for what int8 loses")
    parser.add_argument("--weights", metavar="RUN_OR_WEIGHTS", help="the model for them")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    if (given.data is None) != (given.weights is None):
        parser.error("--data and --weights go together.")
    if not all(batch.isdigit() and int(batch) for batch in given.batches):
        parser.error(f"--batches is {','.join(given.batches)}; it must be numbers such as 1,16.")
    try:
        given.options = Options(
            libraries=given.libraries,
            cases=given.cases,
            passes=("forward",),
            modes=("eager",),
            rounds=given.rounds,
            repeats=given.repeats,
            burst=given.burst,
            threads=given.threads,
            timeout=given.timeout,
            keep_freed=not given.default_allocator,
        )
    except ValueError as error:
        parser.error(str(error))
    return given


def rows_of(options: Options, batches: Sequence[int]) -> list[Setting]:
    """Every case with every batch."""
    return [row for batch in batches for row in settings(replace(options, forward_batch=batch))]


def measure(options: Options, batches: Sequence[int], document: dict[str, Any], file: Path | None) -> None:
    """All settings of the first run, of the second, ...; the file is rewritten after each."""
    rows = rows_of(options, batches)
    with matrix_worker(options) as matrix, tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
        gflops = open_matrix(matrix, options)
        runs = [(repeat, row) for repeat in range(options.repeats) for row in rows]
        progress = Progress(sum(expected_seconds(row, options, repeat, gflops) for repeat, row in runs))
        progress.say(f"matrix products run at {gflops:.0f} GFLOP/s")
        for repeat, row in runs:
            document["speed"].append(speed(row, repeat, options, matrix, Path(cache), progress, gflops))
            document["summary"] = summary(document["speed"], list(options.libraries))
            write_json(file, document)


def summary(records: list[Record], libraries: list[str]) -> list[Record]:
    """One object for each case and batch: each library's rate, and how many times faster than the first it is."""
    found = []
    for repeats in groups(records):
        shares = [share for record in repeats for share in record["foreign"]]
        row: Record = {key: repeats[0][key] for key in ("case", "batch")} | {"libraries": {}}
        row |= {"rounds": len(shares), "quiet_rounds": sum(share <= DISTURBED for share in shares)}
        for name in libraries:
            measured = [record for record in repeats if seconds_of(record, name)]
            if not measured:
                continue
            row["libraries"][name] = library_summary(name, measured)
            of_runs = [run for record in measured if (run := ratios(record, libraries[0], name))]
            if of_runs:
                row["libraries"][name] |= {
                    "faster": statistics.median(statistics.median(run) for run in of_runs),
                    "faster_quartiles": quartiles([value for run in of_runs for value in run]),
                }
        found.append(row)
    return found


def int8_loss(weights: str, data: Path) -> dict[str, Any]:
    """Accuracy in fp32 and int8, and the share of equal answers, as `vitrail evaluate` has them."""
    command = [sys.executable, "-m", "vitrail", "evaluate", weights, str(data), "--int8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        raise ValueError(done.stderr.strip() or f"{' '.join(command)} ended with status {done.returncode}")
    found = json.loads(done.stdout)
    return {"samples": found["samples"], "fp32": found["metrics"], **found["int8"]}


def text(document: dict[str, Any]) -> str:
    """The whole report as markdown."""
    first = document["settings"]["libraries"][0]
    parts, rows = [headline(document["machine"])], []
    for row in document["summary"]:
        for name, result in row["libraries"].items():
            low, high = result.get("faster_quartiles", (float("nan"),) * 2)
            rows.append(
                [
                    f"{row['case']} batch {row['batch']}",
                    name,
                    f"{result['seconds_per_image'] * 1e3:.2f}",
                    f"{result['images_per_second']:.1f}",
                    f"{result['share_of_matrix_rate']:.0%}",
                    f"{result.get('faster', float('nan')):.3f} ({low:.3f}-{high:.3f})",
                    f"{row['quiet_rounds']} of {row['rounds']}",
                ]
            )
    if rows:
        headers = ["case", "library", "ms", "img/s", "share", f"faster than {first} (quartiles)", "quiet rounds"]
        parts.append(table(headers, rows))
    for record in document["speed"]:
        parts += [f"{record['case']}: {name} failed: {message}" for name, message in record["errors"].items()]
    if found := document.get("int8"):
        what = next(name for name in ("accuracy", "mAP") if name in found["metrics"])
        parts.append(
            f"int8 on {found['samples']:,} images: {what} {found['metrics'][what]:.2%}, in fp32 "
            f"{found['fp32'][what]:.2%}; {found['same']:.2%} of the answers are the same."
        )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""
    given = parse(arguments)
    options: Options = given.options
    document: dict[str, Any] = {
        "benchmark": "inference",
        "machine": describe(),
        "settings": asdict(options) | {"allocator": KEEP_FREED if options.keep_freed else {}},
        "speed": [],
        "summary": [],
    }
    status = 0
    try:
        if given.data:
            document["int8"] = int8_loss(given.weights, given.data)
            write_json(given.json, document)
        if not given.no_speed:
            measure(options, [int(batch) for batch in given.batches], document, given.json)
    except KeyboardInterrupt:
        print("interrupted; the tables hold what was finished", file=sys.stderr)
        status = 130
    except (WorkerError, ValueError) as error:
        print(str(error), file=sys.stderr)
        status = 2
    print(text(document))
    return status or int(any(record["errors"] for record in document["speed"]))


if __name__ == "__main__":
    sys.exit(main())
