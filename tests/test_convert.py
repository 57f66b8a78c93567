"""`vitrail convert` on files of every format, as a person would type it."""

import google_files
import numpy as np
import pytest
import timm
import torch
from command_line import printed, refused, status
from reference import perturb
from safetensors.torch import save_file

LOST = ["its preprocessing", "activation 'gelu_tanh'", "resample 'bilinear_corners'", "remainder 'crop'"]


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "w.npz", **google_files.arrays())
    return tmp_path / "w.npz"


def test_a_file_goes_to_every_format_and_back_and_what_is_lost_is_told(npz, tmp_path, capsys):
    done, _ = printed(capsys, "convert", npz, tmp_path / "out.safetensors", "--to", "timm")
    assert (done["from"], done["to"], done["tensors"]) == ("google", "timm", 32)
    assert all(words in lost for words, lost in zip(LOST, done["lost"], strict=True))
    source = npz
    for to, target in [("vitrail", "a"), ("timm", "b"), ("huggingface", "c"), ("google", "d.npz")]:
        assert status("convert", source, tmp_path / target, "--to", to) == 0
        assert f"{target}: 32 tensors, from" in capsys.readouterr().out
        source = tmp_path / target
    with np.load(npz) as before, np.load(source) as after:
        assert set(before) == set(after)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_heads_are_given_where_the_file_does_not_tell_them(tmp_path, capsys):
    model = perturb(timm.create_model("vit_base_patch16_224", embed_dim=48, depth=1, num_heads=4), dtype=torch.float32)
    source, target = tmp_path / "w.safetensors", tmp_path / "out"
    save_file(model.state_dict(), source)
    assert "width of 48" in refused(capsys, "convert", source, target)
    assert status("convert", source, target, "--heads", "4") == 0
    again = timm.create_model(f"local-dir:{target}", pretrained=True)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("arguments", "words"), [
    ("gone.npz out", ["gone.npz"]), ("page.pth out", ["page.pth", "web page"]), ("page.pth", ["convert"]),
    ("w.npz out --to onnx", ["'onnx'", "vitrail", "google", "timm", "huggingface", "torchvision"]),
    ("w.npz w.npz --to google", ["w.npz exists"]),
])  # fmt: skip
def test_bad_input_is_one_sentence(npz, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    said = refused(capsys, "convert", *arguments.split())
    assert all(word in said for word in words)
    assert not (tmp_path / "out").exists()
