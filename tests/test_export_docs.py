"""docs/export.md does what it says, with ONNX Runtime and NumPy alone."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import CLASSES, pipeline

from vitrail.export import export

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_numpy_predicts_the_same_from_the_file_alone(tmp_path, unchecked):
    torch_ = pipeline()
    export(torch_, tmp_path / "pets.onnx")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.save(tmp_path / "photo.npy", image)
    assert len([line for line in CODE.splitlines() if line]) <= 15
    words = [sys.executable, "-c", CODE + "\nimport sys\nassert not {'torch', 'vitrail', 'PIL'} & set(sys.modules)\n"]
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    wanted = torch_(image, top=len(CLASSES))
    assert said[::2] == [one.label for one in wanted]
    torch.testing.assert_close([float(v) for v in said[1::2]], [one.probability for one in wanted], rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z][a-z0-9-]+", PAGE.partition("## Without")[0]))))
def test_an_option_that_it_names_exists(option, capsys):
    from command_line import status

    assert status("export", "--help") == 0
    assert option in capsys.readouterr().out
