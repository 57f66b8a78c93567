"""Export: a model as one file for ONNX Runtime, OpenVINO or torch.export, which answers as PyTorch does.

    export(pipeline, Path("pets.onnx"))                             # ValueError where the file answers otherwise
    export(pipeline, Path("pets.onnx"), size="any")                 # images of any size
    export(pipeline, Path("pets.onnx"), int8=images)                # 8 bits; what it loses, `accept` may ask
    Pipeline.load("pets.onnx")                                      # predicts, is evaluated and served as any other

The graph goes from bytes (B, C, H, W) to the task's `outputs`: normalisation is in it, padding always, and positions
are resampled in it, or, for one size, beforehand. What follows from the outputs (probabilities, names) stays outside,
in the task, the same for all. The file says what it is (`tasks/exported.About`).
"""

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrail import __version__
from vitrail.config import dump
from vitrail.models import resnet, vit
from vitrail.models.config import Resample
from vitrail.pipeline import Pipeline
from vitrail.tasks.exported import ENTRY, EXTRA, FORMAT, GRAPH, NAME, About, Exported, exported, needs_weights
from vitrail.tasks.exported import open_session as opened
from vitrail.tasks.task import Task

Format = Literal["onnx", "openvino", "pt2"]
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "openvino": ".openvino", "pt2": ".pt2"}
NEEDS: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
OPSETS = 23, 20  # 23 has attention, GELU and layer norm as one node each; older runtimes do not read it
LARGEST = 2**31 - 2**20  # bytes: more does not fit into a protobuf, and needs a second file
TOLERANCE = 1e-5  # of an output, of PyTorch's largest or of 1, whichever is more
METHODS: dict[Format, str] = {
    "onnx": "int8: ONNX Runtime, dynamic, per channel, 7-bit weights",
    "openvino": "int8: NNCF, calibrated, transformer preset",
}


class Graph(nn.Module):
    """What is traced."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: UInt8[Tensor, "B C H W"]) -> dict[str, Tensor]:
        return self.task.outputs(images)


def export(
    pipeline: Pipeline,
    target: Path,
    to: Format = "onnx",
    size: tuple[int, int] | Literal["any"] | None = None,
    int8: Sequence[UInt8[np.ndarray, "C H W"]] | None = None,
    accept: Callable[[Exported], object] = lambda _: None,
) -> Pipeline:
    """Writes the file, and returns it opened. Its answers to three sizes of batch or image are within TOLERANCE of
    PyTorch's, but for int8, whose loss only images can tell (`vitrail export` refuses it by that).

    size: (height, width) of the images that it takes, or any; None is the preprocessing's own. int8: prepared images to
    calibrate by; ONNX Runtime needs none. accept: is given the task of the file before it is in its place, and raises
    what keeps it from that. ValueError where the format cannot hold the model, where a package is not
    installed, and where the answers differ; then there is no file.
    """
    needs_weights(pipeline.task, "export")
    for name in NEEDS.get(to, ()) + (("nncf",) if to == "openvino" and int8 is not None else ()):
        try:
            version(name)
        except PackageNotFoundError:
            raise ValueError(f"--to {to} needs {name}, which is not installed: {EXTRA}") from None
    if int8 is not None and to not in METHODS:
        raise ValueError(f"{to} has no int8; choose --to {' or '.join(METHODS)}.")
    how = pipeline.preprocessing
    size = size or ("any" if how.resize == "native" else how.image_size)
    fixed = None if size == "any" else size
    if fixed and how.resize == "native":
        raise ValueError("the model takes images at their own size (native); export it with --image-size any.")
    task = _baked(pipeline.task, fixed)
    about = _about(task, fixed, METHODS[to] if int8 is not None else "float32")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.stem}.part{ENDINGS[to]}")
    try:
        with _silent():
            program = _traced(task, about)
            if to == "onnx":
                _onnx(program, about, made, int8 is not None)
            elif to == "openvino":
                _openvino(program, about, made, int8)
            else:
                program.example_inputs = None  # which torch would pickle
                torch.export.save(program, str(made), extra_files={ENTRY: json.dumps(dump(about))})
        file = exported(opened(made), str(target))
        error = difference(task, file)
        if int8 is None and not error <= TOLERANCE:
            raise ValueError(f"the exported graph's answers are {error:.1e} from PyTorch's, more than {TOLERANCE:.0e}.")
        accept(file)
        if made.is_dir():
            _remove(target)
        made.replace(target)
    finally:
        _remove(made)
    return Pipeline(file.eval())


def difference(task: Task, file: Exported) -> float:
    """How far a file's outputs are from the task's, at most, over three batches of random images; of any size: its own,
    one that patches do not divide, and a small one. In parts of PyTorch's largest output, or of 1, whichever is more.
    """
    about, generator, worst = file.session.about, torch.Generator().manual_seed(0), 0.0
    height, width = about.size or about.model.image_size
    low = about.low
    sizes = (
        [(height, width)] * 3 if about.size else [(height, width), (height + 3, 2 * width - 5), (low[0] + 1, low[1])]
    )
    for count, one in zip((1, 2, 5), sizes, strict=True):
        shape = (count, about.model.channels, *one)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        with torch.no_grad():
            wanted, found = task.outputs(images), file.outputs(images)
        for name, value in wanted.items():
            worst = max(worst, float((found[name] - value).abs().max() / value.abs().max().clamp_min(1)))
    return worst


def _about(task: Task, size: tuple[int, int] | None, precision: str) -> About:
    config, digest = task.model.config, sha256()
    for name, tensor in sorted(task.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    with torch.no_grad():
        names = tuple(task.outputs(torch.zeros(1, config.channels, *(size or config.image_size), dtype=torch.uint8)))
    stride = config.stride if isinstance(config, vit.Config) else (config.stride, config.stride)
    # torch.export takes a length of 1 for a constant, so that there are two patches or more along each side.
    cropped = isinstance(config, vit.Config) and config.remainder == "crop"
    low = (2 * stride[0], 2 * stride[1]) if cropped else (stride[0] + 1, stride[1] + 1)
    return About(
        FORMAT,
        __version__,
        config,
        task.preprocessing,
        task.class_names,
        dump(task.config),
        digest.hexdigest(),
        precision,
        size,
        size or low,
        names,
    )


def _baked(task: Task, size: tuple[int, int] | None) -> Task:
    """A copy in float32 on the CPU, in evaluation mode, in which all is computed that follows from weights alone: the
    kernels of a ResNet, and, for one size, positions of every kind. ValueError for a size that the model refuses."""
    task = copy.deepcopy(task).to("cpu", torch.float32).eval().requires_grad_(False)
    model = task.model
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, resnet.StdConv2d):
                setattr(part, name, Convolution(child))
    if isinstance(model, vit.ViT):
        if size is None and (model.config.relative != "none" or model.config.remainder == "refuse"):
            what = "relative positions" if model.config.relative != "none" else 'remainder "refuse"'
            raise ValueError(f"a model with {what} is exported for one size; name it: --image-size H W.")
        if size is not None:
            table = model.position_table(model.config.grid(size))
            places = model.places(torch.zeros(1, model.config.channels, *size))
            model.position_table = lambda grid: table  # type: ignore[method-assign]
            model.places = lambda images: places  # type: ignore[method-assign]
            for attention in (part for part in model.modules() if isinstance(part, vit.Attention)):
                if attention.relative_position_bias_table is not None:
                    attention.bias = partial(_same, attention.bias(places, None))  # type: ignore[method-assign]
        elif model.pos_embed is not None:
            model.position_table = partial(_resampled, model)  # type: ignore[method-assign]
    return task


def _same(bias: Tensor, places: vit.Places | None, mask: vit.Mask | None) -> Tensor:
    """Attention.bias, for one size."""
    assert mask is None
    return bias


def _resampled(model: vit.ViT, grid: tuple[int, int]) -> Float[Tensor, "1 N D"]:
    """ViT.position_table by products of matrices: of the runtimes' own resampling, OpenVINO's is another (0.35 of the
    largest output off), and phones have none."""
    config, table = model.config, model.pos_embed
    assert table is not None
    first, patches = table[0, : config.prefix_rows], table[0, config.prefix_rows :]
    own = config.grid(config.image_size)
    rows, columns = (interpolation(old, new, config.resample) for old, new in zip(own, grid, strict=True))
    found = columns @ (rows @ patches.reshape(own[0], -1)).reshape(-1, own[1], config.width)
    first = F.pad(first, (0, 0, 0, config.prefix - config.prefix_rows))
    return torch.cat([first, found.flatten(0, 1)])[None]


def interpolation(old: int, new: int, kind: Resample) -> Float[Tensor, "new old"]:
    """F.interpolate along one axis, in the ways of models/positions.py, as a matrix. new: 2 or more, or a symbol.

    A kernel reads the old points around the place of each new one: with antialiasing it is as wide as the new points
    are apart, and what is outside counts for nothing; without, the outermost point is repeated there. Keys' cubic
    (1981) has a = -0.5 with antialiasing and -0.75 without, in torch as in Pillow and OpenCV.
    """
    mode, _, detail = kind.partition("_")
    if old == 1:
        return torch.ones(new, 1)
    antialias, beyond = detail == "antialias", 0 if detail == "antialias" else 2
    points, places = torch.arange(-beyond, old + beyond, dtype=torch.float32), torch.arange(new, dtype=torch.float32)
    count = places[-1:] + 1
    places = places * ((old - 1) / (count - 1)) if detail == "corners" else (places + 0.5) * (old / count) - 0.5
    apart = (points - places[:, None]).abs()
    apart = apart / (old / count).clamp_min(1) if antialias else apart
    if mode == "bilinear":
        weights = (1 - apart).clamp_min(0)
    else:
        a = -0.5 if antialias else -0.75
        near = ((a + 2) * apart - (a + 3)) * apart * apart + 1
        far = ((apart - 5) * apart + 8) * apart * a - 4 * a
        weights = torch.where(apart <= 1, near, torch.where(apart < 2, far, torch.zeros_like(apart)))
    if antialias:
        return weights / weights.sum(1, keepdim=True)
    return torch.cat([weights[:, :3].sum(1, True), weights[:, 3:-3], weights[:, -3:].sum(1, True)], 1)


class Convolution(nn.Module):
    """A StdConv2d with its kernel standardised once."""

    def __init__(self, conv: resnet.StdConv2d) -> None:
        super().__init__()
        self.stride = conv.stride[0]
        self.register_buffer("weight", conv.standardised().detach())

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        assert isinstance(self.weight, Tensor)
        return F.conv2d(resnet.same_padding(input, self.weight.shape[-1], self.stride), self.weight, None, self.stride)


def _traced(task: Task, about: About) -> ExportedProgram:
    """ValueError where torch.export cannot trace the task, as it may be with one of the user's own."""
    height, width = about.size or (
        max(own, low) + 1 for own, low in zip(about.model.image_size, about.low, strict=True)
    )
    images = torch.zeros(2, about.model.channels, height, width, dtype=torch.uint8)  # one would be taken for a constant
    free: dict[int, Any] = {0: Dim("batch")}
    if about.size is None:
        free |= {2: Dim("height", min=about.low[0]), 3: Dim("width", min=about.low[1])}
    try:
        with torch.no_grad():
            program = torch.export.export(Graph(task), (images,), dynamic_shapes={"images": free}, strict=False)
    except (RuntimeError, ValueError) as error:  # torch's own UserError is one
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"torch.export cannot trace the {type(task).__name__} task: {first}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine, which would be in every file
    return program


def _onnx(program: ExportedProgram, about: About, target: Path, int8: bool) -> None:
    """The newest opset that the runtime here reads."""
    import onnx

    for opset in OPSETS:
        made: Any = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=list(about.outputs),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        made.model.metadata_props[NAME] = json.dumps(dump(about))
        size = sum(value.const_value.nbytes for value in made.model.graph.initializers.values())
        if size > LARGEST:
            raise ValueError(f"its weights are {size / 2**30:.1f} GiB; ONNX holds up to 2 GiB in one file: --to pt2.")
        made.save(target, external_data=False)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            # Weights of 7 bits: the product of two of 8 overflows where the processor has no VNNI.
            quantize_dynamic(
                target, target, ["MatMul", "Gemm"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
            )
        onnx.checker.check_model(str(target), full_check=True)
        try:
            opened(target)
            return
        except ValueError:
            if opset == OPSETS[-1]:
                raise


def _openvino(program: ExportedProgram, about: About, target: Path, int8: Sequence[np.ndarray] | None) -> None:
    import openvino

    try:
        graph = openvino.convert_model(program)
    except RuntimeError as error:  # its own are derived from it
        first = str(error).strip().splitlines()[-1]
        raise ValueError(f"OpenVINO cannot convert the model ({first}); choose another format.") from error
    graph.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(graph.outputs, about.outputs, strict=True):
        output.get_tensor().set_names({name})
    if int8 is not None:
        import nncf

        if not int8:
            raise ValueError("OpenVINO's int8 is calibrated by images, and there are none.")
        images = nncf.Dataset([image[None] for image in int8])
        graph = nncf.quantize(graph, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(int8))
    graph.set_rt_info(json.dumps(dump(about)), NAME)
    openvino.save_model(graph, target / GRAPH, compress_to_fp16=False)


@contextmanager
def _silent() -> Iterator[None]:
    """Exporters print what they do, and warn of what is their own affair."""
    import logging

    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
