"""One contract for every kind of source: what it promises, in this process and in others, whole or damaged."""

import multiprocessing
import pickle

import numpy as np
import pytest
from made_sources import GREY, IMAGES, LABELS, MADE, NAMES, PLACES

from vitrail.data.pack import pack
from vitrail.data.sources.open import Data, find_splits, open_splits
from vitrail.data.sources.source import (
    Arrays,
    Example,
    Renumbered,
    Source,
    Subset,
    classes_of,
    coded,
    counts,
    pixels,
    unknown,
)

KINDS = [*PLACES, *MADE]
UNLABELLED = ["loose images", "idx without labels", "CSV without labels", "saved without labels", "tar without labels"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=KINDS)
def splits(request, tmp_path):
    """{split: source} of each kind."""
    if request.param in MADE:
        return {"all": MADE[request.param]()}
    return find_splits(Data(str(PLACES[request.param](tmp_path))))


def shown(example):
    """The number of the image in IMAGES."""
    found = pixels(example.image, 3, example.name)
    truth = IMAGES if np.ptp(found, 2).any() else GREY[..., None]
    apart = [np.abs(found - image.astype(int)).mean() for image in truth]
    assert min(apart) < 4
    return int(np.argmin(apart))


def seen(source):
    """What a process sees of a source."""
    return [(shown(source[index]), source.target(index), source.name(index)) for index in range(len(source))]


def test_examples_are_what_they_are_said_to_be(splits):
    assert set(splits) <= {"train", "val", "test"} or set(splits) == {"all"}
    for source in splits.values():
        assert isinstance(source, Source)
        names = source.class_names
        assert len(set(names)) == len(names)
        for index in range(len(source)):
            example = source[index]
            assert isinstance(example, Example)
            assert example[1:] == (source.target(index), source.name(index), None)
            known, truth = {names[number] for number in classes_of(example.target)}, LABELS[shown(example)]
            kind = {"classes": tuple, "class": int}.get(source.targets)
            assert example.target is None or isinstance(example.target, kind)
            wanted = {NAMES[truth], "insect"} if kind is tuple else {NAMES[truth]}
            assert known in (set() if example.target is None else wanted, {str(truth)})


def test_every_image_is_there_once_and_targets_are_none_only_where_that_is_said(splits, request):
    kind = request.node.callspec.params["splits"]
    found = [one for source in splits.values() for one in seen(source)]
    rows = {"subset": [0, 3, 5], "balanced": [0, 1, 3, 4]}.get(kind, list(range(6)))
    assert sorted(number for number, _, _ in found) == rows
    missing, unlabelled = sum(target is None for _, target, _ in found), (*UNLABELLED, "arrays without labels")
    some = {"mixed folders": 2, "arrays of which some have no label": 2}
    assert missing == some.get(kind, len(found) if kind in unlabelled else 0)
    for source in splits.values():
        assert (source.targets == "none") == (missing == len(found))
        assert counts(source).sum() >= len(source) - missing


def test_the_classes_of_all_are_those_of_each(splits):
    for whole in splits.values():
        for source in (whole, Subset(whole, range(1, len(whole))), Subset(whole, []), Renumbered(whole, more(whole))):
            targets = [source.target(index) for index in range(len(source))]
            codes, known = coded(source)
            assert [known[code] for code in codes] == [None if one is None else classes_of(one) for one in targets]
            assert unknown(source).tolist() == [target is None for target in targets]
            by_hand = [sum(number in classes_of(one) for one in targets) for number in range(len(source.class_names))]
            assert counts(source).tolist() == by_hand


def more(source):
    """Its classes, backwards, behind another."""
    return ("a class of others", *reversed(source.class_names))


def test_there_is_nothing_outside(splits):
    for source in splits.values():
        for index in (-1, len(source)):
            with pytest.raises(IndexError, match=rf"0 to {len(source) - 1}, but {index}"):
                source[index]
        assert len([*iter(source)]) == len(source)


def test_what_is_read_cannot_change_the_source(splits):
    for source in splits.values():
        before = seen(source)
        for index in range(len(source)):
            image = source[index].image
            if isinstance(image, np.ndarray) and image.flags.writeable:
                image[:] = 0
        assert seen(source) == before


def test_pickled_and_forked_it_is_the_same(splits):
    for source in splits.values():
        before = seen(source)
        data = pickle.dumps(source)
        assert seen(pickle.loads(data)) == before
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(seen, (source,)) == before
        global SHARED
        SHARED = source
        with multiprocessing.get_context("fork").Pool(2) as pool:  # which have it open from their parent
            assert pool.map(one, range(len(source))) == before


def one(index):
    return shown(SHARED[index]), SHARED.target(index), SHARED.name(index)


@pytest.mark.parametrize("kind", UNLABELLED)
def test_without_labels_it_opens_where_none_are_needed(tmp_path, kind):
    """A folder, a table and a tar without labels were refused by every task."""
    data = Data(str(PLACES[kind](tmp_path)))
    splits = open_splits(data, "none")
    assert splits.train.targets == splits.val.targets == "none"
    assert len(splits.train) + len(splits.val) == 6


@pytest.mark.parametrize("kind", PLACES)
def test_a_file_cut_in_half_is_named(tmp_path, kind):
    place = PLACES[kind](tmp_path)
    below = place if place.is_dir() else tmp_path
    # Half a list of names is a list of names.
    files = [file for file in below.rglob("*") if file.is_file() and file.name != "batches.meta.txt"]
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{file.name}\b") as caught:
            [seen(source) for source in find_splits(Data(str(place))).values()]
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    assert find_splits(Data(str(place)))


@pytest.mark.parametrize("label", [-2, 10**6])
def test_a_packed_label_of_no_class_is_named(tmp_path, label):
    source = Arrays(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, -1]), ("ash", "elm"), "made")
    pack({"train": source}, tmp_path / "packed")
    np.array([0, 1, label], "<i8").tofile(tmp_path / "packed" / "train.targets")
    with pytest.raises(ValueError, match=rf"train\.targets is damaged: .*{label}.* for 2 classes"):
        counts(find_splits(Data(str(tmp_path / "packed")))["train"])
