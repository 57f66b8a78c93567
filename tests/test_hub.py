"""The Hub by a stand-in for its files: what is asked of huggingface_hub, and what comes of its answers."""

import re
import shutil
from fnmatch import fnmatch

import google_files
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from model_folders import names_of, preprocessing_of, write_folder

import vitrail
from vitrail.models import vit
from vitrail.weights import hub

CONFIG = vit.Config((16, 16), (8, 8), 3, 16, 1, 2, 16, 2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Repositories as folders; fetching copies what is wanted, as the Hub's cache would hold it."""

    def download(repository, *, revision, allow_patterns):
        found = tmp_path / "hub" / repository / (revision or "main")
        if not found.is_dir():
            raise LocalEntryNotFoundError("Cannot find the requested files.\nMore.")
        cache = tmp_path / "cache" / repository.replace("/", "--")
        cache.mkdir(parents=True, exist_ok=True)
        for path in found.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)

    class Api:
        def create_repo(self, repository, private, exist_ok):
            assert exist_ok
            (tmp_path / "hub" / repository).mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id / "main")
            return f"hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return tmp_path / "hub"


def test_a_revision_comes_with_its_preprocessing_and_names_and_without_code(store, tmp_path):
    write_folder(store / "me/pets" / "v2", CONFIG)
    (store / "me/pets" / "v2" / "modeling.py").write_text("raise SystemExit")
    predict = vitrail.Pipeline.load("hf-hub:me/pets@v2")
    assert (predict.class_names, predict.preprocessing) == (names_of(CONFIG), preprocessing_of(CONFIG))
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_what_is_not_there_and_what_is_no_model_folder_is_named(store, tmp_path):
    with pytest.raises(ValueError, match=r"^hf-hub:me/dogs .*Cannot find the requested files\.\)"):
        vitrail.load("hf-hub:me/dogs")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        hub.push_to_hub(tmp_path, "me/pets")


def test_what_is_pushed_is_loaded_again(store, tmp_path):
    model, _ = write_folder(tmp_path / "model", CONFIG)
    assert hub.push_to_hub(tmp_path / "model", "me/pets") == "hub/me/pets"
    again = vitrail.load("hf_hub:me/pets")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_repository_of_one_npz_is_loaded(store):
    (store / "google/vit" / "main").mkdir(parents=True)
    np.savez(store / "google/vit" / "main" / "ViT.npz", **google_files.arrays())
    assert vitrail.load("hf-hub:google/vit").config.activation == "gelu_tanh"
