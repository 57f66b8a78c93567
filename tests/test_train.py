"""The Trainer: what a Run says is what happens."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small_runs import assert_same_run, crash_at, history, small, start, weights
from torch._dynamo.utils import counters

from vitrail import Pipeline, checkpoint, train
from vitrail import run as runs
from vitrail.data.sources.open import Data
from vitrail.evaluate import Accuracy
from vitrail.models import resnet, vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.recipes.demo import demo
from vitrail.runtime import blocks as parallel
from vitrail.runtime.fp8 import Fp8Linear
from vitrail.train import Trainer


@pytest.mark.parametrize("micro", [3, 4, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, quick, micro):
    finals = []
    for name, size in (("whole", None), ("parts", micro)):
        run = small(precision="fp64", micro_batch=size, duration="5 steps", batch=7)
        trainer = start(run, tmp_path / name)
        trainer.fit()
        finals.append(trainer.task.state_dict())
        assert trainer.batches.parts == (1 if size is None else -(-7 // size))
    worst = max(float((a - b).abs().max()) for a, b in zip(finals[0].values(), finals[1].values(), strict=True))
    assert worst < 1e-12


def test_what_is_evaluated_and_saved_is_the_average(tmp_path, quick):
    trainer = start(small(ema=0.5), tmp_path / "run")
    trainer.fit()
    saved = weights(tmp_path / "run")
    for name, value in trainer.ema.tensors.items():
        assert torch.equal(saved[name.removeprefix("model.")], value)
    assert not torch.equal(saved["head.weight"], trainer.task.model.head.weight)


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, quick, monkeypatch):
    scores = iter([0.1, 0.9, 0.3, 0.4])
    run = small(evaluate_every="3 steps", checkpoint_every="2 steps", keep=1)
    trainer = start(run, tmp_path / "run")
    real = Accuracy.run

    def scored(self, task, data):
        yield from {**dict(real(self, task, data)), "accuracy": next(scores)}.items()

    monkeypatch.setattr(Accuracy, "run", scored)
    trainer.fit()
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == ["step-6", "step-12"]


def test_a_run_starts_from_weights_with_a_new_head(tmp_path, quick):
    first = small(preprocessing=replace(small().preprocessing, image_size=(14, 14)))
    first = replace(first, model=replace(first.model, image_size=(14, 14)))
    start(first, tmp_path / "small").fit()
    run = small(start=str(tmp_path / "small"), duration="1 steps", evaluate_every="1 steps")
    trainer = start(run, tmp_path / "large")
    before = weights(tmp_path / "small")
    assert torch.equal(trainer.task.model.blocks[0].mlp.fc1.weight, before["blocks.0.mlp.fc1.weight"])
    assert trainer.task.model.pos_embed.shape == (1, 17, 16)
    assert not trainer.task.model.head.weight.any()
    trainer.fit()
    notes = [r["note"] for r in history(tmp_path / "large") if "note" in r]
    assert any("pos_embed: resized (1, 5, 16) -> (1, 17, 16)" in note for note in notes)
    (tmp_path / "small" / "model" / "model.safetensors").unlink()
    assert Trainer(run, tmp_path / "large").done == 1  # its own checkpoint is enough


def test_bfloat16_products_train_and_weights_stay_float32(tmp_path, quick):
    trainer = start(small(precision="bf16", duration="2 steps", evaluate_every="2 steps"), tmp_path / "run")
    result = trainer.fit()
    assert 0 <= result["accuracy"] <= 1
    assert {p.dtype for p in trainer.task.parameters()} == {torch.float32}


def test_products_in_8_bits_train_and_resume(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(train.fp8, "refuse", lambda device: None)  # torch's product on a CPU is the same
    run = small(precision="fp8")
    start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "cut"), 7)
    trainer = Trainer(run, tmp_path / "cut")
    trainer.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert {p.dtype for p in trainer.task.parameters()} == {torch.float32}
    assert {type(block.mlp.fc1) for block in trainer.task.model.blocks} == {Fp8Linear}


@pytest.mark.usefixtures("unchecked", "quick")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces a block
def test_compiled_blocks_are_a_graph_for_each_size_of_part_and_evaluation_is_none(tmp_path, monkeypatch):
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(train, "compile_blocks", partial(parallel.compile_blocks, backend="aot_eager"))
    start(small(compile=True, micro_batch=3), tmp_path / "run").fit()  # 3, 3 and 2 of 8
    assert counters["stats"]["unique_graphs"] == 2
    assert [record["step"] for record in history(tmp_path / "run") if "evaluation" in record] == [6, 12]


@pytest.mark.parametrize("every", [1, 5])
def test_numbers_that_are_read_a_step_late_are_the_same(tmp_path, quick, every):
    """As on a GPU."""
    for name, late in (("now", False), ("late", True)):
        trainer = start(small(log_every=every), tmp_path / name)
        trainer.late = late
        trainer.fit()
    assert_same_run(tmp_path / "now", tmp_path / "late")
    trainer = start(small(log_every=every), tmp_path / "cut")
    trainer.late = True
    crash_at(trainer, 7)
    Trainer(small(log_every=every), tmp_path / "cut").fit()
    assert_same_run(tmp_path / "now", tmp_path / "cut")


def test_a_resnet_trains_resumes_and_is_saved_as_a_vit_is(tmp_path, quick):
    """BiT-R50x1 in small: the paper's baseline by the same commands."""
    model = resnet.Config(blocks=(1, 1), channels=1, classes=10, image_size=(28, 28))
    run = small(model=model, optim=optim.Config(lr=1e-3, schedule=Schedule("cosine")))
    result = start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "cut"), 7)
    trainer = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert trainer.done == 6
    trainer.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    pipeline, source = Pipeline.load(tmp_path / "whole"), trainer.val_source
    assert isinstance(pipeline.task.model, resnet.ResNet)
    answers = pipeline([source[index].image for index in range(100)], top=1)
    right = [answer.index == source.target(index) for index, [answer] in enumerate(answers)]
    assert sum(right) / 100 == result["accuracy"]


def test_checkpointing_changes_no_bit(tmp_path, quick):
    for name in (False, True):
        start(small(checkpointing=name, duration="3 steps"), tmp_path / str(name)).fit()
    assert_same_run(tmp_path / "False", tmp_path / "True")


def test_the_run_ends_with_its_model_and_no_half_files(tmp_path, quick):
    start(small(), tmp_path / "run").fit()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoints", "model"}


def test_a_disk_that_is_full_is_said_and_the_checkpoint_stays(tmp_path, quick, monkeypatch):
    trainer = start(small(), tmp_path / "run")
    real = checkpoint.save_file

    def full(tensors, path):
        if "step-8" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ValueError, match=r"step-8 could not be written .*No space left.*vitrail resume"):
        trainer.fit()
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").name == "step-6"


def test_a_log_that_cannot_be_written_is_said(tmp_path, quick, monkeypatch):
    trainer = start(small(), tmp_path / "run")

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.Log, "write", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); make room"):
        trainer.fit()


class Damaged:
    """The images of a source, of which every fortieth cannot be read."""

    targets = "class"

    def __init__(self, source):
        self.source = source
        self.class_names = source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index % 40 == 0:
            raise ValueError(f"{self.name(index)} is cut short.")
        return self.source[index]

    def target(self, index):
        return self.source.target(index)

    def name(self, index):
        return self.source.name(index)


def test_unreadable_images_are_refused_or_skipped_by_choice(tmp_path, quick, monkeypatch):
    opened = train.open_splits

    def damaged(data, needs):
        splits = opened(data, needs)
        return replace(splits, train=Damaged(splits.train), val=Damaged(splits.val))

    monkeypatch.setattr(train, "open_splits", damaged)
    with pytest.raises(ValueError, match=r"is cut short\. --data.unreadable skip trains without such images"):
        start(small(), tmp_path / "refused").fit()
    result = start(small(data=Data(unreadable="skip")), tmp_path / "skipped").fit()
    assert (result["samples"], result["unreadable"]) == (97, 3)
    notes = [record["note"] for record in history(tmp_path / "skipped") if "note" in record]
    assert sum(note.startswith("skipped: train") for note in notes) >= 1
    assert sum(note.startswith("left out: t10k") for note in notes) == 3


def test_the_seed_decides_the_run(tmp_path, quick):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(small(seed=seed), tmp_path / name).fit()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert history(tmp_path / "a") != history(tmp_path / "c")


def test_the_learning_rate_follows_the_schedule(tmp_path, quick):
    run = small(optim=optim.Config(lr=0.1, schedule=Schedule("linear", warmup="4 steps")))
    start(run, tmp_path / "run").fit()
    rates = [record["lr"] for record in history(tmp_path / "run") if "lr" in record]
    expected = [0.1 * min(t / 4, (12 - t) / 8) for t in range(12)]
    assert rates == pytest.approx(expected)


def test_training_lowers_the_loss(tmp_path, quick):
    model = replace(demo().model, width=32, depth=2, heads=2, mlp_dim=64)
    start(small(model=model, duration="150 steps", batch=32, log_every=10), tmp_path / "run").fit()
    losses = [record["loss"] for record in history(tmp_path / "run") if "loss" in record]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(tmp_path, quick):
    trainer = start(small(), tmp_path / "run")
    inner = trainer._step

    def spoilt(step, batch):
        if step == 6:
            with torch.no_grad():
                trainer.task.model.head.weight.fill_(float("nan"))
        return inner(step, batch)

    trainer._step = spoilt
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 7, on train-images.*step-6\. A lower"):
        trainer.fit()
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-4", "step-6"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": vit.Config(channels=1, classes=12)}, "fashion has 10 classes, but the model's head has 12"),
        ({"evaluate_every": "0 steps"}, "evaluate_every is '0 steps'; it must be a step or more"),
        ({"checkpoint_every": "0 epochs"}, "checkpoint_every is '0 epochs'"),
        ({"duration": "0 steps"}, "the duration '0 steps' is no training"),
        ({"device": "tpu"}, "the device 'tpu' is not available"),
        ({"precision": "fp8"}, "the device cpu has no products in 8 bits"),
        ({"optim": optim.Config(schedule=Schedule(warmup="50 steps"))}, "longer than the run of 12 steps"),
    ],
)
def test_what_does_not_agree_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small(**changes), tmp_path)
