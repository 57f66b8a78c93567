"""What a run on three processes says and loses when something goes wrong: `python tests/drill.py` prints a line for each.

| fault | said by | seconds | what | lost |: who said it, how long after the fault all processes had ended, the first
sentence, and the steps between the newest checkpoint at the fault and the one after it, which must not be fewer. Then
the same command must end well.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from processes import free_port, place, started, workers

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
    named = [line for _, line in found if "stopped after" not in line] or [line for _, line in found]
    other = next((line for line in text.splitlines() if line.startswith("vitrail")), "nothing")
    return ", ".join(ranks) or "-", named[0] if named else other


def ranks(here: Path, out: str) -> dict[int, int]:
    """{rank: process} of a run."""
    found = {}
    for process in workers(here, out):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        found[next(int(v[5:]) for v in variables if v.startswith(b"RANK="))] = process
    return found


def hurt(name: str, here: Path, hit: Callable[[Path, dict[int, int]], None], mend: Callable[[], None] | None) -> None:
    """A fault in the middle of a run, and the same command again."""
    run = here / "many"
    shutil.rmtree(run, ignore_errors=True)
    with started(here, 3, "many", *MORE, VITRAIL_PATIENCE=str(PATIENCE)) as process:
        while saved(run) < 20 and process.poll() is None:
            time.sleep(0.02)
        before, began, found = saved(run), time.monotonic(), ranks(here, "many")
        hit(run, found)
        text, took = "", 0.0
        try:
            while any(Path(f"/proc/{pid}").exists() and stopped(pid) != "T" for pid in found.values()):
                time.sleep(0.1)
                if time.monotonic() - began > 120:
                    break
            took = time.monotonic() - began
            for pid in found.values():
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGKILL)
            text = process.communicate(timeout=120)[1]
        finally:
            process.kill()
    after = saved(run)
    if mend:
        mend()
    again = started(here, 3, "many", *MORE)
    ended = again.communicate(timeout=300)[1]
    line(name, *said(text), took, f"{max(0, before - after)} of {before} saved steps", again.returncode, ended)


def stopped(pid: int) -> str:
    """The state of a process, T where it is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def refused(name: str, here: Path, recipe: str, *more: str, world: int = 3, **environment: str) -> None:
    """A fault before the first step."""
    (here / "r.py").write_text(ORIGINAL + recipe)
    shutil.rmtree(here / "new", ignore_errors=True)
    began = time.monotonic()
    with started(here, world, "new", *MORE, *more, VITRAIL_PATIENCE=str(PATIENCE), **environment) as process:
        text = process.communicate(timeout=300)[1]
    (here / "r.py").write_text(ORIGINAL)
    trace = "Traceback" in re.sub(r"(?s)torch.distributed.elastic.*", "", text.replace("Traceback (most recent call last):\n  File \"<frozen", ""))
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


def main() -> None:
    global ORIGINAL
    here = place(Path(tempfile.mkdtemp()))
    ORIGINAL = (here / "r.py").read_text()
    print("| fault | said by ranks | seconds | what | lost |\n|---|---|---|---|---|")
    hurt("rank 1 killed", here, at(1, signal.SIGKILL), None)
    hurt("rank 0 killed", here, at(0, signal.SIGKILL), None)
    hurt(f"rank 1 stopped (time-out {PATIENCE} s)", here, at(1, signal.SIGSTOP), None)
    hurt("SIGTERM to rank 2", here, at(2, signal.SIGTERM), None)
    hurt("SIGTERM to rank 0 while it saves", here, while_saving, None)
    image, bad = here / "photos" / "ash" / "3.png", b"\x89PNG\r\n\x1a\nbroken"
    good = image.read_bytes()
    hurt("an image becomes unreadable", here, lambda *_: image.write_bytes(bad) and None, lambda: image.write_bytes(good) and None)
    full = here / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(full)], check=False).returncode == 0:
        began = time.monotonic()
        with started(here, 3, "full/run", *MORE) as process:
            text = process.communicate(timeout=300)[1]
        before = saved(full / "run")
        subprocess.run(["mount", "-o", "remount,size=100m", str(full)], check=True)
        again = started(here, 3, "full/run", *MORE)
        ended = again.communicate(timeout=300)[1]
        line("the disk is full", *said(text), time.monotonic() - began, f"0 of {before} saved steps", again.returncode, ended)
        subprocess.run(["umount", str(full)], check=True)
    refused("rank 1 has another run", here, ON_ONE + "import dataclasses; old = tiny; tiny = lambda data: dataclasses.replace(old(data), seed=7)")
    refused("rank 1 has another torch", here, ON_ONE + "import vitrail.run as v; kept = v.version; v.version = lambda n: '9.9' if n == 'torch' else kept(n)")
    shutil.copytree(here / "photos", here / "others")
    (here / "others" / "ash" / "0.png").unlink()
    refused("rank 1 sees other data", here, ON_ONE + "import dataclasses; old = tiny; tiny = lambda data: old('others')", )
    refused("a batch of 20 for 21 processes" if False else "a batch of 2 for 3 processes", here, "", "--batch", "2")
    refused("CUDA is asked for", here, "", "--device", "cuda")
    refused("the loss is NaN", here, "", "--optim.lr", "1e30", "--optim.clip", "None")
    port = str(free_port())
    command = [sys.executable, "-m", "vitrail", "train", "r.py:tiny", "--data", "photos", "--out", "new"]
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "VITRAIL_PATIENCE": "2"}
    root = str(Path(__file__).resolve().parent.parent)
    began = time.monotonic()
    ended = subprocess.run(command, cwd=here, env={**os.environ, **variables, "PYTHONPATH": root}, capture_output=True, text=True, timeout=120)
    line("the others never come", *said(ended.stderr), time.monotonic() - began, "nothing was begun", None, "")
    import socket

    with socket.socket() as taken:
        taken.bind(("localhost", int(port)))
        taken.listen()
        began = time.monotonic()
        ended = subprocess.run(command, cwd=here, env={**os.environ, **variables, "PYTHONPATH": root}, capture_output=True, text=True, timeout=120)
        line("the port is taken", *said(ended.stderr), time.monotonic() - began, "nothing was begun", None, "")


if __name__ == "__main__":
    main()
