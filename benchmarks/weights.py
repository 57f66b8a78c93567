"""Weights in and answers out: a first prediction from a cold start, loading a large model, predicting a folder.

    python -m benchmarks.weights --json weights.json
    python -m benchmarks.weights --photos FOLDER --only cold,loading --rounds 5

Every measurement is a fresh interpreter, the libraries in shuffled order within a round, after a round that only warms
the file cache. Models and (without --photos) photographs are made here, random, so nothing is fetched. Peak memory is
the process's, above what it had after its imports, as a multiple of the file's size.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, describe, headline, table, write_json
from benchmarks.training import draw_photographs

# Each program prints one JSON object: {"seconds": ..., "peak": bytes above the imports, "answer": ...}.
# VmHWM, not ru_maxrss: the latter begins with what the parent had when it forked.
RESULT = """
import json, time
def peak(): return 1024 * next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
"""
TIMM_FILE = """
import torch, timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
model = timm.create_model('local-dir:{model}', pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
"""
TIMM_ONE = """
with torch.inference_mode():
    best = model(transform(Image.open('{image}').convert('RGB'))[None])[0].softmax(-1).max(-1)
print(json.dumps({{"answer": [int(best.indices), float(best.values)]}}))
"""
VITRAIL_ONE = """
import vitrail
best = vitrail.Pipeline.load('{model}')('{image}', top=1)[0]
print(json.dumps({{"answer": [best.index, best.probability]}}))
"""
LOAD = """
import torch, {imports}
before, start = peak(), time.perf_counter()
model = {call}
assert all(p.sum().isfinite() for p in model.parameters())  # a mapped file counts when it is read
print(json.dumps({{"seconds": time.perf_counter() - start, "peak": peak() - before}}))
"""
TIMM_FOLDER = """
start, done = time.perf_counter(), 0
class Photos(torch.utils.data.Dataset):
    files = sorted(__import__('pathlib').Path('{photos}').iterdir())
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return transform(Image.open(self.files[i]).convert('RGB'))
with torch.inference_mode():
    for batch in torch.utils.data.DataLoader(Photos(), batch_size=21, num_workers=2):
        done += len(model(batch).softmax(-1).topk(5).indices)
print(json.dumps({{"seconds": time.perf_counter() - start, "answer": done}}))
"""
TRANSFORMERS_FOLDER = """
from transformers import pipeline
predict = pipeline('image-classification', model='{model}', use_fast=False)
files = sorted(str(p) for p in __import__('pathlib').Path('{photos}').iterdir())
start = time.perf_counter()
done = sum(1 for _ in predict(files, batch_size=21, top_k=5))
print(json.dumps({{"seconds": time.perf_counter() - start, "answer": done}}))
"""
VITRAIL_FOLDER = """
import vitrail
from pathlib import Path
predict = vitrail.Pipeline.load('{model}')
start = time.perf_counter()
done = sum(1 for _ in predict.stream(sorted(Path('{photos}').iterdir())))
print(json.dumps({{"seconds": time.perf_counter() - start, "answer": done}}))
"""


def make(folder: Path, photos: Path | None, count: int) -> dict[str, Path]:
    """The files that the programs read: Ti/16 in two layouts, L/16 in two, and photographs."""
    from vitrail.weights.load import read
    from vitrail.weights.save import save

    found = {"ti": folder / "ti", "l": folder / "l", "npz": folder / "l.npz", "hf": folder / "hf"}
    for name, size in (("ti", "ViT-Ti/16"), ("l", "ViT-L/16")):
        save_random(size, found[name])
    save(read(found["l"]), found["npz"], "google")
    save(read(found["ti"]), found["hf"], "huggingface")
    if photos is None:
        photos = folder / "photos"
        draw_photographs(photos, count)
    return found | {"photos": photos, "image": sorted(photos.iterdir())[0]}


def save_random(name: str, folder: Path) -> None:
    """A model folder of random weights, the head's included: zeros would give every class the same probability."""
    import vitrail
    from vitrail.data.images.preprocessing import Preprocessing

    model: Any = vitrail.create(name, seed=0)
    model.head.weight.data.normal_(std=0.02)
    how = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "crop", 0.9, "bicubic")
    vitrail.Pipeline(model, how, tuple(f"class {i}" for i in range(1000))).save(folder)


def programs(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    """topic -> name -> source."""
    names = {"model": files["ti"], "image": files["image"], "photos": files["photos"]}
    hf = names | {"model": files["hf"]}
    google, folder = files["npz"], files["l"]
    timm_npz = f"timm.create_model('vit_large_patch16_224', checkpoint_path='{google}')"
    timm_folder = f"timm.create_model('local-dir:{folder}', pretrained=True)"

    def load(imports: str, call: str) -> str:
        return RESULT + LOAD.format(imports=imports, call=call)

    ours = "vitrail, vitrail.weights.load"
    return {
        "cold": {
            "vitrail": RESULT + VITRAIL_ONE.format(**names),
            "timm": RESULT + (TIMM_FILE + TIMM_ONE).format(**names),
        },
        "npz": {"vitrail": load(ours, f"vitrail.load('{google}')"), "timm": load("timm", timm_npz)},
        "safetensors": {"vitrail": load(ours, f"vitrail.load('{folder}')"), "timm": load("timm", timm_folder)},
        "folder": {
            "vitrail": RESULT + VITRAIL_FOLDER.format(**names),
            "timm": RESULT + (TIMM_FILE + TIMM_FOLDER).format(**names),
            "transformers": RESULT + TRANSFORMERS_FOLDER.format(**hf),
        },
    }


def run(source: str) -> dict[str, Any]:
    """What one program printed, with its wall time. RuntimeError with its last line where it fails."""
    import time

    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return {"wall": time.perf_counter() - start} | json.loads(done.stdout.strip().splitlines()[-1])


def measure(chosen: dict[str, dict[str, str]], rounds: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """topic -> name -> one record a round."""
    order = random.Random(0)
    records: dict[str, dict[str, list[dict[str, Any]]]] = {t: {n: [] for n in p} for t, p in chosen.items()}
    for topic, sources in chosen.items():
        for number in range(rounds + 1):
            for name in order.sample(sorted(sources), len(sources)):
                record = run(sources[name])
                if number:
                    records[topic][name].append(record)
            print(f"{topic}: round {number} of {rounds} done", file=sys.stderr, flush=True)
    return records


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = []
    for topic, found in document["records"].items():
        key = "wall" if topic == "cold" else "seconds"
        middle = {name: statistics.median(r[key] for r in records) for name, records in found.items()}
        best = min(value for name, value in middle.items() if name != "vitrail")
        for name, records in found.items():
            values = [record[key] for record in records]
            size = document["bytes"].get(topic)
            peak = f"{statistics.median(r['peak'] for r in records) / size:.2f}" if size else ""
            speed = f"{document['photos'] / middle[name]:.1f} images/s" if topic == "folder" else ""
            ratio = f"{best / middle['vitrail']:.2f}" if name == "vitrail" else ""
            rows.append(
                [topic, name, f"{middle[name]:.2f}", f"{min(values):.2f}", f"{max(values):.2f}", ratio, peak, speed]
            )
    headers = [
        "topic",
        "library",
        "median s",
        "least",
        "most",
        "times faster than the best peer",
        "peak / file",
        "speed",
    ]
    return "\n\n".join([headline(document["machine"]), table(headers, rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photographs instead of random ones")
    parser.add_argument("--count", type=int, default=500, help="how many random ones")
    parser.add_argument("--only", default="cold,npz,safetensors,folder", help="topics, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    machine = describe()
    with tempfile.TemporaryDirectory() as folder:
        print("making the models and photographs", file=sys.stderr, flush=True)
        files = make(Path(folder), options.photos, options.count)
        chosen = {t: p for t, p in programs(files).items() if t in options.only.split(",")}
        sizes = {"npz": files["npz"].stat().st_size, "safetensors": (files["l"] / "model.safetensors").stat().st_size}
        try:
            records = measure(chosen, options.rounds)
        except KeyboardInterrupt:
            return 130
        except RuntimeError as error:
            print(f"benchmarks.weights: {error}", file=sys.stderr)
            return 1
        photos = len(list(files["photos"].iterdir()))
    document = {"benchmark": "weights", "machine": machine, "records": records, "bytes": sizes, "photos": photos}
    write_json(options.json, document)
    print(text(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
