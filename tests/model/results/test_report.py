"""The console table, the files of a run's folder, and its pictures."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fairness_utils
from data.structs import Group, ItemLists, Ranking
from model.results import plots
from model.results import tables as report
from model.results.tables import result_tables, result_text
from model.results.user_tables import recommendation_frame, write_per_user
from model.runs.files import append_jsonl, atomic_path, reserve_run_dir, write_frame, write_json

NAN = float("nan")
HEADER = {"data set": "MovieLens-1M", "protocol": "loo " + "and more words about it " * 8, "sampled": "nothing"}
# one metric more than the program knows: a new one needs no change of the table
DIRECTIONS = fairness_utils.DIRECTIONS | {"novelty": "higher"}
LISTS = ["gini", "gini_count", "coverage", "arp", "aplt", "exposure_gap", "dtr"]
PARITY = ["dp", "eo", "dp_rate", "eo_rate", "dp_js", "eo_js"]


def made_up(root, groups, k=10):
    """Every metric of one ranking; value n / 10,000 with n counting on, so that a cell names its key."""
    names = []
    for base in ("hr", "ndcg", "mrr"):
        names += [f"{base}@{k}{tail}" for tail in ("", "/head", "/tail")]
        names += [f"{base}@{k}/{name}/{label}" for name, labels in groups.items() for label in labels]
        names += [f"{base}@{k}/{spread}/{name}" for name in groups for spread in ("gap", "std")]
    names += [f"{base}@{k}" for base in LISTS] + [f"{base}@{k}/{name}" for base in PARITY for name in groups]
    names += [f"leakage_auc/{name}" for name in groups]
    return {f"{root}/{name}": (number + 1) / 10_000 for number, name in enumerate(names)}


def with_yardsticks(groups, reranked=False):
    results = made_up("test", groups) | made_up("reference/popular", groups) | made_up("reference/random", groups)
    return results | (made_up("test/reranked", groups) if reranked else {})


def result_table(results, header, *layout, **options):
    return result_text(header, result_tables(results, *layout, **options))


def row_of(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line[len(start) :].split()


GROUPS = {
    "gender": ("F", "M"),
    "age": ("Under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"),
    "occupation": tuple(f"occupation number {number}" for number in range(21)),
    "country": ("United States of America", "any other country"),
}


def test_main_table_cells():
    results = with_yardsticks({"gender": ("F", "M")}) | {"test/hr@10/tail": NAN, "reference/random/hr@10": None}
    text = result_table(results, HEADER, {"gender": ("F", "M")}, 10, DIRECTIONS)
    assert text.startswith("data set  MovieLens-1M\nprotocol  loo")
    assert "overall    head    tail     F     M    gap    most popular    random\n" in text
    percent = {name: f"{100 * results[f'test/{name}']:.2f}" for name in ("hr@10", "hr@10/head", "hr@10/gap/gender")}
    assert row_of(text, "HR@10 ") == [
        percent["hr@10"],
        percent["hr@10/head"],
        report.UNDEFINED,
        "0.04",
        "0.05",
        percent["hr@10/gap/gender"],
        "0.01",
        report.UNDEFINED,
    ]
    assert "in percent" in text and text.index("MovieLens") < text.index("HR@10") < text.index("Gini")


def test_exposure_rows_have_arrows_and_every_column():
    results = with_yardsticks({"gender": ("F", "M")}, reranked=True) | {"test/arp@10": 1234.56, "test/dtr@10": NAN}
    text = result_table(results, HEADER, {"gender": ("F", "M")}, 10, DIRECTIONS)
    assert "this run    re-ranked    most popular    random" in text
    assert row_of(text, "Gini of exposure ") == ["↓", "0.0022", "0.0022", "0.0022", "0.0022"]
    assert row_of(text, "Catalogue coverage ")[0] == "↑"
    assert row_of(text, "Tail's exposure share less its catalogue share ")[0] == "→0"
    assert row_of(text, "Exposure per train interaction, tail / head ")[:2] == ["→1", report.UNDEFINED]
    assert row_of(text, "Average popularity (train interactions) ")[1] == "1234.6"
    assert row_of(text, "Demographic parity, rates, gender ")[0] == "↓"
    assert row_of(text, "HR@10, re-ranked ") == ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06"]


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize("names", [("gender",), ("age", "gender"), ("gender", "age", "occupation"), ("country",), ()])
def test_every_layout_fits_and_shows_every_number(names, reranked):
    groups = {name: GROUPS[name] for name in names}
    results = with_yardsticks(groups, reranked)
    text = result_table(results, HEADER, groups, 10, DIRECTIONS)
    assert max(len(line) for line in text.splitlines()) <= 120
    for name in names:
        own_table = f"Accuracy by {name}, in percent" in text
        assert own_table == (name != names[0] or name in ("age", "country"))
        for place, label in enumerate(groups[name]):
            if own_table:
                values = [f"{100 * results[f'test/{base}@10/{name}/{label}']:.2f}" for base in ("hr", "ndcg", "mrr")]
                cells = [row_of(table, label + " ") for table in text.split("\n\n") if f"by {name}, in" in table]
                assert cells == [values * (1 + reranked)], place
    assert len([line for line in text.splitlines() if line.startswith("Equal opportunity, rates")]) == len(names)


def test_tables_hold_the_rows_of_the_console():
    results = with_yardsticks({"gender": ("F", "M"), "age": GROUPS["age"]}, reranked=True)
    groups = {"gender": ("F", "M"), "age": GROUPS["age"]}
    tables = report.result_tables(results, groups, 10, DIRECTIONS)
    assert [table.caption.partition(",")[0] for table in tables] == [
        "Accuracy", "Accuracy by age", "Exposure and parity of the top 10",
    ]  # fmt: skip
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
    text = result_table(results, HEADER, groups, 10, DIRECTIONS)
    assert all(table.text() in text for table in tables) and tables[-1].note in text


def test_other_cutoffs_phases_and_missing_values_stay_out():
    results = made_up("test", {}) | made_up("test", {}, k=20) | {"test/epoch_2/ndcg@10": 0.5, "test/novelty@10": 0.25}
    text = result_table(results, {}, {}, 10, DIRECTIONS)
    assert "@20" not in text and "popular  " not in text and "epoch_2" not in text
    assert text.count("Gini of exposure") == 1 and row_of(text, "novelty ") == ["↑", "0.2500"]
    del results["test/hr@10/head"]
    assert row_of(result_table(results, {}, {}, 10, DIRECTIONS), "HR@10 ") == ["0.01", "0.03"]
    with_phase = {f"test/period_1/{key.removeprefix('test/')}": value for key, value in results.items()}
    other = result_table(with_phase, {}, {}, 10, DIRECTIONS, prefix="test/period_1")
    assert other == result_table(results, {}, {}, 10, DIRECTIONS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def undefined_as_none(value):
    if isinstance(value, dict):
        return {key: undefined_as_none(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [undefined_as_none(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@settings(max_examples=50, deadline=None)
@given(value=json_values)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == undefined_as_none(value)


def test_json_is_sorted_exact_and_repeatable(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_json(first, {"b": np.float64(0.1) + 0.2, "a": np.array([1, 2]), "c": np.float32("nan"), "d": np.bool_(True)})
    write_json(second, {"d": True, "c": NAN, "a": [1, 2], "b": 0.30000000000000004})
    assert first.read_bytes() == second.read_bytes()
    expected = '{"a": [1, 2], "b": 0.30000000000000004, "c": null, "d": true}'
    assert json.dumps(json.loads(first.read_text())) == expected
    with pytest.raises(ValueError, match=r"\$\.a\.b\[1\] is inf"):
        write_json(first, {"a": {"b": [0, math.inf]}})
    with pytest.raises(ValueError, match=r"\$\.when is a set"):
        write_json(first, {"when": {1}})
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["result.json"]


def test_jsonl_survives_a_killed_write(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"epoch": 1, "valid/ndcg@10": 0.25})
    append_jsonl(path, {"epoch": 2, "valid/ndcg@10": NAN, "title": "é"})
    with open(path, "a") as file:
        file.write('{"epoch": 3, "valid/nd')
    rows = [{"epoch": 1, "valid/ndcg@10": 0.25}, {"epoch": 2, "valid/ndcg@10": None, "title": "é"}]
    append_jsonl(path, {"epoch": 3})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [*rows, {"epoch": 3}]


def toy_ranking():
    topk = np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]])
    scores = np.array([[0.5, 0.25, 0.125], [1, -np.inf, -np.inf], [-np.inf] * 3], dtype=np.float32)
    nothing = ItemLists(np.zeros(4, np.int64), np.zeros(0, np.int64))
    return Ranking(np.array([3, 0, 1]), nothing, np.zeros(0, np.int64), topk, scores, np.array([3, 1, 0]))


def test_recommendations_have_original_ids_and_no_padding(tmp_path):
    path = tmp_path / "recommendations.parquet"
    users, items, titles = np.array([10, 11, 12, 13]), np.array(["a", "b", "c"]), np.array(["A", None, "C"], object)
    write_frame(path, recommendation_frame(toy_ranking(), users, items, titles, 2))
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["user", "rank", "item", "title", "score"]
    assert frame["user"].tolist() == [13, 13, 10] and frame["rank"].tolist() == [1, 2, 1]
    assert frame["item"].tolist() == ["c", "a", "b"] and frame["title"].tolist()[:2] == ["C", "A"]
    assert pd.isna(frame["title"][2]) and frame["score"].tolist() == [0.5, 0.25, 1.0]
    before = path.read_bytes()
    write_frame(path, recommendation_frame(toy_ranking(), users, items, titles, 2))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="k is 4, but the ranking holds 3"):
        recommendation_frame(toy_ranking(), users, items, titles, 4)


def test_per_user_has_groups_as_labels(tmp_path):
    path = tmp_path / "per_user.parquet"
    gender = Group("gender", np.array([0, 1, -1, 1]), ("F", "M"))
    values = {"hr@10": np.array([1.0, NAN, 0.0])}
    write_per_user(path, np.array([3, 2, 0]), np.array(["x", "y", "z", "w"]), values, {"gender": gender})
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["user", "gender", "hr@10"]
    assert frame["user"].tolist() == ["w", "z", "x"] and frame["gender"].isna().tolist() == [False, True, False]
    assert frame["gender"].dropna().tolist() == ["M", "F"]
    np.testing.assert_array_equal(frame["hr@10"], values["hr@10"])
    with pytest.raises(ValueError, match="named like other columns"):
        write_per_user(path, np.array([0]), np.arange(4), {"gender": np.zeros(1)}, {"gender": gender})
    assert os.listdir(tmp_path) == ["per_user.parquet"]


def test_run_folder(tmp_path):
    folder = reserve_run_dir(tmp_path / "runs", "first")
    assert folder == tmp_path / "runs" / "first" and folder.is_dir() and not list(folder.iterdir())
    assert reserve_run_dir(tmp_path / "runs", "first") == folder
    for name in ("config.json", "result.json"):
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=rf"already holds a run \({name}\).*--run_name.*--output_dir.*--resume"):
            reserve_run_dir(tmp_path / "runs", "first")
        (folder / name).unlink()
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="plain folder name"):
            reserve_run_dir(tmp_path, name)


def test_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*Not a directory.*--output_dir"):
        reserve_run_dir(tmp_path / "file", "run")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*run \(Permission denied\)"):
        reserve_run_dir(tmp_path, "run")


ROWS = [
    {"epoch": epoch, "train/loss": 1 / epoch, "valid/ndcg@10": None if epoch % 2 else 0.01 * epoch * (9 - epoch)}
    for epoch in range(1, 9)
]


def test_pictures_are_the_same_bytes_and_name_what_they_show(tmp_path):
    exposures = {"this run": np.array([0, 1, 2, 5.0]), "most popular": np.array([0, 0, 0, 8.0]), "none": np.zeros(4)}
    written = [plots.training_curves(ROWS, tmp_path / str(n) / "curves") for n in range(2)]
    written = [
        paths + plots.exposure_lorenz(exposures, tmp_path / str(n) / "lorenz") for n, paths in enumerate(written)
    ]
    assert [path.name for path in written[0]] == ["curves.png", "curves.svg", "lorenz.png", "lorenz.svg"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 2000
    curves, lorenz = (path.read_text() for path in written[0] if path.suffix == ".svg")
    assert "selected: epoch 4" in curves and "train/loss" in curves
    # Gini of (0, 1, 2, 5) is (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 5) / (4 * 8), of one item in four 3 / 4.
    assert (
        "this run (Gini 0.500)" in lorenz and "most popular (Gini 0.750)" in lorenz and "none (no exposure)" in lorenz
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_lorenz_gini_equals_mean_absolute_difference(values):
    values = np.array(values, dtype=np.float64)
    share, gini = plots._lorenz(values)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini == pytest.approx(pairs, abs=1e-12)
    assert share[0] == 0 and share[-1] == pytest.approx(1) and np.all(np.diff(share, 2) > -1e-12)


def test_curves_without_any_point(tmp_path):
    paths = plots.training_curves([{"epoch": 1, "train/loss": NAN}], tmp_path / "empty")
    assert all(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path)) == ["empty.png", "empty.svg"]


def test_every_metric_with_a_readable_name_can_have_an_arrow():
    assert set(report.EXPOSURE_AND_PARITY) <= set(DIRECTIONS)
    assert set(DIRECTIONS.values()) == set(report.ARROWS)
