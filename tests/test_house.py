"""The laws and budgets of the house (docs/house.md): rooms, floors, sizes, names, dependencies.

`python tests/test_house.py` prints docs/rooms.md; with the folder of another checkout, the same of that one, such as of
an earlier commit: python tests/test_house.py /tmp/before
"""

import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, FUNCTION_LINES, FUNCTION_MEDIAN = 350, 80, 12
FLOORS, INNER_FLOORS = 6, 4
TOTAL = {"vitrail": 27_700, "benchmarks": 5_800}
# Lines per room: what it should have when all is built, and a tenth more (LOG.md says why where one was changed).
ROOMS = {
    "batch": 80, "checkpoint": 320, "cli": 3_150, "config": 175, "data": 6_120, "evaluate": 2_000, "explain": 590,
    "export": 320, "log": 240, "models": 1_500, "optim": 780, "pipeline": 320, "plan": 260, "progress": 60,
    "recipes": 950, "report": 930, "run": 245, "runtime": 1_480, "serve": 700, "study": 540, "tasks": 1_700,
    "train": 320, "weights": 2_630,
}  # fmt: skip
Graph = dict[str, set[str]]


def files(folder="vitrail", root=ROOT):
    return sorted((root / folder).rglob("*.py"))


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def module_of(path, root=ROOT):
    parts = list(path.relative_to(root / "vitrail").with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def nodes(kind, folder="vitrail"):
    """(path, node) of every node of a kind in the files of a folder."""
    return [(path, node) for path in files(folder) for node in ast.walk(tree(path)) if isinstance(node, kind)]


def imported(path):
    """Every module that a file imports, at the top or inside a function; not what only type checkers see."""
    waiting, found = [tree(path)], []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        waiting += ast.iter_child_nodes(node)
    return found


@cache
def graph(root=ROOT) -> Graph:
    """module -> the modules of ours that it imports."""
    ours = {module_of(path, root): path for path in files(root=root)}
    edges: Graph = {module: set() for module in ours}
    for module, path in ours.items():
        for name in imported(path):
            package, _, inside = name.partition(".")
            known = [n for n in (inside, inside.rpartition(".")[0]) if n in ours and package == "vitrail"]
            edges[module] |= set(known[:1]) - {module}
    return edges


def within(folder: str, root=ROOT) -> Graph:
    """The rooms directly inside a folder ("" is the package) -> those beside it that they import.

    A folder's face is no room inside it: it belongs to the folder.
    """
    prefix = f"{folder}." if folder else ""

    def room(module: str) -> str | None:
        inside = module.startswith(prefix) and module not in (folder, "__init__", "__main__")
        return module.removeprefix(prefix).split(".")[0] if inside else None

    rooms: Graph = {}
    for module, below in graph(root).items():
        if (here := room(module)) is not None:
            rooms.setdefault(here, set()).update(set(map(room, below)) - {here, None})
    return rooms


def floors(rooms: Graph) -> dict[str, int]:
    """Each room's floor: one above the highest room that it imports. CycleError where imports make a circle."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        found[room] = 1 + max((found[below] for below in rooms[room]), default=0)
    return found


def chain(edges: Graph) -> list[str]:
    """The longest chain of modules of which each imports the next."""
    longest: dict[str, list[str]] = {}
    for module in TopologicalSorter(edges).static_order():
        longest[module] = [module, *max((longest[below] for below in sorted(edges[module])), key=len, default=[])]
    return max(longest.values(), key=len)


def folders(root=ROOT) -> list[str]:
    return sorted({module_of(p.parent / "_", root).rpartition(".")[0] for p in (root / "vitrail").rglob("__init__.py")})


def drawing(root=ROOT) -> str:
    """The text of docs/rooms.md. What a circle has no floors for is drawn without them."""
    text = ["# Rooms and floors\n\nMade by `python tests/test_house.py`; the tests hold it. "]
    text[0] += "Imports run strictly downwards between rooms.\n"
    for folder in folders(root):
        rooms = within(folder, root)
        if len(rooms) < 2:
            continue
        text.append(f"## {folder.replace('.', '/') or 'vitrail'}\n")
        try:
            places = floors(rooms)
        except ValueError as circle:
            text.append(f"A circle: {' -> '.join(circle.args[1])}\n")
            places = dict.fromkeys(rooms, 0)
        text.append("| floor | room | lines | imports |\n|---|---|---|---|")
        for room in sorted(rooms, key=lambda room: (-places[room], room)):
            path = root.joinpath("vitrail", *folder.split(".") if folder else (), room)
            size = lines(path.rglob("*.py")) if path.is_dir() else lines([path.with_suffix(".py")])
            name = f"`{room}/`" if path.is_dir() else f"`{room}`"
            below = sorted(rooms[room], key=lambda other: (-places[other], other))
            text.append(f"| {places[room] or '?'} | {name} | {size:,} | {', '.join(below)} |")
        text.append("")
    longest = chain(graph(root))
    sizes = [f"{folder} {lines(files(folder, root)):,}" for folder in ("vitrail", "tests", "benchmarks")]
    text += [f"## The longest chain of imports\n\n{len(longest)} modules: {' -> '.join(longest)}\n"]
    return "\n".join([*text, f"## Lines\n\n{', '.join(sizes)}\n"])


def functions():
    return nodes(ast.FunctionDef) + nodes(ast.AsyncFunctionDef)


def test_imports_run_strictly_downwards_between_rooms():
    found = floors(within(""))  # a circle is a CycleError
    assert max(found.values()) == FLOORS
    assert [room for room, floor in found.items() if floor == FLOORS] == ["cli"]


@pytest.mark.parametrize("folder", [f for f in folders() if f])
def test_a_folder_has_few_floors(folder):
    assert max(floors(within(folder)).values(), default=1) <= INNER_FLOORS


def test_imports_make_no_circle():
    assert set(TopologicalSorter(graph()).static_order()) == set(graph())


def test_the_drawing_in_the_docs_is_true():
    assert (ROOT / "docs" / "rooms.md").read_text() == drawing()


def test_rooms_keep_their_budgets():
    sizes = Counter()
    for path in files():
        sizes[module_of(path).split(".")[0]] += lines([path])
    sizes = {room: size for room, size in sizes.items() if room not in ("__init__", "__main__")}
    assert set(sizes) == set(ROOMS)
    assert {room: size for room, size in sizes.items() if size > 1.1 * ROOMS[room]} == {}


@pytest.mark.parametrize(("folder", "most"), TOTAL.items())
def test_the_whole_keeps_its_budget(folder, most):
    assert lines(files(folder)) <= most


def test_tests_are_half_as_long_as_the_package_and_at_most_as_long():
    assert lines(files()) / 2 <= lines(files("tests")) <= lines(files())


@pytest.mark.parametrize("folder", ["vitrail", "benchmarks", "tests"])
def test_files_stay_small(folder):
    assert {str(p.relative_to(ROOT)): n for p in files(folder) if (n := lines([p])) > FILE_LINES} == {}


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
    # Methods that override a documented one (forward, run, __len__) need no words of their own.
    for file, node in [(path, node) for path in files() for node in tree(path).body]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            overload = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
            bare += [f"{file.name}: {node.name}"] if not overload and not ast.get_docstring(node) else []
    assert bare == []


def test_no_file_is_a_drawer():
    assert [p for p in files() if p.stem in ("utils", "util", "misc", "common", "helpers", "helper")] == []


def test_only_the_command_line_knows_tyro():
    knows = {module_of(p).split(".")[0] for p in files() if any(n.split(".")[0] == "tyro" for n in imported(p))}
    assert knows == {"cli"}


@pytest.mark.parametrize("name", ["argparse", "yaml", "hydra", "timm", "transformers", "torchvision"])
def test_what_the_package_does_without(name):
    assert [str(p) for p in files() if any(n.split(".")[0] == name for n in imported(p))] == []


def test_the_loop_shows_its_backward_pass():
    calls = [(path.name, ast.unparse(node)) for path, node in nodes(ast.Call)]
    assert [name for name, call in calls if call.endswith(".backward()")] == ["train.py"]


def test_nothing_is_asked_for_what_it_has_or_unpickled():
    names = [(path.name, ast.unparse(node.func)) for path, node in nodes(ast.Call)]
    assert [n for n in names if n[1] in ("hasattr", "np.load", "eval", "exec")] == []
    # weights/tensors.py knows pickle by the error with which torch refuses one.
    assert [n for n in names if n[1].startswith("pickle.")] == []
    loads = [ast.unparse(node) for _, node in nodes(ast.Call) if ast.unparse(node.func) == "torch.load"]
    assert all("weights_only=True" in call for call in loads)


def test_nothing_is_left_for_later():
    words = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError|for now|placeholder)\b")
    assert [str(p) for p in files() if words.search(p.read_text())] == []


def test_continuous_integration_runs_the_command_of_the_readme():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.M)
    assert [command.rpartition(".venv/bin/")[2] for command in commands] == ["vitrail demo", "python -m pytest -n 2"]
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


if __name__ == "__main__":
    print(drawing(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT), end="")
