"""A training step on a device whose tensors have no values: whatever would make the host wait for them fails.

Torch's meta device stands in for a GPU, which the machines that run these tests lack.
"""

import itertools

import pytest
import torch

from data.structs import Batch, History
from model import METHODS
from model.evaluation.probes import held_out_users
from model.runs.environment import Environment
from model.runs.streams import stream_seeds
from model.sparsenn import SparseNN
from model.training.update import update
from tests.support.meta import META, meta_stand_ins


@pytest.mark.parametrize(
    "ask",
    [
        lambda value: value.sum().item(),
        lambda value: bool(value.any()),
        lambda value: value.nonzero(),
        lambda value: value[value > 0],
        torch.unique,
        lambda value: value.tolist(),
    ],
)
def test_the_meta_device_refuses_what_would_make_the_host_wait(ask):
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.empty(4, 3, device=META))


@pytest.fixture(autouse=True)
def stand_ins():
    with meta_stand_ins():
        yield


def meta_batch(config, rows):
    """A batch of the shapes that the sampler makes, without values."""
    width = 1 + config.num_negatives + config.in_batch_negatives
    histories = rows * width if config.upstream_compat else rows
    history = History(
        torch.empty((histories, config.sample_size), dtype=torch.int64, device=META),
        torch.empty((histories, config.sample_size), dtype=torch.bool, device=META),
    )
    ids = torch.empty(rows, dtype=torch.int64, device=META)
    return Batch(ids, ids, torch.empty((rows, width - 1), dtype=torch.int64, device=META), history)


FORMS = [
    ("none", {}),
    ("none", {"precision": "bf16"}),
    ("none", {"upstream_compat": True}),
    ("none", {"loss": "softmax"}),
    ("fabuhs", {"method_option": ("reinitialise_every=1",)}),
    ("fabuhs", {"adversary_input": "pair", "item_adversary": "user_attribute", "adversarial_ramp": 0.0}),
]
ROWS = {2: "items of the step", 64: "catalogue"}


def is_quick(synthesis: str, rows: int, form: tuple) -> bool:
    """Every synthesis, every number of rows and every form, in some combination."""
    return (synthesis == "attention" and rows == 64) or (synthesis != "attention" and form == FORMS[0])


@pytest.mark.parametrize(
    ("synthesis", "rows", "method_name", "changes"),
    [
        pytest.param(synthesis, rows, *form, marks=[] if is_quick(synthesis, rows, form) else pytest.mark.slow)
        for synthesis, rows, form in itertools.product(["none", "mean", "attention", "gru"], ROWS, FORMS)
    ],
    ids=lambda value: ROWS.get(value, value) if isinstance(value, int) else None,
)
def test_a_step_never_waits_for_the_device(tiny_data, tiny_phase, make_config, synthesis, rows, method_name, changes):
    config = make_config(synthesis_type=synthesis, **changes)
    seeds = stream_seeds(0)
    backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], torch.device("cpu")).to(META)
    if config.synthesis_type == "gru":
        backbone.synthesis.random_state_generator = None
    groups = {"gender": tiny_data.user_groups["gender"]}
    held_out = held_out_users(groups["gender"].codes, seed=0)
    method = METHODS[method_name](backbone, Environment(config, groups, held_out, seeds, META))
    method.begin_phase(tiny_phase, 100)
    batch = meta_batch(config, rows)
    if backbone.history_kind is None:
        batch = Batch(batch.users, batch.positives, batch.negatives, None)
    for _ in range(2):
        values = method.train_step(batch, "method", "train", update)
    assert values["loss"].device == META
    assert all(parameter.grad.device == META for parameter in backbone.parameters())
