"""Checkpoints: everything that a run needs to go on as if it had not stopped, written all or nothing.

A checkpoint is a folder `step-N` with `tensors.safetensors` (parameters, the optimiser's state and the average of the
weights, by parameter name) and `state.json` (the step). Order, augmentation, dropout and schedule are functions of
(seed, step), so there is no random state to keep. A folder appears under its name only when it is complete on the disk.
Nothing is unpickled.

    with Writer(folder / "checkpoints", keep=2) as writer:
        writer.save(step, tensors(task, optimizer, ema))      # copied at once, written while training goes on
    step = restore(newest(folder / "checkpoints"), task, optimizer, ema)
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.optim.ema import Ema
from vitrail.optim.shards import placed, whole


class Writer:
    """Writes checkpoints in a thread, one after the other, and deletes all but the newest `keep` and the best.

    Where the disk refuses one, the next call raises the ValueError; the earlier checkpoints are then untouched.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[Path] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.pool.shutdown(wait=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], best: int | None = None) -> None:
        """Starts to write the checkpoint after `step` steps, once the one before is done. best: a step to keep."""
        self.wait()
        copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self.pending = self.pool.submit(write, self.folder, step, copied, self.keep, best)

    def wait(self) -> None:
        """Returns when everything is on the disk. ValueError where it refused."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], keep: int, best: int | None = None) -> Path:
    """Writes the checkpoint after `step` steps and deletes all but the newest `keep` and the best; returns its folder.

    ValueError where the disk refuses it; the earlier checkpoints are then untouched.
    """
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    try:
        for left in folder.glob(".step-*"):  # of a process that was killed while it wrote or deleted
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(dict(tensors), partial / "tensors.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": step}))
        for path in (partial / "tensors.safetensors", partial / "state.json", partial):
            _flush(path)
        if final.exists():  # the same step again, after a resume: the new one is equal
            _remove(final)
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"the checkpoint {final} could not be written ({error}); the earlier ones are intact, make room and "
            f"continue from them with `vitrail resume {folder.parent}`."
        ) from error
    for old in checkpoints(folder)[:-keep]:
        if old.name != f"step-{best}":
            _remove(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    named = [(match, path) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return next(reversed(checkpoints(folder)), None)


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> int:
    """Puts a checkpoint's tensors into task, optimiser and average, bit for bit; returns the number of steps done.

    ValueError where a file is damaged, or was written for another model.
    """
    try:
        saved = load_file(path / "tensors.safetensors")
        step = int(json.loads((path / "state.json").read_text())["step"])
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}); delete it, and go on from another.") from error
    _check(path, saved, task)
    with torch.no_grad():
        for name, parameter in task.state_dict().items():
            parameter.copy_(placed(saved[f"task/{name}"], parameter))
    fused = {id(p) for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for name, parameter in _named(task, optimizer):
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        # torch.optim counts the steps on the CPU, and on the device where one kernel does the whole update.
        near = id(parameter) in fused
        moved = {k: v.to(parameter.device) if near or v.ndim else v for k, v in state.items()}
        optimizer.state[parameter] = {k: placed(v, parameter) if v.ndim else v for k, v in moved.items()}
    if ema:
        ema.load({name.removeprefix("ema/"): value for name, value in saved.items() if name.startswith("ema/")})
    return step


def tensors(task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name: "task/<parameter>", "optimizer/<parameter>/<state>", "ema/<parameter>".
    Those that are divided among processes are whole, so all of these must ask."""
    found = {f"task/{name}": tensor for name, tensor in task.state_dict().items()}
    for name, parameter in _named(task, optimizer):
        found |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    found |= {f"ema/{name}": tensor for name, tensor in ema.tensors.items()} if ema else {}
    # One after the other: no more than one is whole on a device at a time.
    return {name: tensor if (w := whole(tensor)) is tensor else w.cpu() for name, tensor in found.items()}


def _remove(path: Path) -> None:
    """Deletes a checkpoint; a kill meanwhile leaves no half of it under its name."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def _named(task: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in task.named_parameters() if id(p) in trained]


def _check(path: Path, saved: dict[str, Tensor], task: nn.Module) -> None:
    """ValueError where the checkpoint's parameters are not the task's, naming the first difference."""
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    there = {name[5:]: tuple(tensor.shape) for name, tensor in saved.items() if name.startswith("task/")}
    for name in here.keys() | there.keys():
        mine, yours = here.get(name, "missing"), there.get(name, "missing")
        if mine != yours:
            raise ValueError(f"the checkpoint {path} is of another model: {name} is {yours} in it and {mine} here.")


def _flush(path: Path) -> None:
    """Waits until the disk has a file or a folder's entries: a rename must not overtake what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
