"""The same six images in three classes as each kind of source, for the tests of the sources."""

import io
import json
import pickle
import tarfile

import datasets
import numpy as np
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


def encoded(pixels, kind="PNG", **how):
    """An array or an image as a file."""
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **how)
    return file.getvalue()


PNGS = [encoded(image) for image in IMAGES]


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


def folders(root):
    return put(root / "place", by_class())


def loose(root):
    return put(root / "place", {f"{k}.png": PNGS[k] for k in range(6)})


def mixed(root):
    return put(
        root / "place", {f"{k}.png" if k in (2, 5) else f"{NAMES[LABELS[k]]}/{k}.png": PNGS[k] for k in range(6)}
    )


def mnist(root, labels=True):
    numbers = np.array(LABELS, np.uint8)
    files = {"train-images-idx3-ubyte": idx(GREY[:4]), "t10k-images-idx3-ubyte": idx(GREY[4:])}
    more = {"train-labels-idx1-ubyte": idx(numbers[:4]), "t10k-labels-idx1-ubyte": idx(numbers[4:])}
    return put(root / "place", {**files, **(more if labels else {})})


def cifar(root, binary=False):
    rows, files = IMAGES.transpose(0, 3, 1, 2).reshape(6, 3072), {}
    for k, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        labels = LABELS[k : k + 1]
        if binary:
            files[f"{name}.bin"] = bytes(labels) + rows[k].tobytes()
        else:
            files[name] = pickle.dumps({"data": rows[k : k + 1], "labels": labels, "filenames": ["a"]}, 2)
    meta = (
        {"batches.meta.txt": "\n".join(NAMES)} if binary else {"batches.meta": pickle.dumps({"label_names": NAMES}, 2)}
    )
    return put(root / "place", files | meta)


def csv(root):
    put(root, {f"images/{k}.png": PNGS[k] for k in range(6)})
    rows = [f"images/{k}.png,{NAMES[LABELS[k]]},{'train' if k < 4 else 'valid'}" for k in range(6)]
    return put(root, {"place.csv": "\n".join(["image,label,split", *rows])}) / "place.csv"


def csv_without_labels(root):
    put(root, {f"{k}.png": PNGS[k] for k in range(6)})
    return put(root, {"place.csv": "file,width\n" + "".join(f"{k}.png,32\n" for k in range(6))}) / "place.csv"


def jsonl(root):
    """With several labels each."""
    put(root, {f"{k}.png": PNGS[k] for k in range(6)})
    rows = [json.dumps({"image": f"{k}.png", "labels": [NAMES[LABELS[k]], "insect"], "n": 9**k}) for k in range(6)]
    return put(root, {"place.jsonl": "\n".join(rows)}) / "place.jsonl"


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


def saved(root):
    both = datasets.DatasetDict({"train": dataset(range(4)), "test": dataset([4, 5])})
    both.save_to_disk(str(root / "place"), num_shards={"train": 2, "test": 1})
    return root / "place"


def saved_without_labels(root):
    dataset(range(6), {"image": datasets.Image()}).save_to_disk(str(root / "place"))
    return root / "place"


def tar(root):
    return put(root, {"place.tar": tarred(by_class())}) / "place.tar"


def tar_without_labels(root):
    return put(root, {"place.tar": tarred({f"{k}.png": PNGS[k] for k in range(6)})}) / "place.tar"


def webdataset(root):
    shard = [
        (f"{k}.{kind}", PNGS[k] if kind == "png" else b"%d" % LABELS[k]) for k in range(6) for kind in ("cls", "png")
    ]
    return put(root / "place", {"train-0.tar": tarred(shard[:8]), "val-0.tar": tarred(shard[8:])})


def packed(root, kind="raw"):
    pack(find_splits(Data(str(folders(root / "before")))), root / "place", kind=kind)
    return root / "place"


def arrays(labels=LABELS):
    return Arrays(IMAGES.copy(), None if labels is None else np.array(labels, np.int64), NAMES if labels else (), "six")


# Places of each kind.
PLACES = {
    "class folders": folders, "loose images": loose, "mixed folders": mixed,
    "idx": mnist, "idx without labels": lambda root: mnist(root, False),
    "CIFAR for Python": cifar, "CIFAR binary": lambda root: cifar(root, True),
    "CSV": csv, "CSV without labels": csv_without_labels, "JSONL": jsonl,
    "Parquet": parquet, "saved": saved, "saved without labels": saved_without_labels,
    "tar": tar, "tar without labels": tar_without_labels, "webdataset": webdataset,
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
