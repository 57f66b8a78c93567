"""`vitrail explain` and its figures, from files on disk to files on disk."""

import io
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import printed, refused, status
from model_folders import names_of, preprocessing_of, write_folder
from PIL import Image
from sklearn.decomposition import PCA
from test_explain_attention import MORE
from test_vit import CASES, tiny

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.explain.explanation import explain
from vitrail.explain.faithful import Removal
from vitrail.explain.figures import components, inside, overlay, sheet
from vitrail.models import resnet, vit
from vitrail.models.tokens import colours, filters, similarity
from vitrail.tasks import Classify

SIZE = {"image_size": (32, 32), "patch_size": (8, 8)}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrail.progress.QUIET_SECONDS", 1e9)  # on a busy machine, lines would be said now and then
    write_folder(tmp_path / "model", tiny(**SIZE))
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path):
    """Colours, grey, 16 bits and a palette, of several shapes, in a folder and below."""
    draw, folder = np.random.default_rng(0), tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(draw.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / "a.jpg")
    Image.fromarray(draw.integers(0, 256, (90, 30), np.uint8)).save(folder / "grey.png")
    Image.fromarray(draw.integers(0, 2**16, (50, 50), np.uint16)).save(folder / "more" / "a.png")
    Image.fromarray(draw.integers(0, 256, (33, 64, 3), np.uint8)).quantize(16).save(folder / "palette.gif")
    return folder


@pytest.mark.parametrize("method", ["gradient", "rollout"])
def test_every_image_gets_its_figures_and_arrays(capsys, tmp_path, model, photos, method):
    out = tmp_path / "out"
    document, said = printed(capsys, "explain", model, photos, "--out", out, "--method", method, "--faithfulness")
    names = ["a", "grey", "a-2", "palette"]
    files = [*(f"{name}{end}" for name in names for end in (".png", "-heads.png", ".npz")), "model.png"]
    assert ({path.name for path in out.iterdir()}, said) == (set(files), "")
    predict = Pipeline.load(model)
    for name, entry in zip(names, document["images"], strict=True):
        assert [entry["figure"], entry["arrays"]] == [str(out / f"{name}.png"), str(out / f"{name}.npz")]
        expected = predict(entry["file"], top=3)
        assert [c["label"] for c in entry["classes"]] == [answer.label for answer in expected]
        found = [c["probability"] for c in entry["classes"]]
        assert found == pytest.approx([answer.probability for answer in expected], abs=1e-5)
        arrays = np.load(out / f"{name}.npz", allow_pickle=False)
        assert arrays["maps"].shape == (3 if method == "gradient" else 1, 4, 4)
        assert (arrays["attention"].shape, arrays["distances"].shape) == ((2, 2, 4, 4), (2, 2))
        assert arrays["removal_random"].shape == (1, 20, 11)
        assert list(arrays["labels"]) == [answer.label for answer in expected]
        assert entry["removal"].keys() == {"most", "least", "random", "gain", "low", "high"}
        assert -1 <= entry["correlation"] <= 1
    gains = [entry["removal"]["gain"] for entry in document["images"]]
    assert document["removal"]["gain"] == pytest.approx(np.mean(gains))


def test_people_get_a_line_for_each_image(capsys, tmp_path, model, photos):
    classes = names_of(tiny(**SIZE))
    arguments = ["explain", model, photos / "a.jpg", "--out", tmp_path / "out", "--label", classes[4], classes[0]]
    assert status(*arguments) == 0
    line, last = capsys.readouterr().out.splitlines()
    chances = {answer.label: answer.probability for answer in Pipeline.load(model)(photos / "a.jpg")}
    told = f"{classes[4]} {chances[classes[4]]:.1%}, {classes[0]} {chances[classes[0]]:.1%}"
    assert (line, last) == (
        f"{photos / 'a.jpg'}: {told}",
        f"{tmp_path / 'out'} has the figures and arrays of 1 of 1 images.",
    )
    assert "is not an empty folder" in refused(capsys, *arguments)


def test_names_that_fonts_or_mathtext_cannot_draw_are_no_error(capsys, tmp_path, photos, monkeypatch):
    monkeypatch.setattr("model_folders.names_of", lambda config: ("$x^{", "\u72ac", "a\nb", "\u00fc", "$$"))
    write_folder(tmp_path / "model", tiny(**SIZE))
    name = os.fsdecode(os.fsencode(photos) + b"/$caf\xe9 \xc3\xbc.png")
    (photos / "a.jpg").rename(name)
    document, said = printed(capsys, "explain", tmp_path / "model", name, "--out", tmp_path / "out", "--top", 5)
    assert (len(document["images"][0]["classes"]), said) == (5, "")


def test_a_damaged_image_is_named_and_the_others_are_done(capsys, tmp_path, model, photos):
    (photos / "b.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
    assert status("explain", model, photos, "--out", tmp_path / "out", "--json") == 1
    out, err = capsys.readouterr()
    entry = json.loads(out)["images"][1]
    assert err == f"vitrail: {entry['error']}\n"
    assert (entry["file"], entry["error"][: len(entry["file"])]) == (str(photos / "b.jpg"), str(photos / "b.jpg"))
    assert len(list((tmp_path / "out").glob("*.npz"))) == 4
    assert status("explain", model, photos / "b.jpg", "--out", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("config", "words", "parts"),
    [
        (resnet.Config((1,), classes=2, image_size=(32, 32)), "", ["ResNet", "ViT or a hybrid"]),
        (tiny(**SIZE, classes=0), "", ["no classes", "rollout"]),
        (tiny(**SIZE, classes=0), "--method rollout --faithfulness", ["no classes"]),
        (tiny(**SIZE), "--label clas", ["'clas'", "did you mean 'class "]),
        (tiny(**SIZE), "--label x", ["'x'", "class 0, class 1"]),
        (tiny(**SIZE), "--class x", ["did you mean --label?"]),
        (tiny(**SIZE), "--top 0", ["--top 1 or more"]),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, photos, config, words, parts):
    write_folder(tmp_path / "model", config)
    said = refused(capsys, "explain", tmp_path / "model", photos / "a.jpg", "--out", tmp_path / "out", *words.split())
    assert ([part for part in parts if part not in said], (tmp_path / "out").exists()) == ([], False)


def test_without_matplotlib_a_sentence_says_how_to_get_it(capsys, tmp_path, model, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = refused(capsys, "explain", model, photos / "a.jpg", "--out", tmp_path / "out")
    assert "pip install 'vitrail[figures]'" in said


KINDS = {"no class token": CASES["mean without class"], "hybrid": CASES["hybrid"], "MAP": CASES["MAP"]}
KINDS |= {"registers": CASES["registers"], "rotary": MORE["rotary"], "no positions": CASES["no positions"]}
KINDS |= {"wide patch": {"patch_size": (2, 4)}, "no head": {"classes": 0}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad", "native"])
def test_the_grid_lies_where_the_model_saw_it(kind, resize):
    config = tiny(**KINDS[kind])
    how = Preprocessing(config.image_size, (0.4,) * 3, (0.3,) * 3, resize)
    pipeline = Pipeline(Classify(vit.ViT(config), how, class_names=names_of(config)))
    image = np.random.default_rng(0).integers(0, 256, (50, 101, 3), np.uint8)
    found = explain(pipeline, image, method="gradient" if config.classes else "rollout")
    height, width = (50, 101) if resize == "native" else config.image_size
    rows, columns = config.grid((height, width))
    assert found.maps.shape[1:] == (rows, columns) == found.tokens.shape[:2] == found.attention.shape[2:]
    left, top, right, bottom = found.box
    wide, tall = columns * config.stride[1] / width, rows * config.stride[0] / height  # with what is padded, of native
    ratio = {"squash": (50 / height, 101 / width), "native": (1, 1)}.get(resize)
    ratio = ratio or ((50 / height,) * 2 if resize == "crop" else (101 / width,) * 2)
    assert (bottom - top, right - left) == pytest.approx((height * tall * ratio[0], width * wide * ratio[1]), rel=0.05)
    if resize in ("crop", "pad"):  # the middle
        assert ((top + bottom) / 2, (left + right) / 2) == pytest.approx((25, 50.5), abs=5)
    if resize == "native":
        for figure in (overlay([found], smooth=True), sheet(found), inside(pipeline.task.model, found.distances)):
            figure.savefig(io.BytesIO())


def test_panels_have_the_shape_of_their_photographs_and_one_scale():
    config = tiny(**SIZE)
    pipeline = Pipeline(Classify(vit.ViT(config), preprocessing_of(config), class_names=names_of(config)))
    torch.nn.init.normal_(pipeline.task.model.head.weight, generator=torch.Generator().manual_seed(0))
    draw = np.random.default_rng(0)
    found = [explain(pipeline, draw.integers(0, 256, (*size, 3), np.uint8)) for size in ((40, 80), (90, 30))]
    figure = overlay(found)
    figure.savefig(io.BytesIO())
    scales = set()
    for part, each in zip(figure.subfigs, found, strict=True):
        panels = [axes for axes in part.axes if axes.get_label() != "<colorbar>"]
        assert len(panels) == 4
        for axes in panels:
            seen, (height, width) = axes.get_window_extent(), each.photo.shape[:2]
            assert seen.height / seen.width == pytest.approx(height / width, rel=0.02)
            scales |= {image.get_clim() for image in axes.get_images()[1:]}
        assert each.caption in part.get_supxlabel()
    ((low, high),) = scales
    assert (low, high) == (0.0, pytest.approx(np.quantile(torch.cat([each.maps.flatten() for each in found]), 0.99)))
    assert len(components(found).axes) == 4


def test_a_caption_has_the_method_the_class_and_the_numbers():
    names = ("a {b}", *names_of(tiny())[1:])
    pipeline = Pipeline(Classify(vit.ViT(tiny(**SIZE)), preprocessing_of(tiny(**SIZE)), class_names=names))
    found = explain(pipeline, np.zeros((32, 32, 3), np.uint8), method="rollout", labels=names[:2])
    assert found.caption.endswith("the same for every class; faithfulness not measured")
    random = torch.tensor([[[1.0, 0.6], [1.0, 0.2]]])
    removal = Removal(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), random)
    caption = replace(found, removal=removal, correlation=0.25).caption
    areas = "area under removal 0.500 most important first, 0.700 in random orders, 1.000 least important first"
    assert (
        f"(Abnar and Zuidema, 2020), the same for every class; for a {{b}}: {areas}; random - most +0.200 (" in caption
    )
    assert caption.endswith("); correlation with other weights 0.25")


def test_filters_are_scikit_learns_components():
    model = vit.ViT(tiny(width=64))
    found = filters(model, 5)
    rows = model.patch_embed.proj.weight.detach().flatten(1).numpy()
    expected = PCA(5, svd_solver="full").fit(rows).components_
    cosine = np.abs((found.flatten(1).numpy() * expected).sum(1))
    np.testing.assert_allclose(cosine, 1, atol=1e-4)


def test_similarity_is_the_cosine_of_positions():
    model = vit.ViT(tiny("registers"))
    found, table = similarity(model), model.pos_embed[0, 1:].detach().numpy().reshape(3, 2, -1)
    for a, b in np.ndindex(3, 2):
        for c, d in np.ndindex(3, 2):
            x, y = table[a, b], table[c, d]
            assert found[a, b, c, d].item() == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-5)
    assert similarity(model, (5, 4)).shape == (5, 4, 5, 4)
    with pytest.raises(ValueError, match="no table of positions"):
        similarity(vit.ViT(tiny("no positions")))


def test_colours_part_an_object_from_its_background_alike_in_all_images():
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 32, generator=draw) * torch.tensor([[3.0], [1.0], [1.0]])  # background, two objects
    labels = [torch.zeros(8, 8, dtype=torch.int64), torch.zeros(6, 10, dtype=torch.int64)]
    labels[0][2:6, 2:6], labels[0][3:5, 3:5], labels[1][2:4, 3:7] = 1, 2, 2
    tokens = [kinds[each] + 0.05 * torch.randn(*each.shape, 32, generator=draw) for each in labels]
    first, second = colours(tokens)
    assert torch.equal(first[..., 3] > 0, labels[0] > 0)
    assert torch.equal(second[..., 3] > 0, labels[1] > 0)
    means = [
        first[labels[0] == 1][:, 0].mean(),
        first[labels[0] == 2][:, 0].mean(),
        second[labels[1] == 2][:, 0].mean(),
    ]
    assert abs(means[1] - means[2]) < 0.1 < 0.5 < abs(means[0] - means[1])
