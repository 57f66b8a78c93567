"""From pixels or files to named answers: probabilities, images of any size, and what is refused."""

import threading
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitrail import Pipeline
from vitrail import pipeline as module
from vitrail.batch import Batch
from vitrail.data.images.geometry import centred
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.models import vit
from vitrail.recipes.demo import demo
from vitrail.run import write
from vitrail.tasks import Classify, ClassifyConfig
from vitrail.weights.load import read
from vitrail.weights.save import save

NAMES = ("ash", "beech", "cedar", "date", "elm", "fir", "gum")


def pipeline(dropout=0.0, channels=3, remainder="pad", resize="native", loss="softmax"):
    torch.manual_seed(0)
    config = vit.Config((8, 8), (4, 4), channels, 16, 1, 2, 32, len(NAMES), dropout=dropout, remainder=remainder)
    model = vit.ViT(config)
    torch.nn.init.normal_(model.head.weight)
    how = Preprocessing((8, 8), (0.5,) * channels, (0.25,) * channels, resize)
    return Pipeline(Classify(model.eval(), how, ClassifyConfig(loss), NAMES))


def image(height=8, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def test_the_answers_are_the_models_softmax_best_first():
    predict, images = pipeline(), [image(seed=n) for n in range(4)]
    found = predict(images, top=len(NAMES))
    assert len(found) == 4
    for pixels, answers in zip(images, found, strict=True):
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        with torch.no_grad():
            share = predict.task.model(normalise(batch, predict.preprocessing, torch.float32))[0].softmax(-1).tolist()
        assert [answer.index for answer in answers] == sorted(range(len(NAMES)), key=lambda k: -share[k])
        assert [answer.probability for answer in answers] == pytest.approx(sorted(share, reverse=True), rel=1e-5)
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


def test_int8_weights_are_made_once_and_answers_depend_on_no_neighbour(monkeypatch):
    made = []
    inner = module.prepared
    monkeypatch.setattr(module, "prepared", lambda *given: made.append(given[1]) or inner(*given))
    predict = replace(pipeline(), int8=True)
    several = [image(seed=n) for n in range(5)]
    together = predict(several)
    for first, answers in zip(several, together, strict=True):
        alike = predict([first, several[0]])[0]  # to the rounding of the head, which is in float
        assert [(a.index, pytest.approx(a.probability, rel=1e-5)) for a in answers] == [
            (a.index, a.probability) for a in alike
        ]
    assert made == ["int8"]
    assert together != pipeline()(several)


def test_many_images_go_through_the_model_in_small_batches(monkeypatch):
    predict, several = pipeline(), [image(seed=n) for n in range(50)]
    sizes = []
    monkeypatch.setattr(module, "batch_size", lambda *_: 7)
    hook = predict.module.register_forward_pre_hook(lambda part, given: sizes.append(len(given[0])))
    found = predict(several, top=7)
    assert sizes == [7] * 7 + [1]
    hook.remove()
    monkeypatch.undo()
    for ours, theirs in zip(found, predict(several, top=7), strict=True):
        assert [a.index for a in ours] == [a.index for a in theirs]
        assert [a.probability for a in ours] == pytest.approx([a.probability for a in theirs], rel=1e-5)


def test_predicting_leaves_image_and_mode_alone_and_is_without_dropout():
    predict, pixels = pipeline(dropout=0.5), image()
    before = pixels.copy()
    quiet = predict([pixels])
    predict.task.model.train()
    assert predict([pixels]) == quiet
    assert predict.task.model.training
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (image().astype(np.float32), r"float32 \(8, 8, 3\)"),
        (image().astype(np.int64), r"int64 \(8, 8, 3\)"),
        (image()[None], r"uint8 \(1, 8, 8, 3\)"),
        (image(channels=5), "5 channels.* 3"),
        (image().transpose(2, 0, 1), "8 channels.* 3"),
        (image(height=0), r"uint8 \(0, 8, 3\)"),
    ],
    ids=["float", "int64", "a batch", "five channels", "channels first", "empty"],
)
def test_an_image_of_another_kind_is_refused_with_what_it_is(unchecked, wrong, shown):
    predict = pipeline()
    predict.task.train()
    with pytest.raises(ValueError, match=shown):
        predict([image(), wrong])
    assert predict.task.training


def test_an_image_may_come_in_many_forms(tmp_path):
    predict, pixels = pipeline(), image(9, 12)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    expected = predict(pixels)
    assert predict(stream.getvalue()) == expected
    assert predict(BytesIO(stream.getvalue())) == expected
    assert predict(Image.fromarray(pixels)) == expected
    for found in predict((pixels, Image.fromarray(pixels))):
        same(found, expected)
    opaque = np.concatenate([pixels, np.full((9, 12, 1), 255, np.uint8)], 2)
    assert predict(opaque) == predict(Image.fromarray(opaque)) == expected
    clear = predict(np.concatenate([pixels, np.zeros((9, 12, 1), np.uint8)], 2))
    assert clear == predict(np.full((9, 12, 3), 255, np.uint8))
    assert predict(pixels[..., 0]) == predict(pixels[..., :1]) == predict(np.repeat(pixels[..., :1], 3, 2))
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 6
    assert predict(turned) == predict(np.ascontiguousarray(np.rot90(pixels, -1)))


def test_the_module_is_what_the_task_predicts_and_can_be_exported():
    predict, images = pipeline(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = predict.task.predict(Batch(images=images))
    program = torch.export.export(predict.module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    several = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    for given, wanted in ((images, expected), (several, predict.task.predict(Batch(images=several)))):
        for found in (predict.module(given), program.module()(given)):
            assert found.keys() == wanted.keys()
            assert all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted)


def test_what_a_task_has_besides_its_model_comes_back(tmp_path):
    task = pipeline().task
    task.extra = torch.nn.Linear(2, 3)
    Pipeline(task).save(tmp_path)
    assert load_file(tmp_path / "task.safetensors").keys() == {"extra.weight", "extra.bias"}
    with pytest.raises(ValueError, match=r"task\.safetensors.*extra\."):  # of a task that this one is not
        Pipeline.load(tmp_path)


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


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist; name a file with weights, or a model folder"):
        Pipeline.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not a model folder"):
        Pipeline.load(tmp_path)


def test_a_file_with_weights_is_loaded_and_numbers_its_classes(tmp_path):
    torch.manual_seed(0)
    before = vit.ViT(vit.Config((32, 32), (16, 16), 3, 64, 2, 1, 256, 7)).eval()
    torch.nn.init.normal_(before.head.weight)
    Pipeline(Classify(before, pipeline().preprocessing, None, NAMES)).save(tmp_path)
    predict = Pipeline.load(tmp_path / "model.safetensors")
    named = Pipeline(Classify(before, predict.preprocessing, None, NAMES))  # as the format guesses it
    assert predict.class_names == tuple("0123456")
    pixels = image(32, 32)
    for found, expected in zip(predict(pixels), named(pixels), strict=True):
        assert (found.label, found.index) == (str(expected.index), expected.index)
        assert found.probability == pytest.approx(expected.probability, rel=1e-4)


def test_after_a_sigmoid_each_class_has_its_own_probability_wherever_the_model_goes(tmp_path):
    plain = pipeline()
    several, pixels = pipeline(loss="sigmoid"), image(8, 8, len(plain.preprocessing.mean))
    several.save(tmp_path / "a")
    save(read(tmp_path / "a"), tmp_path / "b", "vitrail")
    logits = {p.index: np.log(p.probability) for p in plain(pixels, top=9)}
    for predict in (several, Pipeline.load(tmp_path / "a"), Pipeline.load(tmp_path / "b")):
        answers = predict(pixels, top=9)
        odds = {p.index: np.log(p.probability / (1 - p.probability)) for p in answers}
        assert [p.index for p in answers] == list(logits)
        differences = [odds[index] - logits[index] for index in logits]
        assert differences == pytest.approx([differences[0]] * len(differences), abs=1e-4)  # softmax's normaliser


def same(found, expected):
    """The answers for one image, which may differ by rounding."""
    assert [(answer.label, answer.index) for answer in found] == [(a.label, a.index) for a in expected]
    assert [a.probability for a in found] == pytest.approx([a.probability for a in expected], rel=1e-4, abs=1e-6)


@pytest.fixture
def files(tmp_path):
    """Ten images of several sizes and kinds."""
    for n in range(10):
        kind = ["png", "bmp", "webp", "tiff"][n % 4]
        how = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(image(8 + n % 3, 9, seed=n)).save(tmp_path / f"{n}.{kind}", **how)
    return sorted(tmp_path.iterdir())


@pytest.mark.parametrize("resize", ["native", "squash", "crop", "pad"])
def test_a_file_is_read_as_its_pixels_are(files, resize):
    predict = pipeline(resize=resize)
    pixels = [image(8 + n % 3, 9, seed=n) for n in range(10)]
    for found, expected in zip(predict([*files[:5], *map(str, files[5:])]), predict(pixels), strict=True):
        assert found == expected


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_images_are_prepared_as_the_preprocessing_says(resize):
    predict, pixels = pipeline(resize=resize), image(30, 17)
    how = predict.preprocessing
    with torch.no_grad():
        seen = torch.from_numpy(np.array(centred((30, 17), how).apply(pixels).transpose(2, 0, 1)))
        share = predict.task.model(normalise(seen[None], how, torch.float32))[0].softmax(-1)
    expected = share.sort(descending=True)[0].tolist()
    assert [a.probability for a in predict(pixels, top=7)] == pytest.approx(expected, rel=1e-5)


def test_one_image_has_one_list_of_answers(files):
    predict = pipeline()
    assert predict(image(seed=0)) == predict([image(seed=0)])[0]
    assert predict(files[0]) == predict(str(files[0])) == predict([files[0]])[0]


def test_a_model_of_grey_images_reads_files_as_grey(files):
    predict = pipeline(channels=1)
    grey = np.array(Image.fromarray(image(8, 9, seed=0)).convert("L"))[..., None]
    assert predict(files[0]) == predict(grey)


@pytest.mark.parametrize("at_once", [1, 200, 2**20])
def test_neighbours_change_an_answer_by_rounding_alone(files, monkeypatch, at_once):
    """In batches of one, of a few, of all."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    predict = pipeline()
    for file, found in zip(files, predict(files, top=7), strict=True):
        same(found, pipeline()([file], top=7)[0])


def test_images_of_one_size_go_through_the_model_together_up_to_the_limit(monkeypatch):
    predict, batches = pipeline(), []
    predict.module.register_forward_pre_hook(lambda module, given: batches.append(tuple(given[0].shape)))
    predict([image(seed=n) for n in range(300)])
    assert batches == [(256, 3, 8, 8), (44, 3, 8, 8)]
    batches.clear()
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    predict([image(20, 16), image(), image(20, 16), image(20, 16), image(20, 16), image()])
    assert batches == [(3, 3, 20, 16), (1, 3, 8, 8), (1, 3, 20, 16), (1, 3, 8, 8)]


def test_a_bad_file_is_an_error_in_its_place_and_stops_nothing(files, tmp_path):
    predict, bad = pipeline(remainder="refuse"), tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    Image.fromarray(image(8, 12)).save(tmp_path / "wide.png")
    Image.fromarray(image(9, 8)).save(tmp_path / "odd.png")
    given = [bad, tmp_path / "wide.png", tmp_path / "missing.png", tmp_path / "odd.png", image()]
    results = list(predict.stream(given))
    assert [isinstance(result, ValueError) for result in results] == [True, False, True, True, False]
    assert str(results[0]).startswith(f"{bad} is a web page")
    assert str(results[2]) == f"{tmp_path / 'missing.png'} does not exist; check its name."
    assert str(results[3]).startswith(f"{tmp_path / 'odd.png'}: an image of 9 x 8 is not divisible by the patch 4 x 4")
    same(results[4], predict(image()))
    with pytest.raises(ValueError, match=r"bad\.jpg is a web page"):
        predict(given)


def test_a_stream_reads_a_little_ahead_and_its_threads_end_with_it():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield image(64, 64)

    stream = pipeline().stream(endless())
    assert len(next(stream)) == 5
    assert len(taken) <= 256 + 34
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_model_without_a_head_says_so():
    config = replace(pipeline().task.model.config, classes=0)
    with pytest.raises(ValueError, match="the model has no head, so it has no classes to predict"):
        Pipeline(Classify(vit.ViT(config), pipeline().preprocessing))([image()])
