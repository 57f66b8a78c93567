"""What was measured on: the processor, the versions, the rate of its matrix products; and how tables are written.

Times from different machines cannot be compared; fractions of the matrix-product rate can, roughly.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "vitrail")


def describe() -> dict[str, Any]:
    """Machine, versions, date and commit: what a reader needs to judge the numbers beside it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": processor(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".strip(", "),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if next(distributions(name=name), None)},
    }


def processor() -> str:
    """The processor's name, with the width of its vectors, which decides the fp32 rate."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = named.get("flags", "").split()
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{named.get('model name', platform.machine())} ({', '.join(vectors) or 'no vector flags'})"


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Processor seconds that the whole machine has spent so far, the hypervisor's part included; None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory_gib() -> float:
    """Memory of the machine in GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def commit() -> str | None:
    """The commit of this tree, with "+" when files differ from it; None before the first commit."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


class MatrixProduct:
    """A large matrix product on one device, in the precision that the models use there: the limit of the machine."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self.size = 8192 if device == "cuda" else 1536
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.a = torch.randn(self.size, self.size, device=device, dtype=dtype)
        self.b = torch.randn(self.size, self.size, device=device, dtype=dtype)
        self.out = torch.empty_like(self.a)
        self.rate(0.2)

    def rate(self, seconds: float = 0.5) -> float:
        """GFLOP/s: the median of the products that fit into about this many seconds."""
        import torch

        times: list[float] = []
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or len(times) < 3:
            before = time.perf_counter()
            torch.mm(self.a, self.b, out=self.out)
            if self.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return 2 * self.size**3 / sorted(times)[len(times) // 2] / 1e9


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, padded so that it also reads well in a terminal; the first column to the left."""
    widths = [max(3, *(len(row[i]) for row in [headers, *rows])) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(headers), rule, *(line(row) for row in rows)])


def headline(machine: dict[str, Any]) -> str:
    """One sentence on machine and versions to stand above a table."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; "
        f"python {machine['python']}, {versions}; {machine['date']}, commit {machine['commit'] or 'none'}"
    )


def write_json(path: Path | None, document: dict[str, Any]) -> None:
    """Writes a result; a half-written file never replaces a whole one."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=1, default=str) + "\n")
    partial.replace(path)
