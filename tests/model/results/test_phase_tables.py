"""Tables over phases: a line for each phase and each mean, accuracy beside its spread and what chance gives."""

from __future__ import annotations

import re

from model.evaluation.keys import ListKey, MetricKey
from model.results.metric_text import UNDEFINED, WITHIN
from model.results.phase_tables import tables_over_phases
from tests.support.blocks import run_of, small_and_quick
from tests.support.runs import run_main

LABELS = {"gender": ("M", "F")}
FURTHER = ("recall", "f1", "ndcg_hits", "difference")
NAMES = ("ndcg", "f1", "ndcg_hits")


def list_of(level: float, ahead: float, p: float = 0.01) -> dict[str, float]:
    """A list in which the first group is `ahead` of the second, which chance reaches at `p`."""
    metrics = {}
    for place, name in enumerate(NAMES):
        of = {spread: MetricKey(name, 20, "gender", spread=spread) for spread in ("difference", "gap")}
        metrics |= {
            str(MetricKey(name, 20)): level + place / 10,
            str(of["difference"]): ahead,
            str(of["gap"]): abs(ahead),
        }
        for spread, value in (("difference", 0.0), ("gap", 0.012)):
            parts = {"chance": value, "chance_std": 0.01, "excess": abs(ahead) - value, "p": p}
            metrics |= {str(of[spread].of(part)): amount for part, amount in parts.items()}
    return metrics


def tables(results, further=FURTHER, labels=("M", "F"), averages=("mean",)):
    lists = [ListKey.parse(name, True, True) for name in results]
    return tables_over_phases(results, lists, "gender", labels, 20, further, averages)


def lines_of(tables, name):
    """The cells of one line of all tables of a task, in order."""
    return [cell for table in tables for row in table.rows if row[0] == name for cell in row[1:]]


RESULTS = {
    "test/snapshot-0/next": list_of(0.5, 0.1),
    "test/snapshot-1/next": list_of(0.25, -0.0321, p=0.4),
    "test/mean/next": list_of(0.3, -0.01) | {"ndcg@20/gap/gender": 0.0666},
}


def test_phases_have_the_spread_with_its_sign_and_means_that_of_absolute_values_too():
    found = tables(RESULTS)
    assert all(table.caption.endswith("task next, in percent; groups by gender") for table in found)
    assert [cell for table in found for cell in table.headers[1:]] == [
        header for title in ("NDCG@20", "F1@20", "NDCG, hits@20") for header in (title, "difference", "chance")
    ]
    assert {row[0] for row in found[0].rows} == {"snapshot-0", "snapshot-1", "mean", "mean, absolute"}
    assert lines_of(found, "snapshot-0")[:3] == ["50.00", "10.00", "1.20"]
    assert lines_of(found, "snapshot-0")[3:6] == ["60.00", "10.00", "1.20"]
    assert lines_of(found, "snapshot-1")[:3] == ["25.00", f"-3.21{WITHIN}", "1.20"]
    assert lines_of(found, "mean")[1].startswith("-1.00") and lines_of(found, "mean, absolute")[1].startswith("6.66")


def test_each_task_and_control_has_tables_of_its_own():
    results = {f"{name}/{control}": own for name, own in RESULTS.items() for control in ("t0", "t1")}
    results |= {name.replace("next", "remain"): own for name, own in results.items()}
    captions = [table.caption for table in tables(results)]
    firsts = [caption for caption in captions if "(2)" not in caption]
    assert [re.search(r"task (\w+), (\w+)", caption).groups() for caption in firsts] == [
        ("next", "t0"), ("next", "t1"), ("remain", "t0"), ("remain", "t1"),
    ]  # fmt: skip


def test_the_note_says_whose_mean_is_taken_from_whose():
    *others, last = tables(RESULTS)
    assert not any(table.note for table in others)
    assert last.note.startswith("difference: mean of M less mean of F; absolute: its absolute values.\n")
    # of three groups no difference is defined
    assert "less mean of" not in tables(RESULTS, labels=("a", "b", "c"))[-1].note


def test_a_protocol_without_signs_shows_the_gap():
    found = tables(RESULTS, further=())
    assert [table.headers[1:] for table in found] == [["NDCG@20", "gap", "chance"]]
    assert [row[0] for row in found[0].rows] == ["snapshot-0", "snapshot-1", "mean"]
    assert lines_of(found, "snapshot-1") == ["25.00", f"3.21{WITHIN}", "1.20"]
    assert "difference" not in found[0].note


def test_what_is_undefined_is_a_dash_what_is_not_known_is_empty_and_no_list_makes_no_table():
    results = {"test/snapshot-0/next": {"ndcg@20": 0.5, "ndcg@20/difference/gender": float("nan")}}
    assert lines_of(tables(results), "snapshot-0")[:3] == ["50.00", UNDEFINED, ""]
    assert tables({}) == []


def test_a_run_prints_them_before_the_tables_of_its_means(tmp_path, capsys, monkeypatch):
    small_and_quick(monkeypatch)
    metrics = run_main(tmp_path, **run_of())["metrics"]
    out = capsys.readouterr().out
    assert out.index("By phase (1), task next") < out.index("By phase (1), task remain") < out.index("Accuracy of task")
    line = next(
        line for line in out[out.index("By phase (1), task remain") :].splitlines() if line[:10] == "snapshot-1"
    )
    percent = [
        f"{100 * metrics[f'test/snapshot-1/remain/{name}']:.2f}" for name in ("ndcg@5", "ndcg@5/difference/gender")
    ]
    assert [cell.strip("~") for cell in line.split()[1:3]] == percent
    assert "difference: mean of M less mean of F" in out
