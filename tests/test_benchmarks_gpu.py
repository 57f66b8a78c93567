"""The benchmark of training on a GPU: it runs in a tiny size on the CPU, and its arithmetic holds. Nothing is timed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import gpu, gpu_cifar10, peers
from benchmarks.peers import Case
from vitrail.models.cost import flops, parameters
from vitrail.models.zoo import configure
from vitrail.plan import needed


def record(**changes):
    """Two rounds of a case: ours takes 10 and 20 ms an image, timm 10 and 10; a matrix product runs at 1 TFLOP/s."""
    found = {"case": "B/16@224", "batch": 4, "flops_per_image": 1e9, "matrix_gflops": [1e3, 1e3], "foreign": [0, 0]}
    same = {"compile_seconds": 3.0, "graphs": 1, "recompiled": 0, "peak": 2**31, "host_share": [0.2, 0.4]}
    libraries = {"vitrail": [0.01, 0.02], "timm": [0.01, 0.01]}
    found["libraries"] = {name: {"seconds_per_image": seconds, **same} for name, seconds in libraries.items()}
    return found | {"errors": {}} | changes


def document(**changes):
    machine = {"cpu": "a", "cores": 1, "memory_gib": 1, "system": "b", "python": "3", "versions": {}, "date": "today"}
    empty = {"machine": {**machine, "commit": None}, "records": [], "not_run": []}
    return {**empty, **changes}


@pytest.mark.slow
def test_all_of_it_runs_in_a_tiny_size(tmp_path, capsys):
    words = ["--tiny", "--minutes", "10", "--rounds", "1", "--workers", "2", "--json", str(tmp_path / "gpu.json")]
    assert gpu.main(words) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["complete"]
    models, real = found["records"]
    assert list(models["libraries"]) == list(gpu.LIBRARIES)
    for library in models["libraries"].values():
        assert (library["graphs"], library["recompiled"]) == (1, 0)
        assert len(library["seconds_per_image"]) == 1
    assert 0 <= real["libraries"]["vitrail"]["data_wait"] <= 1
    assert "| real Ti/16@32 |" in capsys.readouterr().out


def test_ours_runs_and_what_there_was_no_time_for_is_named(tmp_path, capsys):
    words = ["--tiny", "--minutes", "3", "--rounds", "1", "--json", str(tmp_path / "gpu.json")]
    assert gpu.main([*words, "--cases", "Ti/16@32", "--libraries", "vitrail"]) == 0
    (found,) = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert found["libraries"]["vitrail"]["recompiled"] == 0
    assert len(found["matrix_gflops"]) == 1
    assert gpu.main(["--tiny", "--minutes", "0.01"]) == 0
    assert "Not run, for want of time: Ti/16@32; real Ti/16@32." in capsys.readouterr().out


class Worker:
    """Answers as the process does, without one; `broken` fails, and `slow` takes all the time that is left."""

    def __init__(self, clock, broken=(), slow=()):
        self.clock, self.broken, self.slow, self.asked, self.process = clock, broken, slow, [], self

    def poll(self):
        return None

    def ask(self, do, timeout, **request):
        assert timeout > 0
        self.asked.append((do, request.get("library")))
        if request.get("library") in self.broken:
            raise gpu.WorkerError("OutOfMemoryError: no room")
        if request.get("library") in self.slow:
            self.clock.left = 20.0
        answers = {
            "build": {"compile_seconds": 1.0, "step_seconds": 0.1, "peak": 0, "graphs": 1, "graphs_after": 1},
            "rate": {"gflops": 1e3},
            "steps": {"seconds": 0.1, "host_seconds": 0.05, "graphs": 1},
        }
        return answers[do]


class Clock:
    left = 500.0


def options(**changes):
    given = {"cases": (), "libraries": gpu.LIBRARIES, "minutes": 9.0, "rounds": 3, "burst": 1.0, "device": "cuda"}
    more = {"backend": "inductor", "real_steps": 60, "workers": 4, "least": 45.0, "tiny": False}
    return gpu.Options(**{**given, **more, **changes})


def test_a_library_that_fails_is_left_out_and_the_others_take_their_turns():
    found, clock = record(libraries={}, matrix_gflops=[], foreign=[]), Clock()
    worker = Worker(clock, broken=("timm",))
    assert gpu.build(worker, ["vitrail", "timm", "transformers"], found, options(), clock) == []
    gpu.rounds(worker, found, options(), clock)
    assert list(found["libraries"]) == ["vitrail", "transformers"]
    assert found["errors"] == {"timm": "OutOfMemoryError: no room"}
    assert found["libraries"]["vitrail"]["seconds_per_image"] == [0.1 / 4] * 3
    assert ("steps", "timm") not in worker.asked
    assert [row[1] for row in gpu.rows(found)] == ["vitrail", "transformers"]


def test_what_was_built_before_the_time_was_over_is_measured():
    found, clock = record(libraries={}, matrix_gflops=[], foreign=[]), Clock()
    worker = Worker(clock, slow=("timm",))
    assert gpu.build(worker, ["vitrail", "timm", "transformers"], found, options(), clock) == ["transformers"]
    gpu.rounds(worker, found, options(), clock)
    assert len(found["libraries"]["timm"]["seconds_per_image"]) == 3


def test_the_table_says_rates_shares_and_ratios():
    text = gpu.text(document(records=[record()], not_run=["H/14@224"]))
    ours = next(line for line in text.splitlines() if "vitrail |" in line)
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    # Medians: 15 ms an image; 1 GFLOP in 10 and 20 ms of 1 TFLOP/s are 10 and 5 %.
    assert cells == [
        *("B/16@224", "vitrail", "4", "67", "0.1", "8%", "2.0", "3", "1 + 0", "30%", "-", "1.500 (1.000-2.000)")
    ]
    assert "Not run, for want of time: H/14@224." in text
    assert "Matrix products: 1.0 TFLOP/s." in text


def test_a_run_without_results_is_a_valid_document():
    errors = {"case": "B/16@224", "libraries": {}, "errors": {"start": "no GPU"}}
    text = gpu.text(document(records=[errors]))
    assert "Nothing was measured." in text
    assert "B/16@224: start failed: no GPU" in text


@pytest.mark.parametrize(("free", "models"), [(80 * 2**30, 4), (24 * 2**30, 2), (2**30, 1)])
def test_the_batch_is_the_largest_power_of_two_that_fits(free, models):
    case, config = Case.parse("L/16@224"), configure("ViT-L/16")
    need = needed(config, 1, width=2)

    def share(batch):
        return (models * need.state + gpu.SPARE * need.image * batch) / free

    batch = gpu.fitting(case, 128, models, free)
    assert batch & (batch - 1) == 0
    assert 1 <= batch <= 128
    assert share(batch) <= gpu.SHARE or batch == 1
    assert share(2 * batch) > gpu.SHARE or batch == 128


def test_the_peers_sizes_are_the_zoos():
    for size, found in peers.ARCHITECTURES.items():
        case = Case.parse(f"{size}/{found.patch}@224")
        config = configure(f"ViT-{case.name}")
        assert case.parameters == parameters(config)
        assert case.gflop == pytest.approx(flops(config, (224, 224)) / 1e9)
        assert gpu.flops(case) == 3 * flops(config, (224, 224))
    with pytest.raises(ValueError, match=r"case 'H/16@224' is not one of .*H/14"):
        Case.parse("H/16@224")


@pytest.mark.parametrize(
    "words", [["--tiny", "--cases", "H/14"], ["--tiny", "--libraries", "jax"], ["--tiny", "--rounds", "0"]]
)
def test_a_command_line_that_makes_no_sense_is_refused(words):
    with pytest.raises(SystemExit) as end:
        gpu.main(words)
    assert end.value.code == 2


def test_cifar10_is_trained_as_long_as_the_minutes_allow(tmp_path, capsys):
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in range(10):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    words = ["--tiny", "--cifar10", str(tmp_path / "data"), "--minutes", "0.0001", "--workers", "0"]
    assert gpu.main([*words, "--json", str(tmp_path / "c.json")]) == 0
    found = json.loads((tmp_path / "c.json").read_text())["result"]
    assert found["steps"] == 10  # the trial took longer than all of the time
    assert found["images"] == 80
    assert 0 <= found["accuracy"] <= found["best"] <= 1
    assert "accuracy at the end" in capsys.readouterr().out
    assert gpu.main(["--tiny", "--cifar10", str(tmp_path / "nothing")]) == 2


def test_the_trials_speed_leaves_out_the_start():
    rates = [1.0, 10.0, 30.0]
    lines = [{"step": 10 * (i + 1), "images_per_second": rate} for i, rate in enumerate(rates)]
    assert gpu_cifar10.speed([*lines, {"step": 30, "evaluation": {}}], settled=10) == pytest.approx(15)
