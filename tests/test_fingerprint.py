"""A source has another fingerprint after any change, and else the same."""

from dataclasses import dataclass, replace

import pytest
from made_sources import put

from vitrail.data.sources.fingerprint import fingerprint
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Example


@dataclass
class Made:
    """Records whose content, label and name follow from their number."""

    length: int = 30
    class_names: tuple = ("a", "b")
    targets: str = "class"
    edited: int | None = None
    relabelled: int | None = None
    renamed: int | None = None
    broken: int | None = None

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError(f"{self.name(index)} is damaged.")
        return Example(bytes([index % 256, index == self.edited]), self.target(index), self.name(index))

    def target(self, index):
        return (index + (index == self.relabelled)) % 2

    def name(self, index):
        return f"{index}{'x' if index == self.renamed else ''}.jpg"


@pytest.mark.parametrize(("change", "names"), [
    *(({change: 7}, {"contents"}) for change in ("edited", "broken")),
    *(({change: 7}, {"files and labels"}) for change in ("relabelled", "renamed")),
    ({"class_names": ("a", "c")}, {"classes"}), ({"length": 31}, {"images", "files and labels", "contents"}),
])  # fmt: skip
def test_what_changes_is_told_by_its_name(change, names):
    before, after = fingerprint(Made()), fingerprint(replace(Made(), **change))
    assert {name for name in before if before[name] != after[name]} == names
    assert fingerprint(replace(Made(), **change)) == after


def test_a_large_source_is_read_in_part():
    read = []

    class Counted(Made):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    fingerprint(Counted(100_000))
    assert (len(read), read[0], read[-1]) == (256, 0, 99_999)


def test_it_is_the_same_wherever_the_data_lies(tmp_path):
    """A folder that was moved was data that had changed, because names hold its path."""
    place = put(
        tmp_path / "before", {f"{split}/{c}/{n}.png": b"x" for split in ("train", "val") for c in "ab" for n in "12"}
    )
    put(place, {"train/a/3.png": b"y"})
    found = {split: fingerprint(source) for split, source in find_splits(Data(str(place))).items()}
    place.rename(tmp_path / "after")
    for split, source in find_splits(Data(str(tmp_path / "after"))).items():
        assert fingerprint(source) == found[split]
