"""benchmarks/exporting.py on a small model."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_each_file_has_its_line():
    words = ["--model", "ViT-Ti/16", "--timm", "vit_tiny_patch16_224", "--batches", "1", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.exporting", *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("timm", "vitrail", "onnx", "onnx int8", "openvino", "openvino int8", "pt2"):
        assert f" {name} " in done.stdout
