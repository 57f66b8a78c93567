"""The README's Python runs, its commands exist, and what it links to is there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import status
from PIL import Image

import vitrail
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.tasks import Classify
from vitrail.weights.load import read
from vitrail.weights.save import save

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_its_python_runs(tmp_path, monkeypatch, unchecked):
    torch.manual_seed(0)
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    small = vit.ViT(vit.Config((32, 32), (16, 16), width=64, depth=2, heads=1, mlp_dim=128, classes=9))
    pipeline = vitrail.Pipeline(Classify(small, how, None, (*"abcdefgh", "Bag")))
    monkeypatch.chdir(tmp_path)
    pipeline.save("runs/demo/model")
    save(read(Path("runs/demo/model")), Path("ViT-B_16.npz"), "google")
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for name in ("photo.jpg", "b.png"):
        Image.fromarray(image).save(name)
    names = {"images": torch.randn(1, 3, 48, 64), "image": image, "paths": ["photo.jpg", "missing.png"]}
    names["uint8_images"] = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    exec(re.search(r"```python\n(.*?)```", README, re.S)[1], names)
    assert names["logits"].shape == (1, 10)
    assert names["tokens"].shape == (1, 1 + 3 * 4, 768)
    assert (names["model"].config.classes, names["model"].config.image_size) == (37, (384, 384))
    assert isinstance(names["result"], ValueError)
    assert set(names["outputs"]) == {"features", "logits", "probabilities"}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:^|`)vitrail (data \w+|[a-z]+) ", README, re.M))))
def test_a_command_that_it_names_exists(command, capsys):
    assert status(*command.split(), "--help") == 0
    assert "usage: vitrail" in capsys.readouterr().out


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
