"""The Hugging Face Hub: model folders by name, through huggingface_hub.

model = vitrail.load("hf-hub:google/vit-base-patch16-224")      # or @REVISION behind it
push_to_hub("runs/pets/model", "me/pets")                       # the folder as it is; timm and transformers load it
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIXES = ("hf-hub:", "hf_hub:")  # timm knows both
# What any of the layouts needs; nothing that could be run is fetched.
WANTED = ["*config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin", "*.npz"]


def resolve(name: Path | str) -> Path:
    """The local folder or file of a name: fetched into the Hub's cache if it begins with "hf-hub:"; of a run, its model
    folder. ValueError where the Hub does not have it, or cannot be reached, and where a run has no model yet."""
    text, path = str(name), Path(name)
    if not text.startswith(PREFIXES):
        inside = path / "model"
        if (path / "run.json").is_file() and not inside.is_dir():
            raise ValueError(f"{path} has no model yet: the run has not ended; go on with `vitrail resume {path}`.")
        return inside if inside.is_dir() else path
    from huggingface_hub import snapshot_download

    repository, _, revision = text[len(PREFIXES[0]) :].partition("@")
    with _refused(f"{text} could not be fetched from the Hub; check the name"):
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=WANTED))
    archives = sorted(folder.glob("*.npz"))
    return archives[0] if len(archives) == 1 and not (folder / "config.json").is_file() else folder


def push_to_hub(folder: Path | str, repository: str, private: bool = False) -> str:
    """Upload a model folder; return its address. ValueError where it is not one, or the Hub refuses."""
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} is not a model folder: config.json and model.safetensors belong in it.")
    with _refused(f"{folder} could not be uploaded to {repository}"):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by Vitrail"))


@contextmanager
def _refused(message: str) -> Iterator[None]:
    """ValueError with this message where the Hub, or the way to it, fails."""
    try:
        yield
    except (OSError, ValueError) as error:  # all of the Hub's own are one or the other
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{message} ({first}).") from error
