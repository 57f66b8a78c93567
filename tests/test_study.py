"""`vitrail study`: families of equal cost, branches that are whole runs, and a study that may stop anywhere."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import photos, printed, refused, status
from safetensors.torch import load_file
from small_runs import history

from vitrail import train
from vitrail.cli import launch
from vitrail.cli.study import Progress
from vitrail.data.sources.open import Data, open_splits
from vitrail.models import resnet
from vitrail.optim.schedule import multiplier
from vitrail.recipes.fast import fast
from vitrail.study.grid import DURATIONS, Grid, calibrated

TINY = {"batch": ["4"], "examples": ["40"], "scale": ["0.3"], "families": ["vit"], "seeds": ["1"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of small images of two classes; no time is spent on the runs' pages, nor on how long a step takes."""
    return place(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a study that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        folder = place(tmp_path_factory.mktemp("whole"), patch)
        assert status(*study()) == 0
        return results(folder / "s")


def place(folder, patch):
    patch.chdir(folder)
    patch.setattr("vitrail.study.grid.calibrated", lambda models, *_: [0.01] * len(models))
    patch.setattr(launch, "write_report", lambda folder, *_: (folder / "report.html").write_text(""))
    photos(folder / "photos", ["ash", "beech"], count=250, size=16, signal=4)
    return folder


def study(*words, preset="data-size", out="s"):
    rest = [word for name, said in TINY.items() if f"--{name}" not in words for word in (f"--{name}", *said)]
    return ["study", "photos", "--preset", preset, "--out", out, *words, *rest]


def results(folder):
    """study.json without what depends on the clock."""
    found = json.loads((folder / "study.json").read_text())
    for row in [*found["runs"], *found["findings"]["points"]]:
        assert row.pop("seconds") > 0
    return found


def grid(preset, size=32, channels=3, **more):
    base = fast("/nowhere")  # colour images of 32 x 32
    patch = -(-size // 4)
    model = replace(base.model, image_size=(size, size), patch_size=(patch, patch), channels=channels)
    how = replace(base.preprocessing, image_size=(size, size), mean=(0.5,) * channels, std=(0.5,) * channels)
    return Grid(replace(base, model=model, preprocessing=how), preset, 50_000, 10, 300_000, **more)


@pytest.mark.parametrize("preset", ["data-size", "compute"])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (64, 3)])
def test_families_cost_the_same_and_larger_sizes_have_more_parameters(preset, size, channels):
    made = grid(preset, size, channels)
    for (family, place), flops in made.flops.items():
        assert flops == pytest.approx(made.flops["resnet", place], rel=0.05), family
    for family in made.families:
        sizes = [made.parameters[family, place] for place in range(len(made.sizes))]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] > 10 * sizes[0] or preset == "data-size"


def test_parameters_are_counted_without_head_and_embeddings():
    made = grid("compute")
    for (family, size), model in made.models.items():
        named = dict(model.build("meta").named_parameters())
        outside = [n for n in named if n.startswith(("head.", "patch_embed.proj", "cls_token", "pos_embed"))]
        assert len(outside) == (2 if isinstance(model, resnet.Config) else 6)
        assert made.parameters[family, size] == sum(p.numel() for n, p in named.items() if n not in outside)


def test_the_presets_have_the_runs_that_they_promise():
    cells = grid("data-size").cells({})
    assert sorted({cell.images for cell in cells}) == [500, 1581, 5000, 15811, 50_000]
    assert len(cells) == len({cell.name for cell in cells}) == 5 * 3 * 3
    assert {cell.steps for cell in cells} == {2340}
    assert grid("fewshot").cells({}) == cells
    assert [judge.kind for judge in grid("fewshot").run(cells[0]).evaluate] == ["accuracy", "fewshot"]
    made = grid("compute", seeds=2)
    cells = made.cells({})
    assert len(cells) == len({cell.name for cell in cells}) == 5 * 4 * 3 * 2
    assert {cell.steps for cell in cells} == {2320 // 8 * part for part in DURATIONS}
    whole = sum(made.cost(cell) for cell in cells if not cell.trunk)
    assert sum(map(made.work, cells)) == pytest.approx(1.175 * whole)
    assert [made.rate("vit", size, {}) for size in (1, 3)] == [1e-3, 5e-4]
    chosen = {(family, size): rate for family in made.families for size, rate in ((0, 2e-3), (4, 2e-4))}
    rates = [made.rate("vit", size, chosen) for size in range(5)]
    assert (rates[0], rates[-1], rates) == (2e-3, 2e-4, sorted(rates, reverse=True))


def test_a_branch_is_its_trunk_up_to_the_cool_down():
    made = grid("compute")
    whole, *branches = made.cells({})[:4]
    for branch in branches:
        long, short = (made.run(cell).optim.schedule for cell in (whole, branch))
        factors = [multiplier(short, step, branch.steps) for step in range(branch.steps)]
        assert factors[: branch.stem] == [multiplier(long, step, whole.steps) for step in range(branch.stem)]
        assert factors[-1] < 0.02
        assert branch.stem % int(made.run(whole).checkpoint_every.split()[0]) == 0


def test_subsets_are_nested_balanced_and_of_the_training_images(here):
    names = set()
    for count in (10, 37, 120):
        splits = open_splits(Data("photos", examples=count, examples_seed=3))
        assert f"{count} of 450 images" in splits.words
        found = {splits.train.name(index) for index in range(count)}
        assert names < found
        names = found
        labels = np.bincount([splits.train.target(index) for index in range(len(splits.train))])
        assert labels.max() - labels.min() <= 1
        assert len(splits.val) == 50
        assert not found & {splits.val.name(index) for index in range(50)}
    others = open_splits(Data("photos", examples=120)).train
    assert found != {others.name(index) for index in range(120)}
    with pytest.raises(ValueError, match="examples is 451; it must be from 1 to the 450 training images"):
        open_splits(Data("photos", examples=451))
    with pytest.raises(ValueError, match="examples is 0"):
        Data("photos", examples=0)


def test_branches_end_as_runs_of_their_own_bit_for_bit(here):
    base = replace(fast("photos"), batch=4)
    made = Grid(base, "compute", 450, 2, 160, ("vit",), scale=0.3)
    group = made.cells({})[:4]
    work = Progress(made, here / "s", {("vit", 0): 0.01})
    work.train([group], "")
    for cell in group[1:3]:
        alone = here / cell.name
        launch.begin(launch.runs.read(work.place(cell)), alone)
        ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (work.place(cell), alone))
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        assert history(work.place(cell))[-1] == history(alone)[-1]  # the evaluation
        assert work.outcome(cell) == launch.ended(alone)
    assert [work.outcome(cell) is None for cell in group] == [False] * 4
    assert not list((here / "s").glob("runs/*/checkpoints"))  # nothing begins from them any more


@pytest.mark.slow
def test_compute_from_the_command_line(capsys, here):
    found, _ = printed(capsys, *study("--families", "vit", "hybrid", "resnet", "--examples", "160", preset="compute"))
    assert (len(found["points"]), len(found["claims"])) == (3 * 5 * 4, 2)
    assert "as in Figure 5" in (here / "s" / "study.html").read_text()


def test_few_shot_accuracy_is_told_beside_the_final_one(capsys, here):
    printed(capsys, *study("--families", "vit", "resnet", "--seeds", "1", preset="fewshot", out="f"))
    found = results(here / "f")
    assert all({"fewshot_2", "accuracy"} <= row["metrics"].keys() for row in found["runs"])
    shots = {point["images"]: {*point["fewshot"]} for point in found["findings"]["points"]}
    assert shots[max(shots)] == {"fewshot_2", "fewshot_5", "fewshot_10"} > shots[min(shots)]
    assert "as in Figure 4" in (here / "f" / "study.html").read_text()


def test_a_study_goes_on_where_it_was_stopped_and_is_the_same(capsys, here, whole, monkeypatch):
    step, calls = train.Trainer._step, iter(range(10**6))

    def dies(self, number, parts):
        if next(calls) in (7, 30):  # in a run; and in another, many later
            raise MemoryError
        return step(self, number, parts)

    monkeypatch.setattr(train.Trainer, "_step", dies)
    for _ in range(2):
        with pytest.raises(MemoryError):
            status(*study())
    begin, begun = launch.begin, iter(range(100))

    def stopped(*words, **more):
        if next(begun) == 0:  # between two runs
            raise KeyboardInterrupt
        return begin(*words, **more)

    monkeypatch.setattr(launch, "begin", stopped)
    assert status(*study()) == 130
    assert not (here / "s" / "study.json").exists()
    assert status(*study()) == 0
    assert results(here / "s") == whole
    capsys.readouterr()
    assert status(*study()) == 0  # all runs have ended
    assert "run 1" not in capsys.readouterr().err


def test_parts_make_together_what_one_makes(capsys, here, whole):
    found, _ = printed(capsys, *study("--part", "0/2"))
    assert found == {"folder": "s", "missing": 3}
    assert not (here / "s" / "study.html").exists()
    assert status(*study("--part", "1/2")) == 0
    assert results(here / "s") == whole


def test_rates_are_tried_first_and_the_best_is_taken(capsys, here):
    rates = ["--rates", "1e-9", "3e-3"]
    assert printed(capsys, *study(*rates, "--part", "0/2"))[0]["missing"] == 1
    _, err = printed(capsys, *study(*rates))
    taken = {row["cell"]["rate"] for row in results(here / "s")["runs"]}
    chosen = {float(rate) for rate in re.findall(r"learning rate (\S+) of", err)}
    assert taken == chosen
    assert len(list((here / "s" / "runs").iterdir())) == 5 + 1  # the trial of the other rate


def test_a_loss_that_becomes_nan_is_left_out_and_said(capsys, here):
    assert status(*study("--rates", "1e30")) == 2
    assert "the loss of every run became NaN" in capsys.readouterr().err


def test_wrong_input_is_one_sentence_and_a_folder_keeps_its_study(capsys, here):
    found, err = printed(capsys, *study("--dry"))
    assert (found["runs"], list(found["models"]), (here / "s").exists()) == (5, ["vit-0"], False)
    assert err == ""
    assert status(*study("--part", "0/5")) == 0
    capsys.readouterr()
    assert refused(capsys, *study("--scale", "0.5")).endswith(
        "s was begun with scale 0.3, but now it is 0.5; say the same again, or name another folder with --out."
    )
    assert "--examples is 19; it must be at least 20, 5 steps of 4" in refused(capsys, *study("--examples", "19"))
    assert "--seeds 0" in refused(capsys, *study("--seeds", "0"))
    assert "photos exists already, and is no study" in refused(capsys, *study(out="photos"))
    assert "part 2 of 2" in refused(capsys, *study("--part", "2/2"))


def test_a_calibration_takes_longer_for_more_work():
    models = list(grid("compute").models.values())
    short, long = calibrated([models[0], models[4 * 3]], (32, 32), 16)
    assert 0 < short < long
