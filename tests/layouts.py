"""Tiny runs with --exact on every number and layout of processes: one hash for each model and optimiser.

    python tests/layouts.py layouts.jsonl
    python tests/layouts.py layouts.jsonl --models hybrid --optimizers muon --steps 50

A ViT, a hybrid and a BiT ResNet with dropout and stochastic depth where they have some, Mixup, clipping and an average,
by AdamW, SGD and Muon (which refuses a ResNet, as it has no blocks), on one process and by torchrun on 1, 2, 3, 4 and
8: whole, divided, and divided in groups of 2.
The file has a line for each run that ended; the same command runs those that it lacks.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from processes import alone, bits, place, trained

VIT = "vit.Config((16, 16), (8, 8), 3, 16, 2, 2, 32, 10, dropout=0.1, drop_path=0.1)"
STEM = "resnet.Config(blocks=(1,), classes=0, width_factor=0.5)"
MODELS = {
    "vit": VIT,
    "hybrid": VIT.replace("(8, 8)", "(1, 1)").replace("drop_path", f"stem={STEM}, drop_path"),
    "resnet": "resnet.Config(blocks=(1, 1), classes=10, width_factor=0.5, image_size=(16, 16))",
}
OPTIMIZERS = ("adamw", "sgd", "muon")
LAYOUTS = [(0, 1), *((world, shard) for world in (1, 2, 3, 4, 8) for shard in (1, 0)), (4, 2), (8, 2)]  # 0: no torchrun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS], choices=[*OPTIMIZERS])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    done = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.is_file() else []
    found = {tuple(one[:-1]): one[-1] for one in done}
    for model in options.models:
        for name in options.optimizers:
            if (model, name) == ("resnet", "muon"):
                continue
            hashes = set()
            for world, shard in LAYOUTS:
                case = (model, name, options.steps, world, shard)
                if case not in found:
                    began, found[case] = time.monotonic(), run(*case)
                    with options.file.open("a") as file:
                        file.write(json.dumps([*case, found[case]]) + "\n")
                    print(*case, found[case][:12], f"{time.monotonic() - began:.0f} s", flush=True)
                hashes.add(found[case])
            print(
                f"{model}, {name}, {options.steps} steps: {', '.join(one[:12] for one in sorted(hashes))}", flush=True
            )
            if len(hashes) > 1:
                sys.exit(f"{model}, {name}: {len(hashes)} hashes")


def run(model: str, name: str, steps: int, world: int, shard: int) -> str:
    """The digest of all that a run's last checkpoint holds. world: 0 for one process without torchrun."""
    more = ["--exact", "True", "--optim.name", name, "--duration", f"{steps} steps", "--evaluate-every", "100%"]
    more += ["--micro-batch", "2", "--checkpoint-every", "100%"]  # 10 of them: 8 processes have 1 or 2
    more += ["--optim.weight-decay", "0"] if name == "sgd" else []
    with tempfile.TemporaryDirectory() as folder:
        here = place(Path(folder))
        text = (here / "r.py").read_text().replace("import vit\n", "import resnet, vit\n")
        (here / "r.py").write_text(text.replace(VIT, MODELS[model]))
        if world:
            trained(here, world, "out", "--shard", str(shard), *more, patience=1200)
        else:
            alone(here, "out", *more)
        return bits(here, "out", steps)


if __name__ == "__main__":
    main()
