"""A task whose model is a file that `vitrail export` wrote, computed by ONNX Runtime, OpenVINO or torch.export's graph.

    session = open_session(Path("pets.onnx"))               # or pets.pt2, or the folder pets.openvino
    task = exported(session, path="pets.onnx")              # predicts, answers and is judged as the task it was made of
    session.run(images)                                     # uint8 (B, C, H, W) -> {"features": ..., "logits": ...}

What a file says of itself is JSON under the name "vitrail" in its metadata (`About`). Nothing in a file is unpickled or
run: of torch.export's archives, those that would need it are refused.
"""

import json
import re
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Num, UInt8
from torch import Tensor

from vitrail.batch import Batch
from vitrail.config import parse
from vitrail.data.images.geometry import View
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Targets
from vitrail.models import Config
from vitrail.tasks.task import Metrics, Task, TaskConfig, config_of

FORMAT = 1  # of `About`
NAME = "vitrail"  # of the metadata
EXTRA = "pip install 'vitrail[export]'"
ENTRY = "vitrail.json"  # in a .pt2
GRAPH = "model.xml"  # in OpenVINO's folder


@dataclass(frozen=True)
class About:
    """What a file says of itself. size: (height, width) of the images that it takes, None for any. outputs: their names
    in order. weights: SHA-256 of the weights it was made from. precision: "float32", or how it is quantised. low: the
    smallest height and width where any size is taken."""

    format: int
    version: str
    model: Config
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: dict[str, Any]
    weights: str
    precision: str
    size: tuple[int, int] | None
    low: tuple[int, int]
    outputs: tuple[str, ...]


class Session(ABC):
    """An opened file. Threads may use it at the same time."""

    runtime: ClassVar[str]
    about: About

    @abstractmethod
    def run(self, images: UInt8[np.ndarray, "B C H W"]) -> list[np.ndarray]:
        """The outputs, in order, float32."""


class Exported(Task):
    """The task `inner`, its model on the meta device, with the outputs of a session instead of the model's."""

    def __init__(self, inner: Task, session: Session, path: str) -> None:
        super().__init__(inner.model, inner.preprocessing, inner.config, inner.class_names)
        self.inner, self.session, self.path = inner, session, path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        raise ValueError(f"{self.path} is an exported file; train the run that it was made from.")

    def outputs(self, images: Num[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """ValueError for a size that the file does not take."""
        about, (height, width) = self.session.about, images.shape[-2:]
        if about.size and (height, width) != about.size:
            takes = f"takes images of {about.size[0]} x {about.size[1]}, not {height} x {width}"
            raise ValueError(f"{self.path} {takes}; export it with --image-size any.")
        if height < about.low[0] or width < about.low[1]:
            takes = f"takes images from {about.low[0]} x {about.low[1]} on, not {height} x {width}"
            raise ValueError(f"{self.path} {takes}.")
        found = self.session.run(np.ascontiguousarray(images.to(torch.uint8).numpy()))
        return {name: torch.from_numpy(value) for name, value in zip(about.outputs, found, strict=True)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return self.inner.judged(self.outputs(batch["images"]), batch)

    def answers(self, outputs: dict[str, Tensor], views: Sequence[View], **options: Any) -> list[Any]:
        return self.inner.answers(outputs, views, **options)

    def for_targets(self, targets: Targets) -> "Exported":
        return Exported(self.inner.for_targets(targets), self.session, self.path)


def needs_weights(task: Task, what: str) -> None:
    """ValueError where the task's model is a file, which has answers and no weights. what: it is wanted for, a verb."""
    if isinstance(task, Exported):
        gone = f"{task.path} is an exported file, which answers and keeps no weights to {what}"
        raise ValueError(f"{gone}; give the run or model folder that it was made from.")


def exported(
    session: Session,
    path: str,
    names: Sequence[str] = (),
    image_size: int | tuple[int, int] | None = None,
    **said: Any,
) -> Exported:
    """The task of an opened file. names: of its classes, instead of its own. image_size: where it takes any. said:
    resize and interpolation, None for the file's; what is in the graph cannot be changed. ValueError where it is.
    """
    about = session.about
    said = {name: value for name, value in said.items() if value not in (None, (), "")}
    if fixed := sorted(set(said) - {"resize", "interpolation"}):
        raise ValueError(f"{fixed[0]} is part of the exported graph; export the model again, with --{fixed[0]}.")
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if about.size not in (None, size):
            of = f"{about.size[0]} x {about.size[1]}, not {size[0]} x {size[1]}"
            raise ValueError(f"it takes images of {of}; export it with --image-size any.")
        said["image_size"] = size
    if names and len(names) != about.model.classes:
        raise ValueError(f"there are {len(names)} class names, but the head has {about.model.classes} classes.")
    how = replace(about.preprocessing, **said)
    if about.size and how.resize == "native":
        raise ValueError(
            f"it takes images of {about.size[0]} x {about.size[1]}, so that none can stay at its own size."
        )
    config: TaskConfig = config_of(about.task)
    return Exported(config.task(about.model.build("meta"), how, tuple(names) or about.class_names), session, path)


def recognised(path: Path) -> bool:
    """Whether a path has the form of an exported file: .onnx, .pt2, .xml, or a folder with OpenVINO's model.xml."""
    return path.suffix in (".onnx", ".pt2", ".xml") or (path / GRAPH).is_file()


def open_session(path: Path) -> Session:
    """The session of a file. ValueError, naming it, where it is missing, damaged, not Vitrail's, or of a newer one, or
    where its runtime is not installed."""
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    kind = OnnxSession if path.suffix == ".onnx" else TorchSession if path.suffix == ".pt2" else OpenVinoSession
    try:
        return kind(path)
    except ImportError as error:
        raise ValueError(f"{path} needs {kind.runtime}, which is not installed ({error.name}): {EXTRA}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # each runtime has many classes of its own for what is wrong with a file
        first = "".join(c if c.isprintable() else " " for c in str(error))[:200]
        raise ValueError(f"{path} cannot be opened by {kind.runtime} ({first}); export it again.") from error


def _about(text: Any) -> About:
    """ValueError, to stand behind the file's name, where it is none."""
    if not text:
        raise ValueError("says nothing of its preprocessing and classes, so Vitrail did not write it.")
    try:
        document = json.loads(text)
        if document["format"] > FORMAT:
            raise ValueError(f"was written by Vitrail {document['version']}, which is newer; update this one.")
        return parse(About, document)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"has metadata that cannot be used ({error}); export it again.") from None


class OnnxSession(Session):
    """By ONNX Runtime, on the CPU, with as many threads as torch has."""

    runtime = "ONNX Runtime"

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what is wrong is raised
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.about = _about(self.session.get_modelmeta().custom_metadata_map.get(NAME))
        self.input = self.session.get_inputs()[0].name

    def run(self, images: UInt8[np.ndarray, "B C H W"]) -> list[np.ndarray]:
        found: Any = self.session.run(list(self.about.outputs), {self.input: images})
        return found


class OpenVinoSession(Session):
    """By OpenVINO, on the CPU. Where a processor has bfloat16, OpenVINO would compute in it, unasked."""

    runtime = "OpenVINO"

    def __init__(self, path: Path) -> None:
        core = _core()
        graph = core.read_model(path / GRAPH if path.is_dir() else path)
        self.about = _about(graph.get_rt_info(NAME).astype(str) if graph.has_rt_info(NAME) else None)
        how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self.compiled = core.compile_model(graph, "CPU", {**how, "PERFORMANCE_HINT": "LATENCY"})
        self.local = threading.local()  # a request serves one thread

    def run(self, images: UInt8[np.ndarray, "B C H W"]) -> list[np.ndarray]:
        if (request := getattr(self.local, "request", None)) is None:
            request = self.local.request = self.compiled.create_infer_request()
        found = request.infer([images])
        return [np.array(found[place]) for place in range(len(self.about.outputs))]


@cache
def _core() -> Any:
    """OpenVINO, once for the process and never given back: where the last of several compiled models was, the next
    signal, such as Ctrl-C, ended the process with a segmentation fault (2026.4)."""
    import openvino

    return openvino.Core()


class TorchSession(Session):
    """By torch itself."""

    runtime = "torch"

    def __init__(self, path: Path) -> None:
        said, archive = _checked(path)
        self.about = _about(said)
        program = torch.export.load(archive)
        self.module = program.module(check_guards=False)  # they are Python in a text; sizes are checked by `Exported`

    def run(self, images: UInt8[np.ndarray, "B C H W"]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [value.numpy() for value in self.module(torch.from_numpy(images)).values()]


# What an archive may hold, and what its graph may call, an expression of its sizes and a container of its outputs be:
# torch would call any function that it has, sympy evaluate any text as Python, and a container import any module.
ENTRIES = re.compile(
    r"extra/vitrail\.json|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|"
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
WORDS = "Symbol|Integer|FloorDiv|PythonMod|Mod|Max|Min|Add|Mul|integer|positive|nonnegative|True|False|[suz]+[0-9]+"
ARITHMETIC = "add|sub|mul|neg|floordiv|mod|eq|ne|lt|le|gt|ge"
TEXTS = {
    "target": re.compile(rf"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.({ARITHMETIC})"),
    "expr_str": re.compile(rf"(?:\b(?:{WORDS})\b|\d+|['\s(),=-])*"),
    "type": re.compile(r"builtins\.(tuple|dict|list)|cpu"),  # that of a device, too
    "as_operator": re.compile(r"(?!)"),
}


def _checked(path: Path) -> tuple[str | None, BytesIO]:
    """(what a .pt2 says of itself, an archive for torch), once it is known that torch need not unpickle any part of it
    nor run any text in it; ValueError, to stand behind its name, where it would.

    The archive is written anew, from what was looked at: torch reads zip files in its own way, without regard to upper
    and lower case in names, for example.
    """

    def refused(what: str) -> ValueError:
        return ValueError(f"holds parts that torch would unpickle or run, and Vitrail never does ({what[:60]}).")

    said, seen, made = None, set[str](), BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(made, "w") as clean:
        for entry in archive.infolist():
            name, content = entry.filename.partition("/")[2], archive.read(entry)
            if name in seen or not ENTRIES.fullmatch(name) or (content and name == "data/sample_inputs/model.pt"):
                raise refused(name)
            if name == f"extra/{ENTRY}":
                said = content.decode()
            elif name.endswith("_config.json"):
                for part in json.loads(content)["config"].values():
                    if part["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", part["path_name"]):
                        raise refused(name)
            elif name == "models/model.json":
                for kind, text in _texts(json.loads(content)):
                    if not TEXTS[kind].fullmatch(text):
                        raise refused(text)
            seen.add(name)
            clean.writestr(f"model/{name}", content)
    made.seek(0)
    return said, made


def _texts(node: Any) -> Iterator[tuple[str, str]]:
    """(key, text) of all functions, expressions and containers in a graph."""
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and key in TEXTS:
                yield key, value
            yield from _texts(json.loads(value) if key in ("in_spec", "out_spec") else value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
