"""Files of named tensors, safetensors and PyTorch's own, opened without running anything in them.

tensors = open_tensors(Path("model.safetensors"))      # name -> Tensor
sections = open_sections(Path("deit_base.pth"))        # every state dict in it: {"model": ..., "model_ema": ...}
write_tensors(Path("out.safetensors"), tensors)
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.progress import few

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # of the files that they are written to

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}
DTYPES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"}

# Files of other libraries, by their first bytes, or, where these tell nothing, by their suffix.
FOREIGN = {
    b"\x89HDF": "HDF5, as Keras writes it",
    b"GGUF": "a GGUF model",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "a 7z archive",
}
SUFFIXED = {".onnx": "an ONNX model", ".pb": "a TensorFlow graph", ".msgpack": "flax's msgpack", ".mlmodel": "Core ML"}
SUFFIXED |= {".tflite": "a TFLite model", ".engine": "a TensorRT engine", ".pkl": "a pickle, which could run code"}


def open_tensors(path: Path) -> dict[str, Tensor]:
    """name -> tensor, of a file that holds one state dict. Raises what `open_sections` raises."""
    sections = open_sections(path)
    return next(iter(sections.values()))


def open_sections(path: Path) -> dict[str, dict[str, Tensor]]:
    """Each state dict in a safetensors file, an index of several, or what torch.save wrote: where it is ("" at the top,
    "checkpoint.model_ema") -> name -> tensor.

    ValueError, naming the file, where it is missing, damaged, or holds none.
    """
    if path.name.endswith(".index.json"):
        return {"": _shards(path)}
    if path.is_file() and (what := _foreign(path)):
        raise ValueError(f"{path} is {what}.")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        # A safetensors file begins with the length of its header, whose first byte may be that of a pickle.
        if start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
            with warnings.catch_warnings(action="ignore"):  # about how it was pickled
                content = _loaded(path)
        else:
            return {"": load_file(path)}
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]}, an object" if found else "objects"
        raise ValueError(
            f"{path} is damaged, or holds {what} of Python code besides tensors, which is not run; save the model's "
            "state_dict() alone, or as safetensors."
        ) from None
    except Exception as error:  # an unpickler raises errors of many types: IndexError, AssertionError, ...
        detail = str(error).split("\n")[0]
        raise ValueError(f"{path} is not a whole file of tensors ({detail}); fetch it again.") from error
    found = {place: tensors for place, tensors in _sections(content, "") if tensors}
    if not found:
        inside = f"among {few(map(str, content))}" if isinstance(content, dict) and content else "in it"
        what = type(content).__name__ if isinstance(content, _Skipped) else "something else"
        inside = inside if isinstance(content, dict) and content else f"in it: it is a {what}, not a dict of tensors"
        raise ValueError(f"{path} is not read: there is no state dict {inside}; save the model's state_dict().")
    return found


def _foreign(path: Path) -> str:
    """What a file of weights is that is neither safetensors nor PyTorch's, and what to do; "" where it may be one."""
    with path.open("rb") as file:
        start = file.read(16)
    torch_it = "save its tensors from there with torch.save or safetensors"
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            return f"{what}; {torch_it}"
    if start[4:8] == b"TFL3":
        return f"a TFLite model; {torch_it}"
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.partition("/")[2] or name for name in archive.namelist()]
        except Exception:  # a damaged archive makes zipfile raise anything; the reader refuses it
            return ""
        if any(name.startswith("code/") for name in names):
            return "TorchScript, a program; torch.jit.load it and save its state_dict()"
        if "data.pkl" not in names:
            kind = "a Keras model" if "model.weights.h5" in names else f"a ZIP archive of {few(names, 3)}"
            return f"{kind}; {torch_it}"
    if path.suffix.lower() in SUFFIXED:
        return f"{SUFFIXED[path.suffix.lower()]}; {torch_it}"
    return ""


class _Skipped(dict[Any, Any]):
    """What stands in for an object of a class that is not tensors': its class is never imported, its code never run."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, _: object) -> None:
        pass


def _loaded(path: Path) -> Any:
    """What torch.save wrote, by torch's unpickler of weights alone, objects of other classes (the options of a training
    script, numpy's scalars, paths) as `_Skipped`."""
    try:
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the form before PyTorch 1.6
        others = []
    stubs: list[Any] = [(type(name.rpartition(".")[2], (_Skipped,), {}), name) for name in others]
    with torch.serialization.safe_globals(stubs):
        return torch.load(path, map_location="cpu", weights_only=True)


def _sections(content: Any, place: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts that hold tensors, at any depth that a training script nests them."""
    if not isinstance(content, dict) or depth > 8:
        return
    if tensors := {str(name): value for name, value in content.items() if isinstance(value, Tensor)}:
        yield place, tensors
    for name, inside in content.items():
        yield from _sections(inside, f"{place}.{name}" if place else str(name), depth + 1)


def _shards(path: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names, which lie beside it."""
    try:
        files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        if any(Path(name).name != name for name in files):
            raise ValueError("it names files outside its folder")
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not an index of tensors ({error}); fetch it again.") from error
    return {name: tensor for file in files for name, tensor in open_tensors(path.with_name(file)).items()}


def write_tensors(target: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor] | None = None) -> None:
    """Write a state dict: as safetensors, or, where the suffix is another, as torch.save does. read: gives each tensor
    when its turn comes, of which `tensors` has only shape and dtype; for safetensors, so that no two are in memory."""
    if read:
        _stream(target, tensors, read)
        return
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if target.suffix == ".safetensors":
        save_file(plain, target, metadata={"format": "pt"})
    else:
        torch.save(plain, target)


def _stream(target: Path, like: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """A safetensors file (github.com/safetensors/safetensors, "Format"), one tensor after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names, end = sorted(like, key=lambda name: (-like[name].itemsize, name)), 0  # so that each is aligned
    for name in names:
        begin, end = end, end + like[name].nbytes
        header[name] = {"dtype": DTYPES[like[name].dtype], "shape": [*like[name].shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(read(name).contiguous().flatten().view(torch.uint8).numpy().data)


def write_folder(
    target: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor] | None = None, /, **settings: Any
) -> None:
    """Write model.safetensors, as `write_tensors`, and a JSON file for each of the settings."""
    target.mkdir(parents=True, exist_ok=True)
    write_tensors(target / "model.safetensors", tensors, read)
    for name, content in settings.items():
        (target / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
