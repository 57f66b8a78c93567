"""What an archive of torch.export's may hold that would be unpickled or run: it is refused before torch reads it."""

import json
import pickle
import zipfile

import pytest
from test_export import images, pipeline

from vitrail import Pipeline
from vitrail.batch import Batch
from vitrail.export import export


@pytest.fixture
def made(tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    export(pipeline(), tmp_path / "m.pt2", "pt2")
    return tmp_path


class Ran:
    """What unpickles it, or evaluates its text, makes a file."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def test_no_part_of_an_archive_is_unpickled_or_run(made):
    with zipfile.ZipFile("m.pt2") as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    weights = next(name for name in entries if name.endswith("model_weights_config.json"))
    graph = next(name for name in entries if "/models/" in name)
    config = json.loads(entries[weights])
    first = next(iter(config["config"].values()))
    first |= {"use_pickle": True}
    hostile = {
        "sample": {f"{root}/data/sample_inputs/model.pt": pickle.dumps(Ran())},
        "weight": {
            weights: json.dumps(config).encode(),
            f"{root}/data/weights/{first['path_name']}": pickle.dumps(Ran()),
        },
        "legacy": {f"{root}/data/weights/model.pt": pickle.dumps(Ran())},
        "compiled": {f"{root}/data/aotinductor/model/a.so": b"x"},
        "text": {
            graph: entries[graph].replace(b'"expr_str": "Symbol(', b"\"expr_str\": \"open('ran', 'w') or Symbol(")
        },
        "call": {graph: entries[graph].replace(b"torch.ops.aten.linear.default", b"torch.hub.load")},
        "file": {graph: entries[graph].replace(b"torch.ops.aten.linear.default", b"torch.ops.aten.from_file.default")},
        "guard": {graph: entries[graph].replace(b'"guards_code": []', b"\"guards_code\": [\"open('ran', 'w')\"]")},
    }
    hostile |= {
        "case": {f"{root}/data/Sample_Inputs/model.pt": pickle.dumps(Ran())},
        "config": {weights.replace("_config", "_CONFIG"): json.dumps(config).encode()},
        "foreign": {f"{root}/code.py": b"open('ran', 'w')"},
        "operator": {graph: entries[graph].replace(b'{"as_int": ', b'{"as_operator": "torch.hub.load", "as_int": ')},
        "container": {graph: entries[graph].replace(b"builtins.dict", b"collections.defaultdict")},
    }
    assert all(hostile[name].get(graph) != entries[graph] for name in ("operator", "container"))
    assert all(hostile[name][graph] != entries[graph] for name in ("text", "call", "file", "guard"))
    for name, changed in hostile.items():
        with zipfile.ZipFile(f"{name}.pt2", "w") as archive:
            for entry, content in (entries | changed).items():
                archive.writestr(entry, content)
        if name == "guard":  # which is read, and not run
            Pipeline.load("guard.pt2").task.predict(Batch(images=images(1, 32, 32)))
            continue
        with pytest.raises(ValueError, match=f"{name}.pt2"):
            Pipeline.load(f"{name}.pt2")
    assert not (made / "ran").exists()
