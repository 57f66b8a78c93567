"""Shards behind HTTP: the same as on the disk, by either client, in threads and processes, with faults and damage."""

import functools
import json
import operator
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from made_sources import put
from photos import encode, photo
from test_source import targets

from benchmarks.store import Served
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Training, evaluation, stacked
from vitrail.data.pack import index, shards
from vitrail.data.parts import part
from vitrail.data.sources import remote, store
from vitrail.data.sources.fingerprint import fingerprint
from vitrail.data.sources.open import Data, find_splits, open_splits
from vitrail.data.sources.source import Renumbered, Subset
from vitrail.data.stream import stream
from vitrail.evaluate.headers import look

HOW = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
ABSENT = ("test.index.npz", "all.index.npz")
CLIENTS = ["obstore", "fsspec"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "LEAST", 10.0)  # a busy machine answers late, which is no fault
    monkeypatch.setattr(store, "PAUSE", 0.005)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of 60 train and 9 val images of three classes, one of which is left out."""
    files = {f"train/{'abc'[i % 3]}/{i}.jpg": encode(photo(50 + i, 60), "JPEG") for i in range(60)}
    files |= {f"val/{'abc'[i % 3]}/{i}.png": encode(photo(40, 60 + i)) for i in range(9)}
    files["train/b/bad.jpg"] = files["train/a/0.jpg"][:700]
    splits, out = found(put(tmp_path_factory.mktemp("photos"), files)), tmp_path_factory.mktemp("out") / "shards"
    work = shards(splits, out, 48, unreadable="skip", each=20)
    work.run(numbers := part("", len(work.names)))
    index(work, splits, numbers)
    return out


@pytest.fixture(params=CLIENTS)
def client(request, monkeypatch):
    """Only one of the two is installed, and no process has used obstore before."""
    only(request.param, monkeypatch)
    return request.param


def only(client, monkeypatch):
    for other in CLIENTS:
        if other != client:
            monkeypatch.setitem(sys.modules, other, None)
            monkeypatch.setitem(sys.modules, f"{other}.asyn", None)


def found(place):
    return find_splits(Data(str(place)))


def batches(source, workers=0, **options):
    made = Training(source, HOW, (Augment("inception", flip=0.5),), stacked, batch=7, seed=1, **options)
    skipped = []
    made = [*stream(made, made.keys(0, 10), workers, skipped=skipped.append)]
    return [(one["indices"].tolist(), one["images"].numpy().tobytes()) for one in made], skipped


def copied(folder, tmp_path):
    """A copy that may be damaged."""
    return put(tmp_path / "copy", {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()})


def test_every_image_is_the_one_on_the_disk(folder, client):
    with Served(folder) as served:
        near, far = found(folder), found(f"{served.url}/")
        assert list(far) == list(near) == ["train", "val"]
        for split, source in far.items():
            assert (source.class_names, source.targets) == (near[split].class_names, near[split].targets)
            assert targets(source) == targets(near[split])
            assert [one.image for one in source] == [one.image for one in near[split]]
            names = [source.name(k).replace(served.url, str(folder)) for k in range(len(source))]
            assert names == [near[split].name(k) for k in range(len(source))]
            assert fingerprint(source) == fingerprint(near[split])
            assert pickle.loads(pickle.dumps(source))[3].image == source[3].image
    assert {method for method, path, _ in served.store.asked if path.endswith(".tar")} == {"GET"}
    assert all(span for _, path, span in served.store.asked if path.endswith(".tar"))


@pytest.mark.parametrize(("client", "workers"), [("obstore", 0), ("fsspec", 0), ("fsspec", 2)], indirect=["client"])
def test_runs_see_the_same_batches_and_each_image_comes_once_an_epoch(folder, client, workers):
    with Served(folder, delay=0.005) as served:
        near, far = found(folder)["train"], found(served.url)["train"]
        assert batches(far, workers, block=5) == batches(near, block=5)
        served.store.asked.clear()
        made = Training(far, HOW, (Augment(),), stacked, batch=6, seed=1)
        seen = Counter(k for batch in stream(made, made.keys(0, 10), workers) for k in batch["indices"].tolist())
        assert seen == dict.fromkeys(range(60), 1)
        assert len(served.store.asked) <= 60
        part = Renumbered(Subset(far, np.arange(5, 50)), (*"abc",))
        whole = [batch["indices"].tolist() for batch in evaluation(part, HOW, batch=8, workers=workers)]
        assert functools.reduce(operator.iadd, whole, []) == [*range(45)]


FORKED = """
import os, sys
sys.path.insert(0, sys.argv[3])
from test_remote import batches, found, store
far, near = found(sys.argv[1])["train"], found(sys.argv[2])["train"]
first = sys.argv[4] == "first"
assert store._RUST == []
assert not first or batches(far) == batches(near)
assert store._RUST == [os.getpid()] * first
assert batches(far, workers=2) == batches(near)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first", "later"])
def test_processes_are_forked_before_and_after_obstore_is_used(folder, when):
    with Served(folder) as served:
        words = [sys.executable, "-c", FORKED, served.url, str(folder), os.path.dirname(__file__), when]
        assert subprocess.run(words, timeout=60).returncode == 0


def test_obstore_alone_says_so_in_forked_processes(folder, monkeypatch):
    only("obstore", monkeypatch)
    with Served(folder) as served:
        far = found(served.url)["train"]
        with pytest.raises(ValueError, match=r"cannot be opened in worker processes.*pip install 'vitrail\[remote\]'"):
            batches(far, workers=1)


def test_neighbours_are_one_range(folder):
    with Served(folder) as served:
        far = found(served.url)["val"]
        served.store.asked.clear()
        assert len([*evaluation(far, HOW, batch=9)]) == 1
        assert len(served.store.asked) == 1
        served.store.asked.clear()
        images, rows = remote.shards(Subset(far, [8, 0, 1, 0]), range(4))
        images.expect(rows)
        assert [images.read(row) for row in rows] == [far.images.read(row) for row in rows]
        assert len(served.store.asked) == 2 + 4 - (len(served.store.asked) == 5)


@pytest.mark.parametrize("kinds", [("500", "429", "short", "zeros"), ("cut", "503", "stall")])
def test_faults_are_repeated_and_nothing_is_lost_or_doubled(folder, client, kinds, monkeypatch):
    monkeypatch.setattr(store, "LEAST", 0.1)
    monkeypatch.setattr(store, "TIMES", 2.0)
    fault = lambda path, number: kinds[number // 5 % len(kinds)] if number % 5 == 1 and path.endswith(".tar") else None  # noqa: E731
    with Served(folder, fault=fault) as served:
        assert batches(found(served.url)["train"]) == batches(found(folder)["train"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_or_left_out_as_on_the_disk(folder, tmp_path, workers, monkeypatch):
    place = copied(folder, tmp_path)
    with Served(place) as served:
        far = found(served.url)["train"]
        offset, size = (int(far.images._columns[name][7]) for name in ("offset", "size"))
        tar = bytearray((place / "train-000000.tar").read_bytes())
        tar[offset + size // 2] ^= 1
        (place / "train-000000.tar").write_bytes(tar)
        words = rf"train-000000.tar cannot be read at byte {offset:,} \(the image at byte {offset:,} has another check"
        with pytest.raises(ValueError, match=words + r".*attempt 6 of 6\).*--data.unreadable skip"):
            batches(far, workers)
        rows, skipped = batches(far, workers, unreadable="skip")
        assert len(rows) == 10
        assert all(f"at byte {offset:,}" in words for words in skipped)
        assert len(skipped) in (1, 2)  # of 70 images


def test_shards_that_are_missing_or_cut_and_stores_that_stall(folder, tmp_path, client, monkeypatch):
    monkeypatch.setattr(store, "TRIES", 4)
    place = copied(folder, tmp_path)
    with Served(place) as served:
        far = found(served.url)["train"]
        os.truncate(place / "train-000000.tar", 600)
        (place / "train-000001.tar").unlink()
        with pytest.raises(ValueError, match=r"train-000000.tar cannot be read at byte 512 \(.*attempt 4 of 4\)"):
            far[0]
        assert served.store.counts["copy/train-000001.tar"] == 0
        with pytest.raises(ValueError, match=r"http.*train-000001.tar .*it is not there; attempt 1 of 4"):
            far[20]
        served.store.fault = lambda path, number: "stall"
        monkeypatch.setattr(store, "LEAST", 0.05)
        monkeypatch.setattr(store, "TIMES", 1.0)
        with pytest.raises(ValueError, match=r"train-000003.tar .*no answer within .* s; attempt 4 of 4"):
            far[59]
        monkeypatch.setattr(store, "LEAST", 10.0)
        monkeypatch.setattr(store, "SECONDS", 0.1)
        with pytest.raises(ValueError, match=r"no answer within 0.1 s; attempt 1 of 4"):
            far[59]
        monkeypatch.setattr(store, "SECONDS", 60.0)
        served.store.fault = lambda path, number: "403"
        with pytest.raises(ValueError, match="access is denied; attempt 1 of 4"):
            far[59]
    with pytest.raises(ValueError, match=r"train.index.npz cannot be looked at .*attempt 4 of 4"):
        found(served.url)


def rewritten(file, save=np.savez, **changed):
    """An index with other arrays."""
    with np.load(file) as read:
        arrays = {name: changed.get(name, lambda column: column)(read[name]) for name in read.files}
    save(file, **{name: column for name, column in arrays.items() if column is not None})


def said(**changed):
    """`about` with other values."""
    return lambda about: np.frombuffer(json.dumps({**json.loads(about.tobytes()), **changed}).encode(), np.uint8)


def first(value):
    return lambda column: np.where(np.arange(len(column)) == 0, np.array(value).astype(column.dtype), column)


BAD = {
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: os.truncate(file, 700),
    "compressed": lambda file: rewritten(file, np.savez_compressed),
    "foreign": lambda file: np.savez(file, images=np.zeros(3)),
    "objects": lambda file: rewritten(file, label=lambda column: column.astype(object)),
    "older": lambda file: rewritten(file, key=lambda column: None),
    "longer": lambda file: rewritten(file, crc32=lambda column: np.append(column, column)),
    "of floats": lambda file: rewritten(file, offset=lambda column: column.astype(float)),
    "in a square": lambda file: rewritten(file, offset=lambda column: column[None]),
    "of no shard": lambda file: rewritten(file, shard=first(4)),
    "before it": lambda file: rewritten(file, offset=first(-1)),
    "behind it": lambda file: rewritten(file, offset=first(2**40)),
    "of no bytes": lambda file: rewritten(file, size=first(0)),
    "of no class": lambda file: rewritten(file, label=first(3)),
    "elsewhere": lambda file: rewritten(file, about=said(shards=[{"name": "../x.tar", "bytes": 2**40}] * 3)),
    "past it": lambda file: rewritten(file, offset=first(2**63 - 1)),
    "of other classes": lambda file: rewritten(file, about=said(known=[0, 1, 3])),
    "of words": lambda file: rewritten(file, about=said(known=["a", "b", "c"])),
    "no list": lambda file: rewritten(file, about=said(classes=3)),
    "no text": lambda file: rewritten(file, about=said(classes=[1, 2, 3])),
    "no targets": lambda file: rewritten(file, about=said(targets="boxes")),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_index_that_is_damaged_or_foreign_is_refused(folder, tmp_path, kind, cache):
    place = copied(folder, tmp_path)
    BAD[kind](place / "train.index.npz")
    with (
        Served(place) as served,
        pytest.raises(ValueError, match=r"http.*train.index.npz is damaged, or not what this version writes; copy"),
    ):
        found(served.url)
    assert [*cache.iterdir()] == []


def test_an_index_that_changes_is_fetched_anew(folder, tmp_path, cache):
    place = copied(folder, tmp_path)
    with Served(place) as served:
        found(served.url)
        (kept,) = (file for file in cache.iterdir() if file.stat().st_size == (place / "val.index.npz").stat().st_size)
        served.store.asked.clear()
        found(served.url)
        assert {method for method, path, _ in served.store.asked if not path.endswith(ABSENT)} == {"HEAD"}
        rewritten(place / "val.index.npz", label=first(2))
        assert (found(served.url)["val"].target(0), kept.exists(), len([*cache.iterdir()])) == (2, False, 2)


def test_places_that_are_none(tmp_path, monkeypatch, cache):
    (tmp_path / "none").mkdir()
    words = r"http.* has no index of shards .*make one with `vitrail data pack DATA"
    with Served(tmp_path / "none") as served, pytest.raises(ValueError, match=words):
        found(served.url)
    with pytest.raises(ValueError, match=r"nowhere://x cannot be opened \(.*nowhere.*pip install"):
        found("nowhere://x")
    for client in CLIENTS:
        monkeypatch.setitem(sys.modules, client, None)
        monkeypatch.setitem(sys.modules, f"{client}.asyn", None)
    with pytest.raises(ValueError, match=r"http://x cannot be opened; check it, or pip install 'vitrail\[remote\]'"):
        found("http://x")


def test_other_stores_by_fsspec(folder, monkeypatch, cache):
    near = found(folder)["train"]
    far = found(folder.as_uri())["train"]
    assert [far[k].image for k in (0, 59)] == [near[k].image for k in (0, 59)]
    assert batches(far) == batches(near)
    cache.rename(cache.with_name("taken"))
    cache.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cache.* cannot be written .*set VITRAIL_CACHE"):
        found(folder.as_uri())


def test_a_disk_cache_spares_the_second_epoch_and_stays_small(folder, monkeypatch, cache, tmp_path):
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0.5")
    place = copied(folder, tmp_path)
    with Served(place) as served:
        expected = batches(found(folder)["train"])
        assert batches(found(served.url)["train"]) == expected
        served.store.asked.clear()
        assert batches(found(served.url)["train"]) == expected
        assert {method for method, path, _ in served.store.asked if not path.endswith(ABSENT)} == {"HEAD"}
        (damaged, *_) = sorted((cache / "shards").iterdir())
        damaged.write_bytes(b"x" * damaged.stat().st_size)
        assert batches(found(served.url)["train"]) == expected
        monkeypatch.setenv("VITRAIL_CACHE_GIB", "0.25")  # as much as is written between two looks
        assert len([*(cache / "shards").iterdir()]) == 4
        assert batches(found(served.url)["val"])[0]
        assert {file.name[17:] for file in (cache / "shards").iterdir()} == {"val-000000.tar"}
        monkeypatch.setenv("VITRAIL_CACHE_GIB", "many")
        with pytest.raises(ValueError, match="VITRAIL_CACHE_GIB is 'many'"):
            found(served.url)


def test_evaluation_in_the_middle_leaves_what_training_expects_and_nothing_stays(folder):
    with Served(folder) as served:
        far = found(served.url)["train"]
        train, val = Subset(far, np.arange(40)), Subset(far, np.arange(40, 60))
        made = Training(train, HOW, (Augment(),), stacked, batch=5, seed=1)
        batches = stream(made, made.keys(0, 8), 0)
        next(batches)
        images, _ = remote.shards(far)
        before = sum(path.endswith(".tar") for _, path, _ in served.store.asked)
        for _ in evaluation(val, HOW, batch=5):
            break
        assert len([*batches]) == 7
        assert images._processes == {os.getpid(): {}}
        assert before + 20 >= sum(path.endswith(".tar") for _, path, _ in served.store.asked)


def test_a_run_looks_at_few_images_before_it_begins(folder, monkeypatch):
    monkeypatch.setattr("vitrail.evaluate.headers.FEW", 4)
    with Served(folder) as served:
        splits = open_splits(Data(served.url))
        served.store.asked.clear()
        look(splits, skip=False)
        assert len(served.store.asked) == 8
