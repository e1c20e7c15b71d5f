"""Differentiable stand-ins for ranking metrics: closed forms, what does not change them, and slopes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from model.methods.fade import MEASURES
from model.methods.relaxed_ranks import approximate_ndcg, differentiable_hit, neural_ndcg, relaxed_rows
from tests.support.fade import LITERAL, doubly_stochastic, literal_permutation

TEMPERATURE = 3.0


def drawn(rows=6, items=5, seed=0, size=2.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(rows, items, generator=generator, dtype=torch.float64)


def slope(measure, scores, k=1):
    """The derivative of `measure` by the score of the positive, the first of `scores`."""
    row = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(measure(row, k, TEMPERATURE).sum(), row)
    return float(found[0, 0])


# --- The relaxed sort ---


def test_rows_are_those_of_a_loop_and_sum_to_1():
    scores = drawn()
    relaxed = relaxed_rows(scores, 5, TEMPERATURE)
    assert_close(relaxed, torch.stack([literal_permutation(row, TEMPERATURE) for row in scores]))
    assert_close(relaxed.sum(2), torch.ones(6, 5, dtype=torch.float64))
    assert torch.equal(relaxed_rows(scores, 2, TEMPERATURE), relaxed[:, :2])


def test_a_low_temperature_sorts():
    scores = drawn()
    permutation = relaxed_rows(scores, 5, 1e-4)
    order = scores.argsort(1, descending=True)
    assert torch.equal(permutation.argmax(2), order) and float(permutation.amax(2).min()) > 0.999


# --- The differentiable hit ---


@settings(max_examples=15, deadline=None)
@given(gap=st.floats(-20, 20), temperature=st.floats(0.1, 10))
def test_of_two_items_it_is_the_sigmoid_of_their_gap(gap, temperature):
    scores = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    assert float(differentiable_hit(scores, 1, temperature)) == pytest.approx(
        float(torch.tensor(gap / temperature, dtype=torch.float64).sigmoid()), rel=1e-9
    )


def test_the_gap_between_neighbouring_ranks_grows_with_the_rank():
    scores = torch.tensor([[2.0, 1.6, 0.5, -0.2, -1.0]], dtype=torch.float64)
    logs = relaxed_rows(scores, 1, TEMPERATURE)[0, 0].log()
    expected = [(2 * rank - 1) * float(scores[0, rank - 1] - scores[0, rank]) / TEMPERATURE for rank in range(1, 5)]
    assert (logs[:-1] - logs[1:]).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_equal_scores_share_the_first_places_and_have_a_gradient(k):
    scores = torch.full((1, 5), 0.7, requires_grad=True)
    hit = differentiable_hit(scores, k, TEMPERATURE)
    assert hit.tolist() == pytest.approx([min(k, 5) / 5])
    if k == 1:
        hit.sum().backward()
        assert float(scores.grad[0, 0]) > 0


@pytest.mark.parametrize("name", MEASURES)
def test_the_order_of_negatives_does_not_matter_nor_a_shift_but_of_the_raw_score(name):
    measure, scores = MEASURES[name], drawn()
    found = measure(scores, 1, TEMPERATURE)
    assert found.shape == (6,) and float(found.std()) > 0.01
    assert_close(measure(scores[:, [0, 3, 1, 4, 2]], 1, TEMPERATURE), found)
    shifted = measure(scores + 5, 1, TEMPERATURE)
    assert_close(shifted, found + (5 if name == "score" else 0), rtol=1e-5, atol=1e-7)


def test_at_the_limits_of_temperature_it_tells_who_is_first_or_nothing():
    scores = drawn(rows=40)
    is_first = (scores.argmax(1) == 0).double()
    assert 0 < float(is_first.mean()) < 1
    assert_close(differentiable_hit(scores, 1, 1e-5), is_first, rtol=0, atol=1e-6)
    assert_close(differentiable_hit(scores, 1, 1e7), torch.full((40,), 0.2, dtype=torch.float64), rtol=1e-5, atol=0)


EVEN = [1.0, 0.5, 0.0, -0.5, -1.0]
WIDE = [4.0, 2.0, 0.0, -2.0, -4.0]


@pytest.mark.parametrize(
    ("measure", "scores", "top", "last"),
    [
        (differentiable_hit, EVEN, 0.0783, 0.0595),
        # no gradient where the positive is far from the top, against what the paper says of it
        (differentiable_hit, WIDE, 0.0776, 3.43e-5),
        (neural_ndcg, WIDE, 0.0355, 7.06e-3),
    ],
)
def test_slopes_with_the_positive_on_top_and_last(measure, scores, top, last):
    assert slope(measure, scores) == pytest.approx(top, rel=5e-3)
    assert slope(measure, scores[::-1]) == pytest.approx(last, rel=5e-3)


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.floats(-8, 8), min_size=2, max_size=7),
    rise=st.floats(0, 8),
    temperature=st.floats(0.2, 10),
)
def test_raising_the_positive_never_lowers_it(scores, rise, temperature):
    row = torch.tensor([scores], dtype=torch.float64)
    raised = row.clone()
    raised[0, 0] += rise
    before, after = (float(differentiable_hit(one, 1, temperature)) for one in (row, raised))
    assert after >= before - 1e-12


def test_of_several_places_a_sum_above_1_is_cut_and_has_no_gradient():
    # a positive near the top is given more than one place
    rows = torch.tensor([[1.7, 1.4, -1.4, -1.2, 2.3], [-1.4, 1.4, 1.7, -1.2, 2.3]], dtype=torch.float64)
    sums = relaxed_rows(rows.requires_grad_(), 3, 1.0)[:, :, 0].sum(1)
    assert float(sums[0].detach()) > 1.1 and float(sums[1].detach()) < 0.9
    hit = differentiable_hit(rows, 3, 1.0)
    assert torch.equal(hit, torch.stack([torch.ones_like(sums[0]), sums[1]]))
    (found,) = torch.autograd.grad(hit.sum(), rows)
    assert not found[0].any() and found[1].any()


# --- Against loops ---


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("items", "k", "temperature"), [(5, 1, 3.0), (4, 2, 0.5), (2, 1, 1.0)])
def test_values_and_gradients_equal_a_loop(name, items, k, temperature):
    scores = drawn(items=items).requires_grad_()
    found = MEASURES[name](scores, k, temperature)
    expected = torch.stack([LITERAL[name](row, k, temperature) for row in scores])
    assert_close(found, expected, rtol=1e-6, atol=1e-5)
    slopes = [torch.autograd.grad(values.sum(), scores, retain_graph=True)[0] for values in (found, expected)]
    assert slopes[0].abs().max() > 1e-3
    assert_close(*slopes, rtol=1e-5, atol=1e-5)


def test_the_literal_permutation_becomes_doubly_stochastic():
    for row in drawn():
        permutation = doubly_stochastic(literal_permutation(row, TEMPERATURE))
        for side in (0, 1):
            assert_close(permutation.sum(side), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_shares_of_the_first_places_are_given_out_once():
    """Summed over who is the positive, NeuralNDCG is the sum of the discounts: rows sum to 1."""
    scores = drawn(rows=1)
    total = sum(float(neural_ndcg(scores.roll(turn, 1), 1, TEMPERATURE)) for turn in range(5))
    assert total == pytest.approx(sum(1 / math.log2(place + 1) for place in range(1, 6)), rel=1e-6)


def test_ndcgs_of_a_clear_order_are_the_discount_of_the_rank():
    scores = torch.tensor([[9.0, 1.0, 5.0], [5.0, 9.0, 1.0], [1.0, 9.0, 5.0]], dtype=torch.float64)
    discounts = [1, 1 / math.log2(3), 0.5]
    assert neural_ndcg(scores, 1, 0.01).tolist() == pytest.approx(discounts, abs=1e-6)
    # the temperature is a slope here
    assert approximate_ndcg(scores, 1, 10.0).tolist() == pytest.approx(discounts, abs=1e-6)
    equal = approximate_ndcg(torch.zeros(1, 5), 1, TEMPERATURE)
    assert float(equal) == pytest.approx(1 / math.log2(1 + 1 + 4 / 2))
