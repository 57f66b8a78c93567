"""The pictures of a pre-training run: tokens as colours, reconstructions in pixels, and where its page shows them."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import photos, printed
from pages import browser
from PIL import Image
from reference import perturb
from test_pretrain_runs import RECIPES

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.evaluate.watch import Pictures
from vitrail.models import resnet, vit
from vitrail.models.config import ResNetFields
from vitrail.report.html import thumbnail
from vitrail.report.pictures import gallery
from vitrail.runtime.inference import prepared
from vitrail.tasks import ClassifyConfig
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig
from vitrail.tasks.pretrain import cells, hidden, taken
from vitrail.tasks.views import ViewsConfig

MODEL = vit.Config((16, 24), (4, 6), 3, 16, 2, 2, 32, 0, registers=1)


def task(config, model=MODEL, size=(16, 24)):
    how = Preprocessing(
        size, (0.45, 0.4, 0.5, 0.3, 0.6)[: model.channels], (0.2, 0.3, 0.25, 0.4, 0.1)[: model.channels]
    )
    return prepared(perturb(config.task(model.build("cpu"), how, ())))


def batch(channels=3, count=5):
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.integers(0, 256, (count, channels, 16, 24), np.uint8))
    images[0] = images[0, :, :1, :1]  # of no contrast
    return Batch(images=images, keys=torch.arange(count))


def shown(src):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("normalised", [True, False])
def test_what_is_painted_right_is_the_image(monkeypatch, channels, normalised):
    model, given = replace(MODEL, channels=channels), batch(channels)
    owner = task(MaeConfig(depth=1, width=32, normalised=normalised), model)
    exact = owner.targets(cells(owner.input(given["images"]), (4, 6)))
    monkeypatch.setattr(owner.extra, "forward", lambda tokens, order, count, grid: taken(exact, order[:, :count]))
    found = owner.pictures(given)
    assert found.keys() == {"tokens", "masked", "reconstruction"}
    assert found["reconstruction"].dtype == torch.uint8
    assert (found["reconstruction"].int() - given["images"].int()).abs().max() <= 1


def test_visible_patches_are_the_images_and_hidden_ones_what_the_decoder_paints():
    owner, given = task(MaeConfig(depth=1, width=32)), batch()
    found, (order, count) = owner.pictures(given), (hidden(given["keys"], "masked", 16, 12), 12)
    seen = {"image": given["images"], "masked": found["masked"], "reconstruction": found["reconstruction"]}
    whole = {name: cells(image, (4, 6)) for name, image in seen.items()}
    for name in ("masked", "reconstruction"):
        assert torch.equal(taken(whole[name], order[:, count:]), taken(whole["image"], order[:, count:]))
    assert (taken(whole["masked"], order[:, :count]) == 128).all()
    painted, places, _, _ = owner.painted(owner.input(given["images"]), given["keys"])
    assert torch.equal(places, order)
    truth = taken(cells(given["images"] / 255.0, (4, 6)), order[:, :count])
    mean, std = (torch.tensor(each) for each in (owner.preprocessing.mean, owner.preprocessing.std))
    unit = ((truth - mean) / std).flatten(2)
    values = painted * (unit.var(2, keepdim=True) + 1e-6).sqrt() + unit.mean(2, keepdim=True)
    expected = 255 * (values.unflatten(2, (4, 6, 3)) * std + mean).clamp(0, 1)
    assert (taken(whole["reconstruction"], order[:, :count]) - expected).abs().max() <= 1
    again = owner.pictures(given)
    assert all(torch.equal(again[name], found[name]) for name in found)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_colour_that_is_named_is_within_half_a_level_of_the_mean(channels):
    owner, given = task(PatchesConfig(), replace(MODEL, channels=channels)), batch(channels)
    found, order = owner.pictures(given), hidden(given["keys"], "corrupted", 16, 8)
    mean, image = cells(found["mean colours"], (4, 6)), cells(given["images"], (4, 6))
    assert torch.equal(taken(mean, order[:, 8:]), taken(image, order[:, 8:]))
    truth = taken(image, order[:, :8]).double().mean((2, 3), keepdim=True)
    assert (taken(mean, order[:, :8]) - truth).abs().max() <= 255 / 16 + 0.5
    logits, places, _ = owner.named(owner.input(given["images"]), given["keys"])
    assert torch.equal(places, order[:, :8])
    named = taken(cells(found["predicted colours"], (4, 6)), places)
    assert torch.equal(named, owner.colour(logits.argmax(-1)).expand_as(named))
    assert torch.equal(owner.colour(owner.targets(given["images"]))[:, :, 0, 0], mean_of(owner, given))


def mean_of(owner, given):
    """The middle of the level of each patch's mean."""
    levels = (cells(given["images"], (4, 6)).double().mean((2, 3)) / 255 * 8).floor().clamp(max=7)
    return ((levels + 0.5) * 255 / 8).round().byte()


STEM = ResNetFields(blocks=(1,), width_factor=0.5, classes=0)


@pytest.mark.parametrize(
    ("changes", "grid"),
    [({}, (4, 4)), ({"class_token": False, "pool": "avg", "registers": 0}, (4, 4)), ({"registers": 3}, (4, 4)),
     ({"stem": STEM, "patch_size": (1, 2)}, (4, 3))],
)  # fmt: skip
def test_tokens_are_those_of_the_patches_on_their_grid(changes, grid):
    model = replace(MODEL, **changes)
    for config in (ViewsConfig(local_views=0, hidden=8, width=8), ClassifyConfig()):
        owner, given = task(config, model), batch()
        found = owner.pictures(given)
        assert found.keys() == {"tokens"}
        expected = owner.model.tokens(owner.input(given["images"]))[:, -grid[0] * grid[1] :]
        torch.testing.assert_close(found["tokens"].flatten(1, 2), expected.float())
        assert found["tokens"].shape[1:3] == grid


def test_a_resnet_has_no_tokens_to_show():
    model = resnet.Config(blocks=(1, 1), width_factor=0.5, classes=0)
    assert task(ViewsConfig(local_views=0, hidden=8, width=8), model, (32, 32)).pictures(batch()) == {}


def planted(signs=(1, 1, 1)):
    """Pictures of two images of different grids, whose tokens lie in four directions, and the number of each."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 32, generator=draw)
    labels = [torch.arange(16).reshape(4, 4) % 4, torch.arange(15).reshape(3, 5) // 4]
    tokens = [(kinds[each] + 0.02 * torch.randn(*each.shape, 32, generator=draw)).numpy() for each in labels]
    images = [np.full((32, 32, 3), 90, np.uint8), np.full((24, 40, 3), 90, np.uint8)]
    return Pictures(["a.jpg", "b.jpg"], images, {"tokens": tokens}), labels


def test_colours_separate_what_tokens_are_and_compare_between_images():
    found, labels = planted()
    first, second = gallery(found), gallery(found)
    assert first == second
    drawn = [shown(images[1].src) for images, _ in first["figures"]]
    assert [each.shape for each in drawn] == [(4, 4, 3), (3, 5, 3)]
    assert all(images[1].squares for images, _ in first["figures"])
    means = np.array(
        [
            [colour[label.numpy() == kind].mean(0) for kind in range(4)]
            for colour, label in zip(drawn, labels, strict=True)
        ]
    )
    assert np.abs(means[0] - means[1]).max() < 30
    apart = np.abs(means[0][:, None] - means[0][None]).max(-1)
    assert apart[~np.eye(4, dtype=bool)].min() > 90


@pytest.mark.parametrize(
    ("size", "width"), [((28, 28), 112), ((32, 32), 96), ((64, 64), 128), ((96, 96), 96), ((224, 224), 224),
                        ((384, 384), 224), ((32, 64), 128), ((448, 224), 112)],
)  # fmt: skip
def test_small_images_are_enlarged_by_whole_squares_and_large_ones_reduced(size, width):
    image, tokens = np.zeros((*size, 3), np.uint8), np.random.default_rng(0).normal(size=(7, 7, 5)).astype(np.float32)
    [(images, file)] = gallery(Pictures(["x.png"], [image], {"tokens": [tokens], "masked": [image]}))["figures"]
    assert {(one.width, one.height) for one in images} == {(width, round(width * size[0] / size[1]))}
    assert images[0].squares == (width > size[1])
    assert [one.alt for one in images] == ["image of x.png", "tokens of x.png", "masked of x.png"]
    assert file == "x.png"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_can_be_seen(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    expected = image[..., :3] if channels > 2 else image.mean(2)
    assert np.abs(shown(thumbnail(image).src) - expected).max() <= 0.5


DISTILL = """
from vitrail.tasks.distill import DistillConfig

def distill(data):
    return tiny(data, DistillConfig(teacher="teacher", outputs=16))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipes.py").write_text(RECIPES + DISTILL)
    photos(tmp_path / "photos", ("ash", "elm"), count=12)
    return tmp_path


KINDS = {
    "views": ["tokens"], "views_resnet": [], "mae": ["tokens", "masked", "reconstruction"], "distill": ["tokens"],
    "patches": ["tokens", "mean colours", "predicted colours"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "names"), KINDS.items())
def test_the_page_of_a_run_has_the_pictures(capsys, here, kind, names):
    more = ["--duration", "1 step"]
    if kind == "distill":
        printed(capsys, "train", "recipes.py:classify", "--data", "photos", "--out", "teacher", *more)
    printed(capsys, "train", f"recipes.py:{kind}", "--data", "photos", "--out", "run", *more)
    html = (here / "run" / "report.html").read_text()
    pictures = re.findall(r'<img[^>]* src="(data:image/png;[^"]*)" width="(\d+)" height="(\d+)" alt="([^"]*)"', html)
    every = ["image", *names] if names else []
    count = len(pictures) // max(1, len(every))
    assert [alt.partition(" of ")[0] for *_, alt in pictures] == every * count
    assert ("What the model makes of images" in html) == bool(names)
    assert ("true mean and contrast" in html) == (kind == "mae")
    assert [f"<b>{name}</b>" in html for name in names] == [True] * len(names)
    assert "Pictures" not in html
    assert all((width, height) == ("96", "96") for _, width, height, _ in pictures)
    if names:
        assert shown(pictures[0][0]).shape == (16, 16, 3)
        assert len(html) < 200_000
        printed(capsys, "report", "run", "--out", "again.html")  # from the backbone alone
        again = (here / "again.html").read_text()
        assert all(src in again for src, *_, alt in pictures if alt.startswith(("image", "tokens")))
        opened(here / "run" / "report.html", len(pictures))


def opened(file, count):
    """Looks at a page in a browser, if there is one, in the dark and on a telephone."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not browser():
        return
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        for scheme, width in (("light", 1100), ("dark", 390)):
            window, problems = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 800}), []
            window.on("console", lambda said, problems=problems: problems.append(said.text))
            window.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
            window.goto(file.as_uri())
            sizes = window.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.width])")
            assert len(sizes) == count
            assert all(natural > 0 and seen == 96 for natural, seen in sizes)
            assert window.evaluate("document.documentElement.scrollWidth") <= width
            assert problems == []
