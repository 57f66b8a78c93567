"""The benchmark of training on a GPU: it runs in a tiny size on the CPU, and its arithmetic holds. Nothing is timed."""

import json
import re
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import gpu, gpu_profile, peers, rounds
from benchmarks.peers import Case
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models.cost import flops, parameters
from vitrail.models.zoo import configure
from vitrail.plan import layouts
from vitrail.run import Run


def test_ours_runs_and_what_there_was_no_time_for_is_named(tmp_path, capsys):
    words = ["--tiny", "--minutes", "3", "--rounds", "1", "--json", str(tmp_path / "gpu.json")]
    assert gpu.main([*words, "--cases", "Ti/16@32", "--libraries", "vitrail"]) == 0
    (found,) = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert sum(found["libraries"]["vitrail"]["recompiled"]) == 0
    assert len(found["matrix_gflops"]) == len(found["foreign"]) >= 1
    assert gpu.main(["--tiny", "--minutes", "0.01"]) == 0
    assert "Ti/16@32: all; real Ti/16@32: all." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_step_is_taken_apart(unchecked, capsys):
    assert gpu_profile.main(["Ti/16@16", "--batch", "1", "--libraries", "vitrail", "--device", "cpu"]) == 0
    assert {"gradient", "optimizer", "_fused_adamw_"} <= set(re.findall(r"\w+", capsys.readouterr().out))


def test_it_can_be_imported_where_a_gpu_machine_lacks_packages():
    block = "import sys; sys.modules.update(dict.fromkeys(['tyro', 'docstring_parser', 'typeguard', 'simplejpeg']))"
    code = f"{block}; import benchmarks.gpu, benchmarks.gpu_worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


class Worker:
    """Answers as the process does, without one; `broken` fails, and `slow` takes all the time that is left."""

    def __init__(self, options, broken=(), slow=()):
        self.options, self.broken, self.slow, self.asked, self.process = options, broken, slow, [], self

    def poll(self):
        return None

    def ask(self, do, timeout, **request):
        assert timeout > 0
        self.asked.append((do, request.get("library")))
        if request.get("library") in self.broken:
            raise gpu.WorkerError("OutOfMemoryError: no room")
        if request.get("library") in self.slow:
            self.options.until = time.perf_counter() + 20
        return {"build": {"step_seconds": 0.1, "graphs": 1}, "steps": {"seconds": 0.1}}[do]


@pytest.mark.parametrize(
    ("how", "errors", "missing"),
    [({"broken": ["timm"]}, {"timm": "OutOfMemoryError: no room"}, []), ({"slow": ["timm"]}, {}, ["transformers"])],
)
def test_what_fails_or_has_no_time_is_left_out_and_the_others_take_their_turns(how, errors, missing):
    options = Namespace(rounds=3, burst=1.0, device="cuda", backend="inductor", least=45.0)
    options.until = time.perf_counter() + 500
    record = rounds.new("B/16@224", "vitrail", batch=4, flops=1e9, not_run=[])
    worker = Worker(options, **how)
    built = gpu.build(worker, ["vitrail", "timm", "transformers"], record, options)
    assert (record["errors"], record["not_run"]) == (errors, missing)
    assert built == [name for name in ("vitrail", "timm", "transformers") if name not in [*errors, *missing]]
    assert all(gpu.turn(worker, name, record, options)["seconds"] == 0.1 / 4 for name in built)


def test_the_table_says_rates_and_ratios():
    record = rounds.new("B/16@224", "vitrail", batch=4, matrix_gflops=3 * [1e3], device={"name": "X"}, not_run=["H/14"])
    record["foreign"] = 3 * [0.0]
    for name, seconds in (("vitrail", 0.01), ("timm", 0.02)):
        found = {"seconds": 3 * [seconds], "recompiled": [0, 0, 0], "host": [0.2, 0.3, 0.4]}
        record["libraries"][name] = found | {"flops": 1e9, "compile_seconds": 3.0, "graphs": 1, "peak_gib": 2.0}
    text = re.sub(" +", " ", gpu.text([record]))
    # 1 GFLOP in 20 ms of 1 TFLOP/s is a twentieth of it.
    rates = "50 (50 to 50) | 0.050 (0.050 to 0.050) | 2.0 | 3 | 1 | 0 | 30% | - | 0.500 (0.500 to 0.500) | 3 of 3"
    assert f"| B/16@224 | timm | 4 | {rates} |" in text
    assert "B/16@224: H/14" in text
    assert "Matrix products: 1.0 TFLOP/s." in text


@pytest.mark.parametrize(("free", "models"), [(80 * 2**30, 4), (24 * 2**30, 2), (2**30, 1)])
def test_the_batch_is_the_largest_power_of_two_that_fits(free, models):
    case, run = Case.parse("L/16@224"), Run("x", configure("ViT-L/16"), Preprocessing((224, 224), *2 * [(0.5,) * 3]))
    need = layouts(run, 1, half=True)[0]

    def part(batch):
        return (models * (need.fixed + need.gradients) + gpu.SPARE * need.image * batch) / free

    batch = gpu.fitting(case, 128, models, free)
    assert batch in [2**power for power in range(8)]
    assert part(batch) <= gpu.FITS or batch == 1
    assert part(2 * batch) > gpu.FITS or batch == 128


def test_the_peers_sizes_are_the_zoos():
    for size, found in peers.ARCHITECTURES.items():
        case = Case.parse(f"{size}/{found.patch}@224")
        config = configure(f"ViT-{case.name}")
        assert case.parameters == parameters(config)
        assert case.gflop == pytest.approx(flops(config, (224, 224)) / 1e9)
        assert gpu.flops(case) == 3 * flops(config, (224, 224))
