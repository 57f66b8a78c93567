"""The same six images in three classes as each kind of source, for the tests of the sources."""

import io
import json
import pickle
import tarfile

import datasets
import numpy as np
from photos import encode
from PIL import Image

from vitrail.data.pack import pack
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Arrays, Renumbered, Subset
from vitrail.data.sources.split import balanced

NAMES = ("ant", "bee", "cat")
LABELS = [0, 1, 2, 1, 0, 2]
coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
# Smooth, as photographs are, so that JPEG keeps them.
IMAGES = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in coarse])
GREY = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in IMAGES])
PNGS = [encode(image) for image in IMAGES]
LOOSE = {f"{k}.png": PNGS[k] for k in range(6)}
MIXED = {f"{k}.png" if k in (2, 5) else f"{NAMES[LABELS[k]]}/{k}.png": PNGS[k] for k in range(6)}


def put(root, files):
    """Writes {path below root: bytes or text}; the root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def tarred(members, form=tarfile.PAX_FORMAT):
    """A tar of {name: content} or [(name, content), ...]; a TarInfo stands for itself."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def damaged(data, rng):
    """With flipped bytes, cuts and insertions, near the beginning more often than not."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), rng.choice([4, 20, 400, 10**9])))
        kind = rng.choice(["flip", "flip", "cut", "insert"])
        if kind == "flip":
            data[at] ^= rng.randrange(1, 256)
        elif kind == "cut":
            del data[max(at, 1) : at + rng.randint(1, 60)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
    return bytes(data)


def idx(array):
    """A uint8 array as an idx file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def by_class(split=True):
    """{path: PNG}: four images in train, two in val, or all in one place."""
    return {f"{'train/' if k < 4 else 'val/'}"[: 9 * split] + f"{NAMES[LABELS[k]]}/{k}.png": PNGS[k] for k in range(6)}


def one(root, files, name="place.tar"):
    """The place `name`, with these files beside it."""
    return put(root, files) / name


def mnist(root, labels=True):
    arrays = {"images-idx3": GREY, "labels-idx1": np.array(LABELS, np.uint8)} if labels else {"images-idx3": GREY}
    parts = {"train": slice(0, 4), "t10k": slice(4, 6)}
    files = {f"{s}-{name}-ubyte": idx(array[part]) for s, part in parts.items() for name, array in arrays.items()}
    return put(root / "place", files)


def cifar(root, binary=False):
    rows, files = IMAGES.transpose(0, 3, 1, 2).reshape(6, 3072), {}
    for k, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        labels = LABELS[k : k + 1]
        if binary:
            files[f"{name}.bin"] = bytes(labels) + rows[k].tobytes()
        else:
            files[name] = pickle.dumps({"data": rows[k : k + 1], "labels": labels, "filenames": ["a"]}, 2)
    files |= {"batches.meta.txt": "\n".join(NAMES), "batches.meta": pickle.dumps({"label_names": NAMES}, 2)}
    return put(root / "place", files)


def csv(root):
    rows = [f"{k}.png,{NAMES[LABELS[k]]},{'train' if k < 4 else 'valid'}" for k in range(6)]
    return one(root, LOOSE | {"place.csv": "\n".join(["image,label,split", *rows])}, "place.csv")


def jsonl(root):
    """With several labels each."""
    rows = [json.dumps({"image": f"{k}.png", "labels": [NAMES[LABELS[k]], "insect"], "n": 9**k}) for k in range(6)]
    return one(root, LOOSE | {"place.jsonl": "\n".join(rows)}, "place.jsonl")


FEATURES = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*NAMES])}


def dataset(places, features=FEATURES):
    images = [{"bytes": PNGS[k], "path": f"{k}.png"} for k in places]
    columns = {"image": images, "label": [LABELS[k] for k in places]}
    return datasets.Dataset.from_dict({name: columns[name] for name in features}, datasets.Features(features))


def parquet(root):
    (root / "place" / "data").mkdir(parents=True)
    dataset(range(4)).to_parquet(root / "place" / "data" / "train-00000-of-00001.parquet")
    dataset([4, 5]).to_parquet(root / "place" / "data" / "validation-00000-of-00001.parquet")
    return root / "place"


def saved(root, labels=True):
    both = datasets.DatasetDict({"train": dataset(range(4)), "test": dataset([4, 5])})
    found = both if labels else dataset(range(6), {"image": datasets.Image()})
    found.save_to_disk(str(root / "place"), num_shards={"train": 2, "test": 1} if labels else None)
    return root / "place"


def webdataset(root):
    shard = [file for k in range(6) for file in ((f"{k}.cls", b"%d" % LABELS[k]), (f"{k}.png", PNGS[k]))]
    return put(root / "place", {"train-0.tar": tarred(shard[:8]), "val-0.tar": tarred(shard[8:])})


def packed(root, kind="raw"):
    pack(find_splits(Data(str(put(root / "before", by_class())))), root / "place", kind=kind)
    return root / "place"


def arrays(labels=LABELS):
    return Arrays(IMAGES.copy(), None if labels is None else np.array(labels, np.int64), NAMES if labels else (), "six")


# Places of each kind.
PLACES = {
    "class folders": lambda root: put(root / "place", by_class()),
    "loose images": lambda root: put(root / "place", LOOSE), "mixed folders": lambda root: put(root / "place", MIXED),
    "idx": mnist, "idx without labels": lambda root: mnist(root, False),
    "CIFAR for Python": cifar, "CIFAR binary": lambda root: cifar(root, True),
    "CSV": csv, "JSONL": jsonl, "CSV without labels": lambda root: one(
        root, LOOSE | {"place.csv": "file,width\n" + "".join(f"{k}.png,32\n" for k in range(6))}, "place.csv"),
    "Parquet": parquet, "saved": saved, "saved without labels": lambda root: saved(root, False),
    "tar": lambda root: one(root, {"place.tar": tarred(by_class())}), "webdataset": webdataset,
    "tar without labels": lambda root: one(root, {"place.tar": tarred(LOOSE)}),
    "packed": packed, "packed as JPEG": lambda root: packed(root, "jpeg"),
}  # fmt: skip
# Sources in memory.
MADE = {
    "arrays": arrays,
    "arrays without labels": lambda: arrays(None),
    "arrays of which some have no label": lambda: arrays([0, 1, 2, 1, -1, -1]),
    "subset": lambda: Subset(arrays(), [5, 0, 3]),
    "renumbered": lambda: Renumbered(arrays(), ("dog", *NAMES[::-1])),
    "balanced": lambda: balanced(Subset(arrays(), [0, 1, 3, 4])),
}
