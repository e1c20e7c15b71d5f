"""The metric table: one row is all that a new metric needs, and one without a row is an error."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver

import main
from model.comparison import run_parity, statistics
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import MetricKey
from model.evaluation.metric_kinds import BETTER, COLUMNS, EXPOSURE, PARETO, RUN, Metric
from model.evaluation.metric_table import METRICS
from model.evaluation.metrics_page import markdown
from model.results.metric_text import ARROWS
from tests.support.light import light_runs
from tests.support.pages import read_page
from tests.support.runs import TINY, refused, run_main

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "model" / "evaluation" / "metric_table.py"
FEW = {"backbone": "bprmf", "embedding_dim": 8, "user_hidden": None, "item_hidden": None, "num_negatives": 1}
NOVELTY = Metric(
    name="novelty",
    title="Mean item number",
    head="novelty",
    kind=EXPOSURE,
    better="higher",
    bounds=(0.0, math.inf),
    ideal="none",
    definition="Mean id of a list's items (a toy).",
    compute=lambda lists: np.where(lists.topk >= 0, lists.topk, np.nan).mean(axis=1),
    per_user=True,
    places=(RUN, COLUMNS, PARETO),
    digits=1,
)


def test_every_row_is_whole():
    for name, row in METRICS.items():
        assert row.name == name and row.definition.endswith(".") and row.title and row.head and row.range and row.ideal
        assert row.compute is None or callable(row.function)
    assert set(BETTER) == set(ARROWS)
    with pytest.raises(ValueError, match="kind 'taste'"):
        Metric("x", "x", "x", "taste", "lower", (0.0, 1.0), "0", "x.")


def test_bounds_are_numbers_and_their_words_follow():
    assert {row.range for row in METRICS.values()} == {
        "0 to 1", "-1 to 1", "0 to 0.5", "0 upwards", "0 to (I - 1)/I", "0 to the largest degree",
        "0 to 0.8326, sqrt(ln 2)",
    }  # fmt: skip
    expected = {
        "dp_js@10/gender": (0, math.sqrt(math.log(2))), "dp_rate@10/excess/gender": (-1, 1),
        "dp_debiased@5/chance_std/age": (0, 2), "ndcg@10/gap/p/gender": (0, 1), "ndcg@10/std/chance/gender": (0, 0.5),
        "arp@10": (0, math.inf), "leakage_auc/excess/gender": (-1, 1),
    }  # fmt: skip
    assert {text: MetricKey.parse(text).bounds for text in expected} == expected
    assert [name for name, row in METRICS.items() if row.debiased] == ["dp_debiased", "eo_debiased"]


def test_the_page_of_metrics_is_current():
    text = (ROOT / "model/results/METRICS.md").read_text(encoding="utf-8")
    assert text == markdown(), "run python -m model.evaluation.metrics_page > model/results/METRICS.md"


def test_the_table_is_light():
    """Who asks for a metric's name or definition waits for no network library."""
    code = (
        "import sys; import model.evaluation.metric_table; print({'torch', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.pictures
def test_a_metric_is_one_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "novelty", NOVELTY)
    monkeypatch.setattr(Evaluator, "leakage", lambda *arguments: {})
    for name, epochs in (("a", 1), ("b", 2)):
        with light_runs():
            metrics = run_main(tmp_path / name, **FEW, epochs=epochs)["metrics"]
        assert "Mean item number" in capsys.readouterr().out
        folder = tmp_path / name / "run"
        per_user = pd.read_parquet(folder / "per_user.parquet")
        assert per_user["test/novelty@5"].mean() == pytest.approx(metrics["test/novelty@5"])
        assert "reference/popular/novelty@10" in metrics
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert "valid/novelty@5" in row
        assert f"{metrics['test/novelty@5']:.1f}" in read_page(folder / "report.html").text
    for function in (statistics.compare_paired, statistics.compare_gaps, statistics.mean_interval):
        monkeypatch.setattr(function, "__defaults__", (50,))
    monkeypatch.setattr(run_parity, "PERMUTATIONS", 20)
    unset = {name: main.FLAGS[name].default for name in TINY}
    # the picture takes three runs
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    runs = [str(tmp_path / name / "run") for name in "abc"]
    values = {**unset, "mode": "compare", "runs": runs, "output_dir": str(tmp_path), "run_name": "both"}
    with flagsaver.flagsaver(**values):
        main.main(["main.py"])
    assert "novelty ↑" in capsys.readouterr().out
    kinds = {row["kind"] for row in json.loads((tmp_path / "both/comparison.json").read_text())["rows"]
             if row["metric"].startswith("novelty@5")}  # fmt: skip
    assert kinds == {"paired", "gap"}
    assert "& novelty" in (tmp_path / "both/comparison.tex").read_text()
    assert "Mean item number" in (tmp_path / "both/accuracy_against_fairness.svg").read_text()
    assert "| `novelty@K` |" in markdown()


def test_a_metric_without_a_row_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Evaluator, "leakage", lambda *arguments: {"novelty/gender": 0.5})
    error = refused(capsys, tmp_path, **FEW, epochs=1)
    assert "metric 'novelty' is not in the metric table; add a row to METRICS" in error
    assert not (tmp_path / "run" / "result.json").exists()


def test_no_metric_is_described_twice():
    described = re.findall(
        r'^    (?:Metric|_\w+)\(\n        (?:name=)?"(\w+)"', TABLE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert described == list(METRICS)
