"""The two-tower network: its size, its per-step item tower, and that it learns what it should."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.dataloader import BatchSampler, edge_batches
from data.sampling.histories import HistorySampler
from data.sampling.negatives import NegativeSampler
from data.structs import FeatureSpec, FeatureTable, Histories, History, HistoryWeights
from model.losses import margin_ranking_loss
from model.sparsenn import SparseNN, SparseNNOptions

SYNTHESES = ("none", "mean", "attention", "gru")
every_synthesis = pytest.mark.parametrize("synthesis", SYNTHESES)


def make_table(**columns):
    """Random features: name -> (kind, size) for 30 rows."""
    schema = tuple(FeatureSpec(name, kind, size) for name, (kind, size) in columns.items())
    generator = torch.Generator().manual_seed(0)
    values = {}
    for spec in schema:
        if spec.kind == "categorical":
            values[spec.name] = torch.randint(spec.size, (30,), generator=generator)
        else:
            values[spec.name] = torch.rand(30, spec.size, generator=generator)
    return FeatureTable(schema, values)


def make_backbone(synthesis, **options):
    users = make_table(id=("categorical", 30), gender=("categorical", 2))
    items = make_table(id=("categorical", 30), genres=("multi_hot", 4), title=("dense", 8))
    torch.manual_seed(1)
    sizes = {"sample_size": 4, "embedding_dim": 8, "user_hidden": (16,), "item_hidden": (16,), "base_hidden": (12,)}
    return SparseNN(users, items, SparseNNOptions(synthesis, **(sizes | options)))


def make_inputs():
    """Two rows of one positive and two negatives with histories of 3 and 0 items: 14 item ids of 30."""
    history = History(torch.tensor([[7, 9, 7, 0], [0, 0, 0, 0]]), torch.tensor([[True] * 3 + [False], [False] * 4]))
    return torch.tensor([5, 28]), torch.tensor([[3, 17, 29], [11, 3, 2]]), history


def scores_and_gradients(backbone, needed):
    users, items, history = make_inputs()
    context = backbone.prepare(needed)
    scores = backbone.score(context, backbone.encode_users(context, users, history), items)
    backbone.zero_grad()
    (scores * torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.5, -1.0]])).sum().backward()
    return scores.detach(), {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}


@every_synthesis
def test_items_of_the_step_give_the_scores_and_gradients_of_the_whole_catalogue(synthesis):
    backbone = make_backbone(synthesis).double()
    _, items, history = make_inputs()
    needed = torch.cat([items.flatten(), history.items.flatten()])
    assert needed.numel() < backbone.num_items
    context = backbone.prepare(needed)
    assert len(context.features) == len(context.scored) == len(torch.unique(needed))
    few, gradients = scores_and_gradients(backbone, needed)
    many, expected = scores_and_gradients(backbone, None)
    assert_close(few, many, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)


def test_as_many_items_as_the_catalogue_means_the_catalogue():
    backbone = make_backbone("mean")
    assert backbone.prepare(torch.zeros(30, dtype=torch.int64)).row is None
    assert backbone.prepare(torch.zeros(29, dtype=torch.int64)).row is not None
    assert len(backbone.prepare().scored) == 30


@every_synthesis
@pytest.mark.parametrize("scorer", ["dot_compress", "dot"])
def test_catalogue_scores_equal_batch_scores(synthesis, scorer):
    backbone = make_backbone(synthesis, scorer=scorer)
    users, _, history = make_inputs()
    context = backbone.prepare()
    user = backbone.encode_users(context, users, history)
    everything = torch.arange(30)
    whole = backbone.score_catalogue(user, backbone.encode_items(context, everything))
    batch = backbone.score(context, user, everything.expand(2, 30))
    assert whole.shape == (2, 30)
    assert_close(whole, batch, rtol=1e-5, atol=1e-6)


@every_synthesis
def test_the_history_of_a_user_reaches_her_vector_and_no_other(synthesis):
    backbone = make_backbone(synthesis)
    users, _, history = make_inputs()
    context = backbone.prepare()
    plain = backbone.encode_users(context, users, history)
    other = History(history.items.clone(), history.mask)
    other.items[0, 1] = 20
    changed = backbone.encode_users(context, users, other)
    assert torch.isfinite(plain).all()
    assert torch.equal(plain[1], changed[1])
    assert torch.equal(plain[0], changed[0]) == (synthesis == "none")


# Counted by hand from the widths in the BUHS specification; every layer has biases but the genres' embedding.
MOVIELENS_PARAMETERS = {
    # embeddings 582,720 + 419,232; towers 65,856 each; scorer 25,409
    "none": 1_159_073,
    # item tower 148,736; user tower over 384 + 384: 576,256
    "mean": 582_720 + 419_232 + 148_736 + 576_256 + 25_409,
    # query and key 36,960 each; output 147,840
    "attention": 582_720 + 419_232 + 148_736 + 576_256 + 25_409 + 2 * 36_960 + 147_840,
    # layers 86,400 and 24,960; user tower over 384 + 15 * 64: 512 * 576 more weights
    "gru": 582_720 + 419_232 + 148_736 + 576_256 + 25_409 + 86_400 + 24_960 + 512 * 576,
}


@every_synthesis
def test_number_of_parameters_on_movielens(synthesis):
    def table(rows, *specs):
        schema = tuple(FeatureSpec(*spec) for spec in specs)
        kinds = {"categorical": lambda size: torch.zeros(rows, dtype=torch.int64)}
        columns = {s.name: kinds.get(s.kind, lambda size: torch.zeros(rows, size))(s.size) for s in schema}
        return FeatureTable(schema, columns)

    users = table(
        6040,
        ("id", "categorical", 6040),
        ("gender", "categorical", 2),
        ("age", "categorical", 7),
        ("occupation", "categorical", 21),
    )
    items = table(
        3883,
        ("id", "categorical", 3883),
        ("year", "categorical", 81),
        ("genres", "multi_hot", 18),
        ("title", "dense", 384),
    )
    backbone = SparseNN(users, items, SparseNNOptions(synthesis))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == MOVIELENS_PARAMETERS[synthesis]


def test_building_depends_on_the_seed_alone(tiny_data, make_config):
    config, device = make_config(), torch.device("cpu")
    state = torch.get_rng_state()
    first = SparseNN.build(tiny_data, config, 7, device).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = SparseNN.build(tiny_data, config, 7, device).state_dict()
    other = SparseNN.build(tiny_data, config, 8, device).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["user_tower.0.weight"], other["user_tower.0.weight"])


def test_the_sensitive_attribute_is_left_out_only_when_masked(tiny_data, make_config):
    def columns(**changes):
        return list(SparseNN.build(tiny_data, make_config(**changes), 0, torch.device("cpu")).user_encoder.columns)

    assert columns(mask_sensitive_feature=False) == ["id", "gender", "age", "occupation"]
    assert columns(mask_sensitive_feature=True) == ["id", "age", "occupation"]
    assert columns(mask_sensitive_feature=True, user_attribute=("age", "gender")) == ["id", "gender", "occupation"]


@pytest.mark.parametrize(("synthesis", "compat"), [("gru", True), ("gru", False), ("mean", True)])
def test_random_initial_state_only_for_upstreams_gru(tiny_data, make_config, synthesis, compat):
    config = make_config(synthesis_type=synthesis, upstream_compat=compat)
    backbone = SparseNN.build(tiny_data, config, 0, torch.device("cpu"))
    generator = getattr(backbone.synthesis, "random_state_generator", None)
    assert (generator is not None) == (synthesis == "gru" and compat)


def train_on_checkerboard(synthesis, epochs=12, size=32, seed=0):
    """Share of users whose withheld item is ranked first; users are told apart by their histories alone.

    Even users like even items, odd users odd ones; each user's own number is withheld.
    """
    owner, item = np.nonzero((np.add.outer(np.arange(size), np.arange(size)) % 2 == 0) & ~np.eye(size, dtype=bool))
    train = Histories.build(owner, item, None, size)
    users = FeatureTable((FeatureSpec("same", "categorical", 1),), {"same": torch.zeros(size, dtype=torch.int64)})
    items = FeatureTable((FeatureSpec("id", "categorical", size),), {"id": torch.arange(size)})
    options = SparseNNOptions(synthesis, 5, embedding_dim=16, user_hidden=(32,), item_hidden=(32,), base_hidden=(32,))
    torch.manual_seed(seed)
    backbone, cpu = SparseNN(users, items, options), torch.device("cpu")
    history = HistorySampler(train, HistoryWeights(np.zeros(1), np.zeros((1, len(item)))), 5, cpu)
    sampler = BatchSampler(train, NegativeSampler(train, size, 4, 4, cpu), history)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    for _ in range(epochs):
        for edges in edge_batches(len(item), 48, generator):
            batch = sampler.sample(edges, generator, generator)
            context = backbone.prepare()
            user = backbone.encode_users(context, batch.users, batch.history)
            asked = torch.cat([batch.positives[:, None], batch.negatives], dim=1)
            optimiser.zero_grad()
            margin_ranking_loss(backbone.score(context, user, asked)).backward()
            optimiser.step()
    with torch.no_grad():
        everyone, context = torch.arange(size), backbone.prepare()
        user = backbone.encode_users(context, everyone, history.sample(everyone, None, generator))
        scores = backbone.score_catalogue(user, context.scored)
    scores[torch.from_numpy(owner), torch.from_numpy(item)] = -torch.inf
    return (scores.argmax(1) == everyone).double().mean().item()


def test_mean_learns_a_checkerboard_from_histories_alone():
    assert train_on_checkerboard("mean") == 1.0


def test_without_histories_the_checkerboard_cannot_be_learned():
    assert train_on_checkerboard("none", epochs=6) < 0.5


@every_synthesis
def test_the_base_model_alone_reads_no_history(tiny_data, make_config, synthesis):
    config = make_config(synthesis_type=synthesis)
    backbone = SparseNN.build(tiny_data, config, 0, torch.device("cpu"))
    assert backbone.history_kind == SparseNN.history(config) == (None if synthesis == "none" else "sampled")
