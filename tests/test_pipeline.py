"""From pixels or files to named answers: probabilities, images of any size, and what is refused."""

import threading
from dataclasses import replace

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


@torch.no_grad()
def probabilities(predict, pixels):
    """What the model says of an image that is as it reads it."""
    batch = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))[None]
    return predict.task.model(normalise(batch, predict.preprocessing, torch.float32))[0].softmax(-1).tolist()


def same(found, expected, tolerance=1e-4):
    """The answers for one image, which may differ by rounding."""
    assert [(answer.label, answer.index) for answer in found] == [(a.label, a.index) for a in expected]
    wanted = pytest.approx([a.probability for a in expected], rel=tolerance, abs=1e-6)
    assert [a.probability for a in found] == wanted


def test_the_answers_are_the_models_softmax_best_first():
    predict, images = pipeline(), [image(seed=n) for n in range(4)]
    found = predict(images, top=len(NAMES))
    assert len(found) == 4
    for pixels, answers in zip(images, found, strict=True):
        expected = probabilities(predict, pixels)
        assert [answer.index for answer in answers] == sorted(range(len(NAMES)), key=lambda k: -expected[k])
        assert [a.probability for a in answers] == pytest.approx(sorted(expected, reverse=True), rel=1e-5)
        assert all(answer.label == NAMES[answer.index] for answer in answers)
    assert predict([]) == []
    for options, count in (({}, 5), ({"top": 1}, 1), ({"top": 100}, 7)):
        assert predict(images, **options) == [answers[:count] for answers in found]
    with pytest.raises(ValueError, match="top is 0; it must be 1 or more"):
        predict(images, top=0)


def test_int8_weights_are_made_once_and_answers_depend_on_no_neighbour(monkeypatch):
    made = []
    inner = module.prepared
    monkeypatch.setattr(module, "prepared", lambda *given: made.append(given[1]) or inner(*given))
    predict = replace(pipeline(), int8=True)
    several = [image(seed=n) for n in range(5)]
    together = predict(several)
    for first, answers in zip(several, together, strict=True):
        same(predict([first, several[0]])[0], answers, 1e-5)  # to the rounding of the head, which is in float
    assert made == ["int8"]
    assert together != pipeline()(several)


def test_predicting_leaves_image_and_mode_alone_and_is_without_dropout():
    predict, pixels = pipeline(dropout=0.5), image()
    before = pixels.copy()
    quiet = predict([pixels])
    predict.task.model.train()
    assert predict([pixels]) == quiet
    assert predict.task.model.training
    assert np.array_equal(pixels, before)


def test_what_the_model_refuses_is_named_by_its_place():
    predict = pipeline(remainder="refuse")
    predict.task.train()
    for wrong, shown in [(image(channels=5), "5 channels.* 3"), (image(9, 8), "9 x 8 is not divisible by the patch 4")]:
        with pytest.raises(ValueError, match=rf"images\[1\].* {shown}"):
            predict([image(), wrong])
    assert predict.task.training


WRAPPERS = {
    "compiled": lambda task: Classify(torch.compile(task.model), task.preprocessing, task.config, NAMES),
    "parallel": lambda task: Classify(torch.nn.DataParallel(task.model), task.preprocessing, task.config, NAMES),
    "compiled task": torch.compile,
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_wrappers_are_taken_off(how, tmp_path, unchecked):
    before = pipeline()
    after = Pipeline(WRAPPERS[how](before.task))
    assert after(image()) == before(image())
    after.save(str(tmp_path))
    same(Pipeline.load(tmp_path)(image()), before(image()))


def test_what_is_no_task_or_another_librarys_model_is_named(unchecked):
    task = pipeline().task
    for given, kind in [(task.model, "ViT"), (Classify(torch.nn.Linear(2, 2), task.preprocessing), "Linear")]:
        with pytest.raises(ValueError, match=f"Pipeline needs a task.*{kind}|model is a {kind}"):
            Pipeline(given)


CHANGES = {
    "head": lambda task: setattr(task.model, "head", torch.nn.Linear(16, 7)),
    "layer": lambda task: setattr(task.model.blocks[0].mlp, "fc1", torch.nn.Linear(16, 32)),
    "parameter": lambda task: setattr(task.model.blocks[0].attn.qkv, "weight", torch.nn.Parameter(torch.ones(48, 16))),
    "weights in place": lambda task: torch.nn.init.zeros_(task.model.blocks[0].mlp.fc2.weight),
    "loaded": lambda task: task.load_state_dict({name: value + 0.1 for name, value in task.state_dict().items()}),
    "preprocessing": lambda task: setattr(task, "preprocessing", replace(task.preprocessing, mean=(0.1, 0.2, 0.3))),
    "loss": lambda task: setattr(task, "config", ClassifyConfig("sigmoid")),
    "names": lambda task: setattr(task, "class_names", NAMES[::-1]),
}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_the_task_counts_from_the_next_call(change, int8):
    predict = replace(pipeline(), int8=int8)
    before, module = predict(image()), predict.module
    assert predict.module is module
    CHANGES[change](predict.task)
    assert predict(image()) == replace(predict)(image()) != before


@pytest.mark.parametrize("outputs", [5, 9])
def test_a_head_of_another_width_than_the_names_is_an_error_not_a_wrong_name(outputs, tmp_path):
    predict = pipeline()
    predict.task.model.head = torch.nn.Linear(16, outputs)
    for call in (lambda: predict(image()), lambda: predict.save(tmp_path / "model")):
        with pytest.raises(ValueError, match=f"head has {outputs} outputs.* 7 class_names"):
            call()
    predict.task.class_names = tuple("abcdefghi"[:outputs])
    predict.save(str(tmp_path / "model"))
    same(Pipeline.load(tmp_path / "model")(image()), predict(image()))
    predict.task.model.head = torch.nn.Sequential(predict.task.model.head)
    assert predict(image())
    with pytest.raises(ValueError, match=r"head is a Sequential.*nn\.Linear"):
        predict.save(tmp_path / "other")
    with pytest.raises(ValueError, match="no option topp; it has top"):
        predict(image(), topp=3)


def test_the_module_is_what_the_task_predicts_and_can_be_exported():
    predict, images = pipeline(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    program = torch.export.export(predict.module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    for given in (images, torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)):
        wanted = predict.task.predict(Batch(images=given))
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


def test_a_run_folder_and_its_model_folder_load_alike(tmp_path):
    before = pipeline()
    before.save(tmp_path / "run" / "model")
    for given in (tmp_path / "run", str(tmp_path / "run" / "model")):
        after = Pipeline.load(given)
        assert (after.preprocessing, after.class_names) == (before.preprocessing, before.class_names)
        same(after(image(12, 8)), before(image(12, 8)))


def test_where_there_is_no_model_it_says_so(tmp_path):
    write(demo(), tmp_path / "run")
    for name, message in {
        "run": "run has no model yet: the run has not ended; go on with `vitrail resume",
        "nowhere": "nowhere does not exist; name a file with weights, or a model folder",
        "": "is not a model folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            Pipeline.load(tmp_path / name)
    config = replace(pipeline().task.model.config, classes=0)
    with pytest.raises(ValueError, match="the model has no head, so it has no classes to predict"):
        Pipeline(Classify(vit.ViT(config), pipeline().preprocessing))([image()])


def test_the_device_is_one_that_is_here_and_int8_needs_the_cpu(tmp_path, monkeypatch):
    pipeline().save(tmp_path / "mf")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cpu", "auto"):
        assert next(Pipeline.load(tmp_path / "mf", device=device).task.parameters()).device.type == "cpu"
    for device in ("cuda", "cuda:0", "gpu", ""):
        with pytest.raises(ValueError, match=f"'{device}' is not available here; use auto or cpu"):
            Pipeline.load(tmp_path / "mf", device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:2' is not available here; use auto or cpu, cuda, cuda:0, cuda:1"):
        Pipeline.load(tmp_path / "mf", device="cuda:2")
    with pytest.raises(ValueError, match="int8 layers are computed on the CPU, not on cuda:1"):
        Pipeline.load(tmp_path / "mf", device="cuda:1", int8=True)


def test_a_file_with_weights_is_loaded_and_numbers_its_classes(tmp_path):
    torch.manual_seed(0)
    before = vit.ViT(vit.Config((32, 32), (16, 16), 3, 192, 2, 3, 768, 7)).eval()
    torch.nn.init.normal_(before.head.weight)
    Pipeline(Classify(before, pipeline().preprocessing, None, NAMES)).save(tmp_path)
    predict, pixels = Pipeline.load(tmp_path / "model.safetensors"), image(32, 32)
    assert predict.class_names == tuple("0123456")
    numbered = Classify(before, predict.preprocessing, None, predict.class_names)  # as the format guesses it
    same(predict(pixels), Pipeline(numbered)(pixels))


def test_after_a_sigmoid_each_class_has_its_own_probability_wherever_the_model_goes(tmp_path):
    several, pixels = pipeline(loss="sigmoid"), image()
    several.save(tmp_path / "a")
    save(read(tmp_path / "a"), tmp_path / "b", "vitrail")
    logits = {p.index: np.log(p.probability) for p in pipeline()(pixels, top=9)}
    for predict in (several, Pipeline.load(tmp_path / "a"), Pipeline.load(tmp_path / "b")):
        odds = {p.index: np.log(p.probability / (1 - p.probability)) for p in predict(pixels, top=9)}
        assert list(odds) == list(logits)
        differences = [odds[index] - logits[index] for index in logits]
        assert differences == pytest.approx([differences[0]] * len(differences), abs=1e-3)  # softmax's normaliser


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_images_are_prepared_as_the_preprocessing_says(resize):
    predict, pixels = pipeline(resize=resize), image(30, 17)
    expected = probabilities(predict, centred((30, 17), predict.preprocessing).apply(pixels))
    assert [a.probability for a in predict(pixels, top=7)] == pytest.approx(sorted(expected, reverse=True), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 200, 2**20])
def test_neighbours_change_an_answer_by_rounding_alone(tmp_path, monkeypatch, at_once):
    """Files of several sizes and kinds, in batches of one, of a few, of all."""
    for n in range(10):
        file = tmp_path / f"{n}.{['png', 'bmp', 'webp', 'tiff'][n % 4]}"
        Image.fromarray(image(8 + n % 3, 9, seed=n)).save(file, lossless=True)  # as WebP is not otherwise
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    for n, found in enumerate(pipeline()(sorted(tmp_path.iterdir()))):
        same(found, pipeline()(image(8 + n % 3, 9, seed=n)))


def test_images_of_one_size_go_through_the_model_together_up_to_the_limits(monkeypatch):
    predict, batches, fifty = pipeline(), [], [image(seed=n) for n in range(50)]
    expected = predict(fifty)
    predict.module.register_forward_pre_hook(lambda module, given: batches.append(tuple(given[0].shape)))
    predict(6 * fifty)
    assert batches == [(256, 3, 8, 8), (44, 3, 8, 8)]
    batches.clear()
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    predict([image(20, 16), image(), image(20, 16), image(20, 16), image(20, 16), image()])
    assert batches == [(3, 3, 20, 16), (1, 3, 8, 8), (1, 3, 20, 16), (1, 3, 8, 8)]
    batches.clear()
    monkeypatch.setattr(module, "AT_ONCE", 2**20)
    monkeypatch.setattr(module, "batch_size", lambda *_: 7)
    for found, wanted in zip(predict(fifty), expected, strict=True):
        same(found, wanted)
    assert [shape[0] for shape in batches] == [7] * 7 + [1]


def test_a_bad_file_is_an_error_in_its_place_and_stops_nothing(tmp_path):
    predict, bad, odd, missing = pipeline(remainder="refuse"), *(tmp_path / name for name in ("bad", "odd.png", "gone"))
    bad.write_bytes(b"<html>")
    Image.fromarray(image(9, 8)).save(odd)
    results = list(predict.stream([bad, image(8, 12), missing, odd, image()]))
    assert [isinstance(result, ValueError) for result in results] == [True, False, True, True, False]
    assert str(results[0]).startswith(f"{bad} is a web page")
    assert str(results[2]) == f"{missing} does not exist; check its name."
    assert str(results[3]).startswith(f"{odd}: an image of 9 x 8 is not divisible by the patch 4 x 4")
    same(results[4], predict(image()))


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
