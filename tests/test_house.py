"""The laws and budgets of the house (README, "The house"): floors, sizes, names, dependencies.

`python tests/test_house.py` prints the list of who imports whom, as docs/imports.md holds it.
"""

import ast
import re
import statistics
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES, FUNCTION_MEDIAN = 350, 80, 14
FLOORS = {
    1: "allocator batch parse models models.init models.layers models.positions models.resnet models.vit "
    "models.zoo models.cost optim optim.schedule optim.rules optim.build optim.ema optim.muon data data.order",
    2: "log readings stopping fp8 page charts history parallel cores inference weights weights.entry weights.folder "
    "weights.google weights.google_names weights.hub weights.huggingface weights.infer weights.load "
    "weights.npz weights.save weights.tensors weights.timm weights.torchvision data.decode data.jpeg data.source "
    "data.idx data.folder data.cifar data.split data.open data.cache data.records data.table data.parquet "
    "data.arrow data.shards data.fingerprint data.scan data.duplicates data.check data.transforms "
    "data.augment data.randaugment data.loader tasks tasks.task tasks.classify tasks.mixup data.packed "
    "data.pack",
    3: "checkpoint evaluate evaluate.accuracy evaluate.examination evaluate.verdict pipeline",
    4: "run memory replicas report check_page info",
    5: "train recipes recipes.demo recipes.pretrain recipes.modern recipes.finetune recipes.small recipes.fit "
    "recipes.fast",
    6: "cli cli.choosing cli.finetuning cli.fitting cli.judging cli.options cli.results cli.training cli.weights "
    "cli.packing overrides words __main__ __init__",
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules.split()}


def files(folder="vitrail"):
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path):
    parts = list(path.relative_to(ROOT / "vitrail").with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def tree(path):
    return ast.parse(path.read_text())


def typing_only(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(path):
    """Every module that a file imports, at the top or inside a function; not what only type checkers see."""
    waiting, found = [tree(path)], []
    while waiting:
        node = waiting.pop()
        if typing_only(node):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        waiting += ast.iter_child_nodes(node)
    return found


@cache
def graph():
    """module -> the modules of ours that it imports."""
    ours = {module_of(path) for path in files()}
    edges = {}
    for path in files():
        edges[module_of(path)] = set()
        for name in imported(path):
            if name.split(".")[0] == "vitrail":
                parts = name.split(".")[1:]
                target = next(
                    (".".join(parts[:n]) for n in (len(parts), len(parts) - 1) if ".".join(parts[:n]) in ours), None
                )
                if target is not None:
                    edges[module_of(path)].add(target)
    return edges


def drawing():
    """The text of docs/imports.md."""
    lines = [
        "# Who imports whom",
        "",
        "Imports run downwards or along a floor, never in a circle (tests/test_house.py).",
        "",
    ]
    for floor in sorted(FLOORS, reverse=True):
        lines += [f"## Floor {floor}", ""]
        for module in sorted(m for m in graph() if FLOOR[m] == floor and not is_face(m)):
            below = ", ".join(f"{name} ({FLOOR[name]})" for name in sorted(graph()[module]))
            lines.append(f"- `{module}`: {below or 'nobody'}")
        lines.append("")
    return "\n".join(lines)


def is_face(module):
    return (ROOT / "vitrail" / module.replace(".", "/") / "__init__.py").exists()


def functions():
    for path in files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_every_module_has_a_floor():
    assert {module_of(path) for path in files()} == set(FLOOR)


def test_imports_run_downwards():
    wrong = [f"{m} -> {n}" for m, below in graph().items() for n in below if FLOOR[n] > FLOOR[m]]
    assert wrong == []


def test_imports_make_no_circle():
    assert set(TopologicalSorter(graph()).static_order()) == set(graph())


def test_the_drawing_in_the_docs_is_true():
    assert (ROOT / "docs" / "imports.md").read_text() == drawing()


@pytest.mark.parametrize("folder", ["vitrail", "benchmarks", "tests"])
def test_files_stay_small(folder):
    long = {str(p.relative_to(ROOT)): n for p in files(folder) if (n := len(p.read_text().splitlines())) > FILE_LINES}
    assert long == {}


def test_functions_stay_small():
    sizes = {(path.name, node.name): node.end_lineno - node.lineno + 1 for path, node in functions()}
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES} == {}
    assert statistics.median(sizes.values()) <= FUNCTION_MEDIAN


def test_signatures_are_typed():
    untyped = []
    for path, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        named = [a for a in arguments if a.arg not in ("self", "cls")]
        if node.returns is None or any(a.annotation is None for a in named):
            untyped.append(f"{path.name}:{node.lineno} {node.name}")
    assert untyped == []


def test_what_is_public_is_documented():
    bare = [str(p.relative_to(ROOT)) for p in files() if not ast.get_docstring(tree(p))]
    for path in files():
        # Methods that override a documented one (forward, run, __len__) need no words of their own.
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                overload = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
                bare += [f"{path.name}: {node.name}"] if not overload and not ast.get_docstring(node) else []
    assert bare == []


def test_tests_are_at_least_half_as_long_as_the_code():
    code, tests = (sum(len(p.read_text().splitlines()) for p in files(folder)) for folder in ("vitrail", "tests"))
    assert tests >= code / 2


def test_no_file_is_a_drawer():
    assert [p for p in files() if p.stem in ("utils", "util", "misc", "common", "helpers", "helper")] == []


def test_only_the_command_line_knows_tyro():
    knows = {module_of(p).split(".")[0] for p in files() if any(n.split(".")[0] == "tyro" for n in imported(p))}
    assert knows == {"cli"}


@pytest.mark.parametrize("name", ["argparse", "yaml", "hydra", "timm", "transformers", "torchvision"])
def test_what_the_package_does_without(name):
    assert [str(p) for p in files() if any(n.split(".")[0] == name for n in imported(p))] == []


def test_nothing_is_asked_for_what_it_has_or_unpickled():
    calls = [(path, node) for path in files() for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    names = [(path.name, ast.unparse(node.func)) for path, node in calls]
    assert [n for n in names if n[1] in ("hasattr", "np.load", "eval", "exec")] == []
    # weights/tensors.py knows pickle by the error with which torch refuses one.
    assert [n for n in names if n[1].startswith("pickle.")] == []
    loads = [ast.unparse(node) for _, node in calls if ast.unparse(node.func) == "torch.load"]
    assert all("weights_only=True" in call for call in loads)


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError|for now|placeholder)\b")
    assert [str(p) for p in files() if words.search(p.read_text())] == []


def test_continuous_integration_runs_the_command_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    assert commands[0].endswith("vitrail demo")
    assert commands[1].endswith("pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


if __name__ == "__main__":
    print(drawing(), end="")
