"""Imports point one way, read from the source: data.structs <- data <- fairness_utils and model <- main."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted([*ROOT.glob("data/*.py"), *ROOT.glob("model/**/*.py")])
OWN = {"data", "fairness_utils", "main", "model"}
ALLOWED = {"data": {"data"}, "fairness_utils": {"data"}, "model": {"data", "fairness_utils", "model"}, "main": OWN}


def imported(path):
    """Full names of what a file imports: 'data.structs.Group', 'absl.flags', 'numpy'."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [ROOT / "main.py", ROOT / "fairness_utils.py", *FOLDERS], ids=lambda path: path.name)
def test_imports_point_one_way(path):
    names = list(imported(path))
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = set() if path == ROOT / "data/structs.py" else ALLOWED[room]
    assert {name.split(".")[0] for name in names} & OWN <= allowed
    flags = [name for name in names if name == "absl" or name.startswith(("absl.app", "absl.flags"))]
    assert room == "main" or not flags, "only main.py knows flags"
