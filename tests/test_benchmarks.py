"""The benchmarks of training, start-up and the set: peers do the same, logs are read rightly. Nothing is timed."""

import ast
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler

from vitrail.data.pack import pack
from vitrail.data.sources import mnist
from vitrail.data.sources.open import Data, find_splits
from vitrail.models import vit
from vitrail.models.cost import flops, parameters
from vitrail.models.zoo import configure
from vitrail.optim.build import Config, build
from vitrail.optim.schedule import multiplier

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import __main__ as whole
from benchmarks import accuracy, loader, peers, startup, timm_script, trainee, training, worker
from benchmarks.machine import describe, write_json
from benchmarks.plan import Options, settings
from benchmarks.topics import TOPICS, share

LOG = """Training with a single process on 1 device (cpu).
Train: 0 [   0/40 (  2%)]  Loss: 2.34 (2.34)  Time: 1.000s,   16.00/s  (1.000s,   16.00/s)  LR: 1.0e-03  Data: 0.0 (0.1)
Train: 0 [  10/40 ( 28%)]  Loss: 2.33 (2.33)  Time: 0.492s,   32.63/s  (0.500s,   32.00/s)  LR: 1.0e-04  Data: 0.0 (0.1)
Train: 0 [  20/40 ( 52%)]  Loss: 2.33 (2.33)  Time: 0.492s,   32.63/s  (0.500s,   32.00/s)  LR: 1.0e-04  Data: 0.0 (0.1)
Train: 0 [  39/40 (100%)]  Loss: 2.31 (2.32)  Time: 0.359s,  139.22/s  (0.400s,   40.00/s)  LR: 2.0e-04  Data: 0.0 (0.1)
*** Best metric: 2.32 (epoch 0)
"""
SETTING = accuracy.cifar10(epochs=20, seed=0, mix=0.0)
SHAPES = {name: trainee.CASES[name].shape for name in ("Ti/16@224", "demo")} | {"cifar10": SETTING.shape}


def timm_model(shape):
    """What train.py makes of our arguments."""
    words = timm_script.model(shape)
    pairs = (word.split("=") for word in words[words.index("--model-kwargs") + 1 :])
    kwargs: Any = {name: ast.literal_eval(value) for name, value in pairs}
    name, classes, pool, channels = (
        words[words.index(flag) + 1] for flag in ("--model", "--num-classes", "--gp", "--in-chans")
    )
    return timm.create_model(name, num_classes=int(classes), global_pool=pool, in_chans=int(channels), **kwargs)


def test_the_clock_begins_after_the_warm_up_and_takes_every_later_step():
    # 11 steps took 5.5 s and 40 took 16 s, 16 images each.
    assert timm_script.seconds_per_image(LOG, batch=16, warm=10) == pytest.approx((16 - 5.5) / (29 * 16))
    assert timm_script.seconds_per_image(LOG, batch=16, warm=15) == pytest.approx((16 - 10.5) / (19 * 16))


def test_a_log_without_enough_steps_is_refused():
    with pytest.raises(ValueError, match="1 steps after the first 30, but 2 are needed"):
        timm_script.seconds_per_image(LOG, batch=16, warm=30)


def test_a_line_that_is_being_written_is_left_for_later():
    summary = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.3,2.2,15.5,62.5,0.001\n1,2.2,2.1,20"
    assert timm_script.accuracies(summary) == [(1, 0.155)]
    lines = '{"step": 4, "loss": 2.0}\n{"step": 5, "evaluation": {"accuracy": 0.25}}\n{"step": 10, "evalu'
    assert accuracy.our_accuracies(lines, per_epoch=5) == [(1, 0.25)]
    assert timm_script.accuracies("") == accuracy.our_accuracies("", per_epoch=5) == []


@pytest.mark.parametrize("name", SHAPES)
def test_both_train_the_same_model(name):
    shape = SHAPES[name]
    ours, theirs = vit.ViT(shape.vitrail()), timm_model(shape)
    with torch.no_grad():
        for parameter in ours.head.parameters():  # which begin as zeros
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, shape.channels, shape.size, shape.size)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(images), theirs.train()(images), rtol=0, atol=1e-5)


def test_both_decay_the_same_parameters():
    shape = SETTING.shape
    ours, theirs = vit.ViT(shape.vitrail()), timm_model(shape)
    optimizers = build(ours, Config(weight_decay=0.1)), create_optimizer_v2(theirs, "adamw", 1e-3, 0.1)
    decayed = [{id(p) for g in o.param_groups if g["weight_decay"] for p in g["params"]} for o in optimizers]
    names = [{n for n, p in m.named_parameters() if id(p) in d} for m, d in zip((ours, theirs), decayed, strict=True)]
    assert names[0] == names[1]
    assert names[0] > {"patch_embed.proj.weight", "head.weight"}


def test_both_follow_the_same_schedule():
    words = accuracy.timm_arguments(SETTING, Path("data"), Path("out/timm"), 2)
    epochs, warmup, first, lr = (
        float(words[words.index(flag) + 1]) for flag in ("--epochs", "--warmup-epochs", "--warmup-lr", "--lr")
    )
    assert {"--sched-on-updates", "--warmup-prefix"} < set(words)
    steps = 7  # in an epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=int(epochs) * steps,
        warmup_t=int(warmup) * steps,
        warmup_lr_init=first,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    run = accuracy.our_run(SETTING, Path("data"), per_epoch=steps)
    for step in range(20 * steps):
        theirs.step_update(step)
        ours = run.optim.lr * multiplier(run.optim.schedule, step, 20 * steps)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours, abs=1e-12)


def test_photographs_are_repeated_until_there_are_enough(tmp_path):
    drawn = training.draw_photographs(tmp_path / "drawn", 3)
    data = training.photographs(tmp_path, tmp_path / "drawn", 25)
    found = sorted((data / "train").rglob("*.jpg"))
    assert len(found) == 25
    assert len({path.parent for path in found}) == training.CLASSES
    assert {path.read_bytes() for path in found} == {path.read_bytes() for path in drawn}


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no photographs"):
        training.photographs(tmp_path, tmp_path, 5)


def test_fashion_files_are_what_torchvision_and_we_read(tmp_path):
    from torchvision.datasets import FashionMNIST

    data = training.fashion_files(tmp_path, 12_000)
    ours, theirs = mnist.splits(data)["train"], FashionMNIST(str(tmp_path))
    assert len(ours) == len(theirs) == 12_000
    image, target, _ = ours[11_999]
    assert target == int(theirs.targets[11_999])
    assert isinstance(image, np.ndarray)
    assert (image[..., 0] == theirs.data[11_999].numpy()).all()


@pytest.mark.parametrize("words", [["--cases", "B/16"], ["--steps", "5"], ["--rounds", "0"], ["--timm-script", "none"]])
def test_a_command_line_that_makes_no_sense_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        training.main(words)
    assert end.value.code == 2


def test_the_archive_and_its_folder_are_found_alike(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "given" / "cifar10" / split / "cat").mkdir(parents=True)
    with tarfile.open(tmp_path / "given.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "given" / "cifar10", "cifar10")
    assert accuracy.unpacked(tmp_path / "given", tmp_path / "out") == tmp_path / "given" / "cifar10"
    assert accuracy.unpacked(tmp_path / "given.tar.gz", tmp_path / "out") == tmp_path / "out" / "cifar10"
    with pytest.raises(ValueError, match="has no folders train and test"):
        accuracy.unpacked(tmp_path / "given" / "cifar10" / "test", tmp_path)


@pytest.mark.parametrize("name", ["vitrail", "vitrail packed, 2 processes", "timm", "ImageFolder"])
def test_every_loader_hands_out_the_same_number_of_images(tmp_path, name):
    (tmp_path / "few").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).resize((400, 300)).save(tmp_path / "few" / f"{number}.jpg")
    files = training.photographs(tmp_path, tmp_path / "few", 2 * loader.BATCH)
    pack(find_splits(Data(str(files))), tmp_path / "packed", 256)
    batches = list(loader.HOW[name](files, tmp_path / "packed"))
    assert batches == [loader.BATCH, loader.BATCH, 0] * loader.EPOCHS
    assert loader.difference(files, tmp_path / "packed", 2)["evaluation"] < 0.1


def test_a_loaders_rate_leaves_out_the_first_epoch(monkeypatch):
    clock = iter([5.0, 7.0, 9.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    assert loader.rate([64, 64, 0, 64, 64, 0, 64, 64, 0]) == 4 * 64 / (9 - 5)


def test_the_model_of_32_pixels_is_the_zoos_with_smaller_patches():
    case = peers.Case.parse("Ti/4@32")
    config = configure("ViT-Ti/16", image_size=32, patch_size=4)
    assert case.parameters == parameters(config)
    assert case.gflop == pytest.approx(flops(config, (32, 32)) / 1e9)
    assert [row.batch for row in settings(Options(cases=("Ti/4@32",), modes=("eager",)))] == [128, 128]
    for library in ("vitrail", "timm", "torchvision"):
        assert peers.build(library, case)(torch.zeros(1, 3, 32, 32)).shape == (1, peers.CLASSES)


def test_a_step_that_cores_share_has_the_gradients_of_a_whole_one():
    torch.manual_seed(0)
    model = vit.ViT(configure("ViT-Ti/16", image_size=(32, 32), depth=2, classes=7)).double()
    images, labels = torch.randn(5, 3, 32, 32).double(), torch.randint(7, (5,))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    worker.shared_step(worker.replicas(model, 2), images, labels)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_training_takes_the_peers_and_the_workers_it_is_told(monkeypatch):
    runs = []

    def run(self, library, workers):
        runs.append((library, workers))
        waits = {"data_wait": 0.02} if library == "vitrail" else {}
        return {"seconds_per_image": 0.1 if library == "vitrail" else 0.2, "foreign": 0.0, **waits}

    monkeypatch.setattr(training, "photographs", lambda *given: Path())
    monkeypatch.setattr(training.Bench, "run", run)
    options, _ = training.parsed(["--cases", "S/16@224", "--peers", "loader", "--workers", "1", "--rounds", "3"])
    record = training.measure("S/16@224", options)
    assert sorted(runs) == 3 * [("loader", 1)] + 3 * [("vitrail", 0)]
    words = training.text({"machine": describe(), "settings": {"libraries": options.libraries}, "records": [record]})
    for cell in ("10.0", "2.0%", "5.0 (-j 1)", "0.500 (0.500-0.500)", "3 of 3"):
        assert cell in words
    assert training.parsed([])[0].libraries == ["vitrail", "loader", "bare"]
    for wrong in (["--peers", "jax"], ["--peers", "timm"]):  # timm without its script
        with pytest.raises(SystemExit):
            training.parsed(wrong)


def test_the_quarter_of_an_hour_is_shared_out_fairly():
    topics = list(TOPICS.values())
    seconds = 0.9 * 15 * 60
    rounds = share(topics, seconds, 1.0)
    assert all(number >= 3 for number, topic in zip(rounds, topics, strict=True) if topic.each)
    assert sum(topic.seconds(number) for topic, number in zip(topics, rounds, strict=True)) <= seconds
    fewest = [topic.rounds[0] for topic in topics]
    assert fewest < share(topics, seconds, 1.4) < rounds
    assert share(topics, 60.0, 1.0) == fewest
    assert share(topics, 1e6, 1.0) == [topic.rounds[-1] for topic in topics]


@pytest.mark.parametrize("name", TOPICS)
@pytest.mark.parametrize("script", [False, True])
def test_every_topic_speaks_its_benchmarks_language(name, script, tmp_path, capsys):
    (tmp_path / "train.py").touch()
    options = whole.parsed(["--data", str(tmp_path), "--json", str(tmp_path)])
    options.timm_script = tmp_path / "train.py" if script else None
    words = [word for word in whole.words(name, 3, options) if word not in ("--rounds", "3")]
    with pytest.raises(SystemExit):  # no rounds is the one thing to complain of
        TOPICS[name].main([*words, "--rounds", "0"])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "rounds" in complaint
    assert "unrecognized" not in complaint


def test_a_topic_that_breaks_leaves_the_others_running(tmp_path, monkeypatch, capsys):
    given = []

    def works(words):
        given.append(words)
        print("| a table |")
        write_json(Path(words[-1]), {"machine": {"cpu": "x"}})
        return 0

    def breaks(words):
        raise OSError("no space left")

    (tmp_path / "loader.json").write_text("of another run")
    for name, main in (("step", works), ("loader", breaks)):
        monkeypatch.setitem(TOPICS, name, replace(TOPICS[name], main=main))
    options = whole.parsed(["loader", "step", "--json", str(tmp_path)])
    summary: dict[str, Any] = {"topics": {}}
    matrix: Any = SimpleNamespace(ask=lambda do, timeout: {"gflops": 150.0})
    whole.run_all(options, matrix, 150.0, summary)
    assert {name: found["status"] for name, found in summary["topics"].items()} == {"step": 0, "loader": 1}
    assert given == [whole.words("step", summary["topics"]["step"]["rounds"], options)]
    assert json.loads((tmp_path / "step.json").read_text())["machine"]["matrix_product_gflops"] == 150
    assert "| a table |" in (tmp_path / "step.md").read_text()
    assert not (tmp_path / "loader.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert "no space left" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["speed"], ["--minutes", "0"], ["--data", "none"], ["--timm-script", "none"]])
def test_a_set_that_makes_no_sense_is_refused(words):
    with pytest.raises(SystemExit) as end:
        whole.main(words)
    assert end.value.code == 2


def test_start_up_is_held_against_timm_within_a_round(tmp_path):
    ours, theirs = next(iter(startup.PEERS.items()))
    found = startup.summary({ours: [1.0, 2.0, 3.0], theirs: [2.0, 8.0, 6.0], "python": [0.1]})
    assert found[ours]["ratio"] == 0.5
    assert "ratio" not in found["python"]
    table = startup.text({"machine": describe(), "summary": found, "errors": {}})
    assert "0.50 (0.25-0.50)" in table
    assert set(startup.programs(tmp_path, ["help", "info"])) == {"vitrail --help", ours, theirs}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("step", [trainee.first_step, trainee.timms_first_step])
def test_a_first_step_is_one_step(tmp_path, monkeypatch, step):
    small = replace(trainee.FIRST, shape=timm_script.Shape(32, 16, 192, 1, 3), batch=2)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, img_size=32, depth=1, **more))
    monkeypatch.setattr(trainee, "FIRST", small)
    training.draw_photographs(tmp_path / "drawn", 2)
    data = training.photographs(tmp_path, tmp_path / "drawn", 20)
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: steps.append(self))
    step(data)
    assert len(steps) == 1
