"""A process that measures one library's model and nothing else; `benchmarks.pool` starts it and asks.

    python -m benchmarks.worker          then one JSON object a line on standard input, one answer a line

Requests: {"do": "build", "library", "case", "pass", "mode", "batch", "device", "threads"}, {"do": "steps", "count"},
{"do": "flops"}, {"do": "memory"}, {"do": "matrix", "device", "threads"}, {"do": "rate"}. An answer is an object, or
{"error", "trace"}. The process ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
PREPARED = ("plain", "int8")


class Bench:
    """A model with its inputs and one way to step it: forward in inference mode, or forward and backward."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        from benchmarks.peers import CLASSES, Case, build

        torch.set_num_threads(request["threads"])
        self.device: str = request["device"]
        self.training = request["pass"] == "train"
        case = Case.parse(request["case"])
        self.model = build(request["library"], case).train(self.training).to(self.device)
        self.call = ready(self.model, request["mode"])
        shape = (request["batch"], 3, case.resolution, case.resolution)
        self.images = torch.randn(shape, device=self.device)
        self.labels = torch.randint(CLASSES, shape[:1], device=self.device)
        self.replicas = cores(self.model, request["threads"]) if request["mode"] == "cores" else None

    def step(self, examples: int | None = None) -> None:
        """One forward pass, or one forward and backward pass, of the batch or of its first examples."""
        import torch

        low = torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else contextlib.nullcontext()
        images, labels = self.images[:examples], self.labels[:examples]
        if self.replicas:
            shared_step(self.replicas, images, labels)
        elif self.training:
            with low:
                loss = torch.nn.functional.cross_entropy(self.call(images), labels)
            loss.backward()
        else:
            with torch.inference_mode(), low:
                self.call(images)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Frees the gradients, as a training loop does between steps."""
        self.model.zero_grad(set_to_none=True)

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of each of `count` steps; page faults of one and processor seconds of all say what disturbed them."""
        seconds: list[float] = []
        before, processor = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        for _ in range(count):
            self.clear()
            start = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return {
            "seconds": seconds,
            "faults": round(faults / count),
            "processor_seconds": time.process_time() - processor,
        }

    def flops(self) -> dict[str, Any]:
        """2 x multiply-adds of the forward pass of one image, as torch counts them in this very model."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # torch counts nothing for the CPU's fused attention, and torchvision's inference path hides all of it:
        # training mode with attention as plain products is the same arithmetic with every product visible.
        self.model.train()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.model(self.images[:1])
        self.model.train(self.training)
        return {"flops": counter.get_total_flops()}

    def memory(self) -> dict[str, Any]:
        """Peak memory of two steps above what model and inputs hold."""
        import torch

        # The first call loads code and opens scratch space in oneDNN; one image of it comes before the baseline.
        self.step(1)
        self.clear()
        gc.collect()
        if self.device == "cuda":
            baseline = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.steps(2)
            peak = torch.cuda.max_memory_allocated() - baseline
            return {"peak": peak, "tensors": peak, "baseline": baseline, "method": "torch.cuda"}
        give_back_free_memory()
        baseline, method = start_peak()
        self.steps(2)
        peak = status_bytes("VmHWM") - baseline
        self.clear()
        return {"peak": peak, "tensors": self.tensor_peak(), "baseline": baseline, "method": method}

    def tensor_peak(self) -> int | None:
        """The most bytes that the tensors of one step hold at a time, by the allocator's records, which are of one
        thread: None if several threads make them."""
        if self.replicas:
            return None
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        results = profiler.profiler.kineto_results
        events = [event for event in results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak


def ready(model: Any, mode: str) -> Callable[..., Any]:
    """The model as `mode` has it: itself, compiled, or as Vitrail prepares its own for inference."""
    import torch

    if mode in PREPARED:
        from vitrail.runtime.inference import prepared

        return prepared(model, mode)
    return torch.compile(model) if mode == "compiled" else model


def cores(model: Any, count: int) -> Any:
    """Vitrail's model as its Trainer has it on a CPU: a replica for each core."""
    from vitrail.runtime.threads import Replicas

    return Replicas(model, count)


def shared_step(replicas: Any, images: Any, labels: Any) -> None:
    """Forward and backward passes as the Trainer takes them on a CPU: each core has a part of the images."""
    import torch

    from vitrail.batch import Batch

    def backward(model: Any, part: Batch) -> None:
        losses = torch.nn.functional.cross_entropy(model(part["images"]), part["targets"], reduction="sum")
        (losses / len(images)).backward()

    replicas.map(backward, Batch(images=images, targets=labels))
    replicas.gather()


def give_back_free_memory() -> None:
    """Freed but still mapped memory would hide the same amount of the peak (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def status_bytes(field: str) -> int:
    """One field of /proc/self/status in bytes."""
    return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))


def start_peak() -> tuple[int, str]:
    """Resident bytes now, and how VmHWM, the highest, counts from now on."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        # The highest mark cannot be reset here: a build that peaked above the steps would be read as theirs.
        return status_bytes("VmRSS"), "VmHWM, not reset"
    return status_bytes("VmRSS"), "VmHWM, reset"


class Desk:
    """Holds what was built and answers requests."""

    bench: Bench
    matrix: Any

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carries out one request."""
        match request["do"]:
            case "build":
                self.bench = Bench(request)
                return {}
            case "steps":
                return self.bench.steps(request["count"])
            case "flops":
                return self.bench.flops()
            case "memory":
                return self.bench.memory()
            case "matrix":
                import torch

                from benchmarks.machine import MatrixProduct

                torch.set_num_threads(request["threads"])
                self.matrix = MatrixProduct(request["device"])
                return {}
            case "rate":
                return {"gflops": self.matrix.rate()}
            case unknown:
                raise ValueError(f"no request {unknown!r}")


def serve(desk: Desk) -> None:
    """Answers until standard input ends."""
    # Libraries print to standard output as they like; the answers need a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = desk.answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    serve(Desk())
