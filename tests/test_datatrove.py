"""The recipe of docs/data.md for datatrove, run as it stands, killed in the middle and run again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_sources import put
from photos import encode, photo
from test_parts import contents
from test_predict import STATISTIC, save

from vitrail.data.images.preprocessing import Preprocessing

pytest.importorskip("datatrove")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
(RECIPE,) = re.findall(r"```python\n(.*?datatrove.*?)```", (ROOT / "docs" / "data.md").read_text(), re.S)
(PACK,) = re.findall(r'f"(vitrail .* --part ){rank}/{world_size}"', RECIPE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """1,200 small images in three splits, one of which cannot be read, a model, and the command."""
    folder = tmp_path_factory.mktemp("place")
    images = [encode(photo(16 + i, 20), "JPEG") for i in range(8)]
    splits = ("train", "val", "test")
    files = {f"photos/{splits[i % 3]}/{'ab'[i % 2]}/{i:04}.jpg": images[i % 8] for i in range(1200)}
    put(folder, files | {"photos/train/b/0003.jpg": images[3][:100]})
    save(folder / "model", Preprocessing((32, 32), *STATISTIC, "crop", 0.9, "bicubic"))
    put(folder, {"bin/vitrail": f'#!/bin/sh\nexec {sys.executable} -m vitrail "$@"\n'.encode()})
    (folder / "bin" / "vitrail").chmod(0o755)
    return folder


def environment(place):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": path}


def started(place, recipe):
    """The recipe as a program, with a group of processes of its own."""
    (place / "recipe.py").write_text(recipe)
    how = {"cwd": place, "env": environment(place), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "recipe.py"], **how, start_new_session=True)


def killed_and_repeated(place, recipe, records):
    """The records that stood at the kill, {file: when it was written}. The second run ends well."""
    process = started(place, recipe)
    deadline = time.monotonic() + 60
    while not list(records.glob("[!j]*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {file: file.stat().st_mtime_ns for file in records.glob("[!j]*.json")}
    process = started(place, recipe)
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, said
    return done


def test_what_is_packed_under_datatrove_is_what_one_process_packs(place):
    command = PACK.replace("shards", "one").removesuffix("--part ").split()
    assert subprocess.run(command, cwd=place, env=environment(place)).returncode == 1  # an image is left out
    done = killed_and_repeated(place, RECIPE, place / "shards" / ".parts")
    assert 1 <= len(done) < 3
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert contents(place / "shards") == contents(place / "one")
    assert len(list((place / "logs" / "completions").iterdir())) == 8


def test_what_is_predicted_under_datatrove_is_what_one_process_predicts(place):
    predict = "vitrail predict model photos --shard 150 --out answers.csv --part "
    command = predict.replace("answers", "one").removesuffix("--part ").split()
    assert subprocess.run(command, cwd=place, env=environment(place)).returncode == 1
    recipe = RECIPE.replace(PACK, predict).replace("tasks=8", "tasks=4").replace('"logs"', '"others"')
    done = killed_and_repeated(place, recipe, place / "answers.parts" / ".parts")
    assert 1 <= len(done) < 8
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert (place / "answers.csv").read_bytes() == (place / "one.csv").read_bytes()
