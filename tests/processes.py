"""Runs on one process and on many, for tests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

from command_line import photos
from small_runs import saved

ROOT = Path(__file__).resolve().parent.parent
HERE = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
RECIPE = """
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run

def tiny(data):
    model = vit.Config((16, 16), (8, 8), 3, 16, 2, 2, 32, 10, dropout=0.1, drop_path=0.1)
    augment = Augment("shift", shift=1, mixup=0.2)
    how = optim.Config("muon", lr=3e-3, weight_decay=0.05, clip=1.0, schedule=Schedule("cosine", warmup="25%"))
    return Run("tiny", model, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3), Data(data), augment, optim=how, batch=20,
               ema=0.9, duration="12 steps", log_every=1, checkpoint_every="3 steps", evaluate_every="6 steps")
"""


def place(folder):
    """Photographs and a recipe in a folder."""
    photos(folder / "photos", ("ash", "beech", "elm"), count=10)
    (folder / "r.py").write_text(RECIPE)
    return folder


def started(here, world, out, *more, restarts=0, recipe="r.py:tiny", **environment):
    """torchrun, with so many processes of `vitrail train`."""
    words = ["-m", "vitrail", "train", recipe, "--data", "photos", "--out", out, *more]
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", f"--max-restarts={restarts}"]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONWARNINGS": "ignore", **environment}
    return subprocess.Popen(
        [sys.executable, *run, *words], cwd=here, env=environment, stderr=subprocess.PIPE, text=True
    )


def trained(here, world, out, *more, patience=240, **how):
    """What it said, once it has ended well. patience: in seconds."""
    with started(here, world, out, *more, **how) as process:
        said = process.communicate(timeout=patience)[1]
    assert process.returncode == 0, said
    return said


def alone(here, out, *more):
    words = ["train", "r.py:tiny", "--data", "photos", "--out", out, *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    subprocess.run(
        [sys.executable, "-m", "vitrail", *words], cwd=here, env=environment, check=True, capture_output=True
    )


def bits(here, out, step=12):
    """One digest of all that a checkpoint holds."""
    digest = sha256()
    for name, tensor in sorted(saved(here / out / "checkpoints" / f"step-{step}").items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def cut_back(run):
    """As if it had been stopped after step 6."""
    for name in ("checkpoints/step-9", "checkpoints/step-12", "model"):
        shutil.rmtree(run / name)


def losses(here, out):
    lines = map(json.loads, (here / out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def evaluations(here, out):
    lines = map(json.loads, (here / out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "evaluation" in line]


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


def workers(here, out):
    listed = subprocess.run(
        ["pgrep", "-f", f"train r.py:tiny --data photos --out {out}"], capture_output=True, text=True
    )
    found = [int(number) for number in listed.stdout.split()]
    return [n for n in found if "torch.distributed.run" not in Path(f"/proc/{n}/cmdline").read_text()]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
