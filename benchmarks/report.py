"""From raw rounds to the tables: medians, shares of the matrix-product rate, and the paired ratio to the best peer.

    python -m benchmarks.report throughput.json     print the tables of a finished run again

A ratio below 1 means faster, or smaller, than the best peer. The best peer of a run is the one with the lowest
median; the ratio is taken within each round, where both met the same noise, and then its median. Rounds that other
programs disturbed are left out where at least three quiet ones remain.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import headline, table
from benchmarks.measure import DISTURBED

Record = dict[str, Any]


def quiet(record: Record) -> list[int]:
    """The rounds that count: those that no other program disturbed, or all of them when fewer than three were quiet."""
    undisturbed = [number for number, share in enumerate(record["foreign"]) if share <= DISTURBED]
    return undisturbed if len(undisturbed) >= 3 else list(range(len(record["foreign"])))


def seconds_of(record: Record, library: str) -> list[float]:
    """A library's seconds per image in the rounds that count; none when it failed."""
    series = record["libraries"].get(library, {}).get("seconds_per_image", [])
    return [series[number] for number in quiet(record)] if series else []


def best_peer(record: Record, libraries: list[str]) -> str | None:
    """The peer with the lowest median; None when no peer was measured."""
    medians = {name: statistics.median(seconds_of(record, name)) for name in libraries[1:] if seconds_of(record, name)}
    return min(medians, key=lambda name: medians[name], default=None)


def ratios(record: Record, subject: str, peer: str | None) -> list[float]:
    """Subject's time over the peer's, round by round."""
    ours = seconds_of(record, subject)
    if peer is None or not ours:
        return []
    return [a / b for a, b in zip(ours, seconds_of(record, peer), strict=True)]


def groups(records: list[Record]) -> list[list[Record]]:
    """The repeats of each setting together, in the order of first appearance."""
    found: dict[tuple[str, str, str, int], list[Record]] = {}
    for record in records:
        found.setdefault((record["case"], record["pass"], record["mode"], record["batch"]), []).append(record)
    return list(found.values())


def speed_summary(records: list[Record], libraries: list[str]) -> list[Record]:
    """One object for each setting, its repeats drawn together."""
    summary = []
    for repeats in groups(records):
        first = repeats[0]
        row: Record = {key: first[key] for key in ("case", "pass", "mode", "batch")}
        row["quiet_rounds"] = sum(share <= DISTURBED for record in repeats for share in record["foreign"])
        row["rounds"] = sum(len(record["foreign"]) for record in repeats)
        row["libraries"] = {}
        for name in libraries:
            measured = [record for record in repeats if seconds_of(record, name)]
            if measured:
                row["libraries"][name] = library_summary(name, measured)
        of_runs = [ratios(record, libraries[0], best_peer(record, libraries)) for record in repeats]
        rounds = [value for run in of_runs for value in run]
        if rounds:
            medians = [statistics.median(run) for run in of_runs if run]
            row["best_peer"] = [best_peer(record, libraries) for record in repeats]
            row["ratio_of_runs"] = medians
            row["ratio"] = statistics.median(medians)
            row["ratio_quartiles"] = quartiles(rounds)
        summary.append(row)
    return summary


def library_summary(name: str, measured: list[Record]) -> Record:
    """Median seconds per image over all rounds of all runs, and what share of the machine's limit that is."""
    results = [record["libraries"][name] for record in measured]
    seconds = statistics.median(value for record in measured for value in seconds_of(record, name))
    shares = [
        result["flops_per_image"] / result["seconds_per_image"][number] / (record["matrix_gflops"][number] * 1e9)
        for record, result in zip(measured, results, strict=True)
        for number in quiet(record)
    ]
    return {
        "seconds_per_image": seconds,
        "images_per_second": 1 / seconds,
        "share_of_matrix_rate": statistics.median(shares),
        "gflop_per_image": results[0]["flops_per_image"] / 1e9,
        "first_step_seconds": [result["first_step_seconds"] for result in results],
        "faults_per_step": statistics.median(value for result in results for value in result["faults_per_step"]),
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile; with fewer than four values, the extremes."""
    if len(values) < 4:
        return [min(values), max(values)]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def speed_table(summary: list[Record], libraries: list[str]) -> str:
    """Milliseconds per image, images per second and share of the matrix-product rate for each library."""
    headers = ["case", "pass", "mode", "batch", "GFLOP"]
    headers += [f"{name}: ms (img/s, share)" for name in libraries]
    headers += ["best peer", f"{libraries[0]} / best (quartiles)", "each run", "quiet rounds"]
    rows = []
    for row in summary:
        measured = row["libraries"]
        gflop = [f"{result['gflop_per_image']:.2f}" for result in measured.values()][:1] or ["-"]
        cells = [row["case"], row["pass"], row["mode"], str(row["batch"]), *gflop]
        for name in libraries:
            result = measured.get(name)
            cells.append(
                f"{result['seconds_per_image'] * 1e3:.2f} ({result['images_per_second']:.1f}, "
                f"{result['share_of_matrix_rate']:.0%})"
                if result
                else "failed"
            )
        if "ratio" in row:
            low, high = row["ratio_quartiles"]
            cells.append("/".join(dict.fromkeys(str(peer) for peer in row["best_peer"])))
            cells += [f"{row['ratio']:.3f} ({low:.3f}-{high:.3f})"]
            cells += [" ".join(f"{value:.3f}" for value in row["ratio_of_runs"])]
        else:
            cells += ["-", "-", "-"]
        rows.append([*cells, f"{row['quiet_rounds']} of {row['rounds']}"])
    return table(headers, rows)


def memory_summary(records: list[Record], libraries: list[str]) -> list[Record]:
    """Peak bytes of each library and the ratio of the first to the least of the others."""
    summary = []
    for record in records:
        row: Record = {key: record[key] for key in ("case", "pass", "batch")} | {"libraries": record["libraries"]}
        subject = record["libraries"].get(libraries[0])
        peers = [record["libraries"][name] for name in libraries[1:] if name in record["libraries"]]
        if subject and peers:
            row["ratio"] = subject["peak"] / min(peer["peak"] for peer in peers)
            if subject["tensors"] is not None:
                row["tensor_ratio"] = subject["tensors"] / min(peer["tensors"] for peer in peers)
        summary.append(row)
    return summary


def memory_table(summary: list[Record], libraries: list[str]) -> str:
    """MiB above model and inputs: resident, and of tensors alone."""
    headers = ["case", "pass", "batch", *(f"{name}: MiB (tensors)" for name in libraries)]
    headers += [f"{libraries[0]} / least", "tensors"]
    rows = []
    for row in summary:
        cells = [row["case"], row["pass"], str(row["batch"])]
        for name in libraries:
            result = row["libraries"].get(name)
            if result is None:
                cells.append("failed")
            else:
                tensors = "-" if result["tensors"] is None else f"{result['tensors'] / 2**20:.1f}"
                cells.append(f"{result['peak'] / 2**20:.1f} ({tensors})")
        cells += [f"{row[key]:.3f}" if key in row else "-" for key in ("ratio", "tensor_ratio")]
        rows.append(cells)
    return table(headers, rows)


def text(document: Record) -> str:
    """The whole report as markdown."""
    libraries = document["settings"]["libraries"]
    parts = [headline(document["machine"])]
    if document["speed"]:
        rates = [value for record in document["speed"] for value in record["matrix_gflops"]]
        if rates:
            low, high = quartiles(rates)
            parts.append(f"Matrix products: {statistics.median(rates):.0f} GFLOP/s (quartiles {low:.0f}-{high:.0f}).")
        parts.append(speed_table(speed_summary(document["speed"], libraries), libraries))
    if document["memory"]:
        parts.append("Peak memory above model and inputs, eager:")
        parts.append(memory_table(memory_summary(document["memory"], libraries), libraries))
    for record in [*document["speed"], *document["memory"]]:
        for name, message in record["errors"].items():
            parts.append(f"{record['case']} {record['pass']} {record['mode']}: {name} failed: {message}")
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables of a JSON file."""
    print(text(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
