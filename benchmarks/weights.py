"""Weights in and answers out: a first prediction from a cold start, loading a large model, predicting a folder.

    python -m benchmarks.weights --json weights.json
    python -m benchmarks.weights --photos FOLDER --only cold,npz --rounds 5

Every measurement is a fresh interpreter, after a round that only warms the file cache. Models and (without --photos)
photographs are made here, random, so nothing is fetched. Peak memory is the process's, above what it had after its
imports, as a multiple of the file's size.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.command import known, names, positive
from benchmarks.photographs import draw_photographs
from benchmarks.pool import program
from benchmarks.rounds import Record, deadline, new, report, say, seconds, take_turns, values, warm_up

# Each program prints one JSON object: {"seconds": ..., "peak": bytes above the imports, "answer": ...}. Without
# "seconds" its wall time counts. VmHWM, not ru_maxrss: the latter begins with what the parent had when it forked.
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
print(json.dumps({{"seconds": (time.perf_counter() - start) / done}}))
"""
TRANSFORMERS_FOLDER = """
from transformers import pipeline
predict = pipeline('image-classification', model='{model}', use_fast=False)
files = sorted(str(p) for p in __import__('pathlib').Path('{photos}').iterdir())
start = time.perf_counter()
done = sum(1 for _ in predict(files, batch_size=21, top_k=5))
print(json.dumps({{"seconds": (time.perf_counter() - start) / done}}))
"""
VITRAIL_FOLDER = """
import vitrail
from pathlib import Path
predict = vitrail.Pipeline.load('{model}')
start = time.perf_counter()
done = sum(1 for _ in predict.stream(sorted(Path('{photos}').iterdir())))
print(json.dumps({{"seconds": (time.perf_counter() - start) / done}}))
"""
TOPICS = {
    "cold": "first prediction of one JPEG, cold",
    "npz": "L/16 from Google's .npz",
    "safetensors": "L/16 from safetensors",
    "folder": "an image of a folder of JPEGs, Ti/16",
}


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
    from vitrail.tasks import ClassifyConfig

    model: Any = vitrail.create(name, seed=0)
    model.head.weight.data.normal_(std=0.02)
    how = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3, "crop", 0.9, "bicubic")
    vitrail.Pipeline(ClassifyConfig().task(model, how, tuple(f"class {i}" for i in range(1000)))).save(folder)


def programs(files: dict[str, Path], topic: str) -> dict[str, str]:
    """name -> source."""
    names = {"model": files["ti"], "image": files["image"], "photos": files["photos"]}

    def load(imports: str, call: str) -> str:
        return RESULT + LOAD.format(imports=imports, call=call)

    ours = "vitrail, vitrail.weights.load"
    match topic:
        case "cold":
            sources = {"vitrail": VITRAIL_ONE, "timm": TIMM_FILE + TIMM_ONE}
            return {name: RESULT + source.format(**names) for name, source in sources.items()}
        case "npz":
            timm = f"timm.create_model('vit_large_patch16_224', checkpoint_path='{files['npz']}')"
            return {"vitrail": load(ours, f"vitrail.load('{files['npz']}')"), "timm": load("timm", timm)}
        case "safetensors":
            timm = f"timm.create_model('local-dir:{files['l']}', pretrained=True)"
            return {"vitrail": load(ours, f"vitrail.load('{files['l']}')"), "timm": load("timm", timm)}
        case _:
            sources = {"vitrail": VITRAIL_FOLDER, "timm": TIMM_FILE + TIMM_FOLDER}
            sources["transformers"] = TRANSFORMERS_FOLDER.replace("{model}", str(files["hf"]))
            return {name: RESULT + source.format(**names) for name, source in sources.items()}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures each topic's programs, in every round."""
    with tempfile.TemporaryDirectory() as folder:
        say("making the models and photographs")
        files = make(Path(folder), options.photos, options.count)
        sizes = {"npz": files["npz"].stat().st_size, "safetensors": (files["l"] / "model.safetensors").stat().st_size}
        for place, topic in enumerate(options.only):
            chosen = programs(files, topic)
            turns = {name: partial(program, ["-c", source], options.timeout) for name, source in chosen.items()}
            records.append(new(TOPICS[topic], "vitrail", bytes=sizes.get(topic)))
            warm_up(turns)
            take_turns(records[-1], turns, options.rounds, deadline(options.until, len(options.only) - place))
            yield


def peak(record: Record, name: str) -> str:
    """Peak memory as a multiple of the file."""
    peaks = values(record, name, "peak")
    return f"{statistics.median(peaks) / record['bytes']:.2f}" if peaks and record["bytes"] else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("weights", __doc__, rounds=3)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photographs instead of random ones")
    parser.add_argument("--count", type=positive, default=500, help="how many random ones")
    parser.add_argument("--only", type=names, default=tuple(TOPICS), help=f"of {','.join(TOPICS)}")
    options = parser.parse_args(arguments)
    known(options.only, TOPICS, parser)
    return command.run("weights", options, measure, partial(report, columns={"seconds": seconds, "peak / file": peak}))


if __name__ == "__main__":
    sys.exit(main())
