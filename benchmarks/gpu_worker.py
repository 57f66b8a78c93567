"""A process that trains the models of several libraries by turns on one device; `benchmarks.gpu` starts it and asks.

Requests, beside "matrix" and "rate" (benchmarks/worker.py): {"do": "device", "device"}; {"do": "build", "library",
"case", "batch", "device", "backend"}, where the library may be "vitrail fp8" or "vitrail fsdp"; {"do": "steps",
"library", "count"}; {"do": "real", "case", "batch", "steps", "workers", "device", "backend", "images"}.

One process for all: their activations use the same memory in turn, as they would not in processes side by side.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.worker import Desk, serve

if TYPE_CHECKING:
    from vitrail.tasks import Classify

FP8, FSDP = " fp8", " fsdp"
WARM = 3  # steps after the first, before the peak of memory is read
DRAWN = 400  # different JPEGs


class Trainee:
    """One library's model with all that a step of training has: bytes on the device are normalised, the blocks are
    compiled each by itself, products are in bf16, gradients clipped, AdamW is fused. What differs is the model alone.
    """

    def __init__(self, library: str, case: str, batch: int, device: str, backend: str) -> None:
        import torch

        from benchmarks.peers import CLASSES, Case, build
        from vitrail.batch import Batch
        from vitrail.data.images.preprocessing import Preprocessing
        from vitrail.optim.build import Config
        from vitrail.optim.build import build as build_optimizer
        from vitrail.runtime import fp8
        from vitrail.runtime.blocks import autocast
        from vitrail.runtime.gradients import gradient
        from vitrail.tasks import Classify

        name, low, divided = library.split()[0], library.endswith(FP8), library.endswith(FSDP)
        size = (Case.parse(case).resolution,) * 2
        how = Preprocessing(size, (0.5,) * 3, (0.5,) * 3)
        self.device = torch.device(device)
        self.baseline = torch.cuda.memory_allocated() if device == "cuda" else 0
        # Of another library's model training asks no more than logits.
        self.task = Classify(build(name, Case.parse(case)), how).train().to(self.device)  # type: ignore[arg-type]
        if low:
            if device == "cuda":  # torch's product on a CPU is for tests
                fp8.refuse(self.device)
            fp8.convert(self.task)
        compile_units(self.task, backend)
        self.gradient = sharded(self.task, device) if divided else gradient(self.task, 1, 1, 0)
        # A rate so low that random labels do not end in weights that are NaN.
        self.optimizer = build_optimizer(self.task, Config(lr=1e-5))
        self.autocast = autocast("fp8" if low else "bf16", self.device)
        drawn = {"images": torch.randint(256, (batch, 3, *size), dtype=torch.uint8)}
        drawn |= {"targets": torch.randint(CLASSES, (batch,)), "keys": torch.arange(batch)}
        self.batch = Batch(**drawn).to(self.device)

    def step(self) -> None:
        """One step, as the Trainer does it."""
        from vitrail.optim.build import clip
        from vitrail.train import Backward

        self.gradient([self.batch], Backward(len(self.batch), self.autocast))
        clip(self.task.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def steps(self, count: int) -> dict[str, float]:
        """Seconds of a step; the fraction of them in which Python sends it: near 1, the device waits for Python; and
        the graphs that were compiled anew."""
        wait(self.device)
        before, start, processor = graphs(), time.perf_counter(), time.process_time()
        for _ in range(count):
            self.step()
        sent = time.perf_counter() - start
        wait(self.device)
        seconds = time.perf_counter() - start
        found = {"seconds": seconds / count, "host": sent / seconds, "recompiled": graphs() - before}
        return found | {"processor_seconds": time.process_time() - processor}

    def start(self) -> dict[str, Any]:
        """Compiles and warms up."""
        import torch

        before = graphs()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first, later = self.steps(1)["seconds"], self.steps(WARM)["seconds"]
        peak = (torch.cuda.max_memory_allocated() - self.baseline) / 2**30 if self.device.type == "cuda" else None
        return {"compile_seconds": first - later, "step_seconds": later, "peak_gib": peak, "graphs": graphs() - before}


def compile_units(task: Classify, backend: str) -> None:
    """Compiles every block by itself: the members of each library's longest list of modules."""
    from torch import nn

    from vitrail.models.vit import ViT
    from vitrail.runtime.blocks import compile_blocks

    if isinstance(task.model, ViT):
        compile_blocks(task, backend)
        return
    lists = [module for module in task.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    for block in max(lists, key=len):
        block.compile(dynamic=False, backend=backend)


def sharded(task: Classify, device: str) -> Any:
    """Its gradient as a process has it that is one of a group (fully_shard), all alone: what dividing costs by itself,
    without what is sent."""
    from torch import distributed

    from vitrail.runtime.together import grouped, shard, together

    if not distributed.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    shard(task, grouped(device, 1, 1), half=device == "cuda")  # a CPU has no LayerNorm of weights in bf16
    return together(task, 0)


def graphs() -> int:
    """How many graphs have been compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def wait(device: Any) -> None:
    """Waits until the device has done all its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def real(case: str, batch: int, steps: int, warm: int, workers: int, device: str, images: int) -> dict[str, Any]:
    """Runs the whole Trainer on JPEGs: processes decode, crop and mirror them."""
    from benchmarks import trainee
    from benchmarks.peers import Case
    from benchmarks.photographs import photographs
    from benchmarks.timm_script import Shape

    found, before = Case.parse(case), sum(os.times()[:4])
    a = found.architecture
    described = trainee.Case(Shape(found.resolution, found.patch, a.width, a.layers, a.heads), batch, warm, steps)
    with tempfile.TemporaryDirectory() as place:
        run = trainee.our_run(described, photographs(Path(place), None, images), steps)
        how = {"device": device, "precision": "bf16", "compile": device == "cuda", "workers": workers}
        answer = trainee.trained(replace(run, **how, log_every=max(1, warm // 2)), warm)
    return answer | {"processor_seconds": sum(os.times()[:4]) - before}


class GpuDesk(Desk):
    """Holds the libraries' models."""

    def __init__(self) -> None:
        self.trainees: dict[str, Trainee] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carries out one request."""
        match request.pop("do"):
            case "device":
                return device_facts(request["device"])
            case "build":
                try:
                    self.trainees[request["library"]] = trainee = Trainee(**request)
                    return trainee.start()
                except Exception:
                    self.trainees.pop(request["library"], None)
                    raise
                finally:
                    gc.collect()
            case "steps":
                return self.trainees[request["library"]].steps(request["count"])
            case "real":
                return real(**request)
            case other:
                return super().answer({"do": other, **request})


def device_facts(device: str) -> dict[str, Any]:
    """Name, memory and versions of the device, and how many bytes are free."""
    import torch

    if device != "cuda":
        return {"name": device, "free": 2**30}
    facts = torch.cuda.get_device_properties(0)
    capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
    known = {"name": facts.name, "memory": facts.total_memory, "capability": capability}
    return known | {"cuda": torch.version.cuda, "free": torch.cuda.mem_get_info(0)[0]}


if __name__ == "__main__":
    serve(GpuDesk())
