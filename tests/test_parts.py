"""Work in parts: the same bytes however it is divided, killed or done twice. `data pack --to tar`, `predict --out`."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from multiprocessing import get_context

import numpy as np
import pytest
from command_line import printed, refused, status
from made_sources import MADE, PLACES, put
from photos import encode, photo
from pyarrow import parquet
from test_predict import STATISTIC, save
from test_source import Tagged, boxes, targets

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.pack import index, shards
from vitrail.data.parts import Work, part
from vitrail.data.quiet import quiet
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Found


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 images in train and 5 in val, of three classes, and one that cannot be read."""
    files = {f"train/{'abc'[i % 3]}/{i}.jpg": encode(photo(50 + i, 60), "JPEG") for i in range(20)}
    files |= {f"val/{'ab'[i % 2]}/{i}.png": encode(photo(40, 60 + i)) for i in range(5)}
    return put(tmp_path_factory.mktemp("photos"), files | {"train/b/bad.jpg": files["train/a/0.jpg"][:700]})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "m", Preprocessing((32, 32), *STATISTIC, "crop", 0.9, "bicubic"))


def found(place):
    return find_splits(Data(str(place)))


def packed(splits, out, parts=("0/1",), workers=1, each=3):
    """What the last of the parts says."""
    for words in parts:
        work = shards(splits, out, 32, unreadable="skip", each=each)
        work.run(numbers := part(words, len(work.names)), workers)
        done = index(work, splits, numbers)
    return done


def contents(folder):
    """{name: bytes} of a folder and below, but for what is not finished."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.parent.name != "tmp")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def lines(folder, made=None, about=3):
    """Work of four files; `made` collects the numbers of those that are made."""

    def make(number, write):
        for word in range(3):
            yield
            write(f"{number} {word}\n".encode())
        made.append(number)
        return {"images": 3}

    return Work(folder, [f"{k}.txt" for k in range(4)], [3] * 4, make, {"size": about})


@pytest.mark.parametrize("parts", [1, 3, 7, 30])
def test_the_bytes_do_not_depend_on_the_parts_or_their_order_or_the_processes(photos, tmp_path, parts):
    splits, order = found(photos), random.Random(parts).sample(range(parts), parts)
    whole = packed(splits, tmp_path / "whole")
    assert packed(splits, tmp_path / "parts", [f"{k}/{parts}" for k in order]) == whole
    packed(splits, tmp_path / "three", workers=3)
    assert contents(tmp_path / "parts") == contents(tmp_path / "three") == contents(tmp_path / "whole")
    assert (whole.images, whole.missing) == ({"train": 20, "val": 5}, 0)
    assert [str(photos / "train/b/bad.jpg") in problem for problem in whole.left_out] == [True]


@pytest.mark.parametrize("at_once", [1, 2])
def test_kills_at_any_moment_and_two_at_once_do_no_harm(photos, tmp_path, at_once):
    splits, draw, out, codes = found(photos), random.Random(at_once), tmp_path / "out", []
    packed(splits, tmp_path / "whole", each=2)

    def run(count, seconds=None):
        with quiet():
            several = [
                get_context("fork").Process(target=packed, args=(splits, out, ["0/1"], 1, 2)) for _ in range(count)
            ]
            for process in several:
                process.start()
        for process in several:
            if seconds is not None:
                time.sleep(seconds)
                process.kill()
            process.join()
        return [process.exitcode for process in several]

    for _ in range(12):
        codes += run(at_once, draw.uniform(0, 0.06))
    assert -signal.SIGKILL in codes
    assert run(2) == [0, 0]
    assert contents(out) == contents(tmp_path / "whole")
    packed(splits, out, each=2)
    assert list((out / ".parts" / "tmp").iterdir()) == []


def test_who_was_slower_finds_the_work_done_and_swept_up(tmp_path):
    made = []

    def make(number, write):
        write(b"the same")
        yield
        if not made:
            made.append(number)
            Work(*rest).run(range(3))
        return {"images": 1}

    rest = (tmp_path / "out", ["0", "1", "2"], [1, 1, 1], make, {})
    Work(*rest).run(range(3))
    assert [contents(tmp_path / "out")[name] for name in "012"] == [b"the same"] * 3
    assert list((tmp_path / "out" / ".parts" / "tmp").iterdir()) == []


DAMAGE = {"1.txt": [b"", b"x" * 12, None], ".parts/1.txt.json": [b"", b"[]", b'{"job": 3}', None]}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, several in DAMAGE.items() for one in several])
def test_what_is_not_as_recorded_is_made_again_and_nothing_else(tmp_path, name, content):
    made, out = [], tmp_path / "out"
    work = lines(out, made)
    work.run(range(4))
    before = contents(out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.txt is not what its record says; run the same command again"):
        list(work.records(reading=True))
    work.run(range(4))
    assert (made, contents(out)) == ([0, 1, 2, 3, 1], before)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    put(tmp_path, {"mine/1.txt": "mine"})
    with pytest.raises(ValueError, match="mine exists already; name another"):
        lines(tmp_path / "mine").run(range(4))
    assert contents(tmp_path / "mine") == {"1.txt": b"mine"}
    lines(tmp_path / "out", []).run(range(1))
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="was begun with another size; repeat"):
        lines(tmp_path / "out", about=4).run(range(1))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_refuses_and_a_process_that_dies_are_sentences(tmp_path, workers):
    def full(number, write):
        yield
        if number == 2:
            raise OSError(28, "No space left on device", "2.txt")
        write(b"x")
        return {"images": 1}

    def dead(number, write):
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    with pytest.raises(ValueError, match=r"2.txt cannot be written or read \(No space.*; what is complete stays"):
        Work(tmp_path / "out", ["0", "1", "2"], [1] * 3, full, {}).run(range(3), workers)
    assert workers == 2 or {"0", "1", ".parts/0.json", ".parts/1.json"} < set(contents(tmp_path / "out"))
    if workers == 2:
        with pytest.raises(ValueError, match=r"a process was killed, .* run the same command again"):
            Work(tmp_path / "dead", ["0", "1"], [1] * 2, dead, {}).run(range(2), workers)
    with pytest.raises(ValueError, match="--workers is 0"):
        lines(tmp_path / "none").run(range(4), workers=0)


def test_a_part_is_told_in_words_or_by_the_environment():
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
    for of in (1, 3, 7, 12):
        assert [k for rank in range(of) for k in part(f"{rank}/{of}", 10, {})] == list(range(10))
    assert part("env", 8, slurm) == part("2/4", 8) == range(4, 6)
    assert part("env", 8, slurm | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"}) == range(4, 6)
    assert part("env/8", 8, {"JOB_COMPLETION_INDEX": "3"}) == range(3, 4)
    for words, names in [("env", {}), ("env", {"JOB_COMPLETION_INDEX": "3"}), ("3", {}), ("a/b", {}), ("1/2/3", {})]:
        with pytest.raises(ValueError, match=f"--part is '{words}'; give I/N"):
            part(words, 8, names)
    with pytest.raises(ValueError, match=r"--part 3/3 is part 3 of 3; parts count from 0 to 2\."):
        part("3/3", 8)


class Several(Tagged):
    def __getitem__(self, index):
        return super().__getitem__(index)._replace(image=photo(30 + index, 40))


MADE = MADE | {"several": lambda: Several((), (0,), (0, 2), None), "none": lambda: Several(None, None, targets="none")}


@pytest.mark.parametrize("kind", [*PLACES, *MADE])
def test_tars_have_the_splits_labels_and_order_of_every_kind_of_source_and_a_true_index(tmp_path, kind):
    before, out = found(PLACES[kind](tmp_path)) if kind in PLACES else Found({"all": MADE[kind]()}), tmp_path / "out"
    packed(before, out, each=2)
    after = found(out)
    assert list(after) == list(before)
    for split, source in after.items():
        assert (source.class_names, source.targets) == (before[split].class_names, before[split].targets)
        assert targets(source) == targets(before[split])
        with np.load(out / f"{split}.index.npz") as read:
            columns = [read[name].tolist() for name in ("shard", "offset", "size", "crc32")]
            about = json.loads(read["about"].tobytes())
        for shard, offset, size, crc, example in zip(*columns, source, strict=True):
            file = out / about["shards"][shard]["name"]
            assert file.read_bytes()[offset : offset + size] == example.image
            assert (zlib.crc32(example.image), str(file) in example.name) == (crc, True)


def test_tars_are_webdatasets(tmp_path):
    packed(Found({"train": MADE["several"](), "test": MADE["arrays"]()}), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == [f"00000000{k}.{kind}" for k in range(3) for kind in ("jpg", "json")]
        assert json.load(tar.extractfile("000000002.json")) == {"label": [0, 2]}
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    with tarfile.open(tmp_path / "out" / "test-000001.tar") as tar:
        assert tar.extractfile("000000005.cls").read() == b"2"
    with pytest.raises(ValueError, match="boxes and masks"):
        packed(Found({"all": Several(boxes(1), targets="boxes")}), tmp_path / "boxes")


def test_shards_that_do_not_belong_together_are_refused(photos, tmp_path):
    def refused(words):
        with pytest.raises(ValueError, match=words):
            found(tmp_path / "out")

    packed(found(photos), tmp_path / "out", ["1/3"])
    refused("out is not complete; run all parts")
    packed(found(photos), tmp_path / "out")
    (tmp_path / "out" / "train-000002.tar").unlink()
    refused(r"train\.index\.npz is of 20 images, but the shards have 17")
    os.truncate(tmp_path / "out" / "train.index.npz", 300)
    refused(r"train\.index\.npz is damaged")


def test_the_pack_command_in_parts(photos, tmp_path, capsys):
    words = ["data", "pack", photos, tmp_path / "out", "--to", "tar", "--size", "32", "--unreadable", "skip", "--shard"]
    document, _ = printed(capsys, *words, "10", "--part", "1/2")
    assert (document["images"], document["missing"]) == ({"train": 1, "val": 5}, 2)
    assert status(*words, "10", "--workers", "2") == 1
    assert "out has 20 train, 5 val images in" in capsys.readouterr().out
    assert "was begun with another shard" in refused(capsys, *words, "11")
    assert "bad.jpg" in refused(capsys, *words[:3], tmp_path / "x", *words[4:8])
    assert "--to tar" in refused(capsys, *words[:3], tmp_path / "y", "--part", "0/2")


def predicted(capsys, model, photos, out, *words):
    """(exit status, the document on standard output, standard error) of predictions in pieces of 4."""
    code = status("predict", model, photos, "--out", out, "--shard", "4", "--top", "2", "--json", *words)
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def test_predictions_in_parts_are_those_of_the_command(model, photos, tmp_path, capsys):
    status("predict", model, photos, "--top", "2", "--json")
    out, err = capsys.readouterr()
    expected, whole = json.loads(out), tmp_path / "whole.jsonl"
    code, document, said = predicted(capsys, model, photos, whole)
    assert (code, said, document["failed"], document["missing"]) == (1, err, 1, 0)
    for row, other in zip(map(json.loads, whole.read_text().splitlines()), expected, strict=True):
        assert (row["file"], row.get("error")) == (other["file"], other.get("error"))
        for one, two in zip(row.get("predictions", ()), other.get("predictions", ()), strict=True):
            assert (one["label"], one["probability"]) == (two["label"], pytest.approx(two["probability"], abs=1e-6))
    for of in (3, 7):
        parts = tmp_path / f"{of}.jsonl"
        left = [predicted(capsys, model, photos, parts, "--part", f"{k}/{of}")[1]["missing"] for k in range(of)[::-1]]
        assert (left[-1], sorted(left, reverse=True)) == (0, left)
        assert parts.read_bytes() == whole.read_bytes()
    for name in ("000001.jsonl", ".parts/000002.jsonl.json"):
        (parts.with_suffix(".parts") / name).write_bytes(b"x")
    predicted(capsys, model, photos, parts)
    assert parts.read_bytes() == whole.read_bytes()


def test_predictions_are_written_as_tables(model, photos, tmp_path, capsys):
    place = put(tmp_path / "odd", {"1\udce9.jpg": (photos / "train/a/0.jpg").read_bytes(), "2.jpg": b"x"})
    assert predicted(capsys, model, place, tmp_path / "a.jsonl")[0] == 1
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    expected = {"file": first["file"].replace("\udce9", "\\xe9"), **first["predictions"][0], "error": None}
    expected["predictions"] = json.dumps(first["predictions"])
    assert predicted(capsys, model, place, tmp_path / "a.parquet")[0] == 1  # of the same parts
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert rows == [expected, dict.fromkeys(expected) | second]
    assert predicted(capsys, model, place, tmp_path / "a.csv")[0] == 1
    with (tmp_path / "a.csv").open(newline="") as file:
        texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
        assert list(csv.DictReader(file)) == texts
    assert predicted(capsys, model, place / "2.jpg", tmp_path / "b.csv")[0] == 2


def test_predictions_that_are_refused(model, photos, tmp_path, capsys, monkeypatch):
    words = ["predict", model, photos]
    put(tmp_path, {"mine.csv": "mine"})
    assert "mine.csv exists already" in refused(capsys, *words, "--out", tmp_path / "mine.csv")
    assert "give .parquet, .csv or .jsonl" in refused(capsys, *words, "--out", tmp_path / "a.txt")
    assert "name one with --out" in refused(capsys, *words, "--part", "0/2")
    assert "nowhere does not exist" in refused(capsys, "predict", "nowhere", photos, "--out", tmp_path / "a.csv")
    assert "top is 0" in refused(
        capsys, *words, "--out", tmp_path / "a.csv", "--top", "0"
    )  # and nothing is begun by it
    predicted(capsys, model, photos, tmp_path / "a.csv", "--part", "0/2")
    assert "begun with another top" in refused(capsys, *words, "--out", tmp_path / "a.csv", "--shard", "4")
    monkeypatch.setattr("vitrail.cli.predictions.find_spec", lambda name: None)
    assert "needs pyarrow; pip install 'vitrail[data]'" in refused(capsys, *words, "--out", tmp_path / "b.parquet")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parts", "mine.csv"]


def test_a_killed_command_goes_on(model, photos, tmp_path):
    command = [sys.executable, "-m", "vitrail", "predict", model, photos, "--out", tmp_path / "a.jsonl", "--shard", "1"]
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "a.parts" / ".parts" / "000003.jsonl.json").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    before = contents(tmp_path / "a.parts")
    assert status(*command[3:]) == 1
    assert before.items() <= contents(tmp_path / "a.parts").items()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 26
