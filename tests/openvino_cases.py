"""What tests/test_export.py says of the others, of OpenVINO: run by test_export_openvino in a process of its own."""

import pytest
from command_line import photos, printed, refused
from test_export import CLASSES, HARD, MODELS, apart, images, pipeline

from vitrail.export import TOLERANCE, export

pytestmark = pytest.mark.usefixtures("unchecked")


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
