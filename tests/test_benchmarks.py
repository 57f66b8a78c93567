"""The benchmarks: what is said of made-up series, and that the peers train the same. Nothing is timed."""

import ast
import json
import math
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler

from vitrail.data.pack import pack
from vitrail.data.sources.open import Data, find_splits
from vitrail.models import vit
from vitrail.models.zoo import configure
from vitrail.optim.build import Config, build
from vitrail.optim.schedule import multiplier

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import __main__ as whole
from benchmarks import accuracy, gpu, loader, pool, rounds, throughput, timm_script, trainee, training, versions
from benchmarks.machine import write_json
from benchmarks.photographs import draw_photographs, photographs, unpacked
from benchmarks.worker import cores, shared_step

LOG = """
Train: 0 [   0/3 ( 33%)]  Loss: 2.34 (2.34)  Time: 1.000s,   16.00/s  (1.000s,   16.00/s)  LR: 1.0e-03  Data: 0.0 (0.1)
Train: 0 [   1/3 ( 67%)]  Loss: 2.33 (2.33)  Time: 0.492s,   32.00/s  (0.746s,   21.45/s)  LR: 1.0e-04  Data: 0.0 (0.1)
Train: 0 [   2/3 (100%)]  Loss: 2.31 (2.32)  Time: 0.359s,   64.00/s  (0.617s,   25.93/s)  LR: 2.0e-04  Data: 0.0 (0.1)
"""
RECIPE = accuracy.RECIPES["cifar10"]
SHAPES = {name: trainee.CASES[name].shape for name in ("Ti/16@224", "demo")} | {"cifar10": RECIPE.shape}
ONES = [1.0, 1.0, 1.0]
WRONG = [(ONES, [1.0, wrong, 1.0], "not measured (a duration was not above 0)") for wrong in (0.0, -1.0, math.inf)]
NOISE = [([0.44, 0.806, 1.046], ONES, "not measured (spread 0.440 to 1.046)")]  # was once printed as 0.806
NOISE += [([1.0, 1.3, 1.0, 1.3], [1.0, *ONES], "not measured (spread 1.000 to 1.300)")]
FEW = [([1.0, 1.0], [2.0, 2.0], "not measured (2 of 3 rounds, spread 0.500 to 0.500)")]
STEADY = [([1.0, 1.02, 0.98, 1.01], 4 * [2.0], "0.502 (0.497 to 0.506)")]


@pytest.mark.parametrize(("ours", "theirs", "words"), STEADY + NOISE + FEW + WRONG)
def test_a_ratio_is_of_steady_series_and_never_of_noise(ours, theirs, words):
    found = rounds.ratio(ours, theirs)
    assert (str(found), found.measured) == (words, not words.startswith("not"))


def turns(**series):
    iterators = {name: iter(values) for name, values in series.items()}
    return {name: lambda name=name: {"seconds": next(iterators[name])} for name in series}


def test_everybody_has_a_turn_in_each_round_and_ratios_are_within_a_round():
    record = rounds.new("case", "ours")
    rounds.take_turns(record, turns(ours=[1.0, 2.0, 3.0], theirs=[2.0, 4.0, 6.0]), 3)
    assert record["libraries"] == {"ours": {"seconds": [1, 2, 3]}, "theirs": {"seconds": [2, 4, 6]}}
    assert "0.500 (0.500 to 0.500)" in rounds.report([record], {})  # though neither series is steady
    # Fresh processes go on in the same record; no round begins that would end too late.
    rounds.take_turns(record, turns(ours=[4.0, 1.0], theirs=[8.0, 2.0]), 5, until=-math.inf)
    assert record["libraries"]["theirs"]["seconds"] == [2, 4, 6, 8]


def test_one_that_fails_has_no_more_turns_and_the_others_go_on():
    def fails():
        raise pool.WorkerError("no room")

    record = rounds.new("case", "ours")
    rounds.take_turns(record, {**turns(ours=[1.0, 1.0, 1.0]), "theirs": fails}, 3)
    rounds.take_turns(record, turns(ours=[]), 3, before=fails)
    assert record["libraries"] == {"ours": {"seconds": [1, 1, 1]}, "theirs": {}}
    assert [*record["errors"].values()] == 2 * ["no room"]


def test_a_disturbed_round_is_measured_again_and_does_not_count(monkeypatch):
    busy = iter([0.0, 1e6] + 6 * [0.0])  # processor seconds of the machine before and after each turn
    monkeypatch.setattr(rounds, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(rounds, "SHORT", 0.0)
    record = rounds.new("case", "ours")
    rounds.take_turns(record, turns(ours=[9.0, 1.0, 1.0, 1.0]), 3)
    assert record["libraries"]["ours"]["seconds"] == [9, 1, 1, 1]
    assert rounds.values(record, "ours") == [1, 1, 1]
    assert "3 of 4" in rounds.report([record], {})


def test_a_runs_speed_is_that_of_its_own_steps_after_the_warm_up():
    assert rounds.steady([9.0, 9.0, 1.0, 2.0, 1.0, 2.0, 2.0], batch=4, warm=2) == 8 / 5 / 4
    with pytest.raises(ValueError, match=r"4 steps after the first 2, but 5"):
        rounds.steady([1.0] * 6, 4, 2)
    with pytest.raises(ValueError, match=r"-0\.5 s"):
        rounds.steady([1.0] * 7 + [-0.5], 4, 2)


def test_the_seconds_of_each_step_are_read_from_timms_log():
    assert timm_script.step_seconds(LOG, batch=16) == [1.0, 0.5, 0.25]
    # Of several epochs each begins at step 0: durations across them have been negative.
    for log in (LOG + LOG, LOG.replace("[   1/3", "[   2/3"), ""):
        with pytest.raises(ValueError, match="not of each"):
            timm_script.step_seconds(log, batch=16)


def timm_model(shape):
    """What train.py makes of our arguments."""
    words = timm_script.model(shape)
    pairs = (word.split("=") for word in words[words.index("--model-kwargs") + 1 :])
    kwargs = {name: ast.literal_eval(value) for name, value in pairs}
    given = dict(pairwise(words))
    kwargs |= {"num_classes": int(given["--num-classes"]), "in_chans": int(given["--in-chans"])}
    return timm.create_model(given["--model"], global_pool=given["--gp"], **kwargs)


@pytest.mark.parametrize("name", SHAPES)
def test_both_train_the_same_model(name):
    shape = SHAPES[name]
    ours, theirs = vit.ViT(shape.vitrail()), timm_model(shape)
    torch.nn.init.normal_(ours.head.weight)  # which begins as zeros
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, shape.channels, shape.size, shape.size)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(images), theirs.train()(images), rtol=0, atol=1e-5)


def test_both_decay_the_same_parameters():
    ours, theirs = vit.ViT(RECIPE.shape.vitrail()), timm_model(RECIPE.shape)
    optimizers = build(ours, Config(weight_decay=0.1)), create_optimizer_v2(theirs, "adamw", 1e-3, 0.1)
    decayed = [{id(p) for g in o.param_groups if g["weight_decay"] for p in g["params"]} for o in optimizers]
    names = [{n for n, p in m.named_parameters() if id(p) in d} for m, d in zip((ours, theirs), decayed, strict=True)]
    assert names[0] == names[1]
    assert names[0] > {"patch_embed.proj.weight", "head.weight"}


def test_both_follow_the_same_schedule():
    steps, options = 7, Namespace(timm_script=Path("train.py"), workers=2, seed=0)  # steps of an epoch
    words = accuracy.timm_words(RECIPE, options, Path("data"), Path("out/timm"), epochs=20)
    given = dict(pairwise(words))
    assert {"--sched-on-updates", "--warmup-prefix"} < set(words)
    length, warm = int(given["--epochs"]) * steps, int(given["--warmup-epochs"]) * steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=float(given["--lr"]))
    how = {"warmup_lr_init": float(given["--warmup-lr"]), "warmup_prefix": True, "t_in_epochs": False}
    theirs = CosineLRScheduler(optimizer, t_initial=length, warmup_t=warm, **how)
    run = accuracy.our_run(RECIPE, Path("data"), 20, per_epoch=steps, seed=0)
    for step in range(20 * steps):
        theirs.step_update(step)
        ours = run.optim.lr * multiplier(run.optim.schedule, step, 20 * steps)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours, abs=1e-12)


REFUSED = {
    training.main: ["--cases B/16", "--steps 4", "--rounds 0", "--timm-script none", "--peers jax", "--peers timm"],
    whole.main: ["speed", "--minutes 0", "--data none", "--timm-script none"],
    throughput.main: ["--cases B/15@224", "--passes jump", "--libraries jax"],
    whole.inference.main: ["--batches 0"],
    whole.startup.main: ["--only nothing"],
    versions.main: ["/nowhere"],
    gpu.main: ["--tiny --cases H/14", "--tiny --libraries jax", "--tiny --rounds 0", "--tiny --minutes 0"],
}


@pytest.mark.parametrize(("main", "words"), [(main, words) for main, several in REFUSED.items() for words in several])
def test_a_command_line_that_makes_no_sense_is_refused(main, words):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2


def test_the_archive_and_its_folder_are_found_alike(tmp_path):
    given = tmp_path / "given" / "cifar10"
    for split in ("train", "test"):
        (given / split / "cat").mkdir(parents=True)
    shutil.make_archive(str(given.parent), "gztar", given.parent)
    assert unpacked(tmp_path / "given", tmp_path / "out") == given
    assert unpacked(tmp_path / "given.tar.gz", tmp_path / "out") == tmp_path / "out" / "cifar10"
    with pytest.raises(ValueError, match="test has no folders train and test"):
        unpacked(given / "test", tmp_path)
    with pytest.raises(ValueError, match="cat has no photographs"):
        photographs(tmp_path, given / "test" / "cat", 5)


@pytest.mark.parametrize("name", ["vitrail", "vitrail packed, 2 processes", "timm", "ImageFolder"])
def test_every_loader_hands_out_the_same_number_of_images(tmp_path, monkeypatch, name):
    monkeypatch.setattr(loader, "BATCH", 8)
    draw_photographs(tmp_path / "few", 8)
    files = photographs(tmp_path, tmp_path / "few", 16)
    pack(find_splits(Data(str(files))), tmp_path / "packed", 256)
    assert list(loader.HOW[name](files, tmp_path / "packed")) == [8, 8, 0] * loader.EPOCHS
    assert loader.difference(files, tmp_path / "packed", 2)["evaluation"] < 0.1


def test_a_step_that_cores_share_has_the_gradients_of_a_whole_one():
    torch.manual_seed(0)
    model = vit.ViT(configure("ViT-Ti/16", image_size=(32, 32), depth=2, classes=7)).double()
    images, labels = torch.randn(5, 3, 32, 32).double(), torch.randint(7, (5,))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    shared_step(cores(model, 2), images, labels)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_training_takes_the_quicker_number_of_workers_or_the_one_it_is_told(monkeypatch, capsys):
    runs = []

    def run(self, library, workers):
        runs.append((library, workers))
        found = {"seconds": 0.1, "data_wait": 0.02} if library == "vitrail" else {"seconds": 0.2 + workers}
        return found | {"workers": workers}

    monkeypatch.setattr(training, "photographs", lambda *given: Path())
    monkeypatch.setattr(training.Bench, "run", run)
    words = ["--cases", "S/16@224", "--peers", "loader", "--rounds", "3"]
    assert training.main(words) == 0
    assert sorted(runs) == 4 * [("loader", 0)] + [("loader", 2)] + 4 * [("vitrail", 0)]
    capsys.readouterr()
    assert training.main([*words, "--workers", "1"]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.split("|")]
    assert {"2.0%", "10 (10 to 10)", "0.8333 (0.8333 to 0.8333)", "0.083 (0.083 to 0.083)", "3 of 3"} <= set(cells)


@pytest.mark.parametrize("name", whole.TOPICS)
@pytest.mark.parametrize("script", [False, True])
def test_every_topic_speaks_its_benchmarks_language(name, script, tmp_path, capsys):
    (tmp_path / "train.py").touch()
    options = whole.parsed(["--data", str(tmp_path), "--json", str(tmp_path)])
    options.timm_script = tmp_path / "train.py" if script else None
    with pytest.raises(SystemExit):  # no rounds is the one thing to complain of
        whole.TOPICS[name].main([*whole.words(name, 3.0, options), "--rounds", "0"])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "argument --rounds" in complaint


def test_a_topic_that_breaks_leaves_the_others_running_in_what_is_left_of_the_minutes(tmp_path, monkeypatch, capsys):
    def works(words):
        print(f"| a table in {words[words.index('--minutes') + 1]} |")
        write_json(Path(words[-1]), {"machine": {"cpu": "x"}})
        return 0

    def breaks(words):
        raise OSError("no space left")

    (tmp_path / "loader.json").write_text("of another run")
    for name, main in (("step", works), ("loader", breaks)):
        monkeypatch.setitem(whole.TOPICS, name, replace(whole.TOPICS[name], main=main, minutes=2.0))
    summary = {"topics": {}}
    whole.run_all(whole.parsed(["loader", "step", "--minutes", "6", "--json", str(tmp_path)]), lambda: 150.0, summary)
    assert [(name, found["status"]) for name, found in summary["topics"].items()] == [("step", 0), ("loader", 1)]
    assert "| a table in 3.00 |" in (tmp_path / "step.md").read_text()
    assert not (tmp_path / "loader.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "no space left" in capsys.readouterr().err


LEADER = """
import os, signal, subprocess, sys, time
other = subprocess.Popen(["sleep", "600"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (other.kill(), other.wait(), sys.exit(1)))
open("number", "w").write(str(other.pid))
os.rename("number", "other")
time.sleep(600)
"""


def test_sessions_that_a_process_made_end_with_it(tmp_path):
    """As torchrun's do."""
    with pytest.raises(pool.WorkerError, match="no end within 5 s"):
        pool.program(["-c", LEADER], 5, folder=tmp_path)
    assert not Path("/proc", (tmp_path / "other").read_text()).exists()


def test_a_process_that_fails_or_takes_too_long_is_an_error_with_its_last_words():
    assert pool.program(["-c", "print('{\"answer\": 7}')"], 60)["answer"] == 7
    with pytest.raises(pool.WorkerError, match=r"(?s)status 1\n.*ZeroDivisionError"):
        pool.program(["-c", "1 / 0"], 60)
    with pytest.raises(pool.WorkerError, match=r"no end within 0\.1 s"):
        pool.program(["-c", "import time; time.sleep(60)"], 0.1)


TINY = "--cases Ti/4@32 --burst .01 --libraries timm,vitrail"
SLOW = {
    versions.main: f"{Path(__file__).parents[1]} --tiny --only packed,step,one,predict",
    gpu.main: "--tiny --workers 2",
    throughput.main: f"{TINY}:cores --modes eager --passes train --train-batch 4",
    whole.inference.main: f"{TINY}:int8",
}


@pytest.mark.slow
@pytest.mark.parametrize(("main", "words"), SLOW.items())
def test_everybody_is_measured_in_processes_of_their_own(main, words, tmp_path):
    assert main([*words.split(), "--rounds", "1", "--json", str(tmp_path / "found.json")]) == 0
    records = json.loads((tmp_path / "found.json").read_text())["records"]
    assert all(found for record in records for found in record["libraries"].values())
