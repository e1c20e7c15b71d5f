"""Comparing finished runs: what is read, refused, computed and written."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver
from scipy import stats

import main
from model.comparison import compare, run_parity, statistics
from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, MetricKey, P
from model.modes import compare as compare_mode
from model.results import finished
from model.runs.files import write_frame, write_json
from model.runs.processes import ALONE
from tests.support.light import light_runs
from tests.support.pages import read_page
from tests.support.runs import TINY, run_main

USERS = 30
NAN = math.nan
PER_USER = ("hr", "ndcg", "mrr", "arp", "aplt")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    for module in (compare, compare_mode, statistics):
        monkeypatch.setattr(module, "RESAMPLES", 200)
    for function in (
        statistics.compare_paired, statistics.compare_gaps, statistics.bootstrap, statistics.mean_interval,
        statistics.compare_users_within_seeds,
    ):  # fmt: skip
        monkeypatch.setattr(function, "__defaults__", (200,))
    monkeypatch.setattr(run_parity, "PERMUTATIONS", 50)


def write_run(folder, seed=0, ks=(10, 5), shift=0.0, reranked=False, users=None, facts=None, attributes=None, draw=0):
    """A finished run's files with random per-user values, higher by `shift`."""
    generator = np.random.default_rng(seed + draw)
    users = np.arange(1, USERS + 1) if users is None else users
    frame = {"user": users, "gender": np.where(np.arange(len(users)) % 3 == 0, "F", "M").astype(object)}
    frame |= attributes or {}
    metrics, groups = {}, [name for name in frame if name != "user"]
    for root in ("reference/popular", "test", *(["test/reranked"] if reranked else [])):
        for k in ks:
            for metric in PER_USER:
                values = generator.random(len(users)) + shift * (root != "reference/popular")
                frame[f"{root}/{metric}@{k}"] = values
                metrics[f"{root}/{metric}@{k}"] = values.mean()
            metrics |= {f"{root}/ndcg@{k}/tail": 0.1 + shift, f"{root}/gini@{k}": 0.9 - shift, f"{root}/dtr@{k}": NAN}
        metrics[f"{root}/leakage_auc/gender"] = 0.75
    folder.mkdir(parents=True)
    facts = facts or {}
    result = {"dataset": "toy", "protocol": "loo", "description": "last item; full catalogue", "fingerprint": "f1"}
    result |= {"method": "none", "seed": seed, "epoch": 3} | {k: v for k, v in facts.items() if k in result}
    write_json(folder / "result.json", result | {"metrics": metrics})
    config = {"backbone": "sparsenn", "synthesis_type": "mean", "warm_threshold": 0.2, "user_attribute": groups}
    write_json(folder / "config.json", config | {k: v for k, v in facts.items() if k in config})
    write_frame(folder / "per_user.parquet", pd.DataFrame(frame))


def write_seeds(folder, seeds, failed=(), **values):
    for seed in seeds:
        write_run(folder / f"seed{seed}", seed=seed, **values)
    write_json(folder / "seeds.json", {"seeds": list(seeds), "failed": dict.fromkeys(map(str, failed), "no memory")})


def compared(folder, runs, **values):
    """Run `--mode=compare` under flags; give its Comparison."""
    flags = {"mode": "compare", "runs": runs, "output_dir": str(folder), "run_name": "comparison", **values}
    with flagsaver.flagsaver(**flags):
        return compare_mode.compare_runs(main.settings_from_flags(), 0.0, ALONE)


def refused(capsys, folder, runs, **values):
    """Run `main`, which must end with exit code 2 and one line; give that line."""
    flags = {"mode": "compare", "runs": runs, "output_dir": str(folder), "run_name": "comparison", **values}
    with flagsaver.flagsaver(**flags), pytest.raises(SystemExit) as caught:
        main.main(["main.py"])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert not (folder / "comparison" / "comparison.json").exists()
    return error


def row_of(comparison, metric, run="b"):
    table = comparison.table
    (row,) = table[(table["metric"] == metric) & (table["run"] == run)].to_dict("records")
    return row


def test_the_numbers_are_those_of_the_users(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, shift=0.3)
    comparison = compared(tmp_path, ["a", "b"])
    a, b = (pd.read_parquet(tmp_path / name / "per_user.parquet") for name in "ab")
    for k in (5, 10):
        family = []
        for metric in PER_USER:
            column = f"test/{metric}@{k}"
            row, differences = row_of(comparison, f"{metric}@{k}"), b[column] - a[column]
            family.append(row)
            assert row["difference"] == pytest.approx(differences.mean(), rel=1e-9)
            assert row["baseline_value"] == pytest.approx(comparison.metrics["a"][f"{metric}@{k}"], rel=1e-12)
            assert row["low"] < row["difference"] < row["high"]
            assert row["p"] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)
            assert row["d_z"] == pytest.approx(differences.mean() / differences.std(), rel=1e-9)
            women = a["gender"] == "F"
            row = row_of(comparison, f"{metric}@{k}/gender/F")
            assert (row["users"], row["group"], row["attribute"]) == (women.sum(), "F", "gender")
            assert row["difference"] == pytest.approx(differences[women].mean(), rel=1e-9)
            gaps = [abs(run[column][women].mean() - run[column][~women].mean()) for run in (a, b)]
            row = row_of(comparison, f"{metric}@{k}/gap/gender")
            assert (row["baseline_value"], row["value"]) == pytest.approx(gaps, rel=1e-9)
            assert row["low"] <= row["difference"] <= row["high"] and math.isnan(row["p"])
        adjusted = statistics.holm(np.array([row["p"] for row in family]))
        assert [row["p_holm"] for row in family] == pytest.approx(adjusted)
        groups = comparison.table[comparison.table["family"] == f"user groups @{k}"]
        assert len(groups) == 2 * len(PER_USER)
        assert groups["p_holm"].tolist() == pytest.approx(statistics.holm(groups["p"].to_numpy()))
    row = row_of(comparison, "gini@10")
    assert (row["kind"], row["difference"]) == ("untested", pytest.approx(-0.3))
    assert math.isnan(row["p"]) and math.isnan(row["low"])
    assert math.isnan(row_of(comparison, "dtr@10")["difference"])
    assert row_of(comparison, "leakage_auc/gender")["difference"] == 0


def test_three_runs_make_two_pairs_and_all_files(tmp_path, capsys):
    for seed, name in enumerate("abc"):
        write_run(tmp_path / name, seed=seed, shift=0.2 * seed)
    comparison = compared(tmp_path, ["a", "b", "c"])
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    for words in (
        "b against a",
        "c against a",
        "NDCG@10 by user group",
        "gender F",
        "fingerprint f1",
        "30 users",
        "200 resamples",
    ):
        assert words in re.sub(r"\s+", " ", text)
    assert comparison.names == ("a", "b", "c") and comparison.k == 10
    assert {path.name for path in comparison.directory.iterdir()} == {
        "comparison.json", "comparison.csv", "comparison.tex", "report.html",
        "accuracy_against_fairness.png", "accuracy_against_fairness.svg",
    }  # fmt: skip
    page = (comparison.directory / "report.html").read_text()
    assert all(words in page for words in ("b against a", "c against a", "data:image/", "fingerprint f1", "Holm"))
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["a", "b", "c"]
    assert content["caption"] == comparison.caption and content["resamples"] == 200
    assert len(content["rows"]) == len(comparison.table)
    paired = [row for row in content["rows"] if row["kind"] == "paired"]
    assert all(row["p"] <= row["p_holm"] <= 1 for row in paired)
    untested = next(row for row in content["rows"] if row["metric"] == "dtr@10")
    assert untested["difference"] is None and "p" not in untested
    frame = pd.read_csv(tmp_path / "comparison" / "comparison.csv")
    assert frame["difference"].to_numpy() == pytest.approx(comparison.table["difference"].to_numpy(), nan_ok=True)
    before = (tmp_path / "comparison" / "comparison.json").read_bytes()
    shutil.rmtree(tmp_path / "comparison")
    compared(tmp_path, ["a", "b", "c"])
    assert (tmp_path / "comparison" / "comparison.json").read_bytes() == before


def test_the_reranked_list_and_a_yardstick_of_a_run_can_be_compared_with_it(tmp_path):
    write_run(tmp_path / "a", reranked=True)
    comparison = compared(tmp_path, ["a", "a:reranked", "a:popular"])
    frame = pd.read_parquet(tmp_path / "a" / "per_user.parquet")
    for name, root in (("a:reranked", "test/reranked"), ("a:popular", "reference/popular")):
        expected = (frame[f"{root}/mrr@10"] - frame["test/mrr@10"]).mean()
        assert row_of(comparison, "mrr@10", name)["difference"] == pytest.approx(expected, rel=1e-9)
    # the other list's numbers are not the run's own
    assert not [key for key in comparison.metrics["a"] if key.startswith("reranked")]
    assert "re-ranked" in comparison.labels[1]


def test_seeds_are_averaged_user_by_user(tmp_path):
    write_run(tmp_path / "a")
    write_seeds(tmp_path / "b", (1, 2, 5), failed=(3,), shift=0.1)
    comparison = compared(tmp_path, ["a", "b"])
    values = [
        pd.read_parquet(tmp_path / "b" / f"seed{seed}" / "per_user.parquet")["test/hr@5"].to_numpy()
        for seed in (1, 2, 5)
    ]
    row = row_of(comparison, "hr@5")
    assert row["value"] == pytest.approx(np.mean(values), rel=1e-12) and row["users"] == USERS
    differences = np.mean(values, axis=0) - pd.read_parquet(tmp_path / "a" / "per_user.parquet")["test/hr@5"]
    assert row["p"] == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)
    assert "mean of 3 seeds: 1, 2, 5" in comparison.labels[1] and "means over seeds" in comparison.caption


def test_runs_of_the_same_seeds_are_compared_over_seeds_and_users_within_seeds(tmp_path, capsys):
    write_seeds(tmp_path / "a", (1, 2, 5))
    write_seeds(tmp_path / "b", (1, 2, 5), shift=0.1, draw=100)
    write_seeds(tmp_path / "c", (1, 2))
    comparison = compared(tmp_path, ["a", "b", "c"])
    text = " ".join(capsys.readouterr().out.split())
    assert "b: the same seeds as a, so compared over users, over seeds, and over users within seeds" in text
    assert "Over the seeds 1, 2, 5, paired" in text and "Over users within seeds" in text
    table = comparison.table
    assert set(table[table["run"] == "c"]["kind"]) == {"paired", "gap", "untested"}
    results = [
        [json.loads((tmp_path / name / f"seed{seed}" / "result.json").read_text())["metrics"] for seed in (1, 2, 5)]
        for name in "ab"
    ]
    for metric in ("hr@5", "arp@10"):
        values = [[result[f"test/{metric}"] for result in of_run] for of_run in results]
        expected = stats.ttest_rel(values[1], values[0]).confidence_interval(0.95)
        (row,) = table[(table["kind"] == "seeds") & (table["metric"] == metric)].to_dict("records")
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-6)
        assert row["seeds"] == 3 and row["value"] - row["baseline_value"] == pytest.approx(row["difference"])
    (row,) = table[(table["kind"] == "users within seeds") & (table["metric"] == "hr@5")].to_dict("records")
    assert row["low"] < row["difference"] < row["high"] and (row["seeds"], row["users"]) == (3, USERS)
    rows = json.loads((comparison.directory / "comparison.json").read_text())["rows"]
    kept = next(row for row in rows if row["kind"] == "users within seeds")
    assert set(kept) == {"baseline", "run", "kind", "k", "metric", *compare.USED["users within seeds"]}
    page = read_page(comparison.directory / "report.html").text
    assert "; with seeds [" in page


def test_one_seed_says_nothing_about_others(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    comparison = compared(tmp_path, ["a", "b"])
    assert "One seed each" in comparison.caption
    error = capsys.readouterr().err
    assert error.count("warning") == 1 and "differences in parity are not tested for a, b: " in error


def test_figures_without_lists_show_their_excess(tmp_path):
    for name, shift in (("a", 0.0), ("b", 0.2)):
        write_run(tmp_path / name, shift=shift)
        path = tmp_path / name / "result.json"
        result = json.loads(path.read_text())
        for key, value in (("leakage_auc/gender", 0.75 + shift), ("ndcg@10/gap/gender", 0.1 + shift)):
            parts = {"": value, CHANCE: 0.1, CHANCE_STD: 0.02, EXCESS: value - 0.1, P: 0.5}
            result["metrics"] |= {f"test/{MetricKey.parse(key).of(part)}": number for part, number in parts.items()}
        write_json(path, result)
    comparison = compared(tmp_path, ["a", "b"])
    row = row_of(comparison, "leakage_auc/gender")
    assert (row["chance"], row["baseline_excess"], row["excess"]) == pytest.approx((0.1, 0.65, 0.85))
    # 0.2 is more than 1.96 times the root of twice 0.02 squared
    assert row["excess_difference"] == pytest.approx(0.2) and row["differs"] is True
    assert row_of(comparison, "ndcg@10/gap/gender")["excess_difference"] == pytest.approx(0.2)
    assert not any("chance" in metric or "excess" in metric for metric in comparison.table["metric"])
    parity = next(block for block in comparison.overview.blocks if block.title.startswith("Parity"))
    columns = {column.header: column for column in parity.columns}
    assert columns["NDCG gap"].cells[:2] == ["10.00~ ± 2.00", "30.00~ ± 2.00"]
    assert columns["excess ↓"].cells[:2] == ["+0.00", "+20.00"]
    assert columns["AUC ↓"].best == {0} and set(columns["AUC ↓"].worse) == {1}


def test_equal_runs_differ_in_nothing(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    comparison = compared(tmp_path, ["a", "b"])
    tested = comparison.table[comparison.table["kind"] == "paired"]
    assert (tested["difference"] == 0).all() and (tested["p_holm"] == 1).all()
    assert tested["d_z"].isna().all() and tested["rank_biserial"].isna().all()
    assert "textbf" not in (tmp_path / "comparison" / "comparison.tex").read_text()


def test_only_common_cutoffs_and_metrics_are_compared(tmp_path, capsys):
    write_run(tmp_path / "a", ks=(10, 5, 3))
    write_run(tmp_path / "b", ks=(5, 10))
    comparison = compared(tmp_path, ["a", "b"])
    assert comparison.k == 10
    assert set(comparison.table["k"].dropna()) == {5, 10}
    shutil.rmtree(tmp_path / "comparison")
    comparison = compared(tmp_path, ["a", "b"], eval_k=["5"])
    assert comparison.k == 5 and set(comparison.table["k"].dropna()) == {5}
    shutil.rmtree(tmp_path / "comparison")
    assert "a has 10, 5, 3; b has 5, 10" in refused(capsys, tmp_path, ["a", "b"], eval_k=["3"])
    write_run(tmp_path / "c", ks=(20,))
    assert "no cut-off K in common" in refused(capsys, tmp_path, ["a", "c"])
    # a run of before there were such columns
    frame = pd.read_parquet(tmp_path / "b" / "per_user.parquet")
    write_frame(tmp_path / "b" / "per_user.parquet", frame[[name for name in frame if "arp" not in name]])
    comparison = compared(tmp_path, ["a", "b"])
    assert row_of(comparison, "arp@10")["kind"] == "untested"
    assert "over the 4 metrics" in comparison.method


def test_attributes_that_one_run_did_not_report_are_left_out(tmp_path):
    write_run(tmp_path / "a", attributes={"age": np.repeat([None, "old", "young"], USERS // 3)})
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", attributes={"age": np.repeat([None, "old", "young"], USERS // 3)})
    comparison = compared(tmp_path, ["a", "b", "c"])
    table = comparison.table
    assert not (table[table["run"] == "b"]["attribute"] == "age").any()
    assert row_of(comparison, "hr@10/age/old", "c")["users"] == USERS // 3
    assert not math.isnan(row_of(comparison, "hr@10/gap/age", "c")["low"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"facts": {"dataset": "other"}}, "data set: toy and other"),
        ({"facts": {"fingerprint": "f2"}}, "data fingerprint: f1 and f2"),
        ({"facts": {"protocol": "fda"}}, "protocol: loo and fda"),
        (
            {"facts": {"description": "last item; 99 sampled items"}},
            "last item; full catalogue and last item; 99 sampled",
        ),
        ({"facts": {"warm_threshold": 0.5}}, "--warm_threshold: 0.2 and 0.5"),
        ({"users": np.arange(3, USERS + 3)}, "2 only in the first and 2 only in the second, such as 1, 2, 31, 32"),
        ({"attributes": {"gender": ["M"] * USERS}}, "gender of 10 users, such as user 1: F and M"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_on_other_data_or_tasks_are_refused_with_the_difference(tmp_path, capsys, changes, words):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **changes)
    error = refused(capsys, tmp_path, ["a", "b"])
    assert words in error and "a and b differ" in error


def test_seeds_on_different_data_are_not_averaged(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_seeds(tmp_path / "b", (0,))
    write_run(tmp_path / "b" / "seed1", seed=1, facts={"fingerprint": "f2"})
    write_json(tmp_path / "b" / "seeds.json", {"seeds": [0, 1], "failed": {}})
    assert "b, seed 0 and b, seed 1 differ in data fingerprint: f1 and f2" in refused(capsys, tmp_path, ["a", "b"])


def test_missing_and_unfinished_runs_are_refused(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "b" / "result.json").unlink()
    assert "has not finished" in refused(capsys, tmp_path, ["a", "b"])
    assert "there is no c" in refused(capsys, tmp_path, ["a", "c"])
    write_run(tmp_path / "seeds" / "seed0")
    assert "holds seeds without seeds.json" in refused(capsys, tmp_path, ["a", "seeds"])
    (tmp_path / "d").mkdir()
    assert "holds no run" in refused(capsys, tmp_path, ["a", "d"])
    assert "no list 'reranked'" in refused(capsys, tmp_path, ["a", "a:reranked"])
    for runs in (["a"], ["a", "a"]):
        assert "two or more different runs" in refused(capsys, tmp_path, runs)
    (tmp_path / "a" / "per_user.parquet").write_bytes(b"PAR1")
    assert "per_user.parquet cannot be read" in refused(capsys, tmp_path, ["a", "a:popular"])


def test_a_comparison_is_not_overwritten(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1)
    compared(tmp_path, ["a", "b"])
    before = (tmp_path / "comparison" / "comparison.json").read_bytes()
    flags = {"mode": "compare", "runs": ["a", "b"], "output_dir": str(tmp_path), "run_name": "comparison"}
    with flagsaver.flagsaver(**flags), pytest.raises(SystemExit):
        main.main(["main.py"])
    assert "comparison.json" in capsys.readouterr().err
    assert (tmp_path / "comparison" / "comparison.json").read_bytes() == before


def test_runs_are_found_by_path_and_by_name_and_named_apart(tmp_path, monkeypatch):
    write_run(tmp_path / "x" / "a", seed=0)
    write_run(tmp_path / "y" / "a", seed=1)
    write_run(tmp_path / "x" / "with:colon", seed=2)
    runs = compare_mode.load_runs([str(tmp_path / "x" / "a"), str(tmp_path / "y" / "a")], tmp_path)
    assert [run.name for run in runs] == [str(tmp_path / "x" / "a"), str(tmp_path / "y" / "a")]
    assert [run.seeds for run in runs] == [(0,), (1,)]
    monkeypatch.chdir(tmp_path)
    # a folder of that name here that is no run does not hide the run
    (tmp_path / "a").mkdir()
    assert finished.find("a", tmp_path / "y") == (tmp_path / "y" / "a", "")
    assert finished.find("x/with:colon", tmp_path)[0].name == "with:colon"
    assert finished.find("x/a:reranked", tmp_path)[1] == "reranked"


def test_two_real_runs_are_compared_end_to_end(tmp_path, capsys):
    flags = {**TINY, "epochs": 1, "output_dir": str(tmp_path)}
    fair = {"enable_fairness": True, "rerank_fair": True, "exposure_floor": 0.6}
    for values in ({"run_name": "plain"}, {"run_name": "fair", "user_attribute": ["gender", "age"], **fair}):
        with flagsaver.flagsaver(**{**flags, **values}):
            main.main(["main.py"])
    capsys.readouterr()
    comparison = compared(tmp_path, ["plain", "fair", "fair:reranked"])
    assert comparison.k == 5
    for name, root in (("plain", "test"), ("fair", "test"), ("fair:reranked", "test/reranked")):
        result = json.loads((tmp_path / name.partition(":")[0] / "result.json").read_text())["metrics"]
        for metric in PER_USER:
            assert comparison.metrics[name][f"{metric}@10"] == result[f"{root}/{metric}@10"]
            if name != "plain":
                row = row_of(comparison, f"{metric}@10", name)
                assert row["value"] == pytest.approx(result[f"{root}/{metric}@10"], rel=1e-9)
                if metric in ("hr", "ndcg", "mrr"):
                    gap = row_of(comparison, f"{metric}@10/gap/gender", name)
                    assert gap["value"] == pytest.approx(result[f"{root}/{metric}@10/gap/gender"], abs=1e-12)
        if name != "plain":
            parity = row_of(comparison, "dp_debiased@10/gender", name)
            assert parity["value"] == result[f"{root}/dp_debiased@10/gender"] and parity["kind"] == "parity"
            assert parity["low"] < parity["difference"] < parity["high"]
    assert row_of(comparison, "aplt@5", "fair:reranked")["users"] == 60
    assert "fabuhs on sparsenn (mean), re-ranked, seed 0" in capsys.readouterr().out.replace("\n", " ")


def test_compare_reads_no_settings_of_a_run(tmp_path, capsys):
    assert "--epochs=3 has no effect with --mode=compare" in refused(capsys, tmp_path, ["a", "b"], epochs=3)
    with flagsaver.flagsaver(mode="compare"), pytest.raises(SystemExit):
        main.main(["main.py"])
    assert "--mode=compare needs --runs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.pictures
def test_levels_of_one_run_are_joined_in_the_picture(tmp_path):
    levels = {"enable_fairness": True, "fairness_method": "cofair", "method_option": ["levels=2", "batch_size=128"]}
    with light_runs():
        run_main(tmp_path, backbone="bprmf", user_hidden=None, item_hidden=None, epochs=1, **levels)
    compared(tmp_path, ["run:t1", "run:popular", "run:t0", "run:t2"], run_name="joined", eval_k=None)
    picture = (tmp_path / "joined" / "accuracy_against_fairness.svg").read_text()
    for words in ("run, t0 to t2", "run:popular", "t0", "t1", "t2"):
        assert f"<!-- {words} -->" in picture
    assert "joins the levels" in (tmp_path / "joined" / "report.html").read_text()
