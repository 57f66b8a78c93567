"""What a run on three processes says and loses when something goes wrong: `python tests/drill.py` prints a table.

| fault | said by | seconds | what | lost |: who said it, how long after the fault all processes had ended, the first
sentence, and the steps between the newest checkpoint at the fault and the one after it, which must not be fewer. Then
the same command must end well.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from processes import HERE, free_port, place, started, workers

STEPS, PATIENCE = 400, 5
MORE = ["--duration", f"{STEPS} steps", "--exact", "True", "--checkpoint-every", "5 steps"]
ON_ONE = "\nimport os\nif os.environ.get('RANK') == '1':\n    "  # in the recipe's file, which every process reads


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def said(text: str) -> tuple[str, str]:
    """(ranks that said something, the first sentence)."""
    found = re.findall(r"vitrail, (rank \d) on \S+?: (.*)", text)
    ranks = sorted({rank[5:] for rank, _ in found})
    stops = [line for line in text.splitlines() if line.startswith("stopped")]
    return ", ".join(ranks) or "-", next((line for _, line in found), next(iter(stops), "nothing"))


def ranks(here: Path, out: str) -> dict[int, int]:
    """{rank: process} of a run."""
    found = {}
    for process in workers(here, out):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        found[next(int(v[5:]) for v in variables if v.startswith(b"RANK="))] = process
    return found


def hurt(name: str, here: Path, hit: Callable[[Path, dict[int, int]], None], *more: str) -> None:
    """A fault in the middle of a run, and the same command again."""
    run = here / "many"
    shutil.rmtree(run, ignore_errors=True)
    with started(here, 3, "many", *MORE, *more, VITRAIL_PATIENCE=str(PATIENCE)) as process:
        while saved(run) < 20 and process.poll() is None:
            time.sleep(0.02)
        before, began, found = saved(run), time.monotonic(), ranks(here, "many")
        hit(run, found)
        while any(state(pid) not in "TZ-" for pid in found.values()) and time.monotonic() - began < 120:
            time.sleep(0.1)
        took = time.monotonic() - began
        for pid in found.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        text = process.communicate(timeout=120)[1]
    after = saved(run)
    again = started(here, 3, "many", *MORE, *more)
    ended = again.communicate(timeout=300)[1]
    line(name, *said(text), took, f"{max(0, before - after)} of {before} saved steps", again.returncode, ended)


def state(pid: int) -> str:
    """The state of a process: T where it is stopped, - where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "-"


def refused(name: str, here: Path, recipe: str, *more: str) -> None:
    """A fault before the first step. recipe: what rank 1 does besides."""
    original = (here / "r.py").read_text()
    (here / "r.py").write_text(original + (ON_ONE + recipe if recipe else ""))
    shutil.rmtree(here / "new", ignore_errors=True)
    began = time.monotonic()
    with started(here, 3, str(here / "new"), *MORE, *more, VITRAIL_PATIENCE=str(PATIENCE)) as process:
        text = process.communicate(timeout=300)[1]
    (here / "r.py").write_text(original)
    trace = "Traceback" in re.sub(
        r"(?s)torch.distributed.elastic.*", "", text.replace('Traceback (most recent call last):\n  File "<frozen', "")
    )
    line(name, *said(text), time.monotonic() - began, "nothing was begun" if not trace else "a traceback", None, "")


def line(name: str, who: str, what: str, seconds: float, lost: str, code: int | None, ended: str) -> None:
    went = "" if code is None else ", then finished" if code == 0 else f", then FAILED: {ended[-300:]}"
    print(f"| {name} | {who} | {seconds:.1f} | {what[:200]} | {lost}{went} |", flush=True)


def at(rank: int, how: signal.Signals) -> Callable[[Path, dict[int, int]], None]:
    return lambda run, found: os.kill(found[rank], how)


def while_saving(run: Path, found: dict[int, int]) -> None:
    deadline = time.monotonic() + 30
    while not list((run / "checkpoints").glob(".step-*")) and time.monotonic() < deadline:
        pass
    os.kill(found[0], signal.SIGTERM)


def full_disk(here: Path) -> None:
    """The disk becomes full, and has room again."""
    place, mount = here / "full", ["mount", "-o"]
    place.mkdir()
    subprocess.run([*mount, "size=400k", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    began = time.monotonic()
    with started(here, 3, "full/run", *MORE) as process:
        text = process.communicate(timeout=300)[1]
    took, before = time.monotonic() - began, saved(place / "run")
    subprocess.run([*mount, "remount,size=100m", str(place)], check=True)
    again = started(here, 3, "full/run", *MORE)
    ended = again.communicate(timeout=300)[1]
    line("the disk is full", *said(text), took, f"0 of {before} saved steps", again.returncode, ended)
    subprocess.run(["umount", str(place)], check=True)


def without_others(name: str, here: Path, port: int) -> None:
    """The first of two processes, whose other does not come."""
    there = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "vitrail", "train", "r.py:tiny", "--data", "photos", "--out", "new"]
    began = time.monotonic()
    ended = subprocess.run(
        command, cwd=here, env=HERE | there | {"VITRAIL_PATIENCE": str(PATIENCE)}, capture_output=True, text=True
    )
    line(name, *said(ended.stderr), time.monotonic() - began, "nothing was begun", None, "")


def main() -> None:
    here = place(Path(tempfile.mkdtemp()))
    print("| fault | said by ranks | seconds | what | lost |\n|---|---|---|---|---|")
    hurt("rank 1 killed", here, at(1, signal.SIGKILL))
    hurt("rank 0 killed", here, at(0, signal.SIGKILL))
    hurt(f"rank 1 stopped (time-out {PATIENCE} s)", here, at(1, signal.SIGSTOP))
    hurt("SIGTERM to rank 2", here, at(2, signal.SIGTERM))
    hurt("SIGTERM to rank 0 while it saves", here, while_saving)
    hurt("SIGTERM to rank 0 while all save", here, while_saving, "--shard", "0")
    full_disk(here)
    change = "import dataclasses; was = tiny; tiny = lambda data: "
    refused("rank 1 has another run", here, change + "dataclasses.replace(was(data), seed=7)")
    version = "import vitrail.run as v; was = v.version; v.version = lambda n: '9.9' if n == 'torch' else was(n)"
    refused("rank 1 has another torch", here, version)
    shutil.copytree(here / "photos", here / "others" / "photos")
    (here / "others" / "photos" / "ash" / "0.png").unlink()
    other = "import dataclasses, vitrail.cli.launch as v; was = v.open_splits; "
    other += "v.open_splits = lambda data, *more: was(dataclasses.replace(data, path='others/photos'), *more)"
    refused("rank 1 sees other data", here, other)
    refused("a batch of 2 for 3 processes", here, "", "--batch", "2")
    refused("CUDA is asked for", here, "", "--device", "cuda")
    refused("the loss is NaN", here, "", "--optim.lr", "1e30", "--optim.clip", "None")
    without_others("the others never come", here, free_port())
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        without_others("the port is taken", here, taken.getsockname()[1])


if __name__ == "__main__":
    main()
