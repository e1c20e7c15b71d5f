"""What a run found, in words: each sentence, and what is left out."""

from __future__ import annotations

import pytest

from model.evaluation.keys import CHANCE_PARTS, ListKey, MetricKey
from model.evaluation.metric_kinds import HEADLINE
from model.evaluation.metric_table import shown_in
from model.results.metric_text import cell
from model.results.summary import summary_lines

NAN = float("nan")
RUN = {"ndcg@10": 0.0352, "ndcg@10/tail": 0.0041, "aplt@10": 0.123}
LEAKAGE = {"leakage_auc/gender": 0.71, "leakage_auc/age": 0.9997}
POPULAR = {"ndcg@10": 0.0195, "ndcg@10/tail": 0.0, "aplt@10": 0.0}
RERANKED = {"ndcg@10": 0.034, "ndcg@10/tail": 0.006, "aplt@10": 0.25}
GROUPS = ("gender", "age")


def parity(metrics, attribute, value, chance):
    """`metrics` with all headline figures: `chance` is the mean, the standard deviation, the excess and p, or None."""
    found = dict(metrics)
    for row in shown_in(HEADLINE):
        key = MetricKey(row.name, 10, attribute)
        found[str(key)] = value
        found |= {str(key.of(part)): number for part, number in zip(CHANCE_PARTS, chance or (), strict=False)}
    return found


def shown(name, value, signed=False):
    """A value with the digits of its metric."""
    return cell(MetricKey(name), value, signed)


def test_accuracy_and_tail_stand_beside_a_most_popular_ranking():
    results = {"test": RUN, "test/reranked": RERANKED, "reference/popular": POPULAR}
    assert summary_lines(results, (), 10) == [
        "Accuracy: NDCG@10 is 3.52 %, 1.81 times the 1.95 % of a most-popular ranking; re-ranked 3.40 %.",
        "Tail: NDCG@10 on tail items is 0.41 %; they take 12.3 % of the places in the lists; re-ranked 0.60 % and "
        "25.0 %; a most-popular ranking 0.00 % and 0.0 %.",
    ]


@pytest.mark.parametrize(
    ("popular", "words"),
    [
        (0.145, "is 3.52 %, only 0.24 times the 14.50 % of a most-popular ranking."),
        (0.0, "is 3.52 %, against the 0.00 % of a most-popular ranking."),
        (NAN, "is 3.52 %."),
    ],
)
def test_accuracy_says_how_it_stands(popular, words):
    results = {"test": {"ndcg@10": 0.0352}, "reference/popular": {"ndcg@10": popular}}
    assert summary_lines(results, (), 10) == [f"Accuracy: NDCG@10 {words}"]


@pytest.mark.parametrize(
    ("p", "excess", "verdict"),
    [(0.005, 0.106, "beyond chance"), (0.4, 0.01, "within chance"), (0.99, -0.03, "less than chance gives")],
)
def test_parity_is_judged_by_chance(p, excess, verdict):
    run = parity(parity({}, "gender", 0.616, (0.51, 0.011, excess, p)), "age", 0.3, (0.25, 0.02, 0.05, 0.01))
    words = [
        f"{row.head} by gender {shown(row.name, 0.616)}, chance {shown(row.name, 0.51)} ± {shown(row.name, 0.011)}, "
        f"excess {shown(row.name, excess, signed=True)} ({verdict}); "
        f"by age excess {shown(row.name, 0.05, signed=True)} (beyond chance)"
        for row in shown_in(HEADLINE)
    ]
    assert words and summary_lines({"test": run}, GROUPS, 10) == [f"Parity: {'; '.join(words)}."]


def test_a_re_ranked_list_has_its_own_parity_and_older_results_have_no_chance():
    results = {"test": parity(parity({}, "gender", 0.6, None), "age", 0.3, None)}
    results["test/reranked"] = parity({}, "gender", 0.4, (0.4, 0.01, 0.0, 0.5))
    words = [
        f"{row.head} by gender {shown(row.name, 0.6)} (chance level not known); "
        f"re-ranked excess {shown(row.name, 0.0, signed=True)} (within chance); "
        f"by age {shown(row.name, 0.3)} (chance level not known)"
        for row in shown_in(HEADLINE)
    ]
    assert summary_lines(results, GROUPS, 10) == [f"Parity: {'; '.join(words)}."]


@pytest.mark.parametrize(
    ("hidden", "gender", "age"),
    [
        (None, "", ""),
        (["gender"], " (training was asked to hide it)", " (nobody asked to hide it)"),
        ([], " (nobody asked to hide it)", " (nobody asked to hide it)"),
    ],
)
def test_leakage_says_what_training_was_asked_to_hide(hidden, gender, age):
    of_gender, of_age = (f"{name} with AUC {shown('leakage_auc', LEAKAGE[f'leakage_auc/{name}'])}" for name in GROUPS)
    assert summary_lines({"test": LEAKAGE}, GROUPS, 10, hidden=hidden) == [
        f"Leakage: the strongest attacker reads {of_gender}{gender}, {of_age}{age}; 0.5 is none."
    ]


def test_warnings_are_counted():
    for warnings, words in ((["one", "two"], "2, listed below"), ([], "none")):
        assert summary_lines({"test": {}}, (), 10, warnings=warnings) == [f"Warnings: {words}."]


def test_of_several_lists_the_first_is_meant():
    results = {
        "test/warm/a": {"ndcg@10": 0.2},
        "test/warm/b": {"ndcg@10": 0.3},
        "reference/popular/warm": {"ndcg@10": 0.1},
    }
    first = ListKey.parse("test/warm/a", many_phases=True)
    assert summary_lines(results, (), 10, first) == [
        "Of 2 lists this is about test/warm/a.",
        "Accuracy: NDCG@10 is 20.00 %, 2.00 times the 10.00 % of a most-popular ranking.",
    ]


def test_what_was_not_measured_is_left_out():
    assert summary_lines({}, GROUPS, 10) == []
    run = dict.fromkeys(RUN | LEAKAGE, NAN) | {"ndcg@20": 0.5}
    assert summary_lines({"test": run, "reference/popular": POPULAR}, GROUPS, 10) == []
    assert summary_lines({"test": {"ndcg@10": 0.1, "aplt@10": None}}, GROUPS, 10) == ["Accuracy: NDCG@10 is 10.00 %."]


def test_levels_are_told_from_the_first_to_the_last():
    auc = {name: {"leakage_auc/gender": value} for name, value in (("t0", 0.855), ("t1", 0.8), ("t2", 0.7449))}
    results = {f"test/{name}": metrics | {"ndcg@10": 0.2 - 0.1 * at} for at, (name, metrics) in enumerate(auc.items())}
    results["test/t2"]["dp_js@10/gender"] = 0.2
    levels = {f"test/{name}": name for name in auc}
    *_, line = summary_lines(results, GROUPS, 10, ListKey(control="t0"), levels=levels)
    assert line == "Levels t0 to t2: NDCG@10 from 20.00 % to 0.00 %; AUC from 0.855 to 0.745."
    assert "Levels" not in " ".join(summary_lines(results, GROUPS, 10, ListKey(control="t0")))
