"""Class folders: every layout to the same images, nothing lost in silence, and links that lead in circles."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.sources.folder import splits


@pytest.fixture
def put(tmp_path):
    """Writes files below tmp_path, each with its own path as content."""

    def put(*paths, text=None):
        for path in paths:
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.encode() if text is None else text.encode())
        return tmp_path

    return put


def records(source):
    """class -> what its files hold."""
    found = {}
    for index in range(len(source)):
        content, target, name, _ = source[index]
        assert Path(name).read_bytes() == content
        found.setdefault(None if target is None else source.class_names[target], []).append(content.decode())
    return found


def test_the_class_is_the_folder_that_directly_holds_images(put):
    paths = ["dogs/2.PNG", "dogs/1.jpg", "pets/cats/note.txt", "dogs/a/b/1.jpg", "README.md"]
    hidden = ["dogs/.3.jpg", ".git/3.jpg", "pets/.cache/4.jpg"]
    expected = {"dogs": ["dogs/1.jpg", "dogs/2.PNG"], "dogs/a/b": ["dogs/a/b/1.jpg"]}
    assert records(splits(put(*paths, *hidden))["all"]) == expected


NAMES = {"train": ("train", "Training"), "val": ("val", "VALID", "validation"), "test": ("test", "Testing", "eval")}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in NAMES.items() for name in names])
def test_split_folders_under_all_their_names(put, split, name):
    other = "test" if split == "train" else "train"
    found = splits(put(f"{name}/x/cats/1.jpg", f"{name}/dogs/1.jpg", f"{other}/dogs/2.jpg", "docs/figure.png"))
    assert set(found) == {split, other}
    assert records(found[split]) == {"x/cats": [f"{name}/x/cats/1.jpg"], "dogs": [f"{name}/dogs/1.jpg"]}
    assert found[other].class_names == ("dogs",)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("", "has no images"), ("cats/1.txt", "has no images"), (".cache/1.jpg cats/._1.jpg", "has no images"),
        ("train/cats/1.txt", "has no images.* 1 .txt"), ("train/a/1.jpg val/a/1.txt", "val has no images"),
        ("train/a/1.jpg training/b/1.jpg", "there are both train and training"),
    ],
)  # fmt: skip
def test_places_that_are_refused(put, tmp_path, paths, words):
    with pytest.raises(ValueError, match=rf"{tmp_path.name}:? {words}"):
        splits(put(*paths.split()))


def test_links_may_lead_in_circles(put, tmp_path):
    put("train/cats/1.jpg", "train/dogs/1.jpg")
    (tmp_path / "train" / "cats" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "dogs" / "self").symlink_to("self")
    (tmp_path / "train" / "dogs" / "self.jpg").symlink_to("self.jpg")
    for name in ("first", "zebras"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "train" / "cats")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    found = splits(tmp_path)
    assert set(found) == {"train", "val"}
    for source in found.values():
        # The folder itself goes before the links to it; a link to nothing is kept, so that reading names it.
        assert source.class_names == ("cats", "dogs")
        assert len(source) == 3
        with pytest.raises(ValueError, match=r"self\.jpg"):
            source[2]


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_class_names_that_cannot_be_printed_are_refused(tmp_path, name):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    folder.mkdir()
    (folder / "1.jpg").touch()
    with pytest.raises(ValueError, match=r"'(caf|two)\\"):
        splits(tmp_path)


@pytest.mark.parametrize("file", ["classes.txt", "labels.csv", "LOC_synset_mapping.txt"])
@pytest.mark.parametrize("separator", [" ", "\t", ", "])
def test_a_file_beside_the_splits_gives_names(put, file, separator):
    put("train/n02/1.jpg", "train/n01/1.jpg", "val/n02/1.jpg")
    words = splits(put(file, text=f"n02{separator}garbage truck\nn01{separator}tench, a fish\n\nn03{separator}\n"))
    assert words["train"].class_names == ("tench, a fish", "garbage truck")  # in the order of the folders
    assert words["val"].class_names == ("garbage truck",)
    assert splits(put() / "train")["all"].class_names == words["train"].class_names


@pytest.mark.parametrize(
    "text", ["cats,0\ndogs,1", "cats\tphotos/cats", "cats /x/1\ndogs /x/2", "cats n02121620", "cats 1.jpg"]
)
def test_numbers_ids_and_paths_are_no_names(put, text):
    put("cats/1.jpg", "dogs/1.jpg")
    assert splits(put("labels.csv", text=text))["all"].class_names == ("cats", "dogs")


@pytest.mark.parametrize("text", ["n01 1 tench\nn02 2 pike", "tench,n01\npike,n02", "n01,tench,500\nn02,pike,3"])
@pytest.mark.parametrize("place", ["", "a/b/"])
def test_numbers_beside_the_names_are_left_out(put, text, place):
    put(f"{place}train/n01/1.jpg", f"{place}train/n02/1.jpg")
    found = splits(put(f"{place}classes.txt", text=text))
    assert found["train"].class_names == ("tench", "pike")
    assert (len(found.notes), found.left_out) == (1, ())


def test_names_may_be_in_quotes_and_folders_have_spaces(put):
    put("a b/1.jpg", "c/1.jpg", "d/1.jpg", "0.jpg")
    source = splits(put("labels.csv", text='\ufeff"a b","one, two"\r\nd,four\r\n,nobody'))["all"]
    assert source.class_names == ("one, two", "c", "four")


def test_no_two_classes_are_called_alike(put):
    put("n1/1.jpg", "n3/1.jpg", "n4/1.jpg", "tern/1.jpg")
    source = splits(put("words.txt", text="n1 crane\nn3 crane\nn4 tern"))["all"]
    assert source.class_names == ("crane (n1)", "crane (n3)", "tern (n4)", "tern")


@pytest.mark.parametrize("text", ["0 sky\n1 road", "cats\ndogs", "\0\1\2", "cats \033[2J", None])
def test_a_file_that_speaks_of_other_things_changes_nothing(put, tmp_path, text):
    put("cats/1.jpg", "dogs/1.jpg")
    if text is None:  # which would never end
        os.mkfifo(tmp_path / "classes.txt")
    else:
        put("classes.txt", text=text)
    assert splits(tmp_path)["all"].class_names == ("cats", "dogs")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_layout_keeps_every_image_once(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    part = st.sampled_from(["a", "b", "B", "ä"])
    paths = data.draw(st.sets(st.lists(part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6))
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
        for number in range(data.draw(st.integers(1, 3))):
            (folder / path / f"{number}.png").write_text(path)
    source = splits(folder)["all"]
    common = len(os.path.commonpath([f"/{os.path.dirname(path)}" for path in paths]).strip("/"))
    assert source.class_names == tuple(sorted(path[common:].strip("/") for path in paths))
    assert sorted(example.name for example in source) == sorted(map(str, folder.rglob("*.png")))
    assert all(one.image.decode()[common:].strip("/") == source.class_names[one.target] for one in source)
