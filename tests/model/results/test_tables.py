"""The tables of a run: cells, arrows, and every number within the width of the console."""

import pytest

from model.evaluation.keys import ListKey
from model.results.metric_text import UNDEFINED
from model.results.tables import tables_of_one, tables_of_several
from model.results.text_table import result_text

NAN = float("nan")
HEADER = {"data set": "MovieLens-1M", "protocol": "loo " + "and more words about it " * 8, "sampled": "nothing"}
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
    return {root: {name: (number + 1) / 10_000 for number, name in enumerate(names)}}


def with_yardsticks(groups, reranked=False):
    results = made_up("test", groups) | made_up("reference/popular", groups) | made_up("reference/random", groups)
    return results | (made_up("test/reranked", groups) if reranked else {})


def result_table(results, header, groups, k):
    return result_text(header, tables_of_one(results, groups, k))


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
    results = with_yardsticks({"gender": ("F", "M")})
    results["test"]["hr@10/tail"], results["reference/random"]["hr@10"] = NAN, None
    text = result_table(results, HEADER, {"gender": ("F", "M")}, 10)
    assert text.startswith("data set  MovieLens-1M\nprotocol  loo")
    assert "overall    head    tail     F     M    gap    most popular    random\n" in text
    percent = {name: f"{100 * results['test'][name]:.2f}" for name in ("hr@10", "hr@10/head", "hr@10/gap/gender")}
    assert row_of(text, "HR@10 ") == [
        percent["hr@10"],
        percent["hr@10/head"],
        UNDEFINED,
        "0.04",
        "0.05",
        percent["hr@10/gap/gender"],
        "0.01",
        UNDEFINED,
    ]
    assert "in percent" in text and text.index("MovieLens") < text.index("HR@10") < text.index("Gini")


def test_exposure_rows_have_arrows_and_every_column():
    results = with_yardsticks({"gender": ("F", "M")}, reranked=True)
    results["test"] |= {"arp@10": 1234.56, "dtr@10": NAN}
    text = result_table(results, HEADER, {"gender": ("F", "M")}, 10)
    assert "this run    re-ranked    most popular    random" in text
    assert row_of(text, "Gini of exposure ") == ["↓", "0.0022", "0.0022", "0.0022", "0.0022"]
    assert row_of(text, "Catalogue coverage ")[0] == "↑"
    assert row_of(text, "Tail's exposure share less its catalogue share ")[0] == "→0"
    assert row_of(text, "Exposure per train interaction, tail / head ")[:2] == ["→1", UNDEFINED]
    assert row_of(text, "Average popularity (train interactions) ")[1] == "1234.6"
    assert row_of(text, "Demographic parity, rates, gender ")[0] == "↓"
    assert row_of(text, "HR@10, re-ranked ") == ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06"]


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize("names", [("gender",), ("age", "gender"), ("gender", "age", "occupation"), ("country",), ()])
def test_every_layout_fits_and_shows_every_number(names, reranked):
    groups = {name: GROUPS[name] for name in names}
    results = with_yardsticks(groups, reranked)
    text = result_table(results, HEADER, groups, 10)
    assert max(len(line) for line in text.splitlines()) <= 120
    for name in names:
        own_table = f"Accuracy by {name}, in percent" in text
        assert own_table == (name != names[0] or name in ("age", "country"))
        for place, label in enumerate(groups[name]):
            if own_table:
                values = [f"{100 * results['test'][f'{base}@10/{name}/{label}']:.2f}" for base in ("hr", "ndcg", "mrr")]
                cells = [row_of(table, label + " ") for table in text.split("\n\n") if f"by {name}, in" in table]
                assert cells == [values * (1 + reranked)], place
    assert len([line for line in text.splitlines() if line.startswith("Equal opportunity, rates")]) == len(names)


def test_tables_hold_the_rows_of_the_console():
    results = with_yardsticks({"gender": ("F", "M"), "age": GROUPS["age"]}, reranked=True)
    groups = {"gender": ("F", "M"), "age": GROUPS["age"]}
    tables = tables_of_one(results, groups, 10)
    assert [table.caption.partition(",")[0] for table in tables] == [
        "Accuracy", "Accuracy by age", "Exposure and parity of the top 10",
    ]  # fmt: skip
    assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
    text = result_table(results, HEADER, groups, 10)
    assert all(table.text() in text for table in tables) and tables[-1].note in text


def test_other_cutoffs_and_missing_values_stay_out():
    results = {"test": made_up("test", {})["test"] | made_up("test", {}, k=20)["test"]}
    text = result_table(results, {}, {}, 10)
    assert "@20" not in text and "popular  " not in text
    assert text.count("Gini of exposure") == 1
    del results["test"]["hr@10/head"]
    assert row_of(result_table(results, {}, {}, 10), "HR@10 ") == ["0.01", "0.03"]


def test_a_metric_that_the_table_does_not_know_is_an_error():
    results = {"test": {"ndcg@10": 0.5, "novelty@10": 0.25}}
    with pytest.raises(ValueError, match="metric 'novelty' is not in the metric table; add a row"):
        tables_of_one(results, {}, 10)
    with pytest.raises(ValueError, match="metric 'novelty' is not in the metric table"):
        tables_of_several({"test/a": results["test"]}, [ListKey(control="a")], {}, 10)


def test_wide_tables_are_cut_to_the_width_of_the_console():
    controls = [f"gender and age and occupation {number}" for number in range(6)]
    labels = {"occupation": [f"occupation {number}" for number in range(21)]}
    results = {"reference/popular": {f"ndcg@5/occupation/{label}": 0.5 for label in labels["occupation"]}}
    for place, control in enumerate(controls):
        metrics = {"ndcg@5": place / 100, "dp_rate@5/occupation": place / 10}
        metrics |= {f"ndcg@5/occupation/{label}": place / 7 for label in labels["occupation"]}
        results[f"test/{control}"] = metrics
    tables = tables_of_several(results, [ListKey(control=control) for control in controls], labels, 5)
    assert max(len(line) for table in tables for line in table.text().splitlines()) <= 120
    # a service files tables by what stands before the first comma
    names = [table.caption.partition(",")[0] for table in tables]
    assert len(set(names)) == len(names) and names[1:3] == ["Accuracy by occupation (1)", "Accuracy by occupation (2)"]
    columns = [header for table in tables if "by occupation (" in table.caption for header in table.headers[1:]]
    assert columns == [*controls, "most popular"]
    (parity,) = (table for table in tables if table.caption.startswith("Parity"))
    assert [row[0] for row in parity.rows] == controls and parity.rows[3][-1] == "0.3000"
