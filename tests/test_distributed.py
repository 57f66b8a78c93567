"""One run on many processes: the same batches and losses, with --exact the same bits, through kills and stops."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import (
    HERE,
    ROOT,
    alone,
    bits,
    cut_back,
    evaluations,
    free_port,
    losses,
    started,
    trained,
    wait_for,
    workers,
)
from safetensors.torch import load_file
from small_runs import saved
from test_loader import Numbered, made

from vitrail.data.images.augment import Augment
from vitrail.runtime.distributed import ALONE


@pytest.mark.parametrize(("batch", "size", "world"), [(20, 20, 3), (20, 3, 2), (7, 7, 3), (64, 10, 5), (6, 6, 3)])
@pytest.mark.parametrize("fixed", [False, True])
def test_processes_divide_every_step_without_rest_or_overlap(batch, size, world, fixed):
    for mixup in (0.0, 0.5) if size % 2 == 0 or size == batch else (0.0,):
        how = {"batch": batch, "micro_batch": size, "fixed": fixed}
        if fixed and -(-batch // size) < world:
            with pytest.raises(ValueError, match=f"batch of {batch} .* {world} processes"):
                made(Numbered(50), Augment(mixup=mixup), **how, share=(0, world))
            continue
        shares = [made(Numbered(50), Augment(mixup=mixup), **how, share=(rank, world)) for rank in range(world)]
        assert all(len(list(share.keys(3, 5))) == len(share.keys(3, 5)) == 2 * share.parts for share in shares)
        numbers = sorted(number for share in shares for number in share.keys(3, 4))
        pieces = [shares[0][number].batch["indices"] for number in numbers]
        assert torch.cat(pieces).tolist() == shares[0].indices(3).tolist()
        assert max(map(len, pieces)) <= size
        assert not mixup or all(len(piece) % 2 == 0 for piece in pieces[:-1])


def test_a_batch_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="batch of 4 images cannot be divided among 5 processes"):
        made(Numbered(50), batch=4, share=(0, 5))
    with pytest.raises(ValueError, match="batch of 4 images cannot be divided among 3 processes"):
        made(Numbered(50), Augment(mixup=0.5), batch=4, share=(0, 3))


def test_alone_there_is_nobody_to_ask():
    assert (ALONE.first, ALONE.flags(True, False), ALONE.texts("a")) == (True, [True, False], ["a"])
    assert ALONE.rows(np.arange(3)).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^x$"), ALONE.together():
        raise ValueError("x")


def test_two_processes_train_as_one(here):
    alone(here, "one")
    trained(here, 2, "two")
    np.testing.assert_allclose(losses(here, "two"), losses(here, "one"), rtol=0, atol=1e-6)
    first, second = (evaluations(here, out)[0]["evaluation"] for out in ("one", "two"))
    assert (first["samples"], second) == (3, pytest.approx(first, abs=1e-5))
    assert (here / "two" / "report.html").is_file()
    assert (here / "two" / "model" / "model.safetensors").is_file()


PLAIN = ["--optim.weight-decay", "0", "--optim.clip", "None"]  # which would hide a gradient that is too large


@pytest.mark.slow
@pytest.mark.parametrize(("world", "shard", "name"), [(3, 0, "muon"), (2, 0, "adamw"), (4, 2, "sgd"), (4, 2, "muon")])
def test_divided_weights_train_as_whole_ones(here, world, shard, name):
    more = ["--optim.name", name, "--micro-batch", "4", *(PLAIN if name == "sgd" else [])]
    alone(here, "one", *more)
    trained(here, world, "many", "--shard", str(shard), *more)
    np.testing.assert_allclose(losses(here, "many"), losses(here, "one"), rtol=0, atol=1e-6)
    ours, theirs = (saved(here / out / "checkpoints" / "step-12") for out in ("many", "one"))
    assert ours.keys() == theirs.keys()
    for tensor in (tensor for tensor in ours if not tensor.startswith("optimizer")):  # a step is 1e-3 or more
        torch.testing.assert_close(ours[tensor], theirs[tensor], rtol=1e-3, atol=3e-4)
    judged = [evaluations(here, out)[-1]["evaluation"]["loss"] for out in ("many", "one")]
    assert judged[0] == pytest.approx(judged[1], abs=1e-5)
    cut_back(here / "many")
    trained(here, 2, "many", "--shard", str(shard), *more)  # written by others
    np.testing.assert_allclose(losses(here, "many"), losses(here, "one"), rtol=0, atol=1e-6)


LONG = ("--duration", "3000 steps", "--exact", "True")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_comes_back_by_itself(here, how):
    more = ("--duration", "200 steps", "--exact", "True")
    alone(here, "one", *more)
    with started(here, 3, "many", *more, restarts=3) as process:
        wait_for(here / "many" / "checkpoints" / "step-6", process)
        os.kill(workers(here, "many")[1], how)
        said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert "going on after step" in said
    assert "Traceback" not in said
    assert bits(here, "many", 200) == bits(here, "one", 200)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_in_time_and_loses_nothing(here):
    more = (*LONG, "--evaluate-every", "3000 steps")
    with started(here, 2, "many", *more, VITRAIL_PATIENCE="5") as process:
        wait_for(here / "many" / "checkpoints" / "step-6", process)
        environments = {n: Path(f"/proc/{n}/environ").read_bytes().split(b"\0") for n in workers(here, "many")}
        (stopped,) = (n for n, variables in environments.items() if b"RANK=1" in variables)
        (other,) = environments.keys() - {stopped}
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        while Path(f"/proc/{other}").exists() and time.monotonic() - began < 60:
            time.sleep(0.1)
        waited = time.monotonic() - began
        os.kill(stopped, signal.SIGKILL)
        said = process.communicate(timeout=240)[1]
    assert waited < 40  # 5 s, and 8 s in which whoever is there says so; where one may evaluate it is 60 s
    assert re.search(r"vitrail, rank 0 on \S+: rank 1 on \S+ does not answer", said)
    assert max(int(place.name[5:]) for place in (here / "many" / "checkpoints").glob("step-*")) >= 6


@pytest.mark.parametrize(("variables", "words"), [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is -1"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "PORT", "VITRAIL_PATIENCE": "1"},
     "rank 0 of 2 cannot meet the others"),
    ({"TORCHELASTIC_RUN_ID": "x"}, "--out FOLDER"),
])  # fmt: skip
def test_processes_that_are_not_there_are_one_sentence(here, variables, words):
    variables = {name: str(free_port()) if value == "PORT" else value for name, value in variables.items()}
    command = [sys.executable, "-m", "vitrail", "train", "r.py:tiny", "--data", "photos"]
    ended = subprocess.run(command, cwd=here, env=HERE | variables, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert words in ended.stderr


@pytest.mark.slow
def test_processes_wait_for_the_one_that_judges_alone(here):
    """Longer than for one that is gone: its evaluators may take hours."""
    (here / "slow.py").write_text(
        "import time\nfrom dataclasses import dataclass, replace\nfrom typing import ClassVar\n"
        "import r\nfrom vitrail import Evaluator\nfrom vitrail.evaluate import Accuracy\n\n"
        "@dataclass(frozen=True)\nclass Slow(Evaluator):\n    kind: ClassVar = 'slow'\n"
        "    def run(self, task, data):\n        time.sleep(9)\n        yield 'slow', 1.0\n\n"
        "def tiny(data):\n    return replace(r.tiny(data), evaluate=(Accuracy(), Slow()))\n"
    )
    trained(here, 2, "run", recipe="slow.py:tiny", VITRAIL_PATIENCE="4")
    assert [line["evaluation"]["slow"] for line in evaluations(here, "run")] == [1.0, 1.0]


@pytest.mark.slow
def test_what_is_wrong_on_one_process_is_one_sentence_on_all(here):
    text = (here / "r.py").read_text()
    (here / "r.py").write_text("import os\n" + text.replace("ema=", 'seed=int(os.environ["RANK"]), ema='))
    with started(here, 2, "a") as process:
        said = process.communicate(timeout=240)[1]
    (here / "r.py").write_text(text)
    assert len(re.findall(r"vitrail, rank \d on \S+: rank 1 on \S+ has another run \(\w+\) than rank 0", said)) == 2
    assert not (here / "a").exists()
    (here / "photos" / "ash" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with started(here, 2, "b") as process:
        said = process.communicate(timeout=240)[1]
    assert len(re.findall(r"vitrail, rank \d on \S+: .*ash/3\.png", said)) == 2
    assert process.returncode == 1


def launched(here, script, *words, **more):
    environment = HERE | {"PYTHON": sys.executable} | more
    command = ["sh", str(ROOT / "runs" / script), "train", "r.py:tiny", "--data", "photos", *words]
    return subprocess.Popen(command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_machines_are_the_same_run(here):
    alone(here, "one", "--exact", "True")
    how = {"NODES": "2", "PROCESSES": "1", "HEAD": f"localhost:{free_port()}"}
    both = [launched(here, "node.sh", "--out", "two", "--exact", "True", **how) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert bits(here, "two") == bits(here, "one")


@pytest.mark.slow
def test_slurm_starts_one_torchrun_on_each_machine(here):
    """Its commands are stood in for by two that do the same on this machine."""
    (here / "bin").mkdir()
    for name, text in {
        "scontrol": "#!/bin/sh\necho localhost\necho other\n",
        "srun": '#!/bin/sh\n"$@" & first=$!\n"$@" & second=$!\nwait $first && wait $second\n',
    }.items():
        (here / "bin" / name).write_text(text)
        (here / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "x[1-2]", "SLURM_JOB_ID": "7", "PROCESSES": "1"}
    slurm |= {"PATH": f"{here / 'bin'}:{os.environ['PATH']}", "PORT": str(free_port())}
    with launched(here, "slurm.sh", "--out", "two", **slurm) as process:
        said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert said.count("into two\n") == 1


AS_ON_A_GPU = """
import torch
import torch.nn.functional as F
from vitrail.runtime import together

def in_fp32(z, shape, weight, bias, eps, norm=F.layer_norm):  # autocast does so there
    return norm(z.float(), shape, weight.float(), bias.float(), eps)

F.layer_norm, shard = in_fp32, together.shard
together.shard = lambda task, mesh, half: shard(task, mesh, True)
"""


@pytest.mark.slow
def test_blocks_are_gathered_in_half_precision(here):
    more = ["--precision", "bf16", "--checkpointing", "True", "--optim.name", "sgd", *PLAIN]
    alone(here, "one", *more)
    (here / "r.py").write_text(AS_ON_A_GPU + (here / "r.py").read_text())
    trained(here, 2, "many", "--shard", "0", *more)
    np.testing.assert_allclose(losses(here, "many"), losses(here, "one"), rtol=0, atol=2e-3)
    assert losses(here, "many") != losses(here, "one")
    weights = load_file(here / "many" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
