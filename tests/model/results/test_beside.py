"""`--beside`: finished runs in the pictures of another one, and which are refused."""

from __future__ import annotations

import shutil

import pytest
from absl.testing import flagsaver

import main
from model.modes.serving import evaluate_checkpoint
from model.results import pareto, pictures, writer
from model.runs.processes import ALONE
from tests.support.light import light_runs
from tests.support.pictures import blank_pictures
from tests.support.runs import refused, run_main

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}
BY_IDS |= {"epochs": 1, "user_attribute": ["gender", "age"]}
LEVELS = {"enable_fairness": True, "fairness_method": "cofair", "method_option": ["levels=2", "batch_size=128"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a plain run and one of levels, on the same split."""
    folder = tmp_path_factory.mktemp("beside")
    with light_runs():
        for name, changes in (("plain", {}), ("levels", LEVELS)):
            run_main(folder, **BY_IDS, **changes)
            (folder / "run").rename(folder / name)
    return folder


@pytest.mark.parametrize(
    ("beside", "changes", "reason"),
    [
        ("plane", {}, "--beside: there is no plane, neither here nor in"),
        ("plain:t1", {}, "--beside: plain:t1 has no list 't1'"),
        ("plain", {"protocol": "fda", "eval_k": ["20"]}, "differ in data fingerprint"),
        ("plain", {"seed": 1, "synthetic_users": 61}, "differ in data fingerprint"),
        ("plain", {"eval_k": ["7"]}, "--beside: plain has K = 5, 10, not 7; judge it again"),
        ("plain", {"user_attribute": ["occupation"]}, "--beside: plain reports gender, age, not occupation"),
        ("plain", {"dry_run": True, "warm_threshold": 0.5}, "--beside: this run and plain differ in"),
    ],
)
def test_what_cannot_stand_beside_a_run_is_refused_before_training(capsys, folder, beside, changes, reason):
    error = refused(capsys, folder, **(BY_IDS | {"run_name": "new", "beside": [beside]} | changes))
    assert reason in error
    assert not (folder / "new").exists()


def test_seeds_stand_beside_a_run_one_by_one(capsys, folder):
    (folder / "three").mkdir(exist_ok=True)
    (folder / "three" / "seeds.json").write_text("{}")
    error = refused(capsys, folder, **BY_IDS, beside=["three"])
    assert "holds runs of several seeds; name one of them, such as three/seed0" in error


def judged_again(folder, name, **values):
    """Judge `levels` of the folder again under flags, pictures of every run left out; give its folder."""
    values = {"mode": "evaluate", "checkpoint": str(folder / "levels"), "output_dir": str(folder)} | values
    with flagsaver.flagsaver(run_name=name, **values):
        evaluate_checkpoint(main.settings_from_flags(), 0.0, ALONE)
    return folder / name


@pytest.mark.pictures
def test_levels_are_drawn_beside_other_runs(folder, monkeypatch, capsys):
    blank_pictures(monkeypatch)
    asked = []

    def draw(*arguments):
        asked.append(arguments)
        return pictures.draw_run(*arguments)

    monkeypatch.setattr(writer, "draw_run", draw)
    again = judged_again(folder, "again", beside=["plain", f"{folder}/levels:t1"])
    page, picture = (again / "report.html").read_text(), (again / "levels.svg").read_text()
    for words in ("this run, t0 to t2", "plain", "levels:t1", "t0", "t1", "t2"):
        assert f"<!-- {words} -->" in picture
    assert "Demographic parity, JS" in picture and "Gini" not in picture and "<!-- age" not in picture
    assert "Gini of exposure" in (again / "settings.svg").read_text()
    assert "trained separately (--beside)" in page and "joins the levels" in page
    # what is gone when the pictures are drawn costs a warning, and the levels stay
    shutil.move(folder / "plain", folder / "gone")
    ((of_run, _, *rest),) = asked
    capsys.readouterr()
    figures = []
    monkeypatch.setattr(pareto, "save", lambda figure, stem: figures.append(figure) or [])
    try:
        left = pictures.draw_run(of_run, again, *rest)
    finally:
        shutil.move(folder / "gone", folder / "plain")
    assert "warning: what --beside names is left out (--beside: there is no plain" in capsys.readouterr().err
    assert figures[0].legends[0].get_texts()[0].get_text() == "this run, t0 to t2" and len(figures) == 2
    assert "--beside" not in left["levels"].caption


@pytest.mark.slow
@pytest.mark.pictures
def test_a_run_of_one_list_has_the_picture_where_others_stand_beside_it(folder, monkeypatch):
    blank_pictures(monkeypatch)
    run_main(folder, **BY_IDS, run_name="run", beside=["plain", "levels"])
    picture = (folder / "run" / "levels.svg").read_text()
    for words in ("this run", "plain", "levels, t0 to t2"):
        assert f"<!-- {words} -->" in picture
    # a checkpoint judged again stands beside nothing unless it is asked to
    again = judged_again(folder, "alone", checkpoint=str(folder / "run"))
    assert not (again / "levels.svg").exists() and not (again / "settings.svg").exists()
