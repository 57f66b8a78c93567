"""From pixels to named answers: probabilities, images of any size, and what is refused."""

import numpy as np
import pytest
import torch

from vitrail import Pipeline
from vitrail.data.transforms import Preprocessing, normalise
from vitrail.models import vit
from vitrail.recipes.demo import demo
from vitrail.run import write

NAMES = ("ash", "beech", "cedar", "date", "elm", "fir", "gum")


def pipeline(dropout=0.0, channels=3, remainder="pad"):
    torch.manual_seed(0)
    config = vit.Config((8, 8), (4, 4), channels, 16, 1, 2, 32, len(NAMES), dropout=dropout, remainder=remainder)
    model = vit.ViT(config)
    torch.nn.init.normal_(model.head.weight)
    return Pipeline(model.eval(), Preprocessing((8, 8), (0.5,) * channels, (0.25,) * channels), NAMES)


def image(height=8, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def test_the_answers_are_the_models_softmax_best_first():
    predict, images = pipeline(), [image(seed=n) for n in range(4)]
    found = predict(images, top=len(NAMES))
    assert len(found) == 4
    for pixels, answers in zip(images, found, strict=True):
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            share = predict.model(normalise(batch, predict.preprocessing, torch.float32))[0].softmax(-1).tolist()
        assert [answer.index for answer in answers] == sorted(range(len(NAMES)), key=lambda k: -share[k])
        assert [answer.probability for answer in answers] == pytest.approx(sorted(share, reverse=True))
        assert sum(answer.probability for answer in answers) == pytest.approx(1)
        assert all(answer.label == NAMES[answer.index] for answer in answers)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (5, 5), (7, 7), (100, 7)])
def test_top_gives_that_many_answers_or_all_there_are(top, count):
    predict = pipeline()
    assert predict([image()], top=top)[0] == predict([image()], top=7)[0][:count]


def test_five_answers_are_the_default_and_no_image_has_none():
    assert len(pipeline()([image()])[0]) == 5
    assert pipeline()([]) == []


@pytest.mark.parametrize("top", [0, -1])
def test_a_top_below_one_is_refused(top):
    with pytest.raises(ValueError, match=f"top is {top}; it must be 1 or more"):
        pipeline()([image()], top=top)


def test_images_of_several_sizes_are_read_in_one_call():
    predict = pipeline()
    sizes = [(8, 8), (16, 8), (12, 20), (9, 7), (1, 1)]
    together = predict([image(*size) for size in sizes])
    for size, answers in zip(sizes, together, strict=True):
        assert answers == predict([image(*size)])[0]
    assert together[0] != together[1]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, ::-1],
        lambda a: a[::2, ::2],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.asfortranarray(a),
        lambda a: np.broadcast_to(a[:1, :1], (8, 8, 3)),
    ],
    ids=["mirrored", "strided", "transposed", "columns first", "broadcast and read-only"],
)
def test_how_an_array_lies_in_memory_does_not_matter(view):
    predict, seen = pipeline(), view(image(16, 16))
    assert predict([seen]) == predict([np.array(seen.tolist(), np.uint8)])


def test_predicting_leaves_image_and_mode_alone_and_is_without_dropout():
    predict, pixels = pipeline(dropout=0.5), image()
    before = pixels.copy()
    quiet = predict([pixels])
    predict.model.train()
    assert predict([pixels]) == quiet
    assert predict.model.training
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (image().astype(np.float32), r"float32 \(8, 8, 3\)"),
        (image().astype(np.int64), r"int64 \(8, 8, 3\)"),
        (image()[:, :, 0], r"uint8 \(8, 8\)"),
        (image()[None], r"uint8 \(1, 8, 8, 3\)"),
        (image(channels=4), r"uint8 \(8, 8, 4\)"),
        (image().transpose(2, 0, 1), r"uint8 \(3, 8, 8\)"),
        (image(height=0), r"uint8 \(0, 8, 3\)"),
    ],
    ids=["float", "int64", "no channels", "a batch", "four channels", "channels first", "empty"],
)
def test_an_image_of_another_kind_is_refused_with_what_it_is(unchecked, wrong, shown):
    with pytest.raises(ValueError, match=rf"an image is {shown}; it must be uint8 \(height, width, 3\)"):
        pipeline()([image(), wrong])


def test_the_mode_is_restored_after_a_refused_image(unchecked):
    predict = pipeline()
    predict.model.train()
    with pytest.raises(ValueError, match="an image is"):
        predict([image(channels=1)])
    assert predict.model.training


def test_a_size_that_the_model_refuses_is_refused():
    with pytest.raises(ValueError, match="9 x 8 is not divisible by the patch 4 x 4"):
        pipeline(remainder="refuse")([image(9, 8)])


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("given", ["run", "model"])
def test_a_run_folder_and_its_model_folder_load_alike(tmp_path, given, text):
    before = pipeline()
    before.save(tmp_path / "run" / "model")
    path = tmp_path / "run" if given == "run" else tmp_path / "run" / "model"
    after = Pipeline.load(str(path) if text else path)
    assert (after.preprocessing, after.class_names) == (before.preprocessing, before.class_names)
    for found, expected in zip(after([image(12, 8)])[0], before([image(12, 8)])[0], strict=True):
        assert (found.label, found.index) == (expected.label, expected.index)
        assert found.probability == pytest.approx(expected.probability, rel=1e-4)


def test_a_run_without_a_model_says_how_to_go_on(tmp_path):
    write(demo(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run has no model yet: the run has not ended; go on with `vitrail resume"):
        Pipeline.load(tmp_path / "run")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a model folder"):
        Pipeline.load(tmp_path / "nowhere")
