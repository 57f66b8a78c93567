"""`vitrail demo`, `train` and `resume`: what they write, print and refuse, and how they end."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from command_line import TINY, photos, printed, refused, status, write_mnist

from vitrail import plan, train
from vitrail import run as runs
from vitrail.cli import launch
from vitrail.cli.reading import names
from vitrail.cli.train import recipe
from vitrail.data.stream import Lost, Unread
from vitrail.recipes import RECIPES, listed
from vitrail.recipes.demo import demo
from vitrail.runtime import folders

RESULT = {"run", "seconds", "metrics", "interval", "report", "model"}
INSIDE = {".lock", "run.json", "metrics.jsonl", "checkpoints", "model", "report.html"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "mnist")


def started(*words, steps=3):
    return ["train", "demo", "--data", "mnist", *TINY, "--duration", f"{steps} steps", *words]


def test_a_demo_trains_and_shows_what_it_predicts(capsys, mnist):
    result, err = printed(capsys, "demo", "--data", "mnist", "--duration", "3 steps", "--out", "runs/tiny")
    assert result.keys() == RESULT | {"predictions"}
    assert result["run"] == "runs/tiny"
    assert result["metrics"].keys() == {"accuracy", "balanced_accuracy", "top5", "loss", "samples"}
    assert result["metrics"]["samples"] == 16
    assert len(result["predictions"]) == 5
    assert all(p.keys() >= {"file", "truth", "label", "probability"} for p in result["predictions"])
    assert all(part in err for part in ("demo: 803,338 parameters; 64 images", "16", "test images of mnist", "3 steps"))
    assert {path.name for path in (mnist.parent / "runs" / "tiny").iterdir()} == INSIDE


def test_a_demo_of_its_own_process_speaks_to_people(mnist):
    command = [sys.executable, "-m", "vitrail", "demo", "--data", "mnist", "--duration", "2 steps", "--out", "my run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *examples, score, report, model, following = done.stdout.splitlines()
    assert len([line for line in examples if ": right" in line or ": wrong" in line]) == 5
    assert re.fullmatch(r"accuracy \d+\.\d% \(\d+\.\d% to \d+\.\d%\) on 16 validation images, after \d+ s", score)
    assert (report, model) == ("report: my run/report.html", "model: my run/model")
    assert following == "next: vitrail predict 'my run' IMAGE"
    assert ("step 2/2" in done.stderr, "Traceback" in done.stderr) == (True, False)


def test_a_recipe_is_trained_with_its_overrides(capsys, mnist):
    words = ["--optim.lr", "3e-4", "--optim.schedule.warmup=5%", "--seed", "7", "--augment.mixup", "0.2"]
    result, err = printed(capsys, *started(*words, "--compile=False", "--checkpointing"))
    assert result.keys() == RESULT
    assert result["run"] == "runs/demo"
    assert result["interval"][0] < result["metrics"]["accuracy"] < result["interval"][1]
    run = runs.read(mnist.parent / "runs" / "demo")
    assert (run.optim.lr, run.optim.schedule.warmup, run.seed, run.augment.mixup) == (3e-4, "5%", 7, 0.2)
    assert (run.batch, run.model.width, run.duration, run.data.path) == (8, 16, "3 steps", "mnist")
    assert (run.compile, run.checkpointing) == (False, True)
    assert err.splitlines()[0].endswith("3 steps = 3 steps of 8; on cpu; into runs/demo")
    record = json.loads((mnist.parent / "runs" / "demo" / "run.json").read_text())["data"]
    assert (record["train"]["images"], record["val"]["images"]) == (64, 16)


def test_the_head_fits_the_data_unless_it_is_said_otherwise(capsys, tmp_path):
    photos(tmp_path / "photos", ["ash", "beech"])
    words = ["train", "small", "--data", "photos", *TINY, "--duration", "1 step", "--out"]
    for size, advised in (("64", 1), ("24", 0)):
        _, err = printed(capsys, *words, f"at{size}", "--image-size", size)
        run = runs.read(tmp_path / f"at{size}")
        assert (run.model.classes, run.model.image_size, run.preprocessing.image_size) == (
            2,
            (int(size),) * 2,
            (int(size),) * 2,
        )
        # Few photographs from scratch get advice, once.
        assert err.count("vitrail finetune DATA --weights") == advised
        assert (tmp_path / f"at{size}" / "metrics.jsonl").read_text().count("from scratch on") == advised
    sentence = refused(capsys, *words, "b", "--model.classes", "5")
    assert all(part in sentence for part in ("photos", "2 classes", "5"))
    assert not (tmp_path / "b").exists()


def test_a_run_folder_that_exists_is_left_alone(capsys, tmp_path, mnist):
    names = [printed(capsys, *started(steps=1))[0]["run"] for _ in range(2)]
    names += [printed(capsys, "train", "--data", "mnist", "--duration", "1 step")[0]["run"]]
    assert names == ["runs/demo", "runs/demo-2", "runs/fast"]
    (tmp_path / "other").mkdir()
    for command in (["demo"], started()):
        assert refused(capsys, *command, "--out", "other").startswith("other exists already")
    runs.write(demo(), tmp_path / "run")
    assert "`vitrail resume run`" in refused(capsys, *started("--out", "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


BAD = [
    ("vit_b16_imagnet", ["'vit_b16_imagnet'", "did you mean vit_b16_imagenet?"]), ("gone.py:tiny", ["gone.py"]),
    ("zzzzz", ["'zzzzz'", "vitrail train --help"]), ("finetune", ["vitrail finetune mnist --weights"]),
    ("demo extra --seed 1", ["no place for extra"]), ("demo --ouy x", ["--ouy;", "did you mean --out?"]),
    ("demo --duration 1 step --optim.schedule.warmup 9 steps", ["9 steps"]), ("demo --device tpu", ["'tpu'"]),
    ("demo --start gone.npz", ["gone.npz does not exist"]), ("demo --model.channels 3", ["1 channels", "3"]),
    ("demo --out mnist/train-images-idx3-ubyte/x", ["mnist/train-images-idx3-ubyte/x"]),
    ("mnist:tiny", ["'mnist:tiny'"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "parts"), BAD)
def test_bad_words_are_one_sentence_and_leave_nothing_behind(capsys, tmp_path, mnist, arguments, parts):
    name, *rest = arguments.split()
    said = refused(capsys, "train", name, *rest, "--data", "mnist")
    assert [part for part in parts if part not in said] == []
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


def test_every_recipe_that_needs_only_data_is_listed_with_its_docstring(capsys):
    assert set(RECIPES) - set(listed()) == {"finetune", "finetune_small"}
    assert status("train", "--help") == 0
    out = capsys.readouterr().out
    for name, text in listed().items():
        assert text.split() == RECIPES[name].__doc__.split()
        assert re.search(rf"^  {name} +{re.escape(text.split()[0])}", out, re.MULTILINE)


@pytest.mark.parametrize(("columns", "arguments"), [(80, "train small --help"), (120, "train -h --data x small")])
def test_a_recipes_help_has_its_docstring_and_every_option(capsys, monkeypatch, arguments, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert status(*arguments.split()) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    text = " ".join(out.replace("│", " ").split())
    for words in (*RECIPES["small"].__doc__.split("\n\n"), "--image-size H [W]", "(default: 0.001)"):
        assert " ".join(words.split()) in text
    for name in names(recipe("small", "x")):
        assert f" --{name.replace('_', '-')} " in text
    assert "--optim.lr FLOAT The base learning rate, for the batch that is used" in text  # below the field
    assert "--model.layer-scale {None}|FLOAT initial value of LayerScale, or None." in text  # in the class's docstring


def test_a_run_that_has_ended_says_so_and_does_not_train(capsys, mnist, monkeypatch):
    result, _ = printed(capsys, *started())
    monkeypatch.setattr(train.Trainer, "__init__", lambda *_: pytest.fail("it trains"))
    again, err = printed(capsys, "resume", "runs/demo")
    assert again == {**result, "seconds": None}
    assert err.startswith("runs/demo has ended")


@pytest.fixture
def stopped(capsys, mnist, monkeypatch):
    """A run of six steps that was interrupted after the second, with what standard error said."""
    inner = train.Trainer._step

    def interrupted(trainer, step, parts):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(trainer, step, parts)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "_step", interrupted)
        assert status(*started("--out", "runs/cut", steps=6)) == 130
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_the_whole_one(capsys, stopped):
    assert stopped.endswith("stopped after step 2 of 6; go on with: vitrail resume runs/cut\n")
    again, err = printed(capsys, "resume", "runs/cut")
    assert "; going on after step 2\n" in err
    assert again["metrics"] == printed(capsys, *started(steps=6))[0]["metrics"]


def test_a_run_whose_data_has_changed_is_not_resumed_by_mistake(capsys, stopped, tmp_path, monkeypatch):
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    sentence = refused(capsys, "resume", "runs/cut")
    assert all(part in sentence for part in ("the train contents", "vitrail resume runs/cut --anyway"))
    monkeypatch.setattr(runs, "code", lambda: "other")
    first = printed(capsys, "resume", "runs/cut", "--anyway")[1].splitlines()[0]
    assert all(part in first for part in ("the train contents", "the code of vitrail"))
    record = json.loads((tmp_path / "runs" / "cut" / "run.json").read_text())
    assert record["before"][0]["data"]["train"]["contents"] != record["data"]["train"]["contents"]
    (tmp_path / "runs" / "cut" / "report.html").unlink()
    printed(capsys, "resume", "runs/cut")  # --anyway was said once


def test_the_micro_batches_of_an_exact_run_are_fixed(capsys, mnist):
    printed(capsys, *started("--out", "runs/exact", "--exact", steps=2))
    said = refused(capsys, "resume", "runs/exact", "--micro-batch", "2", "--duration", "4 steps")
    assert said.startswith("--micro-batch is fixed")
    printed(capsys, "resume", "runs/exact", "--duration", "4 steps")


def test_a_run_goes_on_with_data_that_was_moved_and_to_another_end(capsys, stopped, tmp_path):
    (tmp_path / "mnist").rename(tmp_path / "elsewhere")
    assert "mnist does not exist; " in (said := refused(capsys, "resume", "runs/cut"))
    assert said.endswith("vitrail resume runs/cut --data.path PATH")
    assert "1 steps are no more than the 2" in refused(
        capsys, "resume", "runs/cut", "--data.path", "elsewhere", "--duration", "1 step"
    )
    again, err = printed(capsys, "resume", "runs/cut", "--data.path", "elsewhere", "--workers", "1")
    assert "6 steps = 6 steps of 8" in err
    run = runs.read(tmp_path / "runs" / "cut")
    assert (run.data.path, run.workers, run.duration) == ("elsewhere", 1, "6 steps")
    again, err = printed(capsys, "resume", "runs/cut", "--duration", "16 steps")  # though it has ended
    assert "going on after step 6" in err
    rates = [
        r["lr"] for r in map(json.loads, (tmp_path / "runs/cut/metrics.jsonl").read_text().splitlines()) if "lr" in r
    ]
    assert len(rates) == 4  # steps 2, 6, 10 and 16
    assert rates[2] > rates[3] > 0
    record = json.loads((tmp_path / "runs" / "cut" / "run.json").read_text())
    assert [(one["until"], one["run"]["duration"]) for one in record["before"]] == [(2, "6 steps"), (6, "6 steps")]
    assert printed(capsys, "resume", "runs/cut", "--duration", "16 steps")[0]["metrics"] == again["metrics"]


def test_a_long_run_is_foretold_with_the_size_that_would_be_short(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "LONG", 1e-6)
    monkeypatch.setattr(plan, "SHORT", 120.0)
    run = replace(demo("fashion"), duration="1_000_000 steps")
    before = (trainer := train.Trainer(run, tmp_path)).task.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    said = launch._expected(trainer)
    assert re.fullmatch(
        r"about [\d.]+ (minutes|hours) on this machine(; with --image-size (21|14) .*about 2 minutes)?", said
    )
    assert all(value.equal(kept[name]) for name, value in trainer.task.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.task.parameters())
    trainer.total = trainer.done
    assert launch._expected(trainer) == ""


@pytest.mark.parametrize(("words", "parts"), [
    ("--optim.lr 3", ["--optim.lr is fixed", "--duration"]), ("--image-size 32", ["--image-size is fixed"]),
    ("--epochs 3", ["--epochs", "--duration"]), ("--data.path", ["data.path"]), ("--workers -1", ["workers is -1"]),
    ("--duration 3", ["'3'", "3 steps"]),
])  # fmt: skip
def test_what_cannot_change_while_a_run_goes_on(capsys, stopped, tmp_path, words, parts):
    before = (tmp_path / "runs" / "cut" / "run.json").read_text()
    said = refused(capsys, "resume", "runs/cut", *words.split())
    assert [part for part in parts if part not in said] == []
    assert (tmp_path / "runs" / "cut" / "run.json").read_text() == before


@pytest.mark.parametrize(("fault", "sentence"), [
    (Unread("a.jpg is cut short."), "a.jpg is cut short; once that is mended, go on with: vitrail resume r, or else: "
                                    "vitrail resume r --data.unreadable skip"),
    (Lost("x died."), "x died; once that is mended, go on with: vitrail resume r, or else: vitrail resume r --workers"),
    (KeyboardInterrupt(), "stopped at once; the last checkpoint is step-3; go on with: vitrail resume r"),
    (ValueError("a.jpg is cut short."), "a.jpg is cut short; once that is mended, go on with: vitrail resume r"),
    (ValueError("full; go on with `vitrail resume r`."), "full; go on with `vitrail resume r`."),
    (train.torch.OutOfMemoryError(), "cpu has no memory for steps of 8 images; train with a smaller --micro-batch"),
])  # fmt: skip
def test_what_goes_wrong_after_a_checkpoint_says_how_to_go_on(capsys, mnist, monkeypatch, fault, sentence):
    def fails(trainer, log):
        raise fault

    monkeypatch.setattr(train.Trainer, "_finish", fails)
    assert status(*started("--out", "r")) == (130 if isinstance(fault, KeyboardInterrupt) else 2)
    assert capsys.readouterr().err.splitlines()[-1].removeprefix("vitrail: ").startswith(sentence)


def test_a_loss_that_is_nan_is_not_to_be_resumed(capsys, mnist):
    words = ["--optim.lr", "1e30", "--optim.clip", "None", "--checkpoint-every", "1 step", "--log-every", "1"]
    assert status(*started(*words, steps=9)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"vitrail: the loss is (?!.*vitrail resume).* usually helps: --optim\.lr\.", said)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no run.json"), ('{"run": {"recipe"', "damaged"), ('{"run": {"recipe": "demo", "colour": 1}}', "colour")],
)
def test_a_damaged_run_json_is_named(capsys, tmp_path, text, words):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert re.search(f"{re.escape(str(tmp_path))}.*{words}|{words}.*{tmp_path}", refused(capsys, "resume", tmp_path))


def test_runs_that_begin_at_once_have_a_folder_each_and_a_running_one_is_not_trained_twice(capsys, tmp_path, mnist):
    command = [sys.executable, "-m", "vitrail", *started("--workers", "2", steps=10**6), "--checkpoint-every", "1 step"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True) for _ in range(3)]
    try:
        names = {next(line for line in one.stderr if "; into " in line).split("into ")[1].strip() for one in running}
        assert names == {"runs/demo", "runs/demo-2", "runs/demo-3"}
        while not list((tmp_path / "runs" / "demo" / "checkpoints").glob("step-*")):
            time.sleep(0.1)
        said = refused(capsys, "resume", "runs/demo")
        assert any(f"process {one.pid} on {socket.gethostname()} since " in said for one in running)
    finally:
        for one in running:
            one.kill()
            one.communicate()
    # The lock ends with its process, though those that load images may live a little longer.
    record = json.loads((tmp_path / "runs" / "demo" / "run.json").read_text())
    record["run"]["duration"] = "1 step"
    (tmp_path / "runs" / "demo" / "run.json").write_text(json.dumps(record))
    assert "going on after step" in printed(capsys, "resume", "runs/demo")[1]


def test_a_folder_without_locks_is_said_and_one_that_cannot_be_written_is_refused(capsys, tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "lockf", no_locks)
    with folders.locked(tmp_path):
        assert capsys.readouterr().err.startswith(f"{tmp_path} cannot be locked (No locks available)")
    with (
        pytest.raises(ValueError, match=r"run\.json cannot be written"),
        folders.locked(tmp_path / folders.FILE / "run.json"),
    ):
        pass
