"""`vitrail convert` and `vitrail info` on files of every format, as a person would type them."""

import json

import google_files
import numpy as np
import pytest
import timm
import torch
import transformers
from reference import perturb
from safetensors.torch import load_file, save_file

from vitrail.cli import main

LOST = [
    "activation 'gelu_tanh' (read back as 'gelu')",
    "resample 'bilinear_corners' (read back as 'bicubic_antialias')",
    "remainder 'crop' (read back as 'pad')",
]


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "w.npz", **google_files.arrays())
    return tmp_path / "w.npz"


def test_a_file_goes_to_every_format_and_back(npz, tmp_path, capsys):
    way = [("vitrail", "a"), ("timm", "b"), ("huggingface", "c"), ("google", "d.npz")]
    source = npz
    for to, target in way:
        main(["convert", str(source), str(tmp_path / target), "--to", to])
        assert f"{target}: 32 tensors, from" in capsys.readouterr().out
        source = tmp_path / target
    with np.load(npz) as before, np.load(source) as after:
        assert set(before) == set(after)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_json_is_one_document(npz, tmp_path, capsys):
    main(["convert", str(npz), str(tmp_path / "out.safetensors"), "--to", "timm", "--json"])
    done = json.loads(capsys.readouterr().out)
    assert (done["from"], done["to"], done["tensors"], done["lost"]) == ("google", "timm", 32, LOST)
    assert len(load_file(tmp_path / "out.safetensors")) == 32


def test_what_is_left_out_is_said(tmp_path, capsys):
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "a")
    main(["convert", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "left out, for they are not the model's: embeddings.mask_token" in capsys.readouterr().out


def test_heads_are_said_where_the_file_does_not_tell_them(tmp_path, capsys):
    model = perturb(timm.create_model("vit_base_patch16_224", embed_dim=48, depth=1, num_heads=4), dtype=torch.float32)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "a width of 48 does not tell the number of heads; say heads=" in capsys.readouterr().err
    main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out"), "--heads", "4"])
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_info_tells_the_preprocessing_of_every_format(npz, tmp_path, capsys):
    main(["info", str(npz), "--json"])
    card = json.loads(capsys.readouterr().out)
    assert card["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert card["config"]["activation"] == "gelu_tanh"
    assert card["parameters"] == sum(a.size for a in google_files.arrays().values())
    main(["info", str(npz)])
    assert "preprocessing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.npz", "out"], "gone.npz does not exist; name a file with weights, or a model folder."),
        (["page.pth", "out"], "page.pth is a web page, perhaps of a download that failed; fetch the file itself."),
        (["page.pth"], "vitrail convert needs a target"),
        (
            ["w.npz", "out", "--to", "onnx"],
            "--to cannot be 'onnx'; choose one of vitrail, google, timm, huggingface, torchvision.",
        ),
        (["w.npz", "w.npz", "--to", "google"], "w.npz exists already; name another target."),
        (["w.npz", "out", "--two", "timm"], "vitrail convert has no option --two; did you mean --to?"),
    ],
)
def test_bad_input_is_one_sentence(npz, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(SystemExit) as stop:
        main(["convert", *arguments])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("vitrail: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
