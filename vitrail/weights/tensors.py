"""Files of named tensors, safetensors and PyTorch's own, opened without running anything in them.

tensors = open_tensors(Path("model.safetensors"))      # name -> Tensor
tensors = open_tensors(Path("deit_base.pth"))          # the state dict inside its wrappers
write_tensors(Path("out.safetensors"), tensors)
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.progress import few

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # of the files that they are written to
# What training scripts put around a state dict, the averaged weights first: they are what is evaluated.
WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "teacher", "encoder")


def open_tensors(path: Path) -> dict[str, Tensor]:
    """name -> tensor, of a safetensors file or of what torch.save wrote.

    ValueError, naming the file, where it is missing, damaged, holds Python objects, or holds no tensors.
    """
    if path.name.endswith(".index.json"):
        return _shards(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
        # A safetensors file begins with the length of its header, whose first byte may be that of a pickle.
        if start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
            with warnings.catch_warnings(action="ignore"):  # about how it was pickled
                return _state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return load_file(path)
    except pickle.UnpicklingError:
        what = f"{path} is damaged, or holds Python objects besides tensors, which could run code: it is not read"
        raise ValueError(f"{what}. Save the state dict alone, or as safetensors.") from None
    except Exception as error:  # an unpickler raises errors of many types: IndexError, AssertionError, ...
        detail = str(error).split("\n")[0]
        raise ValueError(f"{path} is not a whole file of tensors ({detail}); fetch it again.") from error


def _shards(path: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names, which lie beside it."""
    try:
        files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in files):
            raise ValueError("it names files outside its folder")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not an index of tensors ({error}); fetch it again.") from error
    return {name: tensor for file in files for name, tensor in open_tensors(path.with_name(file)).items()}


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The innermost dict of tensors, without the prefix that data-parallel wrappers leave."""
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inside = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inside is None:
            raise ValueError(f"there is no state dict among {few(content)}")
        content = inside
    if not isinstance(content, dict):
        raise ValueError(f"a state dict was expected, this is a {type(content).__name__}")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def write_tensors(target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict: as safetensors, or, where the suffix is another, as torch.save does."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if target.suffix == ".safetensors":
        save_file(plain, target, metadata={"format": "pt"})
    else:
        torch.save(plain, target)


def write_folder(target: Path, tensors: Mapping[str, Tensor], **settings: Any) -> None:
    """Write model.safetensors, and a JSON file for each of the settings."""
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", tensors)
    for name, content in settings.items():
        (target / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
