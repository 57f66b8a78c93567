"""What tests/test_export.py says of the others, of OpenVINO."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import photos, printed, refused
from test_export import CLASSES, HARD, MODELS, apart, images, pipeline

from vitrail.export import TOLERANCE, export

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


@pytest.mark.parametrize("name", HARD)
def test_any_size(tmp_path, name):
    torch_ = pipeline(MODELS[name])
    made = export(torch_, tmp_path / "m.openvino", "openvino", "any")
    (height, width), low = MODELS[name].image_size, made.task.session.about.low
    for count, size in ((1, (height, width)), (3, (height + 1, width)), (2, (2 * height - 3, width + 5)), (1, low)):
        assert apart(made, torch_, images(count, *size)) < TOLERANCE, size


def test_one_size(tmp_path):
    torch_ = pipeline(MODELS["map, registers"])
    made = export(torch_, tmp_path / "m.openvino", "openvino", (45, 30))
    for count in (1, 2, 7):
        assert apart(made, torch_, images(count, 45, 30)) < TOLERANCE


def test_all_formats_in_one_table_and_a_folder_that_lacks_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline().save("model")
    photos(tmp_path / "photos", CLASSES, count=8, size=32)
    found, _ = printed(capsys, "benchmark-export", "model", "photos", "--out", "all")
    names = [row["name"] for row in found["rows"]]
    assert names == ["PyTorch", "ONNX Runtime", "ONNX Runtime, int8", "OpenVINO", "OpenVINO, int8", "torch"]
    first, onnx, _, openvino, _, torch_ = found["rows"]
    assert all(row["metrics"]["accuracy"] == first["metrics"]["accuracy"] for row in (onnx, openvino, torch_))
    assert not found["failed"]
    again, _ = printed(capsys, "evaluate", "all/model.openvino", "photos")
    assert again["metrics"]["accuracy"] == first["metrics"]["accuracy"]
    (tmp_path / "all" / "model.openvino" / "model.bin").unlink()
    photo = next((tmp_path / "photos").rglob("*.png"))
    assert "model.openvino" in refused(capsys, "predict", "all/model.openvino", photo)


SIGNAL = """
import gc, os, signal, sys
from pathlib import Path
from vitrail.tasks.exported import open_session
sessions = [open_session(Path("m.openvino")) for _ in range(2)]
signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))
del sessions
gc.collect()
os.kill(os.getpid(), signal.SIGINT)
print("alive")
"""


def test_a_signal_is_heard_once_all_sessions_are_gone(tmp_path):
    """It ended the process with a segmentation fault where OpenVINO itself went with the last of them."""
    export(pipeline(), tmp_path / "m.openvino", "openvino")
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}}
    done = subprocess.run([sys.executable, "-c", SIGNAL], capture_output=True, text=True, **where)
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "alive"])
