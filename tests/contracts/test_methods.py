"""What every method of the registry must do on every backbone that it supports."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch

from data.options import parse_options
from model import BACKBONES, METHODS
from model.evaluation.evaluator import Evaluator
from tests.support.contracts import begun, cells, config_of, first_cells, flags_of, same

every_method = pytest.mark.parametrize(("method", "backbone"), first_cells())
# every cell where time allows
most_cells = pytest.mark.parametrize(
    ("method", "backbone"),
    [pytest.param(*cell, marks=[] if cell in first_cells() else pytest.mark.slow) for cell in cells()],
)
METHOD = pytest.mark.parametrize("method", METHODS)


def trained(method, backbone):
    return begun(**flags_of(backbone, method))


def is_trained(network) -> bool:
    return not network.fitted


def snapshot(part) -> dict:
    return copy.deepcopy(part.state_dict())


@METHOD
def test_some_backbone_is_supported_and_a_refusal_says_why(method):
    reasons = {name: METHODS[method].unsupported(config_of(**flags_of(name, method))) for name in BACKBONES}
    assert None in reasons.values()
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())


@most_cells
def test_every_stage_changes_the_weights_and_reports_finite_numbers(method, backbone):
    run = trained(method, backbone)
    for stage in run.method.stages():
        before = snapshot(run.backbone), copy.deepcopy(run.method.training_state())
        run.begin_stage(stage)
        found = run.step(stage, 2)
        assert not same((snapshot(run.backbone), run.method.training_state()), before)
        assert all(value.isfinite() and not value.requires_grad for values in found for value in values.values())
        assert bool(found) == is_trained(run.backbone)
    assert not same(snapshot(run.backbone), snapshot(trained(method, backbone).backbone))


@most_cells
def test_the_same_seed_gives_the_same_steps(method, backbone):
    ended = []
    for _ in range(2):
        torch.rand(3)  # whatever else draws
        run, reports = trained(method, backbone), []
        for stage in run.method.stages():
            run.begin_stage(stage)
            reports.append(run.step(stage, 2))
        ended.append((reports, run.state()))
    assert same(*ended)


@most_cells
def test_a_state_is_plain_and_the_next_steps_from_it_are_the_same(method, backbone):
    run = trained(method, backbone)
    for stage in run.method.stages():
        run.begin_stage(stage)
        run.step(stage, 2)
        saved = run.state()
        expected = run.step(stage, 2), run.state()
        other = trained(method, backbone)
        # where a run goes on, the phase begins first, then the stage and the epoch that it is in begin again
        other.load(saved)
        assert same(other.state(), saved)
        other.begin_stage(stage)
        assert same((other.step(stage, 2), other.state()), expected)


@most_cells
def test_a_state_that_is_taken_back_stays_as_it_was(method, backbone):
    run = trained(method, backbone)
    stage = run.method.stages()[0]
    run.begin_stage(stage)
    run.step(stage)
    saved = run.state()
    kept = copy.deepcopy(saved)
    run.load(saved)
    run.step(stage)
    assert same(saved, kept)


@every_method
def test_controls_are_names_and_transform_users_row_by_row(method, backbone):
    run = trained(method, backbone)
    run.begin_stage(run.method.stages()[0])
    controls = run.method.controls()
    assert controls and len(set(controls)) == len(controls)
    assert not any(character in control for control in controls for character in "/@")
    for stage in run.method.stages():
        chosen = run.method.selection_controls(stage)
        assert chosen and set(chosen) <= set(controls)
    users = torch.tensor([0, 3, 3, 11])
    vectors = torch.randn(4, run.backbone.vector_width, generator=torch.Generator().manual_seed(0))
    for control in controls:
        with torch.no_grad():
            served = run.method.transform_users(vectors, users, control)
            alone = torch.cat(
                [run.method.transform_users(vectors[row : row + 1], users[row : row + 1], control) for row in range(4)]
            )
        assert served.shape == vectors.shape and served.isfinite().all()
        torch.testing.assert_close(served, alone)


@every_method
def test_what_it_trains_can_be_ranked_and_judged(method, backbone):
    run = trained(method, backbone)
    for stage in run.method.stages():
        run.begin_stage(stage)
        run.step(stage)
    evaluator = Evaluator(run.backbone, run.method, run.run.environment)
    before = snapshot(run.backbone)
    split = run.phase.split
    for control in run.method.controls():
        ranking = evaluator.rank(run.phase.tests[0], split.test_histories, split, 10, control)
        assert (ranking.topk >= 0).all() and (ranking.ranks >= 1).all()
    assert same(snapshot(run.backbone), before)


@every_method
def test_schedules_and_stages_are_sound(method, backbone):
    run = trained(method, backbone)
    stages = run.method.stages()
    assert stages and len(set(stages)) == len(stages)
    for stage in stages:
        schedule = run.method.schedule(stage, run.phase)
        assert min(schedule.batch_size, schedule.epochs, schedule.every, schedule.patience) >= 1
        assert bool(run.method.passes(stage, 1)) == is_trained(run.backbone)


@every_method
def test_weights_of_histories_fit_the_histories(method, backbone):
    run = trained(method, backbone)
    split = run.phase.split
    weights = run.method.history_weights(split.histories, split)
    assert weights.log_weights.shape == (len(weights.log_mix), len(split.histories.item))


# --- Options ---


def options_of(method):
    return fields(METHODS[method].Options)


@METHOD
def test_an_unknown_option_is_refused_with_those_there_are(method):
    with pytest.raises(ValueError, match="no_such_option") as caught:
        parse_options(METHODS[method].Options, ["no_such_option=1"])
    assert all(field.name in str(caught.value) for field in options_of(method))


@METHOD
def test_an_option_refuses_what_is_no_value_of_its_type(method):
    for field in options_of(method):
        if type(field.default) is str:
            continue
        with pytest.raises(ValueError, match=field.name):
            parse_options(METHODS[method].Options, [f"{field.name}=nonsense"])


@METHOD
def test_numbers_and_choices_have_bounds(method):
    for field in options_of(method):
        kind = type(field.default)
        if kind in (int, float, str):
            wrong = "no such choice" if kind is str else "-1"
            with pytest.raises(ValueError, match=field.name):
                parse_options(METHODS[method].Options, [f"{field.name}={wrong}"])


@METHOD
def test_defaults_can_be_written_out(method):
    kind = METHODS[method].Options

    def written(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    given = [f"{field.name}={written(field.default)}" for field in options_of(method)]
    assert parse_options(kind, given) == kind()


@METHOD
def test_a_checkpoint_of_another_method_is_refused(method):
    run = trained(*next(cell for cell in first_cells() if cell[0] == method))
    with pytest.raises((ValueError, KeyError, RuntimeError)):
        run.method.load_state_dict({"nobody knows": torch.zeros(1)})
