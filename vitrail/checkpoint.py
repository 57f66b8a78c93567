"""Checkpoints: everything that a run needs to go on as if it had not stopped, written all or nothing.

A checkpoint is a folder `step-N` with the tensors (parameters, the optimiser's state and the average of the weights, by
parameter name) and `state.json`: the step, and each file's size and digest. Order, augmentation, dropout and schedule
are functions of (seed, step), so there is no random state to keep. A folder appears under its name only when it is
complete on the disk. Nothing is unpickled.

    with Writer(folder / "checkpoints", keep=2) as writer:
        writer.save(step, tensors(task, optimizer, ema))      # copied at once, written while training goes on
    step = restore(newest(folder / "checkpoints"), task, optimizer, ema)

The tensors are in one file, `tensors.safetensors`. Where the weights are divided among processes, each of these writes
a file of what it has, by torch.distributed.checkpoint: its planner, and the writer of safetensors that say where in the
whole a part belongs. Any number of processes reads either. A plan follows from how the weights are divided, so that
none is sent around: dcp.save would do that by pickle, and where one process's disk is full, leave the others waiting.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.data.sources.fingerprint import spread
from vitrail.optim.ema import Ema
from vitrail.optim.shards import divided, empty, mine, placed
from vitrail.runtime.distributed import ALONE, LONG, PATIENCE, Ranks

TENSORS = "tensors.safetensors"
BROKEN = (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AssertionError)


class Writer:
    """Writes checkpoints in a thread, one after the other, and deletes all but the newest `keep` and the best.

    Where the disk refuses one, the next call raises the ValueError; the earlier checkpoints are then untouched.
    ranks: of whom the first writes all, unless the weights are divided among them: then each does, in a thread that
    speaks with the others' over a group of its own, and all must make a Writer, save and wait.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks = ALONE, parts: bool = False) -> None:
        self.folder, self.keep, self.parts = folder, keep, parts
        self.ranks = ranks.apart() if parts else ranks
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[Any] | None = None

    def __enter__(self) -> "Writer":
        if self.ranks.first:
            _tidy(self.folder)
        if self.parts:
            self.ranks.flags(False, patience=LONG)  # nobody writes before that
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
        if self.parts:
            copied, more = _copied(mine(tensors, self.ranks.rank, self.ranks.world)), (self.ranks, self.keep, best)
            self.pending = self.pool.submit(_write_parts, self.folder, step, copied, *more)
        elif self.ranks.first:
            self.pending = self.pool.submit(write, self.folder, step, _copied(tensors), self.keep, best)

    def wait(self) -> None:
        """Returns when everything is on the disk. ValueError where it refused; Gone, within PATIENCE, where a process
        that should have written its part is no more."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], keep: int, best: int | None = None) -> Path:
    """Writes the checkpoint after `step` steps and deletes all but the newest `keep` and the best; returns its folder.

    ValueError where the disk refuses it; the earlier checkpoints are then untouched.
    """
    with _written(folder, step, clears=True) as partial:
        _tidy(folder)
        partial.mkdir(parents=True)
        save_file(dict(tensors), partial / TENSORS)
        _flush(partial / TENSORS)
        return _commit(folder, step, {TENSORS: identity(partial / TENSORS)}, keep, best)


def _write_parts(
    folder: Path, step: int, tensors: Mapping[str, Tensor], ranks: Ranks, keep: int, best: int | None
) -> None:
    """Writes this process's part of a checkpoint; the first one commits it when all are done. All raise what one meets,
    and Gone where one is not there any more; what was written then stays under no checkpoint's name until the next run.
    """
    with ranks.together(PATIENCE), _written(folder, step) as partial:
        files = _write_part(partial, tensors, ranks)
    found = {name: about for text in ranks.texts(json.dumps(files)) for name, about in json.loads(text).items()}
    with ranks.together(PATIENCE), _written(folder, step, clears=True):
        if ranks.first:
            _commit(folder, step, found, keep, best)


def _write_part(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, list[Any]]:
    """Writes the file of one process; returns its name and what tells it, or nothing where it has nothing to write."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    planner = DefaultSavePlanner(flatten_state_dict=False)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    planner.set_up_planner(dict(tensors), is_coordinator=ranks.first)
    writer.set_up_storage_writer(ranks.first)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plan = writer.prepare_global_plan([plan] * ranks.world)[ranks.rank]  # which numbers the files
    written = writer.write_data(planner.finish_plan(plan), planner).value()
    _flush(folder)
    return {(name := one.storage_data.relative_path): identity(folder / name) for one in written}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _partial(folder: Path, step: int) -> Path:
    return folder / f".step-{step}.partial"


@contextmanager
def _written(folder: Path, step: int, clears: bool = False) -> Iterator[Path]:
    """The folder to write into. ValueError where the disk refuses it. clears: whether the folder goes then."""
    partial = _partial(folder, step)
    try:
        yield partial
    except (OSError, SafetensorError) as error:
        if clears:
            shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"the checkpoint {folder / f'step-{step}'} could not be written ({error}); the earlier ones are intact, "
            f"make room and continue from them with `vitrail resume {folder.parent}`."
        ) from error


def identity(path: Path) -> list[Any]:
    """What tells a file of tensors from that of another step or run, whose size is the same: its size, and a digest of
    its header and the beginnings of 16 tensors, of the optimiser's states where it has some: frozen weights stay. All
    processes read it of all files, so that it must not read much: it finds no flipped bit."""
    with path.open("rb") as file:
        head = file.read(min(int.from_bytes(file.read(8), "little"), path.stat().st_size))
        starts = {name: of["data_offsets"] for name, of in json.loads(head).items() if name != "__metadata__"}
        chosen = [name for name in sorted(starts) if name.startswith("optimizer/")] or sorted(starts)
        digest = hashlib.sha256(head)
        for start, stop in (starts[chosen[place]] for place in spread(len(chosen), 16)):
            file.seek(8 + len(head) + start)
            digest.update(file.read(min(stop - start, 4096)))
    return [path.stat().st_size, digest.hexdigest()[:16]]


def _commit(folder: Path, step: int, files: Mapping[str, list[Any]], keep: int, best: int | None) -> Path:
    """Gives a checkpoint, all of whose files are written, its name, and deletes the oldest; returns its folder."""
    final, partial = folder / f"step-{step}", _partial(folder, step)
    if missing := [name for name in files if not (partial / name).is_file()]:
        raise ValueError(
            f"{partial / missing[0]} was written, but is not there; the run's folder must be one that all machines see."
        )
    for other in partial.iterdir():  # of a try before, by more processes
        if other.name not in files:
            other.unlink()
    (partial / "state.json").write_text(json.dumps({"step": step, "files": dict(sorted(files.items()))}))
    _flush(partial / "state.json")
    _flush(partial)
    if final.exists():  # the same step again, after a resume: the new one is equal
        _remove(final)
    partial.rename(final)
    _flush(folder)
    for old in checkpoints(folder)[:-keep]:
        if old.name != f"step-{best}":
            _remove(old)
    return final


def _tidy(folder: Path) -> None:
    """Deletes what a process left that was killed while it wrote or deleted."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    named = [(match, path) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return next(reversed(checkpoints(folder)), None)


class Saved:
    """The tensors of a checkpoint, whoever wrote it. step: how many were done. whole: whether they are in one file.

    ValueError, naming the file, where one is missing, truncated, damaged, or not of this checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.sound():
            state = json.loads((path / "state.json").read_text())
            self.step, files = int(state["step"]), dict(state.get("files", {}))
            for name, about in files.items():
                size, digest = about if isinstance(about, list) else (about, None)  # older ones have no digest
                if not (path / name).is_file():
                    raise ValueError(f"{name} is missing")
                if (there := (path / name).stat().st_size) != size:
                    raise ValueError(f"{name} has {there:,} bytes, not {size:,}")
                if digest and identity(path / name)[1] != digest:
                    raise ValueError(f"{name} is of another checkpoint")
        self.whole = not files or set(files) == {TENSORS}
        foreign = {other.name for other in path.glob("*.safetensors")} - (files.keys() or {TENSORS})
        if foreign:
            raise ValueError(f"{path / min(foreign)} is not of the checkpoint that it lies in; move it away.")

    @contextmanager
    def sound(self) -> Iterator[None]:
        """Around what reads it: ValueError where it is damaged."""
        try:
            yield
        except BROKEN as error:
            why = str(error) or type(error).__name__
            raise ValueError(
                f"the checkpoint {self.path} is damaged ({why}); delete it, and go on from another."
            ) from error

    @cached_property
    def reader(self) -> tuple[Any, Any]:
        """What reads parts of tensors, and what it found of them."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        with self.sound():
            reader = HuggingFaceStorageReader(str(self.path))
            metadata = reader.read_metadata()
            reader.set_up_storage_reader(metadata, is_coordinator=True)
            kinds: Any = metadata.state_dict_metadata
            for name, found in kinds.items():
                if sum(prod(chunk.sizes) for chunk in found.chunks) != prod(found.size):
                    raise ValueError(f"a part of {name} is missing")
        return reader, metadata

    @cached_property
    def like(self) -> dict[str, Tensor]:
        """Every tensor by its name, on the meta device."""
        found = self.reader[1].state_dict_metadata.items()
        return {name: torch.empty(of.size, dtype=of.properties.dtype, device="meta") for name, of in found}

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Fills tensors: of those that are divided, what this process has of them."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        planner, (reader, metadata) = DefaultLoadPlanner(flatten_state_dict=False), self.reader
        with self.sound():
            planner.set_up_planner(dict(into), metadata, is_coordinator=True)
            reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()


def restore(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> int:
    """Puts a checkpoint's tensors into task, optimiser and average, bit for bit; returns the number of steps done.

    Any number of processes may have written it, and may read it; where the weights are divided, each reads its part.
    ValueError where a file is damaged, missing or foreign, or was written for another model.
    """
    saved, live, trained = Saved(path), task.state_dict(), dict(_named(task, optimizer))
    if saved.whole and not any(map(divided, live.values())):
        with saved.sound():  # no need to import what reads parts
            found = load_file(path / TENSORS)
        check(path, found, task)
    else:
        check(path, saved.like, task)
        of = live | {name: trained.get(name.split("/")[1]) for name in saved.like if name.startswith("optimizer/")}
        owners = {name: of.get(name if name in of else name.partition("/")[2]) for name in saved.like}
        found = {name: empty(saved.like[name], owner) for name, owner in owners.items() if owner is not None}
        saved.read(found)
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(placed(found[f"task/{name}"], parameter))
    fused = {id(p) for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for name, parameter in trained.items():
        prefix = f"optimizer/{name}/"
        state = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        # torch.optim counts the steps on the CPU, and on the device where one kernel does the whole update.
        near = id(parameter) in fused
        moved = {k: v.to(parameter.device) if near or v.ndim else v for k, v in state.items()}
        optimizer.state[parameter] = {k: placed(v, parameter) if v.ndim else v for k, v in moved.items()}
    if ema:
        ema.load({name.removeprefix("ema/"): value for name, value in found.items() if name.startswith("ema/")})
    return saved.step


def tensors(task: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name: "task/<parameter>", "optimizer/<parameter>/<state>", "ema/<parameter>";
    divided where they are."""
    found = {f"task/{name}": tensor for name, tensor in task.state_dict().items()}
    for name, parameter in _named(task, optimizer):
        found |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    return found | ({f"ema/{name}": tensor for name, tensor in ema.tensors.items()} if ema else {})


def _remove(path: Path) -> None:
    """Deletes a checkpoint; a kill meanwhile leaves no half of it under its name."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def _named(task: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in task.named_parameters() if id(p) in trained]


def check(path: Path, saved: Mapping[str, Tensor], task: nn.Module) -> None:
    """ValueError where the checkpoint's parameters are not the task's, naming the first difference."""
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    there = {name[5:]: tuple(tensor.shape) for name, tensor in saved.items() if name.startswith("task/")}
    for name in here | there:
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
