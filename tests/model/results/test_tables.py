"""The tables of a run: cells, arrows, chance levels, and every number within the width of the console."""

import pytest

from data.messages import WIDTH
from data.readers.bookcrossing import AGE_BIN_LABELS
from data.readers.modcloth import SIZES
from data.readers.vocabulary import AGES, GENDERS, OCCUPATIONS
from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, ListKey, MetricKey, P
from model.results.metric_text import UNDEFINED, WITHIN
from model.results.tables import tables_of_one, tables_of_several
from model.results.text_table import Table, fitted, grid, result_text

NAN = float("nan")
HEADER = {"data set": "MovieLens-1M", "protocol": "loo " + "and more words about it " * 8, "sampled": "nothing"}
LISTS = ["gini", "gini_count", "coverage", "arp", "aplt", "exposure_gap", "dtr"]
PARITY = ["dp", "eo", "dp_rate", "eo_rate", "dp_js", "eo_js"]


def with_chance(metrics, p=0.5, std=0.01):
    """The metrics, and a chance level one std below each figure by groups."""
    chance = {}
    for name, value in metrics.items():
        key = MetricKey.parse(name)
        if key.by_groups:
            parts = {CHANCE: value - std, CHANCE_STD: std, EXCESS: std, P: p}
            chance |= {str(key.of(part)): number for part, number in parts.items()}
    return metrics | chance


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


def table_of(tables, caption):
    """The columns of a table by header and the cells of its rows by name; each list of a header has one column."""
    (table,) = [table for table in tables if table.caption.startswith(caption)]
    return table.headers, {row[0]: row[1:] for row in table.rows}


GENDER = {"gender": ("M", "F")}
GROUPS = {
    "gender": ("F", "M"),
    "age": ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"),
    "occupation": tuple(f"occupation number {number}" for number in range(21)),
    "country": ("United States of America", "any other country, or one that was never told by its users"),
}


def test_main_table_cells():
    results = with_yardsticks({"gender": ("F", "M")})
    results["test"]["hr@10/tail"], results["reference/random"]["hr@10"] = NAN, None
    text = result_table(results, HEADER, {"gender": ("F", "M")}, 10)
    assert text.startswith("data set  MovieLens-1M\nprotocol  loo")
    assert "overall  head  tail     F     M   gap  most popular  random\n" in text
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
    results["test"] |= {"arp@10": 1234.56, "dtr@10": NAN, "gini@10": 0.25}
    tables = tables_of_one(results, {"gender": ("F", "M")}, 10)
    headers, rows = table_of(tables, "Exposure")
    assert headers == ["", "this run", "re-ranked", "most popular", "random"]
    assert rows["Gini of exposure ↓"] == ["0.250", "0.002", "0.002", "0.002"]
    assert rows["Exposure per interaction, tail/head →1"][0] == UNDEFINED
    assert rows["Average popularity (interactions) ↓"][0] == "1234.6"
    assert {"Catalogue coverage ↑", "Tail's exposure less catalogue share →0"} < rows.keys()
    text = result_text({}, tables)
    assert row_of(text, "HR@10, re-ranked ") == ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06"]


def test_figures_by_groups_stand_beside_their_chance_level():
    metrics = {"ndcg@10": 0.5, "ndcg@10/gap/gender": 0.0231, "dp_rate@10/gender": 0.639, "dp_js@10/gender": 0.2}
    random = {"dp_rate@10/gender": 0.239, "dp_js@10/gender": NAN}
    results = {"test": with_chance(metrics, p=0.01), "reference/random": with_chance(random, p=0.3)}
    results["test"]["ndcg@10/gap/p/gender"] = 0.5
    tables = tables_of_one(results, GENDER, 10)
    headers, rows = table_of(tables, "Parity and leakage by gender, top 10")
    assert headers == ["", "this run", "chance", "excess", "random", "excess"]
    assert rows["DP rate ↓"] == ["0.639", "0.629 ± 0.010", "+0.010", f"0.239{WITHIN}", "+0.010"]
    assert rows["DP JS ↓"][-2:] == [UNDEFINED, ""]
    assert rows["NDCG gap ↓"] == [f"2.31{WITHIN}", "1.31 ± 1.00", "+1.00", "", ""]
    headers, rows = table_of(tables, "Accuracy")
    assert rows["NDCG@10"][headers.index("gap") - 1] == f"2.31{WITHIN}"
    assert "DP JS: from 0 to 0.8326" in tables[-1].note and f"{WITHIN} within" in tables[-1].note
    assert "DP rate: from" not in tables[-1].note


def test_results_without_chance_level_show_the_value_alone():
    tables = tables_of_one({"test": {"ndcg@10": 0.5, "dp_rate@10/gender": 0.639}}, GENDER, 10)
    headers, rows = table_of(tables, "Parity")
    assert headers == ["", "this run"] and rows == {"DP rate ↓": ["0.639"]}


def test_a_table_of_several_lists_has_value_and_excess():
    lists = [ListKey(control=name) for name in ("weak", "strong")]
    results = {str(key): with_chance({"ndcg@5/gap/gender": 0.02, "dp_rate@5/gender": 0.4}, p=0.01) for key in lists}
    results["test/weak"]["dp_rate@5/p/gender"] = 0.5
    headers, rows = table_of(tables_of_several(results, lists, GENDER, 5), "Parity")
    assert headers == ["", "DP rate ↓", "excess", "NDCG gap ↓", "excess"]
    assert rows["weak"] == [f"0.400{WITHIN}", "+0.010", "2.00", "+1.00"]
    assert rows["strong"] == ["0.400", "+0.010", "2.00", "+1.00"]


@pytest.mark.parametrize("reranked", [False, True])
@pytest.mark.parametrize("names", [("gender",), ("age", "gender"), ("gender", "age", "occupation"), ("country",), ()])
def test_every_layout_fits_and_shows_every_number(names, reranked):
    groups = {name: GROUPS[name] for name in names}
    results = {name: with_chance(metrics) for name, metrics in with_yardsticks(groups, reranked).items()}
    tables = tables_of_one(results, groups, 10)
    text = result_text(HEADER, tables)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    for name in names:
        own = [table for table in tables if table.caption.startswith(f"Accuracy by {name}")]
        assert bool(own) == (name != names[0] or name in ("age", "country"))
        for place, label in enumerate(groups[name] if own else ()):
            values = [f"{100 * results['test'][f'{base}@10/{name}/{label}']:.2f}" for base in ("hr", "ndcg", "mrr")]
            cells = [cell for table in own for cell in table.rows[place][1:]]
            assert cells == values * (1 + reranked)
        cells = {
            (row[0], table.headers[place])
            for table in tables
            for row in table.rows
            for place in range(1, len(table.headers))
            if table.caption.startswith(f"Parity and leakage by {name}") and row[place]
        }
        columns = ["this run", "chance", "excess", "most popular", "random"] + ["re-ranked"] * reranked
        assert {("EO rate ↓", column) for column in columns} <= cells


def largest(groups, k=100):
    """Every metric with the longest number that it can have, and a chance level within which it is."""
    (metrics,) = made_up("test", groups, k).values()
    values = {name: {"arp": 99999.9, "dtr": 999.9}.get(MetricKey.parse(name).name, 1.0) for name in metrics}
    return with_chance(values, std=0.5)


LABELS = {
    "MovieLens and synthetic": {"gender": GENDERS, "age": AGES, "occupation": OCCUPATIONS},
    "BookCrossing": {"age": AGE_BIN_LABELS, "country": ("USA", "other")},
    "ModCloth": {"size": SIZES},
}


@pytest.mark.parametrize("name", LABELS)
def test_the_tables_of_every_data_set_and_shape_of_results_fit(name):
    controls = ["none", "gender+age", "an option with a long name = 0.001, and another one = 0.25", "a-b_c" * 16]
    for first in LABELS[name]:
        groups = {first: LABELS[name][first], **LABELS[name]}
        metrics = largest(groups)
        one = dict.fromkeys(("test", "test/reranked", "reference/popular", "reference/random"), metrics)
        lists = [
            ListKey(phase=phase, task=task, control=control)
            for phase in ("first half", "second half")
            for task in ("warm", "cold")
            for control in controls
        ]
        several = {str(key): metrics for key in lists} | {str(key.beside("popular")): metrics for key in lists}
        for tables in (tables_of_one(one, groups, 100), tables_of_several(several, lists, groups, 100)):
            assert max(len(line) for table in tables for line in table.text().splitlines()) <= WIDTH
            # a service files tables by what stands before the first comma
            captions = [table.caption.partition(",")[0] for table in tables]
            assert len(set(captions)) == len(captions)


def test_tables_hold_the_rows_of_the_console():
    groups = {"gender": ("F", "M"), "age": GROUPS["age"]}
    results = with_yardsticks(groups, reranked=True)
    tables = tables_of_one(results, groups, 10)
    assert [table.caption.partition(",")[0] for table in tables] == [
        "Accuracy", "Accuracy by age", "Exposure", "Parity and leakage by gender", "Parity and leakage by age",
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
    controls = [f"gender and age and occupation {number}" for number in range(9)]
    labels = {"occupation": [f"occupation {number}" for number in range(21)]}
    results = {"reference/popular": {f"ndcg@5/occupation/{label}": 0.5 for label in labels["occupation"]}}
    for place, control in enumerate(controls):
        metrics = {"ndcg@5": place / 100, "dp_rate@5/occupation": place / 10}
        metrics |= {f"ndcg@5/occupation/{label}": place / 7 for label in labels["occupation"]}
        results[f"test/{control}"] = metrics
    tables = tables_of_several(results, [ListKey(control=control) for control in controls], labels, 5)
    names = [table.caption.partition(",")[0] for table in tables]
    assert names[1:3] == ["Accuracy by occupation (1)", "Accuracy by occupation (2)"]
    columns = [header for table in tables if "by occupation (" in table.caption for header in table.headers[1:]]
    assert columns == [*controls, "most popular"]
    (parity,) = (table for table in tables if table.caption.startswith("Parity"))
    assert [row[0] for row in parity.rows] == controls and parity.rows[3][-1] == "0.300"


def test_a_grid_breaks_headers_first_and_then_names():
    assert grid(["", "a"], [["x", "1.5~"], ["yy", "12.5"]]).splitlines() == [
        "        a",
        "--  -----",
        "x    1.5~",
        "yy  12.5",
    ]
    wide = ["a header of words"] * 7
    text = grid(["", *wide], [["name", *["1"] * 7]])
    assert max(map(len, text.splitlines())) <= WIDTH and text.count("\n") > 2
    name = "a name that is wider than the console, " * 3
    lines = grid(["", "value"], [[name, "0.5"]]).splitlines()
    assert (
        max(map(len, lines)) == WIDTH
        and " ".join(line.removesuffix("0.5").strip() for line in lines[2:]) == name.strip()
    )
    assert lines[2].endswith("  0.5")


def test_columns_that_belong_together_are_not_cut_apart():
    table = Table("caption, and more", ["", *"abcdef"], [["name", *["0123456789" * 2] * 6]], note="note")
    parts = fitted(table, [2, 2, 2])
    assert [part.headers for part in parts] == [["", "a", "b"], ["", "c", "d"], ["", "e", "f"]]
    assert [part.caption for part in parts] == [f"caption ({number}), and more" for number in (1, 2, 3)]
    assert [part.note for part in parts] == ["", "", "note"]
    assert fitted(table, [1] * 6)[0].headers == ["", "a", "b", "c"]


def test_what_stands_out_is_marked_and_a_rule_cuts_rows_off():
    rows = [["a", "1.5", "x"], ["b", "12.0~", "y"], ["popular", "3.0", "z"]]
    table = Table("", ["", "n", "m"], rows, best=frozenset({(0, 1), (1, 1)}), ruled=2)
    assert table.text().splitlines() == [
        "              n  m",
        "-------  ------  -",
        "a         1.5*   x",
        "b        12.0~*  y",
        "-------  ------  -",
        "popular   3.0    z",
    ]


def test_marks_and_rules_stay_where_a_table_is_cut():
    names = [f"column-number-{number}" for number in range(9)]
    table = Table("Many", ["", *names], [["a", *"123456789"], ["b", *"123456789"]], best=frozenset({(1, 9)}), ruled=1)
    first, last = fitted(table, [1] * 9)[0], fitted(table, [1] * 9)[-1]
    assert not first.best and last.best == {(1, len(last.headers) - 1)} and first.ruled == last.ruled == 1
    assert last.text().splitlines()[-1].endswith("9*")
