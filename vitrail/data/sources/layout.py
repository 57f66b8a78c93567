"""Which split and class a folder of images is, by its path: one rule for folders on the disk and for those in tars.

    found = layout(place, {"flowers/train/rose": 30, "flowers/test/rose": 9, "flowers/extra": 4})   # images in each
    found.places["flowers/test/rose"]       # ("test", "rose")
    found.left_out                          # ["4 images in flowers/extra, which is none of train, val and test"]

Folders whose names speak of different splits are splits, at any depth and on either side of the classes: train and val,
seg_train and seg_test, train2017 and val2017, rose/train and rose/test, rose_train and rose_test beside tulip_train. A
class is the rest of the path, without the folders that all of them lie in.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vitrail.data.sources.source import FILLERS, SPLITS, WORD, many, says_nothing, speaks
from vitrail.progress import few

Path = tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """places: (split, class) of each folder, "" where there is none. left_out, notes: for people."""

    places: dict[str, tuple[str, str]]
    left_out: list[str]
    notes: list[str]


@dataclass
class _Folder:
    path: Path = ()
    images: int = 0
    total: int = 0
    below: dict[str, "_Folder"] = field(default_factory=dict)

    def leaves(self) -> set[str]:
        """The names of the folders below that hold images."""
        inner = self.below.values()
        return {one.path[-1] for one in inner if one.images}.union(*(one.leaves() for one in inner))


def layout(place: object, folders: Mapping[str, int], labelled: bool = False, beside: str = "") -> Layout:
    """place: its name in messages. folders: how many images each holds itself, 0 where it has other files only.
    labelled: whether the images' labels are known anyway. beside: what else there is, in words. ValueError, naming
    folders, where two are the same split, one has no image, or it is uncertain whether they are splits or classes."""
    root = _Folder()
    for name, images in folders.items():
        here = root
        here.total += images
        for part in name.split("/") if name else ():
            here = here.below.setdefault(part, _Folder((*here.path, part)))
            here.total += images
        here.images += images
    walk = _Walk(place, True)
    walk.go(root, "", ())
    if len({bool(split) for split, _ in walk.found.values()}) > 1:  # railway/train is no split beside road/bus
        walk = _Walk(place, False)
        walk.go(root, "", ())
    if labelled:
        return Layout({"/".join(p): (split, "") for p, (split, _) in walk.found.items()}, walk.left_out, [])
    names = _unwrapped(walk.found)
    classes = sorted({name for name in names.values() if name})
    if beside and len(classes) > 1 and says_nothing(classes):
        doubt = f"{place}: {few(classes)} are no names of classes, and the labels may be in other files ({beside})"
        raise ValueError(f"{doubt}; name a table, or call each folder as its class.")
    return Layout({"/".join(p): (walk.found[p][0], n) for p, n in names.items()}, walk.left_out, _alike(place, names))


@dataclass
class _Walk:
    """place: for messages. single: whether a folder of splits deep within may have but one of them."""

    place: object
    single: bool
    found: dict[Path, tuple[str, Path]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def go(self, here: _Folder, split: str, label: Path, top: bool = True) -> None:
        """Finds the places of a folder, which is in that split and class, and of those below."""
        splits = _splits(self.place, here, top or self.single)
        inner = {said[0] for said in splits.values()}
        if split and inner != {split} and len(inner) == 1:  # a class called so
            splits = {}
        elif split and not inner <= {split, *(("val",) if split == "train" else ())}:
            where = f"{self.place}: {'/'.join(here.path)} is {split} by its name"
            raise ValueError(f"{where}, but has {few(splits)}; name one folder.")
        for name, below in here.below.items():
            if not splits:
                self.go(below, split, (*label, name), top and len(here.below) == 1)
            elif name in splits:
                if not below.total:
                    empty = f"{self.place}: {'/'.join(below.path)}"
                    raise ValueError(f"{empty} has no images that are read; add some or delete it.")
                self.go(below, splits[name][0], (*label, *splits[name][1:]))
            elif below.total:
                where = f"{many(below.total, 'image')} in {'/'.join(below.path)}"
                self.left_out.append(f"{where}, which is none of train, val and test")
        if here.images and splits:
            self.left_out.append(f"{many(here.images, 'image')} beside {few(splits)}")
        elif here.images:
            self.found[here.path] = split, label


def _splits(place: object, here: _Folder, single: bool) -> dict[str, tuple[str, ...]]:
    """(split, and its class if there is one in its name) of the folders in one that are splits; {} where none are."""
    said = {name: found for name in here.below if (found := speaks(name))}
    groups = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for name, (split, rest) in said.items():
        groups[rest][split].append(name)
    several = [rest for rest, splits in groups.items() if len(splits) > 1]
    if "" in groups and ("" in several or (not several and single and _alone(here, groups[""]))):
        several = [""]
    if len(several) > 1:  # rose_train, rose_test, tulip_train, tulip_test
        if any(here.below[name].below for name in said):
            raise ValueError(f"{place}: {few(said)} are several sets of train, val and test; name the folder of one.")
        return {name: (split, _without(name)) for name, (split, rest) in said.items() if rest}
    for names in groups[several[0]].values() if several else ():
        if len({re.sub(r"\d", "", name) for name in names}) > 1:  # train_1 and train_2 belong together
            raise ValueError(f"{place}: there are both {names[0]} and {names[1]}; put their images into one folder.")
    return {name: (split,) for name, (split, rest) in said.items() if rest in several}


def _alone(here: _Folder, found: Mapping[str, list[str]]) -> bool:
    """Whether the only split in a folder is one: among folders such as "car" and "bus", "train" is a class."""
    ours = [here.below[name] for names in found.values() for name in names]
    others = [other for other in here.below.values() if other.total and other not in ours]
    if not others or any(one.images or not one.total for one in ours):
        return not others
    inner = set[str]().union(*(other.leaves() for other in others))
    return not inner or any(not inner.isdisjoint(one.leaves()) for one in ours)


def _without(name: str) -> str:
    """The name without the word that is a split: "Rose_train" -> "Rose"."""
    words = "|".join(sorted(SPLITS, key=len, reverse=True))
    return re.sub(rf"[\W_]*(?<![^\W\d_])({words})(?![^\W\d_])[\W_]*", "_", name, flags=re.IGNORECASE).strip("_")


def _unwrapped(found: Mapping[Path, tuple[str, Path]]) -> dict[Path, str]:
    """The class of each folder, without the folders that all classes lie in: of the whole place, or of each split where
    only then the classes of all are the same."""
    labels = defaultdict[str, set[Path]](set)
    for split, label in found.values():
        labels[split].add(label)
    first = "train" if "train" in labels else next(iter(labels), "")
    whole = _common(label for every in labels.values() for label in every)
    joint, own = dict.fromkeys(labels, whole), {split: _common(every) for split, every in labels.items()}

    def names(of: Mapping[str, int], split: str) -> set[Path]:
        return {label[of[split] :] for label in labels[split]}

    def agree(of: Mapping[str, int]) -> bool:
        return all(names(of, split) <= names(of, first) for split in labels)

    used = own if agree(own) and not agree(joint) else joint
    known = names(used, first)
    result = {}
    for path, (split, label) in found.items():
        name = label[used[split] :]
        alone = split != first and names(used, split) == {name} and name not in known
        nothing = len(name) == 1 and (speaks(name[0]) or set(WORD.findall(name[0].lower())) <= FILLERS)
        result[path] = "" if alone and nothing else "/".join(name)  # test/images/1.jpg has no label
    return result


def _common(labels: Iterable[Path]) -> int:
    """How many folders all classes lie in."""
    parents = [label[:-1] for label in labels if label]
    different = (place for place, parts in enumerate(zip(*parents, strict=False)) if len(set(parts)) > 1)
    return next(different, min(map(len, parents), default=0))


def _alike(place: object, names: Mapping[Path, str]) -> list[str]:
    """What is said of classes that are called alike in several folders. ValueError if these may be splits."""
    inner = defaultdict[str, set[str]](set)
    for name in names.values():
        parent, slash, leaf = name.rpartition("/")
        if slash:
            inner[parent].add(leaf)
    for parent, leaves in inner.items():
        same = [other for other in inner if len(leaves) > 1 and inner[other] == leaves]
        shared = [other for other in inner if other != parent and not leaves.isdisjoint(inner[other])]
        if shared and any(map(speaks, parent.split("/"))):
            both = f"{place}: {parent} and {shared[0]} have classes of the same names"
            raise ValueError(f"{both} ({few(sorted(leaves))}); call them train, val and test, or name one alone.")
        if len(same) > 1:
            return [f"the same classes lie in {few(same)}, and count as different ones; name one to read it alone"]
    return []
