"""Recipes say what the papers say, cost what they say, and fit any data."""

import inspect
import math
import re
from dataclasses import dataclass, replace

import pytest

from vitrail import run as runs
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import cost, vit
from vitrail.optim.schedule import multiplier, steps_of
from vitrail.pipeline import Pipeline
from vitrail.recipes import RECIPES, rows
from vitrail.recipes.finetune import choices, finetune, finetune_small
from vitrail.tasks import Classify, ClassifyConfig

# Table 3: (epochs, learning rate, decay, weight decay, dropout, clip)
JFT, I21K, IMAGENET = ("linear", 0.1, 0.0, None), ("linear", 0.03, 0.1, None), ("cosine", 0.3, 0.1, 1.0)
TABLE3 = {
    "vit_b16_jft": (7, 8e-4, *JFT), "vit_b32_jft": (7, 8e-4, *JFT), "vit_l32_jft": (7, 6e-4, *JFT),
    "vit_l16_jft": (14, 4e-4, *JFT), "vit_h14_jft": (14, 3e-4, *JFT), "r50_vit_b16_jft": (7, 8e-4, *JFT),
    "r50_vit_b32_jft": (7, 8e-4, *JFT), "r50_vit_l32_jft": (7, 2e-4, *JFT), "r50_vit_l16_jft": (7, 4e-4, *JFT),
    "vit_b16_imagenet21k": (90, 1e-3, *I21K), "vit_b32_imagenet21k": (90, 1e-3, *I21K),
    "vit_l16_imagenet21k": (90, 1e-3, *I21K), "vit_l32_imagenet21k": (90, 1e-3, *I21K),
    "vit_b16_imagenet": (300, 3e-3, *IMAGENET), "vit_b32_imagenet": (300, 3e-3, *IMAGENET),
    "vit_l16_imagenet": (300, 3e-3, *IMAGENET), "vit_l32_imagenet": (300, 3e-3, *IMAGENET),
}  # fmt: skip
# With a head of 1000 classes and without a pre-logits layer, at 224 px.
PARAMETERS = {
    "s16": 22_050_664, "b16": 86_567_656, "b32": 88_224_232, "l16": 304_326_632, "l32": 306_535_400,
    "h14": 632_045_800, "r50_vit_b16": 98_659_112, "r50_vit_b32": 110_945_832, "r50_vit_l16": 316_483_624,
    "r50_vit_l32": 328_994_856,
}  # fmt: skip
IMAGES = {"jft": 303_000_000, "imagenet21k": 14_197_122, "imagenet": 1_281_167}
CLASSES = {"jft": 18_291, "imagenet21k": 21_843, "imagenet": 1000}
SMALL = ("small", "fashion_mnist", "cifar10")
LARGE = sorted(row.name for row in rows.ROWS)


def save(folder, **changes):
    """A folder with the weights of a tiny model that was pre-trained with a pre-logits layer."""
    shape = {"image_size": (32, 32), "patch_size": (16, 16), "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    config = vit.Config(**{**shape, "classes": 3, "representation": 8, **changes})
    how = Preprocessing(config.image_size, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "crop", 0.9, "bicubic")
    Pipeline(Classify(vit.ViT(config), how, class_names=("a", "b", "c"))).save(folder)
    return str(folder)


def words(name):
    return inspect.getdoc(RECIPES[name]) or ""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "model")


def make(name, weights):
    """A recipe's Run, on data that is never opened."""
    recipe = RECIPES[name]
    more = {"weights": weights} if "weights" in inspect.signature(recipe).parameters else {}
    return recipe("data", **more, **({"images": 2000} if name == "finetune" else {}))


@pytest.mark.parametrize("name", [row.name for row in rows.TABLE3])
def test_pre_training_is_table_3(name):
    assert len(rows.TABLE3) == len(TABLE3)
    run = RECIPES[name]("data")
    epochs, lr, decay, weight_decay, dropout, clip = TABLE3[name]
    data = name.rpartition("_")[2]
    assert (run.duration, run.batch, run.ema, run.start) == (f"{epochs} epochs", 4096, 0.0, None)
    optim, per_epoch = run.optim, {"batch": run.batch, "examples": IMAGES[data]}
    assert (optim.name, optim.betas, optim.lr, optim.weight_decay, optim.clip) == (
        ("adamw", (0.9, 0.999), lr, weight_decay, clip)
    )
    assert (optim.schedule.kind, optim.schedule.end) == (decay, 0.0)
    assert steps_of(optim.schedule.warmup, **per_epoch) == 10_000
    assert steps_of(optim.schedule.warmup, batch=512) == 80_000
    assert run.model.dropout == dropout
    assert run.model.representation == run.model.width
    assert run.model.classes == CLASSES[data]
    assert run.model.image_size == run.preprocessing.image_size == (224, 224)
    assert run.preprocessing.mean == run.preprocessing.std == (0.5, 0.5, 0.5)
    assert (run.augment.crop, run.augment.scale, run.augment.flip) == ("inception", (0.05, 1.0), 0.5)
    assert (run.augment.mixup, run.augment.randaugment, run.task) == (0.0, 0, ClassifyConfig())


@pytest.mark.parametrize("name", [name for name in LARGE if not name.startswith(("plain", "deit3"))])
def test_models_are_as_large_as_the_papers(name):
    model = replace(RECIPES[name]("data").model, classes=1000, representation=None)
    expected = next(count for known, count in reversed(PARAMETERS.items()) if known in name)
    assert cost.parameters(model) == expected


@pytest.mark.parametrize("name", [*LARGE, *SMALL])
def test_the_cost_that_is_stated_is_the_cost(name):
    run, text = RECIPES[name]("data"), words(name)
    found = re.search(r"Cost: ([\d.,]+)(M?) images x (\d+) epochs, ([\d.]+)\s+(exa|peta)FLOPs", text)
    assert found
    images, millions, epochs, flops, unit = found.groups()
    assert run.duration == f"{epochs} epochs"
    seen = float(images.replace(",", "")) * (1e6 if millions else 1) * int(epochs)
    stated = float(flops) * {"exa": 1e18, "peta": 1e15}[unit]
    assert 3 * cost.flops(run.model, run.model.image_size) * seen == pytest.approx(stated, rel=0.03)


@pytest.mark.parametrize("name", [*SMALL, "demo"])
def test_small_recipes_fit_runs_of_any_length(name):
    run = RECIPES[name]("data")
    for total in (1, 20, 5000):
        assert 0 <= multiplier(run.optim.schedule, 0, total) <= 1
    assert f"{cost.parameters(run.model) / 1e6:.1f} M parameters" in words(name)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_docstring_states_command_cost_and_score(name):
    text = words(name)
    assert text.splitlines()[1] == ""
    command = name if name == "demo" else "finetune DATA --weights W" if "finetune" in name else f"train {name} --data"
    assert re.search(rf"^Command: `vitrail {command}.*`\. Cost: [^.]", text, re.M)
    assert re.search(r"^Expected: ", text, re.M)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_run_is_named_after_its_recipe_and_read_back_equal(tmp_path, weights, name):
    run = make(name, weights)
    assert run.recipe == name
    assert run.data.path == "data"
    runs.write(run, tmp_path / "run")
    assert runs.read(tmp_path / "run") == run


@pytest.mark.parametrize(
    ("images", "steps", "warmup", "dev", "rates"),
    [
        (1020, 500, 50, 0.1, (0.001, 0.003, 0.01, 0.03)),  # Flowers
        (19_999, 500, 50, 0.1, (0.001, 0.003, 0.01, 0.03)),  # the BiT-HyperRule's limits
        (20_000, 10_000, 500, 0.02, (0.001, 0.003, 0.01, 0.03)),
        (499_999, 10_000, 500, 0.02, (0.001, 0.003, 0.01, 0.03)),
        (1_281_167, 20_000, 500, 0.01, (0.003, 0.01, 0.03, 0.06)),  # ImageNet
    ],
)
def test_fine_tuning_is_table_4(weights, images, steps, warmup, dev, rates):
    run = finetune("data", weights, images=images)
    assert (run.duration, run.batch, run.start, run.ema) == (f"{steps} steps", 512, weights, 0.0)
    optim = run.optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.clip, optim.layer_decay) == ("sgd", 0.9, 0, 1.0, 1.0)
    assert (optim.schedule.kind, optim.schedule.end) == ("cosine", 0.0)
    assert steps_of(optim.schedule.warmup, total=steps) == warmup
    several = choices(run, images)
    assert tuple(one.optim.lr for one in several) == rates
    assert optim.lr in rates
    assert {one.data.val_fraction for one in several} == {dev}


def test_fine_tuning_starts_from_the_model_and_the_pixels_of_the_weights(weights):
    run = finetune("data", weights, images=2000)
    assert (run.model.width, run.model.depth, run.model.representation) == (8, 1, None)
    assert run.model.image_size == (384, 384)
    assert run.preprocessing == Preprocessing((384, 384), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "squash", 1.0, "bicubic")
    small = finetune_small("data", weights)
    assert (small.model.image_size, small.model.representation) == ((32, 32), None)
    assert small.preprocessing == Preprocessing((32, 32), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "crop", 0.9, "bicubic")


@pytest.mark.parametrize(
    ("patch", "asked", "image"),
    [((14, 14), 384, (378, 378)), ((16, 32), 384, (384, 384)), ((16, 16), 100, (96, 96)), ((16, 16), 10, (16, 16))],
)
def test_images_for_fine_tuning_are_whole_patches(tmp_path, patch, asked, image):
    run = finetune("data", save(tmp_path / "model", patch_size=patch), images=2000, image_size=asked)
    assert run.model.image_size == run.preprocessing.image_size == image


def test_without_their_number_the_images_are_counted_and_weights_must_exist(weights):
    assert finetune("fashion", weights).duration == "500 steps"
    with pytest.raises(ValueError, match="none does not exist"):
        finetune_small("data", "none")


def test_choices_differ_in_the_learning_rate_alone(weights):
    run = replace(finetune_small("data", weights), seed=7)
    several = choices(replace(run, data=replace(run.data, val="elsewhere")), 2000)
    rates = [one.optim.lr for one in several]
    assert rates == pytest.approx([run.optim.lr / 3, run.optim.lr, run.optim.lr * 3])
    held = replace(run.data, val_fraction=0.1)
    for one, rate in zip(several, rates, strict=True):
        assert one == replace(run, data=held, optim=replace(run.optim, lr=rate))
    assert [one.optim.lr for one in choices(run, 2000, [0.5])] == [0.5]


@dataclass(frozen=True)
class Named:
    """As much of a Source as `adapt` asks for."""

    class_names: tuple[str, ...]
    targets: str

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise AssertionError("adapt reads no images")

    target = name = __getitem__


def source(classes, targets="class"):
    return Named(tuple(map(str, range(classes))), targets)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_gets_the_classes_of_its_data(weights, name):
    before = make(name, weights)
    run = before.task.adapt(before, source(37))
    assert run.model.classes == 37
    assert run.task.loss == before.task.loss
    if run.task.loss == "sigmoid":
        assert run.task.head_bias == pytest.approx(-math.log(37))
    assert run.task.adapt(run, source(37)) == run


LOG20 = -math.log(20)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (ClassifyConfig(smoothing=0.1), ClassifyConfig("sigmoid", head_bias=LOG20)),
        (ClassifyConfig("sigmoid"), ClassifyConfig("sigmoid")),  # no bias was wanted
        (ClassifyConfig("softmax", head_bias=-1.0), ClassifyConfig("sigmoid", head_bias=-1.0)),  # this one was
        (ClassifyConfig("sigmoid", smoothing=0.1, head_bias=-6.9), ClassifyConfig("sigmoid", head_bias=LOG20)),
        (ClassifyConfig(class_weights=True), ClassifyConfig("sigmoid", class_weights=True, head_bias=LOG20)),
    ],
)
def test_several_labels_get_a_sigmoid_and_a_bias_unless_another_was_asked_for(task, expected):
    run = RECIPES["vit_b16_imagenet"]("data")
    run = replace(run, task=task, augment=replace(run.augment, mixup=0.2))
    adapted = run.task.adapt(run, source(20, "classes"))
    assert (adapted.task, adapted.augment.mixup) == (expected, 0.2)
    assert adapted.task.adapt(adapted, source(20, "classes")) == adapted
