"""One run on many processes: torch.distributed, started by torchrun, or by anything that sets its variables.

    ranks = join()                                  # alone, unless torchrun started several
    with ranks.together():                          # what one of them raises, all of them raise
        splits = open_splits(data)
    stop, failed = ranks.flags(stop, failed)        # whether any rank says so
    values = ranks.rows(values)                     # everybody's, one below the other

What is said between two steps goes by a gloo group of its own, on CPUs: no GPU waits for it, and a process that is gone
or hangs is noticed there, within PATIENCE. The gradients go by gradients.py.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

# Seconds that the others are waited for: in a step, and where one of them may open data, compile, judge or save.
PATIENCE = float(os.environ.get("VITRAIL_PATIENCE", "300"))
LONG = 12 * PATIENCE
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
ASKED = 8.0  # seconds in which whoever is there says so


T = TypeVar("T")


class Gone(ValueError):
    """Another process does not answer."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among those of a run. local: its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    store: Any = None
    control: Any = None
    hosts: list[str] = field(default_factory=list)

    @property
    def started(self) -> bool:
        """Whether torchrun, or what does as it does, has started it, if only once."""
        return self.store is not None or "TORCHELASTIC_RUN_ID" in os.environ

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The one of a kind that is this process's own."""
        return torch.device("cuda", self.local) if self.world > 1 and name == "cuda" else torch.device(name)

    def apart(self) -> "Ranks":
        """The same ones, who speak over a group of their own: for a thread. All must ask for it."""
        return replace(self, control=dist.new_group(backend="gloo", timeout=timedelta(seconds=LONG)))

    def flags(self, *mine: bool, patience: float = PATIENCE) -> list[bool]:
        """Whether any rank says so, of each. Gone where one does not answer within `patience` seconds."""
        if self.world == 1:
            return list(mine)
        found = torch.tensor(mine, dtype=torch.int32)
        self._all(found, dist.ReduceOp.MAX, patience)
        return found.bool().tolist()

    def texts(self, mine: str) -> list[str]:
        """Everybody's text, by rank. Gone as flags."""
        if self.world == 1:
            return [mine]
        rows = self.rows(np.frombuffer(mine.encode("utf-8", "surrogateescape") + b"\0", np.uint8))
        return rows.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

    def rows(self, mine: NDArray[Any], patience: float = LONG) -> NDArray[Any]:
        """Everybody's array (n, ...), in the order of the ranks; they may differ in n, and an empty one in all. Gone as
        flags."""
        if self.world == 1:
            return mine
        about = torch.zeros(self.world, 6, dtype=torch.int64)  # rows, their dtype, their shape
        about[self.rank, : 2 + mine.ndim - 1] = torch.tensor(
            [len(mine), DTYPES.index(mine.dtype.name), *mine.shape[1:]]
        )
        self._all(about, dist.ReduceOp.SUM, patience)
        counts, most = about[:, 0].tolist(), about[int(about[:, 0].argmax())].tolist()
        dtype, shape = np.dtype(DTYPES[most[1]]), [size for size in most[2:] if size]
        width = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        # Each fills its rows of zeros, which are then added up: whatever the dtype, no bit changes.
        whole, start = np.zeros((sum(counts), width), np.uint8), sum(counts[: self.rank])
        if len(mine):
            whole[start : start + len(mine)] = np.ascontiguousarray(mine).view(np.uint8).reshape(len(mine), width)
        self._all(torch.from_numpy(whole), dist.ReduceOp.SUM, patience)
        return np.frombuffer(whole.tobytes(), dtype).reshape(-1, *shape)

    @contextmanager
    def together(self, patience: float = LONG) -> Iterator[None]:
        """What is raised inside on any rank, ValueErrors, all raise at its end: the lowest rank's own."""
        problem: ValueError | None = None
        try:
            yield
        except ValueError as error:
            problem = error
        said = (
            self.texts(str(problem) if problem else "") if self.flags(problem is not None, patience=patience)[0] else []
        )
        for rank, text in enumerate(said):
            if text:
                raise problem if problem and rank == self.rank else ValueError(f"{text} (rank {rank})")
        if problem:
            raise problem

    def fetched(self, items: Iterable[T], stop: bool, patience: float) -> tuple[Iterable[T], bool]:
        """(this rank's items for a step, whether any rank is to stop): either all have theirs, or all raise what one
        has met. Gone as flags."""
        if self.world == 1:
            return items, stop
        with self.together(patience):
            items = list(items)
        return items, self.flags(stop, patience=patience)[0]

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around what all processes do at once: Gone where one has left meanwhile."""
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and re.search(r"gloo|nccl|peer|connection|process group", str(error), re.IGNORECASE):
                raise self.gone(error) from None
            raise

    def first_ones(self, tensors: Iterable[Tensor]) -> None:
        """Makes them what they are on the first rank."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor.detach(), 0)

    def same(self, what: dict[str, str]) -> None:
        """ValueError, naming the first rank that differs, its host and both values, unless `what` is equal on all."""
        found = {name: self.texts(value) for name, value in what.items()}
        for name, values in found.items():
            for rank, value in enumerate(values):
                if value != values[0]:
                    where = f"rank {rank} on {self.hosts[rank]} has another {name} ({value}) than rank 0 ({values[0]})"
                    raise ValueError(f"{where}; give all processes the same.")

    def gone(self, error: Exception) -> Gone:
        """Who does not answer any more, after an operation of all has failed."""
        missing = []
        with suppress(Exception):  # the store may be gone, too, with rank 0
            self.store.set(f"here/{self.rank}", "yes")
            started = time.monotonic()
            while (waited := time.monotonic() - started) < ASKED:
                missing = [rank for rank in range(self.world) if not self.store.check([f"here/{rank}"])]
                if len(missing) <= (waited > ASKED / 4):
                    break
                time.sleep(0.1)
        named = ", ".join(f"rank {rank} on {self.hosts[rank]}" for rank in missing) or "another process"
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0])[:100].rstrip(". ")
        return Gone(f"{named} does not answer ({reason}); the same command goes on from the last checkpoint.")

    def _all(self, tensor: Tensor, how: Any, patience: float) -> None:
        """all_reduce on the CPU, in place."""
        try:
            work = dist.all_reduce(tensor, how, group=self.control, async_op=True)
            assert work is not None
            work.wait(timedelta(seconds=patience))
        except RuntimeError as error:
            raise self.gone(error) from None


ALONE = Ranks()


@cache
def join() -> Ranks:
    """This process's place among those that torchrun started; alone without torchrun. Waits for the others.

    ValueError where they do not come, or there is no device for this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return ALONE
    rank, local = int(os.environ.get("RANK", "-1")), int(os.environ.get("LOCAL_RANK", "0"))
    if not 0 <= rank < world:
        raise ValueError(f"WORLD_SIZE is {world}, but RANK is {rank}; start all processes by torchrun, or unset both.")
    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() <= local:
        raise ValueError(
            f"there are {torch.cuda.device_count()} GPUs on this machine, but {local + 1} processes or more."
        )
    try:
        # A restarted worker must not read what the attempt before left in the agent's store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        ours = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = TCPStore(*place, world, is_master=ours, timeout=timedelta(seconds=PATIENCE))
        store = PrefixStore(f"vitrail/{attempt}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        step = timedelta(seconds=PATIENCE)  # of the operations in one, before which all have waited for each other
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=step)
        control = dist.new_group(backend="gloo", timeout=timedelta(seconds=LONG))
    except (RuntimeError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0][:200]
        raise ValueError(
            f"rank {rank} of {world} cannot meet the others ({first}); start all of them by torchrun."
        ) from None
    if cuda:
        torch.cuda.set_device(local)
    ranks = Ranks(rank, world, local, store, control)
    ranks.hosts.extend(ranks.texts(socket.gethostname()))
    return ranks


def leave(status: int) -> None:
    """Ends this process with a status, if it is one of several: torch's threads may abort it otherwise, now and then,
    while Python takes itself apart."""
    if not dist.is_initialized():
        return
    with suppress(Gone):
        if status == 0:  # those that are ready wait for the others, whose connections they hold
            join().flags(False, patience=LONG)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
