"""All runs side by side: cells, the best within noise, signs, and LaTeX that compiles."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import replace
from unittest import mock

import pandas as pd
import pytest
from absl.testing import flagsaver

import main
from data.messages import WIDTH
from fairness_utils import count_by_group, debiased_difference
from model.comparison import run_parity, statistics
from model.comparison.compare_latex import label_of, latex_report
from model.comparison.compare_report import console
from model.comparison.compare_summary import summary_lines
from model.comparison.finished_lists import read_lists
from model.comparison.overview import Block, Column, Overview, overview_tables
from model.evaluation.keys import EXCESS, MetricKey
from model.modes import compare as compare_mode
from model.results.finished import counted_warnings
from model.results.metric_text import UNDEFINED
from model.runs.processes import ALONE
from tests.support.latex import compiled, needs_latex
from tests.support.light import light_runs
from tests.support.pages import read_page
from tests.support.runs import run_main

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of two runs, "plain" and "under_score", whose lists differ."""
    folder = tmp_path_factory.mktemp("runs")
    with light_runs():
        for name, epochs in (("plain", 1), ("under_score", 8)):
            run_main(folder, **BY_IDS, epochs=epochs, lr=0.05)
            (folder / "run").rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def compared(runs):
    """The comparison of both runs, and what it printed."""
    flags = {"mode": "compare", "runs": ["plain", "under_score"], "output_dir": str(runs), "run_name": "com_parison"}
    functions = (statistics.compare_paired, statistics.compare_gaps, statistics.mean_interval)
    with contextlib.ExitStack() as stack, io.StringIO() as printed:
        for function in functions:
            stack.enter_context(mock.patch.object(function, "__defaults__", (200,)))
        stack.enter_context(mock.patch.object(run_parity, "PERMUTATIONS", 99))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(flagsaver.flagsaver(**flags))
        comparison = compare_mode.compare_runs(main.settings_from_flags(), 0.0, ALONE)
        return comparison, printed.getvalue()


def test_parity_is_counted_again_from_the_lists(runs, compared):
    comparison, text = compared
    table = comparison.table[comparison.table["kind"] == "parity"].set_index("metric")
    results = [json.loads((runs / name / "result.json").read_text())["metrics"] for name in ("plain", "under_score")]
    frame = pd.read_parquet(runs / "plain" / "per_user.parquet").set_index("user").sort_index()
    codes, _ = pd.factorize(frame["gender"], sort=True)
    for place, name in enumerate(("plain", "under_score")):
        lists = read_lists(runs / name, "test", 5)
        literal = float(debiased_difference(*count_by_group(lists.topk, codes, lists.num_items)))
        row = table.loc["dp_debiased@5/gender"]
        assert row[("baseline_value", "value")[place]] == pytest.approx(literal, rel=1e-9)
        low, high = comparison.overview.intervals[name]["dp_debiased@5/gender"]
        assert low < literal < high
    for metric in ("dp_rate@5/gender", "eo_js@10/gender", "dp@10/gender"):
        row, key = table.loc[metric], MetricKey.parse(metric)
        assert row["difference"] == pytest.approx(results[1][f"test/{metric}"] - results[0][f"test/{metric}"])
        # other permutations than the run's agree to their noise
        assert row["excess"] == pytest.approx(results[1][f"test/{key.of(EXCESS)}"], abs=0.03)
        assert row["excess_difference"] == pytest.approx(row["excess"] - row["baseline_excess"])
        assert row["low"] < row["difference"] < row["high"] and 0 < row["p"] <= row["p_holm"] <= 1
    family = table[table["family"] == "parity @5"]
    assert family["p_holm"].tolist() == pytest.approx(statistics.holm(family["p"].to_numpy()))
    assert set(family["attribute"]) == {"gender"} and len(family) == 8
    assert "warning" not in text and "Parity between user groups" in text


def test_all_runs_come_first_and_yardsticks_below_a_rule(compared):
    comparison, text = compared
    assert max(len(line) for line in text.splitlines() if "Every metric" not in line) <= WIDTH
    head, _, rest = text.partition("=== under_score against plain")
    assert rest and "NDCG ↑" in head and "DP debiased →0" in head
    accuracy, _ = overview_tables(comparison.overview)[0]
    assert [row[0] for row in accuracy.rows] == ["plain", "under_score", "most popular", "random"]
    assert accuracy.ruled == 2 and all(row < 2 for row, _ in accuracy.best)
    assert re.search(r"under_score .*\n-+ [- ]*\nmost popular", accuracy.text())
    metrics = comparison.metrics["plain"]
    assert accuracy.rows[0][1].startswith(f"{100 * metrics['hr@5']:.2f} [")
    assert accuracy.rows[2][3] == f"{100 * results_of(comparison)['reference/popular/mrr@5']:.2f}"
    page = read_page(comparison.directory / "report.html")
    for words in ("Summary", "All runs", "NDCG@5 is", "DP debiased by gender", "under_score against plain"):
        assert words in page.text.replace("\N{NO-BREAK SPACE}", " ")


def results_of(comparison):
    return json.loads((comparison.directory.parent / "plain" / "result.json").read_text())["metrics"]


def test_the_best_within_noise_stand_out_and_signs_say_better_or_worse():
    column = Column(
        MetricKey("ndcg", 5), "NDCG ↑", ["1.00", "2.00", "1.90", "0.10", "9.00"],
        best=frozenset({1, 2}), better={1: 0.0004, 2: 0.05}, worse={3: 0.004},
    )  # fmt: skip
    overview = Overview(["a_b", "b", "c", "d"], ["most popular"], [Block("Accuracy 5 %", [column])], {})
    text = latex_report(overview, "My_run 2", "toy, 5 users", "facts & more")
    rows = dict(re.findall(r"^(\S.*?) & (.*) \\\\$", text, re.MULTILINE))
    assert rows == {
        r"a\_b": "1.00",
        "b": r"\textbf{2.00}$^{***}$",
        "c": r"\textbf{1.90}$^{*}$",
        "d": r"0.10$^{\dagger\dagger}$",
        "most popular": "9.00",
    }
    assert r"\label{tab:my-run-2-1}" in text and "% facts & more" in text and r"$\uparrow$" in text
    assert text.index("d & ") < text.rindex(r"\midrule") < text.index("most popular")
    assert r"\caption{Accuracy 5 \% (toy, 5 users). Bold" in text and r"$^{\dagger}$: worse" in text
    ((table, sizes),) = overview_tables(overview)
    assert table.best == {(1, 1), (2, 1)} and [row[1] for row in table.rows] == column.cells
    assert re.search(r"b +2\.00\*\nc +1\.90\*\nd +0\.10\n-", console(table, sizes)[0])


def test_long_names_are_numbers_with_a_legend():
    column = Column(MetricKey("ndcg", 5), "NDCG ↑", ["1.00", "2.00"])
    overview = Overview(["fine", "a-very-long-name-of-a-run"], [], [Block("Accuracy", [column])], {})
    ((table, _),) = overview_tables(overview)
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert overview.legend == ["1  fine", "2  a-very-long-name-of-a-run"]
    assert "a-very-long-name-of-a-run &" in latex_report(overview, "x", "toy", "")


def test_wide_blocks_are_cut_between_figures_and_span_both_columns():
    figures = []
    for number in range(6):
        figures.append(Column(MetricKey("dp", 5, "gender"), f"figure {number}", ["0.123 [0.100, 0.150]"]))
        figures.append(Column(MetricKey("dp", 5, "gender"), "excess", ["+0.01"], belongs=True))
    text = latex_report(Overview(["a"], [], [Block("Parity", figures)], {}), "x", "toy", "")
    heads = re.findall(r"^ & (.*) \\\\$", text, re.MULTILINE)
    assert len(heads) > 1 and all(head.count("figure") == head.count("excess") for head in heads)
    assert text.count(r"\begin{table*}") == len(heads) and r"\begin{table}" not in text


@pytest.mark.parametrize("name", ["", "???", "été/2"])
def test_labels_hold_only_what_latex_takes(name):
    assert re.fullmatch(r"[a-z0-9-]+", label_of(name))


@needs_latex
def test_the_tables_compile(compared, tmp_path):
    comparison, _ = compared
    content = (comparison.directory / "comparison.tex").read_text()
    assert "Overfull" not in compiled(content, tmp_path)
    assert "under\\_score" in content and "tab:com-parison-1" in content


@needs_latex
def test_whatever_a_run_is_called_compiles(tmp_path):
    name = r"a_b%c&d#e~f^g\h{i}j$k<l>m"
    column = Column(MetricKey("dp", 5, "a_b"), "DP, counts ↓ →0 ±", [f"0.1~ ± 0.2 {UNDEFINED}"], worse={0: 0.01})
    overview = Overview([name], ["most popular"], [Block(name, [replace(column, cells=column.cells * 2)])], {})
    compiled(latex_report(overview, name, name, name), tmp_path)


def test_the_summary_says_what_differs_and_what_is_within_noise(compared, runs):
    comparison, _ = compared
    loaded = compare_mode.load_runs(["plain", "under_score"], runs)
    lines = summary_lines(comparison.table, loaded, 5)
    assert [line.partition(":")[0] for line in lines] == ["Accuracy", "Tail", "Parity", "Warnings"]
    row = comparison.table.set_index("metric").loc["ndcg@5"]
    assert f"under_score {100 * row['difference']:+.2f} [" in lines[0]
    assert ("(beyond noise)" if row["differs"] else "(within noise)") in lines[0]
    assert "DP debiased by gender is" in lines[2]


def test_warnings_of_seeds_are_counted_whatever_their_numbers():
    of_seeds = [("HR@5 3.1 is low.", "Small groups."), ("HR@5 2.95 is low.",), None]
    assert counted_warnings(of_seeds) == ("2 of 3 seeds: HR@5 3.1 is low.", "1 of 3 seeds: Small groups.")
    assert counted_warnings([None, None]) is None and counted_warnings([(), None]) == ()
