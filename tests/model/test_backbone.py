"""What the base class of backbones gives: freezing, the default penalty, and settings that a backbone does not read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from model import BACKBONES
from model.backbone import Backbone
from model.factorisation import BPRMF, MatrixFactorisation


class Dropped(MatrixFactorisation):
    """Matrix factorisation with dropout on the items and a weight that never gets a gradient."""

    def __init__(self, num_users, num_items, dim):
        super().__init__(num_users, num_items, dim)
        self.dropout = nn.Dropout(0.5)
        self.fixed = nn.Parameter(torch.zeros(2), requires_grad=False)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Dropped(6, 9, 4)


def test_a_frozen_backbone_has_no_gradients_and_stays_in_evaluation_mode(backbone):
    backbone.user.weight.grad = torch.ones_like(backbone.user.weight)
    backbone.freeze()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.user.weight.grad is None
    assert backbone.train() is backbone and not backbone.training and not backbone.dropout.training
    assert not backbone.encode_users(backbone.prepare(), torch.arange(3), None).requires_grad


def test_thawing_gives_back_what_freezing_took_and_no_more(backbone):
    for _ in range(2):  # freezing twice is freezing once
        backbone.freeze()
    backbone.thaw()
    assert backbone.training and backbone.dropout.training
    assert backbone.user.weight.requires_grad and backbone.item.weight.requires_grad
    assert not backbone.fixed.requires_grad
    assert not backbone.eval().training


def test_the_default_penalty_is_that_of_the_vectors(backbone):
    users, items = torch.tensor([0, 3]), torch.tensor([[1, 2], [8, 1]])
    context = backbone.prepare()
    expected = backbone.user.weight[users].square().sum(1) + backbone.item.weight[items].square().sum((1, 2))
    assert_close(Backbone.squared_norms(backbone, context, users, items), expected)
    assert_close(backbone.squared_norms(context, users, items), expected)


def test_only_what_bpr_trains_is_clamped_by_the_released_fda():
    found = {name for name in BACKBONES if BACKBONES[name].fda_code_clamps_items}
    assert found == {"bprmf"} and BPRMF.fda_code_clamps_items


@pytest.mark.parametrize(
    ("name", "synthesis", "read", "unread"),
    [
        ("sparsenn", "mean", {"sample_size", "user_hidden", "upstream_compat"}, {"attention_heads", "l2"}),
        ("sparsenn", "attention", {"attention_heads", "sampling_softmax_temp"}, {"graph_layers"}),
        ("sparsenn", "none", {"scorer", "upstream_compat"}, {"sample_size", "user_hidden", "eval_history_draws"}),
        ("bprmf", "mean", {"l2", "embedding_dim", "weight_decay"}, {"graph_layers", "synthesis_type", "scorer"}),
        ("lightgcn", "mean", {"graph_layers", "l2"}, {"sample_size", "attention_heads"}),
        ("slim", "mean", {"seed"}, {"lr", "weight_decay", "graph_layers", "loss", "synthesis_type"}),
    ],
)
def test_a_backbone_names_the_settings_that_it_does_not_read(name, synthesis, read, unread):
    found = BACKBONES[name].unread(SimpleNamespace(synthesis_type=synthesis))
    assert unread <= found and not read & found
