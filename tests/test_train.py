"""The Trainer: what a Run says is what happens."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small_runs import assert_same_run, crash_at, goes_on, history, logged, resumes, small, start, weights
from torch import nn
from torch._dynamo.utils import counters

from vitrail import Pipeline, checkpoint, train
from vitrail import run as runs
from vitrail.data.sources.open import Data
from vitrail.data.sources.source import Subset
from vitrail.evaluate import Accuracy
from vitrail.models import resnet, vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.runtime import blocks as parallel
from vitrail.runtime.fp8 import Fp8Linear
from vitrail.tasks import Classify, ClassifyConfig
from vitrail.train import Trainer
from vitrail.weights.start import start as begun


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, quick):
    finals = []
    for size, parts in ((7, 1), (3, 3)):
        trainer = start(small(precision="fp64", micro_batch=size, duration="5 steps", batch=7), tmp_path / str(size))
        trainer.fit()
        finals.append(trainer.task.state_dict())
        assert trainer.batches.parts == parts
    assert max(float((a - finals[1][name]).abs().max()) for name, a in finals[0].items()) < 1e-12


def test_what_is_evaluated_and_saved_is_the_average(tmp_path, quick):
    trainer = start(small(ema=0.5), tmp_path / "run")
    trainer.fit()
    saved = weights(tmp_path / "run")
    for name, value in trainer.ema.tensors.items():
        assert torch.equal(saved[name.removeprefix("model.")], value)
    assert not torch.equal(saved["head.weight"], trainer.task.model.head.weight)


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, quick, monkeypatch):
    scores = iter([0.1, 0.9, 0.3, 0.4])
    trainer = start(small(evaluate_every="3 steps", checkpoint_every="2 steps", keep=1), tmp_path / "run")
    real = Accuracy.run

    def scored(self, task, data):
        yield from {**dict(real(self, task, data)), "accuracy": next(scores)}.items()

    monkeypatch.setattr(Accuracy, "run", scored)
    trainer.fit()
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == ["step-6", "step-12"]


def test_a_run_starts_from_weights_and_keeps_their_head_for_the_same_classes(tmp_path, quick):
    first = small(preprocessing=replace(small().preprocessing, image_size=(14, 14)))
    first = replace(first, model=replace(first.model, image_size=(14, 14)))
    start(first, tmp_path / "small").fit()
    run = small(start=str(tmp_path / "small"), duration="1 steps", evaluate_every="1 steps")
    trainer = start(run, tmp_path / "large")
    before = weights(tmp_path / "small")
    for name in ("blocks.0.mlp.fc1.weight", "head.weight", "head.bias"):
        assert torch.equal(trainer.task.model.state_dict()[name], before[name])
    assert trainer.task.model.pos_embed.shape == (1, 17, 16)
    trainer.fit()
    assert any("pos_embed: resized (1, 5, 16) -> (1, 17, 16)" in note for note in logged(tmp_path / "large", "note"))
    (tmp_path / "small" / "model" / "model.safetensors").unlink()
    assert Trainer(run, tmp_path / "large").done == 1  # its own checkpoint is enough


def test_the_head_goes_by_the_names_of_classes_and_is_new_for_others(tmp_path, quick):
    config = replace(small().model, classes=3)
    model = config.build("cpu")
    model.init_weights(1)
    nn.init.normal_(model.head.weight)
    Pipeline(Classify(model, small().preprocessing, None, ("a", "b", "c"))).save(tmp_path / "w")
    same, kept, words = begun(tmp_path / "w", config, ("c", "a", "b"), 0)
    assert (kept, torch.equal(same.head.weight, model.head.weight[[2, 0, 1]])) == (True, True)
    for names, said in ((("a", "b", "d"), "gone: c; new: d"), (("a", "b", "c", "d"), "gone: none; new: d")):
        other, kept, words = begun(tmp_path / "w", replace(config, classes=len(names)), names, 0)
        assert (kept, bool(other.head.weight.any())) == (False, False)
        assert said in words
    bias = {"task": ClassifyConfig("sigmoid", head_bias=-3.0), "start": str(tmp_path / "w")}
    head = start(small(**bias), tmp_path / "run").task.model.head
    assert (head.bias.tolist(), bool(head.weight.any())) == ([-3.0] * 10, False)


def test_a_head_that_begins_as_a_probe_is_far_better_than_chance_and_resumes(tmp_path, quick):
    start(small(), tmp_path / "weights").fit()
    folder = tmp_path / "weights" / "model" / "config.json"
    folder.write_text(folder.read_text().replace('"Bag"', '"Sack"'))  # so the classes are others
    run = small(start=str(tmp_path / "weights"), head="probe")
    resumes(run, tmp_path, 3)
    found = [record for record in history(tmp_path / "whole") if "evaluation" in record]
    assert (found[0]["step"], found[0]["evaluation"]["accuracy"] > 0.3) == (0, True)
    assert any(
        "linear probe" in note and "10,000 training images" in note for note in logged(tmp_path / "whole", "note")
    )


def test_products_in_8_bits_train_and_resume(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(train.fp8, "refuse", lambda device: None)  # torch's product on a CPU is the same
    task = resumes(small(precision="fp8"), tmp_path).task
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert {type(block.mlp.fc1) for block in task.model.blocks} == {Fp8Linear}


@pytest.mark.usefixtures("unchecked", "quick")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces a block
def test_compiled_blocks_are_a_graph_for_each_size_of_part_and_evaluation_is_none(tmp_path, monkeypatch):
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(runs, "compile_blocks", partial(parallel.compile_blocks, backend="aot_eager"))
    start(small(compile=True, micro_batch=3), tmp_path / "run").fit()  # 3, 3 and 2 of 8
    assert counters["stats"]["unique_graphs"] == 2
    assert len(logged(tmp_path / "run", "evaluation")) == 2


@pytest.mark.parametrize("every", [1, 5])
def test_numbers_that_are_read_a_step_late_are_the_same(tmp_path, quick, every):
    """As on a GPU."""
    run = small(log_every=every)
    start(run, tmp_path / "whole").fit()
    for name in ("late", "cut"):
        trainer = start(run, tmp_path / name)
        trainer.late = True
        trainer.fit() if name == "late" else crash_at(trainer, 7)
    assert_same_run(tmp_path / "whole", tmp_path / "late")
    goes_on(tmp_path)


def test_a_resnet_trains_resumes_and_is_saved_as_a_vit_is(tmp_path, quick):
    model = resnet.Config(blocks=(1, 1), channels=1, classes=10, image_size=(28, 28))
    run = small(model=model, optim=optim.Config(lr=1e-3, schedule=Schedule("cosine")))
    source = resumes(run, tmp_path).val_source
    pipeline = Pipeline.load(tmp_path / "whole")
    assert isinstance(pipeline.task.model, resnet.ResNet)
    answers = pipeline([source[index].image for index in range(100)], top=1)
    right = [answer.index == source.target(index) for index, [answer] in enumerate(answers)]
    assert sum(right) / 100 == logged(tmp_path / "whole", "evaluation")[-1]["accuracy"]


def test_checkpointing_changes_no_bit(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(train, "cores_for", lambda *_: 1)  # which it is with checkpointing
    for name in (False, True):
        start(small(checkpointing=name, duration="3 steps"), tmp_path / str(name)).fit()
    assert_same_run(tmp_path / "False", tmp_path / "True")


def test_a_disk_that_is_full_is_said(tmp_path, quick, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.Log, "write", full)
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\); make room"):
        start(small(), tmp_path / "run").fit()


class Damaged(Subset):
    """The images of a source, of which every fortieth cannot be read."""

    def __getitem__(self, index):
        if index % 40 == 0:
            raise ValueError(f"{self.name(index)} is cut short.")
        return super().__getitem__(index)


def test_unreadable_images_are_refused_or_skipped_by_choice(tmp_path, quick, monkeypatch):
    opened = train.open_splits

    def damaged(data, needs):
        splits = opened(data, needs)
        train, val = (Damaged(source, range(len(source))) for source in (splits.train, splits.val))
        return replace(splits, train=train, val=val)

    monkeypatch.setattr(train, "open_splits", damaged)
    with pytest.raises(ValueError, match=r"is cut short\. --data.unreadable skip trains without such images"):
        start(small(), tmp_path / "refused").fit()
    result = start(small(data=Data(unreadable="skip")), tmp_path / "skipped").fit()
    assert (result["samples"], result["unreadable"]) == (97, 3)
    said = logged(tmp_path / "skipped", "note")
    assert any(note.startswith("skipped: train") for note in said)
    assert sum(note.startswith("left out: t10k") for note in said) == 3


def test_the_seed_decides_the_run_which_ends_with_its_model(tmp_path, quick):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(small(seed=seed), tmp_path / name).fit()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert history(tmp_path / "a") != history(tmp_path / "c")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoints", "model"}  # and no half files


def test_the_learning_rate_follows_the_schedule(tmp_path, quick):
    run = small(optim=optim.Config(lr=0.1, schedule=Schedule("linear", warmup="4 steps")))
    start(run, tmp_path / "run").fit()
    assert logged(tmp_path / "run", "lr") == pytest.approx([0.1 * min(t / 4, (12 - t) / 8) for t in range(12)])


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
        ({"duration": "0 steps"}, "duration is '0 steps'"), ({"checkpoint_every": "0 epochs"}, "is '0 epochs'"),
        ({"device": "tpu"}, "'tpu' is not available"), ({"precision": "fp8"}, "device cpu has no products in 8 bits"),
        ({"optim": optim.Config(schedule=Schedule(warmup="50 steps"))}, "longer than the run of 12 steps"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small(**changes), tmp_path)
