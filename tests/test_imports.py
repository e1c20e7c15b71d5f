"""Imports point one way, read from the source: data <- fairness_utils <- the rooms of model <- main."""

from __future__ import annotations

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each room reads those before it, and its own
ORDER = (
    {"data"},
    {"fairness_utils"},
    {"model", "model.runs"},
    {"networks"},
    {"model.methods"},
    {"model.training", "model.evaluation"},
    {"model.results"},
    {"model.comparison"},
    {"model.modes"},
    {"main"},
)
RANK = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
SHIPPED = [ROOT / "main.py", ROOT / "fairness_utils.py", *sorted((ROOT / "data").rglob("*.py"))]
SHIPPED += sorted((ROOT / "model").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SHARED = ("tests.support", "tests.benchmarks")


def name_of(path: Path) -> str:
    """The full name of a module: 'model.runs.config', and of a package: 'model.runs'."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in (*SHIPPED, *TESTS)}


def room_of(module: str) -> str:
    """The room of a shipped module: files beside the folders of `model` are networks."""
    top, _, rest = module.partition(".")
    if top != "model" or not rest:
        return top
    folder = f"model.{rest.split('.')[0]}"
    return folder if folder in RANK else "networks"


def imported(tree: ast.AST) -> set[str]:
    """Full names of what a module or a part of it imports: 'data.structs', 'absl.flags', 'numpy'."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            # a name of a module, or a module of a package
            names |= {name if name in MODULES or node.module not in MODULES else node.module for name in full}
    return names


def own(names: set[str]) -> set[str]:
    return {name for name in names if name in MODULES}


def own_imports(tree: ast.AST) -> set[str]:
    """Names that are imported from the program's own modules."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
    }


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


each_shipped = pytest.mark.parametrize("path", SHIPPED, ids=name_of)


@each_shipped
def test_imports_point_one_way(path):
    names, room = imported(parsed(path)), room_of(name_of(path))
    later = {name for name in own(names) if RANK.get(room_of(name), len(ORDER)) > RANK[room]}
    assert not later, f"{room} reads only what stands before it"
    flags = {name for name in names if name.startswith(("absl.app", "absl.flags"))}
    assert room == "main" or not flags, "only main.py knows flags"


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.name != "main.py"], ids=name_of)
def test_nothing_is_hidden(path):
    tree = parsed(path)
    assert not any("TYPE_CHECKING" in (getattr(node, "id", ""), getattr(node, "attr", "")) for node in ast.walk(tree))
    inner = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in own(imported(node))
    }
    # main.py alone puts off what `--help` can do without
    assert not inner, "the program's own modules are imported at the top of a file"


@each_shipped
def test_what_another_module_reads_has_no_private_name(path):
    private = {name for name in own_imports(parsed(path)) if name.startswith("_") and not name.startswith("__")}
    assert not private, "a name that others read has no underscore"


def test_there_is_no_cycle():
    graph = {name_of(path): own(imported(parsed(path))) - {name_of(path)} for path in SHIPPED}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


# their docstrings say why they are longer
LONG = {"data.structs", "fairness_utils"}


@each_shipped
def test_a_module_is_read_in_one_sitting(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 350 or name_of(path) in LONG, f"{lines} lines; a file holds one subject"


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_tests_do_not_import_each_other(path):
    names = {name for name in imported(parsed(path)) if name.partition(".")[0] == "tests"}
    assert all(name == "tests" or name.startswith(SHARED) for name in names), "what tests share is in tests/support"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("tests.benchmarks.")])
def test_benchmarks_find_what_they_import(name):
    importlib.import_module(name)
