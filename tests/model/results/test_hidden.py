"""What a method was asked to hide, in words and in result.json."""

from __future__ import annotations

import dataclasses

import pytest

from model.methods.base import Method
from model.modes.setup import build, prepare
from model.results.hidden import as_json, hidden_attributes, hidden_text, masked_attributes
from tests.support.runs import run_main


class Chosen(Method):
    """A method that hides another attribute under each control."""

    def controls(self):
        return "none", "gender", "both"

    def hides(self, control=""):
        return {"none": (), "gender": ("gender",), "both": ("gender", "age")}[control]


@pytest.mark.parametrize(
    ("method", "changes", "hidden"),
    [
        ("none", {"enable_fairness": False}, ()),
        ("fabuhs", {}, ("gender",)),
        ("fabuhs", {"user_attribute": ("age", "gender")}, ("age",)),
        ("fabuhs", {"adversarial_lambda_user": 0.0}, ()),
        ("fda", {"fairness_method": "fda"}, ()),
    ],
)
def test_what_a_method_hides(make_config, method, changes, hidden):
    run = prepare(make_config(**changes))
    assert run.config.method == method
    _, trained = build(run)
    assert hidden_attributes(trained) == {"": hidden}
    assert as_json(hidden_attributes(trained)) == list(hidden)


def test_each_control_may_hide_other_attributes(make_config):
    run = prepare(make_config())
    backbone, _ = build(run)
    hidden = hidden_attributes(Chosen(backbone, run.environment))
    assert as_json(hidden) == {"none": [], "gender": ["gender"], "both": ["gender", "age"]}
    assert hidden_text(hidden, (), ("gender", "age", "occupation")) == (
        "asked to hide under none nothing; under gender gender; under both gender, age; nobody asked to hide occupation"
    )


def test_controls_that_hide_the_same_are_named_together():
    hidden = {"t0": (), "t1": ("gender",), "t2": ("gender",)}
    assert hidden_text(hidden, (), ("gender",)) == "asked to hide under t0 nothing; under t1, t2 gender"


@pytest.mark.parametrize(
    ("hidden", "masked", "reported", "text"),
    [
        (("gender",), (), ("gender",), "asked to hide gender"),
        (
            ("gender",),
            ("gender",),
            ("gender", "age"),
            "asked to hide gender (not an input); nobody asked to hide age",
        ),
        ((), ("gender",), ("gender",), "nobody asked to hide gender (not an input)"),
        (("gender",), (), ("age",), "asked to hide gender; nobody asked to hide age"),
    ],
)
def test_words(hidden, masked, reported, text):
    assert hidden_text({"": hidden}, masked, reported) == text


def test_a_mask_counts_where_the_network_reads_features(make_config):
    config = make_config(user_attribute=("age", "gender"))
    assert masked_attributes(config) == ("age",)
    assert masked_attributes(dataclasses.replace(config, mask_sensitive_feature=False)) == ()
    assert masked_attributes(dataclasses.replace(config, backbone="bprmf")) == ()


def test_a_run_says_it(tmp_path, capsys):
    result = run_main(tmp_path, enable_fairness=True, user_attribute=["gender", "age"])
    assert result["hidden_attributes"] == ["gender"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "leakage asked to hide gender (not an input); nobody asked to hide age" in printed
