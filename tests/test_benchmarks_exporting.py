"""benchmarks/exporting.py on a small model."""

import pytest

from benchmarks import exporting


@pytest.mark.slow
def test_each_file_has_its_line(capsys, monkeypatch, unchecked):
    monkeypatch.setattr(exporting, "SECONDS", 0.01)
    words = ["--model", "ViT-Ti/16", "--timm", "vit_tiny_patch16_224", "--batches", "1", "--rounds", "1"]
    assert exporting.main(words) == 0
    table = capsys.readouterr().out
    for name in ("timm", "vitrail", "onnx", "onnx int8", "openvino", "openvino int8", "pt2"):
        assert f" {name} " in table
