"""MLP, feature encoder and scorers; dot_compress against the literal formula that it replaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from data.structs import FeatureSpec, FeatureTable
from model import scorers
from model.layers import Dropout, FeatureEncoder, mlp
from model.scorers import DotCompressScorer, DotScorer
from tests.support.literal_scorer import literal


def make_scorer(dim, dtype=torch.float64, compress=5, hidden=(9, 4)):
    """A scorer without any parameter at its initial 0 or 1, where an error could hide."""
    torch.manual_seed(dim)
    scorer = DotCompressScorer(dim, compress, hidden).to(dtype)
    for parameter in scorer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return scorer


def gradients(scores, scorer, inputs):
    leaves = [*inputs, *scorer.parameters()]
    weight = torch.linspace(-1, 2, scores.numel(), dtype=scores.dtype).view(scores.shape)
    return torch.autograd.grad((scores * weight).sum(), leaves)


@pytest.mark.parametrize(("rows", "width", "dim"), [(1, 1, 1), (3, 4, 7), (2, 6, 128)])
def test_closed_form_equals_the_literal_formula_in_values_and_every_gradient(rows, width, dim):
    scorer = make_scorer(dim)
    user = torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)
    item = torch.randn(rows, width, dim, dtype=torch.float64, requires_grad=True)
    side, place = scorer.item_side(item.flatten(0, 1)), torch.arange(rows * width).view(rows, width)
    fast, slow = scorer(user, side, place), literal(scorer, user, item)
    assert fast.shape == (rows, width)
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients(fast, scorer, [user, item]), gradients(slow, scorer, [user, item]), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_closed_form_loses_no_more_to_float32_than_the_literal_formula():
    torch.manual_seed(0)
    scorer, exact = DotCompressScorer(128), DotCompressScorer(128).double()
    exact.load_state_dict(scorer.state_dict())
    user, item = torch.randn(64, 128), torch.randn(64, 20, 128)
    truth = literal(exact, user.double(), item.double())
    place = torch.arange(64 * 20).view(64, 20)
    fast = (scorer(user, scorer.item_side(item.flatten(0, 1)), place) - truth).abs().max().item()
    slow = (literal(scorer, user, item) - truth).abs().max().item()
    assert slow < 1e-5
    assert fast < 1e-5


@pytest.mark.parametrize("make", [lambda: make_scorer(6), lambda: DotScorer(6)], ids=["dot_compress", "dot"])
def test_catalogue_form_equals_the_batch_form(make):
    scorer = make()
    user = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    item = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    whole = scorer.catalogue(user, scorer.item_side(item))
    batch = scorer(user, scorer.item_side(item), torch.arange(7).expand(4, 7))
    assert_close(whole, batch, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(whole, scorer, [user, item]), gradients(batch, scorer, [user, item]), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_scalars_of_a_pair_keep_their_digits_under_bf16():
    generator = torch.Generator().manual_seed(0)
    scorer = DotCompressScorer(128)
    user = 10 * torch.randn((1, 128), generator=generator)
    # 512 items whose u.v differ in the fourth digit, which bf16 cannot hold
    item = user * (1 + torch.linspace(0, 0.01, 512))[:, None]
    # nothing between the folded layers and the last, which are all float32
    scorer.mlp = nn.Sequential(*scorer.mlp[:2], nn.Linear(128, 1))
    with torch.no_grad():
        item, place = scorer.item_side(item), torch.arange(512)[None]
        full = scorer(user, item, place)
        with torch.autocast("cpu", torch.bfloat16):
            half = scorer(user, item, place)
    assert full.shape == (1, 512)
    assert full.unique().numel() > 256
    assert_close(half, full, rtol=0, atol=0)


def test_dot_scorer_is_the_inner_product():
    user, item, place = torch.randn(3, 5), torch.randn(6, 5), torch.tensor([[0, 5], [2, 2], [5, 1]])
    scores = DotScorer(user.shape[1])(user, item, place)
    for row in range(3):
        for column in range(2):
            assert scores[row, column].item() == pytest.approx(float(user[row] @ item[place[row, column]]), abs=1e-5)


@pytest.mark.parametrize("cached", [1, 100, 1 << 18])
def test_pair_products_equal_gathered_products_in_values_and_gradients(cached, monkeypatch):
    """Whatever the parts; item 3 is never asked for, items 0 and 4 repeatedly."""
    monkeypatch.setattr(scorers, "CACHED_NUMBERS", cached)
    user = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    item = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[0, 0, 4], [5, 4, 0], [1, 2, 4], [4, 4, 4], [2, 0, 5]])
    fast, slow = scorers.PairProducts.apply(user, item, place), (user[:, None] * item[place]).sum(-1)
    assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weight = torch.randn(5, 3, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((scores * weight).sum(), [user, item]) for scores in (fast, slow))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not ours[1][3].any()


@pytest.mark.parametrize("asked", [(True, False), (False, True), (True, True)], ids=["user", "item", "both"])
def test_pair_products_compute_the_gradients_that_are_asked_for_and_no_others(asked, monkeypatch):
    """A side that is frozen costs no backward pass; the other side's gradient is the same to the bit."""
    user, item = torch.randn(6, 5), torch.randn(9, 5)
    place, weight = torch.randint(9, (6, 4)), torch.randn(6, 4)

    def gradients(sides):
        leaves = [part.clone().requires_grad_(side) for part, side in zip((user, item), sides, strict=True)]
        scorers.PairProducts.apply(*leaves, place).backward(weight)
        return [leaf.grad for leaf in leaves]

    expected, sums = gradients((True, True)), []
    embedding_bag = torch.nn.functional.embedding_bag
    monkeypatch.setattr(
        torch.nn.functional, "embedding_bag", lambda *rest, **more: sums.append(1) or embedding_bag(*rest, **more)
    )
    for side, found, whole in zip(asked, gradients(asked), expected, strict=True):
        assert (found is not None) == side and (not side or torch.equal(found, whole))
    assert len(sums) == sum(asked)


def test_scores_do_not_depend_on_how_many_pairs_are_scored_at_a_time(monkeypatch):
    scorer = make_scorer(6)
    user, item = torch.randn(9, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    place = torch.randint(5, (9, 4))
    whole = scorer(user, scorer.item_side(item), place)
    monkeypatch.setattr(scorers, "TILE_PAIRS", 8)
    assert_close(scorer(user, scorer.item_side(item), place), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_mlp_has_norm_and_gelu_between_layers_and_neither_after_the_last(affine):
    layers = list(mlp([8, 6, 4, 2], affine_norm=affine))
    kinds = [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert [(layer.in_features, layer.out_features) for layer in layers[::3]] == [(8, 6), (6, 4), (4, 2)]
    assert [layer.normalized_shape for layer in layers[1::3]] == [(6,), (4,)]
    assert all(layer.elementwise_affine == affine for layer in layers[1::3])


@pytest.fixture
def encoder():
    rng = np.random.default_rng(0)
    schema = (
        FeatureSpec("id", "categorical", 6),
        FeatureSpec("genres", "multi_hot", 4),
        FeatureSpec("title", "dense", 5),
    )
    columns = {
        "id": torch.from_numpy(rng.permutation(6)),
        "genres": torch.from_numpy(rng.integers(0, 2, (6, 4)).astype(np.float32)),
        "title": torch.from_numpy(rng.normal(size=(6, 5)).astype(np.float32)),
    }
    torch.manual_seed(0)
    return FeatureEncoder(FeatureTable(schema, columns), 3)


def test_feature_encoder_equals_a_naive_loop(encoder):
    embedding, genres, title = (encoder.columns[name] for name in ("id", "genres", "title"))
    rows = torch.tensor([4, 0, 4, 2])
    expected = []
    for row in rows.tolist():
        categories = encoder.table_genres[row].nonzero()[:, 0].tolist()
        parts = [
            embedding.weight[encoder.table_id[row]],
            sum((genres.weight[:, category] for category in categories), torch.zeros(3)),
            title.weight @ encoder.table_title[row] + title.bias,
        ]
        expected.append(torch.cat(parts))
    assert encoder.width == 9
    assert_close(encoder(rows), torch.stack(expected))


def test_feature_encoder_without_rows_encodes_the_whole_table(encoder):
    assert_close(encoder(), encoder(torch.arange(6)), rtol=0, atol=0)


def test_only_dense_columns_have_a_bias_and_tables_stay_out_of_checkpoints(encoder):
    assert encoder.columns["genres"].bias is None
    assert encoder.columns["title"].bias is not None
    names = {"columns.id.weight", "columns.genres.weight", "columns.title.weight", "columns.title.bias"}
    assert set(encoder.state_dict()) == names


def test_dropout_keeps_the_mean_sets_its_share_to_0_and_rests_in_evaluation():
    torch.manual_seed(0)
    values, dropout = torch.full((400, 500), 3.0, requires_grad=True), Dropout(0.2)
    found = dropout(values)
    assert set(found.unique().tolist()) == {0.0, 3.75}
    assert float((found == 0).float().mean()) == pytest.approx(0.2, abs=0.005)
    assert float(found.detach().mean()) == pytest.approx(3, abs=0.02)
    assert not torch.equal(found, dropout(values)), "every call draws anew"
    found.sum().backward()
    assert torch.equal(values.grad, found.detach() / 3)
    assert Dropout(0.0)(values) is values and dropout.eval()(values) is values
