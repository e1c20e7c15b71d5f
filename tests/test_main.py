"""End-to-end runs of `main.py` on small synthetic data, and its command line."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch
from absl import flags
from absl.testing import flagsaver

import main
from data.datareader import READERS
from data.messages import WIDTH
from data.readers.options import SyntheticOptions
from data.readers.synthetic import read_synthetic
from fairness_utils import position_weights
from model.modes import setup
from tests.support.movielens import write_movielens
from tests.support.runs import FLAGS, TINY, recommended, refused, run_main


@pytest.mark.parametrize(
    ("synthesis_type", "enable_fairness"),
    [
        ("mean", False), ("none", False), *((kind, True) for kind in ("mean", "attention", "gru", "none")),
        # which run without fairness in bf16 below
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in ("attention", "gru")),
    ],
)  # fmt: skip
def test_every_synthesis_runs_with_and_without_fairness(tmp_path, synthesis_type, enable_fairness):
    values = {"user_hidden": None, "item_hidden": None} if synthesis_type == "none" else {}
    values |= {"enable_fairness": enable_fairness, "fairness_sampling": enable_fairness and synthesis_type != "none"}
    result = run_main(tmp_path, synthesis_type=synthesis_type, **values)
    metrics = result["metrics"]
    assert result["method"] == ("fabuhs" if enable_fairness else "none")
    for name in ("hr", "ndcg", "mrr"):
        for tail in ("", "/head", "/tail", "/gender/M", "/gender/F", "/gap/gender"):
            for root in ("test", "reference/popular", "reference/random"):
                assert 0 <= metrics[f"{root}/{name}@10{tail}"] <= 1
    for name in (
        "gini@10",
        "coverage@10",
        "dp@10/gender",
        "dp_rate@10/gender",
        "dp_js@10/gender",
    ):
        assert math.isfinite(metrics[f"test/{name}"])


@pytest.mark.parametrize(
    "values",
    [
        {"scorer": "dot"},
        {"synthesis_type": "attention", "attention_heads": 4},
        {"upstream_compat": True, "synthesis_type": "gru"},
        {"enable_fairness": True, "adversary_input": "pair", "item_adversary": "user_attribute"},
        {"enable_fairness": True, "mask_sensitive_feature": False, "user_attribute": ["age", "gender"]},
        {"eval_negatives": 20, "eval_history_draws": 3},
        {"sampling_softmax_temp": math.inf},
        {"precision": "bf16", "enable_fairness": True},
        {"precision": "bf16", "synthesis_type": "gru"},
        {"precision": "bf16", "synthesis_type": "attention"},
    ],
    ids=lambda values: ",".join(f"{name}={value}" for name, value in values.items()),
)
def test_options_run(tmp_path, values):
    assert 0 <= run_main(tmp_path, epochs=1, **values)["metrics"]["test/ndcg@10"] <= 1


def test_a_run_leaves_every_file_and_the_checkpoint_is_plain(tmp_path):
    result = run_main(tmp_path, enable_fairness=True, fairness_sampling=True, rerank_fair=True)
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    # tests/test_pictures.py looks at the pictures
    assert names == {
        "checkpoint.pt", "config.json", "cost.json", "items.parquet", "metrics.jsonl", "per_user.parquet",
        "ranks.parquet", "recommendations.parquet", "report.html", "result.json",
    }  # fmt: skip
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == result["epoch"]
    assert checkpoint["fingerprint"] == result["fingerprint"]
    assert json.loads(checkpoint["config"])["fairness_sampling"] is True
    per_user = pd.read_parquet(folder / "per_user.parquet")
    assert per_user["test/ndcg@10"].mean() == pytest.approx(result["metrics"]["test/ndcg@10"], abs=1e-12)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert result["validation"] == max(row["valid/ndcg@5"] for row in rows)


def test_another_seed_gives_another_run_on_other_synthetic_data(tmp_path):
    first, second = (run_main(tmp_path / str(seed), seed=seed, epochs=1) for seed in (0, 1))
    assert first["seed"] == 0 and second["seed"] == 1
    assert first["metrics"]["test/ndcg@10"] != second["metrics"]["test/ndcg@10"]
    again = run_main(tmp_path / "again", seed=0, epochs=1)
    assert again["metrics"] == pytest.approx(first["metrics"], abs=0, nan_ok=True)


def test_validation_is_asked_every_so_many_epochs_and_at_the_end(tmp_path):
    result = run_main(tmp_path, epochs=3, eval_every=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["valid/ndcg@5" in row for row in rows] == [False, True, True]
    assert result["epoch"] in (2, 3)


def test_the_floor_holds_in_the_written_recommendations(tmp_path):
    result = run_main(
        tmp_path, enable_fairness=True, rerank_fair=True, rerank_alpha=0.0, exposure_floor=0.6, eval_k=["10"]
    )
    assert result["metrics"]["test/reranked/infeasible_users"] == 0
    frame = recommended(tmp_path / "run", "test/reranked")
    with flagsaver.flagsaver(output_dir=str(tmp_path), **TINY):
        run = setup.prepare(main.settings_from_flags().config())
    tail = run.protocol.phases[0].split.item_groups["popularity"].codes == 1
    is_tail = dict(zip(run.data.original_item_ids, tail, strict=True))
    exposure = position_weights(10)[frame["rank"] - 1] * frame["item"].map(is_tail)
    share = exposure.groupby(frame["user"]).sum() / position_weights(10).sum()
    assert len(share) == 60
    assert share.min() >= 0.6 - 1e-9


def test_the_upstream_flags_have_the_printed_types_and_defaults():
    printed = {
        "dataset": "ml",
        "enable_fairness": False,
        "fairness_sampling": False,
        "synthesis_type": "mean",
        "sample_size": 15,
        "adversarial_lambda_user": 0.1,
        "adversarial_lambda_item": 0.1,
        "fairness_weight": 0.5,
    }
    for name, default in printed.items():
        assert FLAGS[name].default == default
        assert type(FLAGS[name].default) is type(default)
    for name in ("dataset_dir", "epochs", "batch_size", "device", "rerank_fair", "rerank_alpha", "exposure_floor"):
        assert name in FLAGS


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fairness_sampling": True}, "--enable_fairness=True"),
        ({"rerank_fair": True}, "--enable_fairness=True"),
        ({"method_option": ["discriminator_steps=2"]}, "--enable_fairness=True"),
        ({"enable_fairness": True, "rerank_alpha": 0.5}, "--rerank_fair=True"),
        ({"enable_fairness": True, "fairness_weight": 0.3}, "--fairness_sampling=True"),
        ({"synthesis_type": "attention", "attention_heads": 5}, "must divide both the width 96"),
        ({"attention_heads": 2}, "--synthesis_type=attention"),
        ({"synthesis_type": "none"}, "--user_hidden"),
        ({"user_attribute": ["height"]}, "gender, age, occupation"),
        ({"eval_k": ["ten"]}, "whole numbers"),
        ({"eval_k": ["0"]}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"enable_fairness": True, "method_option": ["steps=2"]}, "discriminator_steps"),
        ({"keep_incomplete_users": True}, "--dataset=bx"),
        ({"eval_k": ["10", "60"]}, "50"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_requests_end_with_one_line(tmp_path, capsys, values, words):
    assert words in refused(capsys, tmp_path, **values)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("assignment", ["--rerank_alpha=1.5", "--dataset=netflix", "--sample_size=0", "--device=tpu"])
def test_values_out_of_range_are_refused_while_parsing(assignment):
    with flagsaver.flagsaver(), pytest.raises((flags.IllegalFlagValueError, flags.ValidationError)) as caught:
        FLAGS(["main.py", assignment])
    assert assignment.split("=")[1] in str(caught.value)


def test_the_command_line_prints_help_by_group_and_refuses_with_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main.parse(["main.py", "--help"])
    assert caught.value.code == 0
    assert "Re-ranking:" in capsys.readouterr().out
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        main.parse(["main.py", "--rerank_alpha=2"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_cuda_without_a_gpu_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device=cpu" in refused(capsys, tmp_path, device="cuda")


def test_an_interrupt_while_the_program_loads_ends_in_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(device):
        raise KeyboardInterrupt

    monkeypatch.setattr("model.runs.processes.joined", interrupted)
    with flagsaver.flagsaver(output_dir=str(tmp_path), **TINY), pytest.raises(SystemExit) as caught:
        main.main(["main.py"])
    assert caught.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT\n"


def test_a_used_run_folder_is_refused(tmp_path, capsys):
    run_main(tmp_path)
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert "run" in refused(capsys, tmp_path)
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_missing_data_names_the_remedy(tmp_path, capsys, monkeypatch):
    import pooch

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", unreachable)
    error = refused(capsys, tmp_path, dataset="ml", dataset_dir=str(tmp_path), **{
        name: FLAGS[name].default for name in ("synthetic_users", "synthetic_items", "synthetic_interactions")
    })  # fmt: skip
    assert "files.grouplens.org" in error or "--dataset=synthetic" in error


def test_dry_run_writes_nothing(tmp_path, capsys):
    with flagsaver.flagsaver(output_dir=str(tmp_path / "out"), dry_run=True, **TINY):
        main.main(["main.py"])
    assert "steps an epoch" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.probes
def test_the_table_can_be_read_at_a_glance(tmp_path, capsys):
    result = run_main(tmp_path, enable_fairness=True, fairness_sampling=True, rerank_fair=True)
    assert 0 <= result["metrics"]["test/leakage_auc/gender"] <= 1
    text = capsys.readouterr().out
    for word in ("overall", "head", "tail", "M", "F", "gap", "most popular", "random", "HR@5", "NDCG@5", "MRR@5",
                 "protocol", "epoch", "sampled", "AUC", "excess"):  # fmt: skip
        assert word in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= WIDTH


def test_a_new_data_set_is_one_reader_and_one_entry(tmp_path, monkeypatch):
    def read_toy(options):
        small = SyntheticOptions(num_users=40, num_items=30, num_interactions=400)
        data = read_synthetic(type(options)(**{**vars(options), "synthetic": small}))
        return type(data)(**{**vars(data), "name": "toy"})

    monkeypatch.setitem(READERS, "toy", read_toy)
    unset = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}
    result = run_main(tmp_path, **{**unset, "dataset": "toy", "title_encoder": "hash"})
    assert result["dataset"] == "toy"


def test_the_movielens_reader_runs_on_files_in_its_format(tmp_path):
    with flagsaver.flagsaver(**TINY):
        data = setup.prepare(main.settings_from_flags().config()).data
    write_movielens(data, tmp_path)
    unset = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}
    values = {**unset, "dataset": "ml", "dataset_dir": str(tmp_path), "title_encoder": "hash", "warm_threshold": 0.2}
    values["cache_dir"] = str(tmp_path / "cache")
    result = run_main(tmp_path / "ml", **values)
    own = run_main(tmp_path / "synthetic", lr=2e-4)
    assert result["fingerprint"] == own["fingerprint"]
    assert result["metrics"]["reference/popular/ndcg@10"] == own["metrics"]["reference/popular/ndcg@10"]
