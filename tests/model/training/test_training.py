"""The one update, the choice of the epoch, and checkpoints."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from model.methods.base import Schedule
from model.runs.config import Config
from model.runs.processes import ALONE
from model.training.checkpoints import Selection, load_checkpoint, save_checkpoint
from model.training.progress import Progress
from model.training.update import update
from tests.support.training import StatefulMethod, make_module

PATIENT = Schedule(batch_size=1, epochs=9, every=1, patience=2)


def test_update_steps_every_optimiser_with_fresh_gradients():
    first, second = make_module(), make_module()
    optimisers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in (first, second)]
    rows = torch.tensor([[1.0, 2.0, -1.0]])
    start = [module.weight.detach().clone() for module in (first, second)]
    for _ in range(2):
        update(first(rows).sum() + 3 * second(rows).sum(), *optimisers)
    torch.testing.assert_close(first.weight, start[0] - 2 * 0.5 * rows)
    torch.testing.assert_close(second.weight, start[1] - 2 * 0.5 * 3 * rows)


def test_update_leaves_modules_whose_optimiser_is_not_named_alone():
    named, other = make_module(), make_module()
    before = other.weight.detach().clone()
    update((named(torch.ones(1, 3)) * other(torch.ones(1, 3))).sum(), torch.optim.SGD(named.parameters(), lr=1.0))
    assert torch.equal(other.weight, before)
    assert not torch.equal(named.weight, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_update_refuses_a_loss_that_is_not_finite_before_it_does_harm(bad):
    module = make_module()
    before = module.weight.detach().clone()
    with pytest.raises(ValueError, match=f"loss is -?{bad}"):
        update(module(torch.ones(1, 3)).sum() * bad, torch.optim.SGD(module.parameters(), lr=1.0))
    assert torch.equal(module.weight, before)


def set_weight(module, method, value):
    with torch.no_grad():
        module.weight.fill_(value)
    method.level = torch.full((2,), value)


def test_selection_keeps_the_best_epoch_and_restores_it_exactly():
    module, method, selection = make_module(), StatefulMethod(), Selection()
    outcomes = []
    for epoch, value in enumerate([0.1, 0.3, 0.2, 0.3, math.nan], start=1):
        set_weight(module, method, epoch / 7)
        outcomes.append(selection.offer(epoch, value, module, method))
    # an equal value later is not better, and neither is an undefined one
    assert outcomes == [True, True, False, False, False]
    assert (selection.epoch, selection.value) == (2, 0.3)
    bias = module.bias.detach().clone()
    selection.restore(module, method)
    assert torch.equal(module.weight, torch.full((1, 3), 2 / 7))
    assert torch.equal(method.level, torch.full((2,), 2 / 7))
    assert torch.equal(module.bias, bias)
    # what is kept is a copy: training on does not change it
    set_weight(module, method, 9.0)
    selection.restore(module, method)
    assert torch.equal(module.weight, torch.full((1, 3), 2 / 7))


def test_nan_is_never_the_best():
    selection = Selection()
    assert not selection.offer(1, math.nan, make_module(), StatefulMethod())
    assert selection.weights == {}
    assert not PATIENT.exhausted(1, selection.epoch, selection.values)
    assert PATIENT.exhausted(2, selection.epoch, selection.values)
    assert selection.offer(2, 0.0, make_module(), StatefulMethod())


def test_patience_counts_epochs_since_the_best():
    selection = Selection()
    stopped = []
    for epoch, value in enumerate([0.2, 0.1, 0.4, 0.4, 0.3], start=1):
        selection.offer(epoch, value, make_module(), StatefulMethod())
        stopped.append(PATIENT.exhausted(epoch, selection.epoch, selection.values))
    assert stopped == [False, False, False, False, True]


def leaves(value):
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def test_a_checkpoint_holds_tensors_and_plain_json_only(tmp_path, make_config, tiny_phase, selection):
    config, path = make_config(method_option=("smoothing=2",)), tmp_path / "checkpoint.pt"
    save_checkpoint(path, config, tiny_phase, selection)
    content = torch.load(path, weights_only=True)
    plain = (str, int, float, bool, type(None))
    assert all(isinstance(leaf, torch.Tensor) or type(leaf) in plain for leaf in leaves(content))
    assert (content["epoch"], content["validation"], content["fingerprint"]) == (
        3,
        0.25,
        tiny_phase.split.fingerprint(),
    )
    assert load_checkpoint(path)[0] == load_checkpoint(tmp_path)[0] == config
    assert set(content["backbone"]) == {"weight", "bias"}
    module = nn.Linear(3, 1)
    module.load_state_dict(content["backbone"])
    assert torch.equal(module.weight, make_module().weight)
    assert torch.equal(content["method"]["level"], torch.zeros(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_save_that_fails_leaves_the_old_checkpoint_whole(tmp_path, make_config, tiny_phase, selection, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_config(), tiny_phase, selection)
    before = path.read_bytes()

    def interrupted(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, make_config(), tiny_phase, selection)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_settings_come_back_from_their_json(make_config):
    config = make_config(sampling_softmax_temp=math.inf, method_option=("smoothing=2",), eval_negatives=7)
    assert Config.from_json(json.loads(json.dumps(config.as_json()))) == config


def test_a_mean_is_over_the_rows_that_report_the_value():
    progress = Progress()
    for noise, rows in ((1.0, 3), (4.0, 1)):
        progress.add({"noise/loss": torch.tensor(noise)}, rows)
    progress.add({"loss": torch.tensor(2.0)}, 5)
    assert progress.means(ALONE) == {"noise/loss": 7 / 4, "loss": 2.0}
    restored = Progress.of({"progress": progress.as_json(), "totals": progress.totals}, 0.0)
    assert restored.means(ALONE) == progress.means(ALONE)
