"""The Hugging Face Hub: model folders by name, through huggingface_hub.

model = vitrail.load("hf-hub:google/vit-base-patch16-224")      # or @REVISION behind it
push("runs/pets/model", "me/pets")                              # the folder as it is; timm and transformers load it
"""

from pathlib import Path

PREFIXES = ("hf-hub:", "hf_hub:")  # timm knows both
# What any of the layouts needs; nothing that could be run is fetched.
WANTED = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model.bin",
    "*.npz",
)


def resolve(name: Path | str) -> Path:
    """The local folder or file of a name: fetched into the Hub's cache where it begins with "hf-hub:".

    ValueError where the Hub does not have it, or cannot be reached.
    """
    text = str(name)
    if not text.startswith(PREFIXES):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = text[len(PREFIXES[0]) :].partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{text} could not be fetched from the Hub ({_first_line(error)}); check the name.") from error
    archives = sorted(folder.glob("*.npz"))
    return archives[0] if len(archives) == 1 and not (folder / "config.json").is_file() else folder


def push_to_hub(folder: Path | str, repository: str, private: bool = False) -> str:
    """Uploads a model folder; returns its address. ValueError where it is none, or the Hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} is not a model folder: config.json and model.safetensors belong in it.")
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by Vitrail"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{folder} could not be uploaded to {repository} ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
