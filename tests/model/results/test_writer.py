"""What the heading of a result says, and that it says it from what was asked."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from absl.testing import flagsaver

import main
from data.protocols import PROTOCOLS
from data.protocols.base import protocol
from data.protocols.loo import leave_one_out
from data.structs import ItemLists
from model.evaluation.evaluator import Evaluator
from model.results.writer import title_of
from tests.support.runs import TINY, run_main

FEW = {"backbone": "bprmf", "embedding_dim": 8, "user_hidden": None, "item_hidden": None, "epochs": 1}


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    monkeypatch.setattr(Evaluator, "leakage", lambda *arguments: {})


def sampled_line(text):
    (line,) = (line for line in text.splitlines() if line.startswith("sampled "))
    return line.removeprefix("sampled").strip()


def with_candidates(number):
    """Leave-one-out whose test tasks sample so many candidates, whatever the flags say."""

    @protocol()
    def made(*arguments):
        of_all = leave_one_out(*arguments)
        (phase,) = of_all.phases
        tasks = tuple(replace(task, candidates=number) for task in phase.tests)
        return replace(of_all, phases=(replace(phase, tests=tasks),))

    return made


def test_the_heading_says_what_the_task_samples(tmp_path, monkeypatch, capsys):
    run_main(tmp_path / "full", **FEW)
    assert sampled_line(capsys.readouterr().out) == "no: full ranking"
    # a protocol that samples on its own, without a flag
    monkeypatch.setitem(PROTOCOLS, "sampling", with_candidates(9))
    run_main(tmp_path / "sampled", **FEW, protocol="sampling")
    assert sampled_line(capsys.readouterr().out) == "9 candidates"
    run_main(tmp_path / "flag", **FEW, eval_negatives=12)
    assert sampled_line(capsys.readouterr().out) == "12 candidates"


def test_candidates_that_are_given_are_no_full_ranking(tiny_phase):
    (task,) = tiny_phase.tests
    given = replace(task, candidates=tiny_phase.split.test)
    assert "full" not in given.sampled and given.sampled == "candidates of the protocol"


def test_what_is_left_out_of_a_recommendation_comes_from_the_task(tmp_path, capsys, tiny_phase):
    run_main(tmp_path, **FEW)
    unset = {name: main.FLAGS[name].default for name in TINY}
    with flagsaver.flagsaver(**unset, checkpoint=str(tmp_path / "run"), mode="recommend", users=["1"]):
        main.main(["main.py"])
    assert "of 1 user, those they have in train and validation left out" in capsys.readouterr().out
    (task,) = tiny_phase.tests
    split = tiny_phase.split
    nothing = ItemLists(np.zeros(split.num_users + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert task.left_out(split) == "train and validation"
    assert replace(task, excluded=split.train).left_out(split) == "train"
    assert replace(task, excluded=nothing).left_out(split) == ""


@pytest.mark.parametrize(
    ("origin", "title"),
    [
        ({"method": "none", "epoch": 3}, "ml, sparsenn (mean) without a fairness method"),
        ({"method": "fabuhs", "epoch": 3}, "ml, sparsenn (mean) with fabuhs"),
        ({"method": "rankings of lists.csv", "epoch": None}, "ml, rankings of lists.csv"),
    ],
)
def test_the_title_says_data_set_backbone_and_method(make_config, origin, title):
    run = SimpleNamespace(data=SimpleNamespace(name="ml"), config=make_config())
    assert title_of(run, origin) == title
