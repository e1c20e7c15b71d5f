"""Every backbone under every method and protocol runs, or says in one line why not; the README has the matrix."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

import main
from data.protocols import PROTOCOLS
from model import BACKBONES, METHODS
from model.methods.base import Method
from model.modes import train
from model.runs.config import Config
from model.runs.setting import declared
from model.runs.settings import is_read
from tests.support.blocks import times_mixed
from tests.support.recording import recording
from tests.support.runs import (
    refused,
    run_main,
)
from tests.support.settings import SETTINGS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
CELLS = list(itertools.product(BACKBONES, METHODS, PROTOCOLS))
TINY = {
    "dataset": "synthetic",
    "synthetic_users": 30,
    "synthetic_items": 40,
    "synthetic_interactions": 400,
    "epochs": 1,
    "batch_size": 128,
    "num_negatives": None,
    "user_hidden": None,
    "item_hidden": None,
    "eval_k": ["20", "10"],
    "run_name": "run",
}
# what makes a protocol as small as the data
SMALL = {"fade": ["blocks=2", "averaged=1", "epochs=1", "full=False"]}


def flags_of(backbone: str, method: str, protocol: str) -> dict:
    """The flags that choose a cell."""
    values = {**TINY, "backbone": backbone, "protocol": protocol, "protocol_option": SMALL.get(protocol, [])}
    if method != "none":
        values |= {"enable_fairness": True, "fairness_method": method}
    config = Config(**SETTINGS | {"enable_fairness": False, "dataset": "synthetic"} | values)
    return values | {name: main.FLAGS[name].default for name in TINY if not is_read(name, config)}


def reason_of(backbone: str, method: str, protocol: str) -> str | None:
    """Why a cell is not supported; None where it is."""
    with flagsaver.flagsaver(**flags_of(backbone, method, protocol)):
        return METHODS[method].unsupported(main.settings_from_flags().config())


def matrix() -> str:
    """The matrix as markdown, with the reasons below; `python -m tests.test_matrix` prints it."""
    reasons: dict[str, int] = {}
    rows = []
    for backbone in BACKBONES:
        cells = []
        for method in METHODS:
            found = {protocol: reason_of(backbone, method, protocol) for protocol in PROTOCOLS}
            works = [f"`{protocol}`" for protocol, reason in found.items() if reason is None]
            numbers = [reasons.setdefault(reason, len(reasons) + 1) for reason in found.values() if reason is not None]
            marks = ", ".join(f"({number})" for number in dict.fromkeys(numbers))
            names = "all" if len(works) == len(PROTOCOLS) else ", ".join(works) or "no"
            cells.append(" ".join(part for part in (names, marks) if part))
        rows.append(f"| `{backbone}` | {' | '.join(cells)} |")
    head = ["| backbone | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*head, *rows, *(["", *notes] if notes else [])])


def is_often(backbone: str, method: str, protocol: str) -> bool:
    """Tell whether a cell is of the default suite; the rest runs where time allows.

    That is each backbone plainly and each method on BPR-MF under leave-one-out, each protocol plainly and with the
    method of its name on BPR-MF, and whatever is refused.
    """
    if reason_of(backbone, method, protocol) is not None:
        return True
    if protocol == "loo":
        return method == "none" or backbone == "bprmf"
    return backbone == "bprmf" and method in ("none", protocol)


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[] if is_often(*cell) else pytest.mark.slow, id="-".join(cell)) for cell in CELLS],
)
def test_a_cell_runs_or_gives_its_reason(tmp_path, capsys, monkeypatch, cell):
    # users who are known before later blocks: fade asks about no others
    times_mixed(monkeypatch)
    reason = reason_of(*cell)
    if reason is not None:
        assert refused(capsys, tmp_path, **flags_of(*cell)).endswith(f": {reason}")
        assert not (tmp_path / "run").exists()
        return
    kind, read = recording()
    with flagsaver.flagsaver(output_dir=str(tmp_path), **flags_of(*cell)):
        config = main.settings_from_flags(kind=kind).config()
    train.execute(config, time.perf_counter())
    assert {name for name in declared(kind) if is_read(name, config)} <= read, "accepted, and read by nobody"
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert (result["method"], result["protocol"]) == cell[1:]
    for name in result.get("lists", ["test"]):
        assert 0 <= result["metrics"][f"{name}/ndcg@20"] <= 1


class Picky(Method):
    """A method of one backbone and one protocol."""

    @classmethod
    def unsupported(cls, config):
        if config.backbone != "pmf":
            return "it is about inner products; use --backbone=pmf"
        return None if config.protocol == "loo" else "it needs every user's last item; use --protocol=loo"


def test_a_method_may_refuse_what_it_is_combined_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "picky", Picky)
    for cell, words in (
        (("ncf", "picky", "loo"), "it is about inner products; use --backbone=pmf"),
        (("pmf", "picky", "fda"), "it needs every user's last item; use --protocol=loo"),
    ):
        error = refused(capsys, tmp_path, **flags_of(*cell))
        method, backbone, protocol = (f"--{name}={cell[place]}" for name, place in (
            ("fairness_method", 1), ("backbone", 0), ("protocol", 2)
        ))  # fmt: skip
        assert error == f"error: {method} on {backbone} with {protocol}: {words}"
    assert run_main(tmp_path, **flags_of("pmf", "picky", "loo"), eval_negatives=5)["method"] == "picky"
    printed = matrix().splitlines()
    lines = {line.split(" | ")[0]: line for line in printed}
    numbers = {line.partition(". ")[2][:9]: line.partition(". ")[0] for line in printed if ". it " in line}
    assert lines["| `ncf`"].endswith(f"| no ({numbers['it is abo']}) |")
    assert lines["| `pmf`"].endswith(f"| `loo` ({numbers['it needs ']}) |")


def test_the_matrix_is_in_the_readme():
    assert matrix() in README, matrix()


if __name__ == "__main__":
    print(matrix())
