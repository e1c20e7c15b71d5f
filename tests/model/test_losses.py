"""Ranking losses against closed forms and torch's own."""

import math

import pytest
import torch
from torch.testing import assert_close

from model import LOSSES
from model.losses import bpr_loss, margin_ranking_loss, softmax_loss

SCORES = torch.tensor([[2.0, 0.5, 1.5], [0.0, -3.0, 0.0]])


def test_margin_ranking_loss_closed_form():
    assert margin_ranking_loss(SCORES).item() == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    target = torch.ones(2, 2)
    theirs = torch.nn.MarginRankingLoss(margin=1.0)(SCORES[:, :1].expand(2, 2), SCORES[:, 1:], target)
    assert_close(margin_ranking_loss(SCORES), theirs)


def test_bpr_loss_closed_form():
    pairs = [(2.0, 0.5), (2.0, 1.5), (0.0, -3.0), (0.0, 0.0)]
    expected = sum(-math.log(1 / (1 + math.exp(negative - positive))) for positive, negative in pairs) / 4
    assert bpr_loss(SCORES).item() == pytest.approx(expected)


def test_softmax_loss_is_torchs_cross_entropy_of_the_positive():
    assert_close(softmax_loss(SCORES), torch.nn.functional.cross_entropy(SCORES, torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_a_mean_over_rows_and_falls_when_the_positive_rises(name):
    loss = LOSSES[name]
    rows = torch.stack([loss(row[None]) for row in SCORES])
    assert_close(loss(SCORES), rows.mean())
    better = SCORES.clone()
    better[:, 0] += 0.3
    assert loss(better) < loss(SCORES)
    assert loss(1000 * SCORES).isfinite()
