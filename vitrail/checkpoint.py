"""Checkpoints: everything that a run needs to go on as if it had not stopped, written all or nothing.

A checkpoint is a folder `step-N` with `tensors.safetensors` (parameters and the optimiser's state, by parameter name)
and `state.json` (the step). Order, augmentation, dropout and schedule are functions of (seed, step), so there is no
random state to keep. A folder appears under its name only when it is complete on the disk. Nothing is unpickled.

    save(folder / "checkpoints", step, task, optimizer, keep=2)
    step = restore(newest(folder / "checkpoints"), task, optimizer)
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(folder: Path, step: int, task: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Writes the checkpoint after `step` steps and deletes all but the newest `keep`; returns its folder.

    ValueError where the disk refuses it; the earlier checkpoints are then untouched.
    """
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors(task, optimizer), partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step}))
        for path in (partial / "tensors.safetensors", partial / "state.json", partial):
            _flush(path)
        if final.exists():  # the same step again, after a resume: the new one is equal
            shutil.rmtree(final)
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(f"the checkpoint {final} could not be written ({error}); earlier ones are intact.") from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    named = [(match, path) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return next(reversed(checkpoints(folder)), None)


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Puts a checkpoint's tensors into the task and the optimiser, bit for bit; returns the number of steps done.

    ValueError where a file is damaged, or was written for another model.
    """
    try:
        saved = load_file(path / "tensors.safetensors")
        step = int(json.loads((path / "state.json").read_text())["step"])
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}); delete it to go on from the one before."
        ) from error
    _check(path, saved, task)
    with torch.no_grad():
        for name, parameter in task.state_dict().items():
            parameter.copy_(saved[f"task/{name}"])
    for name, parameter in _named(task, optimizer):
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        # The optimiser's step count stays on the CPU, where torch.optim keeps it.
        optimizer.state[parameter] = {k: v if v.ndim == 0 else v.to(parameter.device) for k, v in state.items()}
    return step


def tensors(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name: "task/<parameter>" and "optimizer/<parameter>/<state>"."""
    found = {f"task/{name}": tensor for name, tensor in task.state_dict().items()}
    for name, parameter in _named(task, optimizer):
        found |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _named(task: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in task.named_parameters() if id(p) in trained]


def _check(path: Path, saved: dict[str, Tensor], task: nn.Module) -> None:
    """ValueError where the checkpoint's parameters are not the task's, naming the first difference."""
    here = {f"task/{name}": tensor.shape for name, tensor in task.state_dict().items()}
    there = {name: tensor.shape for name, tensor in saved.items() if name.startswith("task/")}
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            raise ValueError(
                f"the checkpoint {path} is of another model: {name.removeprefix('task/')} is "
                f"{_shape(there.get(name))} in it and {_shape(here.get(name))} here."
            )


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def _flush(path: Path) -> None:
    """Waits until the disk has a file or a folder's entries: a rename must not overtake what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
