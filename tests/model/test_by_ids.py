"""Backbones that know ids alone: sizes, convolutions against dense twins, and that they learn what they should."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from data.dataloader import BatchSampler
from data.protocols.base import Task
from data.sampling.negatives import NegativeSampler
from data.structs import Batch, Group, Histories, Split
from model import BACKBONES
from model.evaluation.evaluator import Evaluator
from model.factorisation import MatrixFactorisation, Tables
from model.graphs import GCCF, Edges, LightGCN, _Spread
from model.methods.base import Method
from model.modes import train
from model.runs.environment import Environment
from model.runs.presets import preset
from model.runs.streams import stream_seeds, torch_generator
from model.training.update import update
from tests.support.runs import (
    refused,
    result_bytes,
    run_main,
)

CPU = torch.device("cpu")
NAMES = ("bprmf", "pmf", "ncf", "gccf", "lightgcn")
every_backbone = pytest.mark.parametrize("name", NAMES)
every_graph = pytest.mark.parametrize("kind", [GCCF, LightGCN])
USERS, ITEMS, DIM = 7, 9, 4
# towers have hidden layers, these have none
STANDARD = {"graph_norm": "symmetric", "ncf_form": "neumf", "table_start": "normal"}
BY_IDS = {"user_hidden": None, "item_hidden": None, "lr": 0.02}


def make_split(likes, held_out=None):
    """The split that trains on `likes [U, I]` bool and tests on `held_out [U]`."""
    users, items = likes.shape
    train = Histories.build(*(part.astype(np.int64) for part in np.nonzero(likes)), None, users)
    nothing = Histories.build(*np.zeros((2, 0), dtype=np.int64), None, users)
    test = nothing if held_out is None else Histories.build(np.arange(users), held_out, None, users)
    popularity = Group("popularity", np.arange(items) % 2, ("head", "tail"))
    return Split(train, nothing, test, train, train, likes.sum(0), {"popularity": popularity})


def random_likes(seed, users=USERS, items=ITEMS, share=0.4):
    likes = np.random.default_rng(seed).random((users, items)) < share
    likes[0, 0] = True  # a split trains on something
    return likes


def make(name, layers=2, likes=None, std=0.5, **changes):
    """A backbone whose tables are large enough for every part to matter."""
    likes = random_likes(0) if likes is None else likes
    config = SimpleNamespace(embedding_dim=DIM, graph_layers=layers, **STANDARD | changes)
    data = SimpleNamespace(num_users=likes.shape[0], num_items=likes.shape[1])
    backbone = BACKBONES[name].build(data, config, 3, CPU)
    with torch.no_grad():
        for table in (backbone.user, backbone.item):
            table.weight.mul_(std / backbone.initial_std)
    backbone.begin_phase(make_split(likes))
    return backbone


def dense_light_gcn(backbone, likes, user, item):
    """Powers of the normalised adjacency matrix of the whole graph, from He et al.'s equations."""
    users = len(likes)
    adjacency = torch.zeros(sum(likes.shape), sum(likes.shape))
    adjacency[:users, users:] = torch.from_numpy(likes)
    adjacency = adjacency + adjacency.T
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1) ** -0.5, 0)
    normalised = scale[:, None] * adjacency * scale
    layer = torch.cat([user, item])
    layers = [layer]
    for _ in range(backbone.layers):
        layers.append(normalised @ layers[-1])
    return torch.stack(layers).mean(0).split(list(likes.shape))


def dense_means(backbone, likes, user, item):
    """The mean over layers of powers of D^-1 (A + I), whose rows sum to 1."""
    users = len(likes)
    adjacency = torch.eye(sum(likes.shape))
    adjacency[:users, users:] = torch.from_numpy(likes)
    adjacency[users:, :users] = torch.from_numpy(likes.T)
    means = adjacency / adjacency.sum(1, keepdim=True)
    layers = [torch.cat([user, item])]
    for _ in range(backbone.layers):
        layers.append(means @ layers[-1])
    return torch.stack(layers).mean(0).split(list(likes.shape))


def dense_gccf(backbone, likes, user, item):
    """Layers by loops over interactions, from the equations of FDA's code."""
    users, items = [user], [item]
    for _ in range(backbone.layers):
        next_user, next_item = users[-1].clone(), items[-1].clone()
        for u, i in np.argwhere(likes):
            weight = 1 / ((likes[u].sum() + 1) * (likes[:, i].sum() + 1))
            next_user[u] += weight * items[-1][i]
            next_item[i] += weight * users[-1][u]
        users.append(next_user)
        items.append(next_item)
    return torch.cat(users, dim=1), torch.cat(items, dim=1)


TWINS = {GCCF: dense_gccf, LightGCN: dense_light_gcn}
REGISTERED = {GCCF: "gccf", LightGCN: "lightgcn"}


def twin(backbone, likes):
    return TWINS[type(backbone)](backbone, likes, backbone.user.weight.detach(), backbone.item.weight.detach())


def assert_same(context: Tables, expected, **tolerance):
    assert_close((context.users, context.items), tuple(expected), **tolerance)


def test_number_of_parameters():
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    users, items = 6040, 3952
    plain = MatrixFactorisation(users, items, 64)
    assert count(plain) == (users + items) * 64 == 639_488
    # FDA counts its noise, one row an item
    assert count(plain) + np.prod(plain.noise_shape) == 892_416
    assert count(GCCF(users, items, 64, 2)) == count(LightGCN(users, items, 64, 3)) == 639_488


@every_backbone
def test_tables_begin_with_the_spread_of_their_papers(name):
    data, config = (
        SimpleNamespace(num_users=500, num_items=400),
        SimpleNamespace(embedding_dim=8, graph_layers=2, **STANDARD),
    )
    first = BACKBONES[name].build(data, config, 1, CPU).state_dict()
    for table in ("user.weight", "item.weight"):
        assert float(first[table].std()) == pytest.approx(0.1 if name == "lightgcn" else 0.01, rel=0.05)


@pytest.mark.parametrize("name", ["bprmf", "pmf", "lightgcn", "gccf", "ncf"])
def test_tables_may_start_by_xavier_and_start_as_ever_where_they_do_not(name):
    sizes, seed = {"user": 500, "item": 300}, 1
    data = SimpleNamespace(num_users=500, num_items=300)

    def tables(start):
        config = SimpleNamespace(embedding_dim=16, graph_layers=2, **STANDARD | {"table_start": start})
        network = BACKBONES[name].build(data, config, seed, CPU)
        return {side: getattr(network, side).weight.detach() for side in sizes}

    torch.manual_seed(seed)
    plain = nn.Embedding(500, tables("normal")["user"].shape[1])
    nn.Embedding(300, plain.weight.shape[1])  # drawn before the tables get their own values
    nn.init.normal_(plain.weight, std=0.1 if name == "lightgcn" else 0.01)
    assert torch.equal(tables("normal")["user"], plain.weight)
    for side, rows in sizes.items():
        normal, uniform = (tables(f"xavier_{kind}")[side] for kind in ("normal", "uniform"))
        variance, bound = 2 / (rows + normal.shape[1]), math.sqrt(6 / (rows + normal.shape[1]))
        assert float(normal.var()) == pytest.approx(variance, rel=0.06)
        assert float(uniform.var()) == pytest.approx(variance, rel=0.06)
        assert 0.99 * bound < uniform.abs().max() <= bound < normal.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([GCCF, LightGCN]),
    users=st.integers(1, 8),
    items=st.integers(1, 8),
    layers=st.integers(0, 3),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolutions_equal_a_dense_twin(kind, users, items, layers, share, seed):
    likes = random_likes(seed, users, items, share)
    backbone = make(REGISTERED[kind], layers, likes)
    context = backbone.prepare()
    assert context.users.shape == (users, backbone.vector_width)
    assert context.items.shape == (items, backbone.vector_width)
    assert_same(context, twin(backbone, likes))


@every_graph
def test_without_interactions_a_vector_has_nothing_but_its_own_table(kind):
    likes = np.zeros((USERS, ITEMS), dtype=bool)
    likes[2, 3] = True
    backbone = make(REGISTERED[kind], 2, likes)
    context, own = backbone.prepare(), backbone.user.weight[5]
    expected = torch.cat([own, own, own]) if kind is GCCF else own / 3
    assert_close(context.users[5], expected)


def test_the_gradient_of_a_product_with_a_sparse_matrix_is_the_dense_one():
    likes = random_likes(4)
    likes[3], likes[:, 5] = False, False
    weights = np.random.default_rng(0).normal(size=likes.shape) * likes

    def edges(matrix):
        counts = np.concatenate([[0], np.cumsum((matrix != 0).sum(1))])
        columns = np.nonzero(matrix)[1]
        return Edges(*map(torch.from_numpy, (counts, columns, matrix[matrix != 0])))

    matrix, transposed = edges(weights), edges(weights.T)
    dense = torch.randn(ITEMS, 3, dtype=torch.float64, requires_grad=True)
    assert_close(_Spread.apply(matrix, transposed, dense), torch.from_numpy(weights) @ dense)
    assert torch.autograd.gradcheck(lambda value: _Spread.apply(matrix, transposed, value), dense)


@every_graph
def test_gradients_of_a_step_equal_those_of_the_dense_twin(kind):
    likes = random_likes(1)
    backbone = make(REGISTERED[kind], 2, likes)
    tables = [backbone.user.weight, backbone.item.weight]
    target = torch.randn(USERS, ITEMS, generator=torch.Generator().manual_seed(0))
    context = backbone.prepare()
    found = torch.autograd.grad((context.users @ context.items.T * target).sum(), tables)
    users, items = TWINS[kind](backbone, likes, *tables)
    assert_close(found, torch.autograd.grad((users @ items.T * target).sum(), tables))


@settings(max_examples=25, deadline=None)
@given(
    users=st.integers(1, 8),
    items=st.integers(1, 8),
    layers=st.integers(1, 2),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_layers_that_are_means_and_their_gradients_equal_a_dense_twin(users, items, layers, share, seed):
    likes = random_likes(seed, users, items, share)
    backbone = make("lightgcn", layers, likes, graph_norm="rows")
    tables = [backbone.user.weight, backbone.item.weight]
    context, expected = backbone.prepare(), dense_means(backbone, likes, *tables)
    assert_same(context, expected)
    target = torch.randn(users, items, generator=torch.Generator().manual_seed(seed % 1000))
    scores = [(context.users @ context.items.T * target).sum(), (expected[0] @ expected[1].T * target).sum()]
    assert_close(*(torch.autograd.grad(score, tables) for score in scores), rtol=1e-4, atol=1e-5)


def test_weights_of_a_layer_that_is_a_mean_sum_to_1_and_who_has_no_interaction_keeps_her_vector():
    likes = random_likes(6)
    likes[3], likes[:, 5] = False, False
    backbone = make("lightgcn", 2, likes, graph_norm="rows")
    with torch.no_grad():
        context = backbone.prepare()
        assert_close(context.users[3], backbone.user.weight[3])
        assert_close(context.items[5], backbone.item.weight[5])
        assert not torch.isclose(context.users[0], backbone.user.weight[0]).any()
        for table in (backbone.user, backbone.item):
            table.weight.fill_(1.0)
        context = backbone.prepare()
    assert_same(context, (torch.ones(USERS, DIM), torch.ones(ITEMS, DIM)))


@every_graph
def test_vectors_follow_every_change_of_what_they_are_made_of(kind):
    likes, other = random_likes(1), random_likes(2)
    backbone, fresh = make(REGISTERED[kind], 2, likes), make(REGISTERED[kind], 2, likes, std=1.0)
    optimiser = torch.optim.Adam(backbone.parameters(), lr=0.1, fused=True)

    def step():
        context = backbone.prepare()
        (context.users.square().sum() - context.items.sum()).backward()
        optimiser.step()

    def replace():
        backbone.item.weight.data = backbone.item.weight.data * 2

    changes = {
        "optimiser": step,
        "another step": step,
        "load_state_dict": lambda: backbone.load_state_dict(fresh.state_dict()),
        "data replaced": replace,
        "in place": lambda: backbone.user.weight.data.mul_(3),
    }
    with torch.no_grad():
        before = backbone.prepare()
    for change in changes.values():
        change()
        with torch.no_grad():
            after = backbone.prepare()
        assert not torch.equal(before.users, after.users)
        assert_same(after, twin(backbone, likes))
        before = after
    with torch.no_grad():
        noisy = backbone.prepare(item_noise=torch.ones(ITEMS, DIM))
        assert not torch.equal(noisy.users, before.users)
        assert_same(backbone.prepare(), (before.users, before.items), rtol=0, atol=0)
    assert backbone.prepare().users.requires_grad
    backbone.begin_phase(make_split(other))
    with torch.no_grad():
        assert_same(backbone.prepare(), twin(backbone, other))


def make_rows():
    """Five users with three items each, some of them twice."""
    generator = torch.Generator().manual_seed(1)
    users = torch.tensor([0, 3, 3, 6, 1])
    return users, torch.randint(ITEMS, (5, 3), generator=generator)


@every_backbone
def test_noise_enters_at_the_item_table_before_anything_is_propagated(name):
    backbone, moved = make(name), make(name)
    noise = torch.randn(backbone.noise_shape, generator=torch.Generator().manual_seed(5))
    clean, noisy = backbone.prepare(), backbone.prepare(item_noise=noise)
    with torch.no_grad():
        moved.item.weight.add_(noise)
    expected = moved.prepare()
    assert_same(noisy, (expected.users, expected.items), rtol=0, atol=0)
    assert not torch.equal(noisy.items, clean.items)
    # a user's vector has the noise of her items in it where there is a graph
    assert torch.equal(noisy.users, clean.users) == (name in ("bprmf", "pmf", "ncf"))
    nothing = backbone.prepare(item_noise=torch.zeros(backbone.noise_shape))
    assert_same(nothing, (clean.users, clean.items), rtol=0, atol=0)


@every_backbone
def test_the_gradient_reaches_the_noise(name):
    backbone = make(name)
    noise = torch.zeros(backbone.noise_shape, requires_grad=True)
    users, items = make_rows()
    context = backbone.prepare(item_noise=noise)
    scores = backbone.score(context, backbone.encode_users(context, users, None), items)
    (scores * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    read = torch.zeros(ITEMS, dtype=torch.bool)
    read[items] = True
    assert noise.grad[read].abs().sum(1).min() > 0
    if name in ("bprmf", "pmf", "ncf"):
        assert noise.grad[~read].abs().max() == 0


@every_backbone
def test_squared_norms_equal_a_literal_loop(name):
    backbone = make(name)
    users, items = make_rows()
    context = backbone.prepare(item_noise=torch.ones(backbone.noise_shape))
    # LightGCN weighs its tables, the others what is scored, noise included
    user_vectors, item_vectors = context.users, context.items
    if name == "lightgcn":
        user_vectors, item_vectors = backbone.user.weight, backbone.item.weight
    expected = [
        sum(value**2 for vector in [user_vectors[user], *item_vectors[row]] for value in vector.tolist())
        for user, row in zip(users, items, strict=True)
    ]
    found = backbone.squared_norms(context, users, items)
    assert_close(found, torch.tensor(expected))
    assert found.requires_grad


@pytest.fixture
def make_method(make_config):
    """A function: backbone's name, data sizes, split and settings -> (method, sampler, generators)."""

    def build(name, split, **changes):
        own = {key: value for key, value in preset("ml", backbone=name).items() if key not in ("epochs", "patience")}
        config = make_config(**{**own, "eval_k": (1,), "backbone": name, "enable_fairness": False, **changes})
        seeds = stream_seeds(config.seed)
        data = SimpleNamespace(num_users=split.num_users, num_items=split.num_items)
        backbone = BACKBONES[name].build(data, config, seeds["initialisation"], CPU)
        backbone.begin_phase(split)
        method = Method(backbone, Environment(config, {}, np.zeros(split.num_users, dtype=bool), seeds, CPU))
        negatives = NegativeSampler(split.train, split.num_items, config.num_negatives, 0, CPU)
        generators = {stream: torch_generator(seeds[stream]) for stream in ("order", "negatives", "history")}
        return method, BatchSampler(split.train, negatives, None), generators

    return build


@every_backbone
def test_a_checkerboard_is_learnt(name, make_method):
    # user u likes item i where u + i is even; of her ten she has one left, beside ten that she does not like
    users, items = 40, 20
    user, item = np.indices((users, items))
    likes = (user + item) % 2 == 0
    owner = np.arange(users)
    held_out = 2 * (owner // 2 % (items // 2)) + owner % 2
    assert likes[owner, held_out].all()
    likes[owner, held_out] = False
    split = make_split(likes, held_out)
    method, sampler, generators = make_method(name, split, batch_size=64, embedding_dim=4, lr=0.02)
    for _ in range(25):
        for edges in sampler.batches(64, generators["order"]):
            method.train_step(
                sampler.sample(edges, generators["negatives"], generators["history"]), "method", "train", update
            )
    evaluator = Evaluator(method.backbone, method, method.environment)
    task = Task("test", split.test, split.train, None)
    ranking = evaluator.rank(task, split.test_histories, split, 1)
    assert (ranking.ranks == 1).all()
    assert np.array_equal(ranking.topk[:, 0], held_out)


@every_backbone
def test_bf16_rounds_the_step_and_keeps_parameters_in_float32(name, make_method):
    split = make_split(random_likes(0, 30, 40))
    losses = {}
    for precision in ("fp32", "bf16"):
        method, sampler, generators = make_method(name, split, precision=precision, l2=1e-3)
        batch = sampler.sample(torch.arange(64), generators["negatives"], generators["history"])
        losses[precision] = float(method.train_step(batch, "method", "train", update)["loss"])
        assert all(parameter.dtype == torch.float32 for parameter in method.backbone.parameters())
        assert method.forward(batch).scores.dtype == torch.float32
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


def test_the_penalty_is_l2_times_the_mean_squared_norm(make_method):
    split = make_split(random_likes(0))
    users, items = make_rows()
    batch = Batch(users, items[:, 0], items[:, 1:], None)
    losses = {}
    for l2 in (0.0, 0.5):
        method, _, _ = make_method("pmf", split, l2=l2, embedding_dim=DIM)
        losses[l2] = method.batch_loss(method.forward(batch), batch, "method")
    norms = method.backbone.squared_norms(method.backbone.prepare(), users, items)
    assert_close(losses[0.5] - losses[0.0], 0.5 * norms.mean())


def test_pmf_is_bprmf_with_a_prior():
    plain, prior = (preset("ml", backbone=name) for name in ("bprmf", "pmf"))
    assert plain["l2"] == 0 < prior["l2"]
    assert plain | {"l2": prior["l2"]} == prior


@pytest.mark.parametrize(
    "form", [{"backbone": "ncf", "ncf_form": "ncf_bpr", "weight_decay": 1e-3}, {"backbone": "lightgcn"}]
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(form, tmp_path, monkeypatch):
    values = {**form, **BY_IDS, "epochs": 3}
    run_main(tmp_path / "whole", **values)

    class CutOff(Exception):
        pass

    steps = 0

    def cut(*arguments, **options):
        nonlocal steps
        steps += 1
        if steps == 10:  # of seven an epoch
            raise CutOff
        return update(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(CutOff):
        patch.setattr(train, "update", cut)
        run_main(tmp_path / "cut", **values)
    run_main(tmp_path / "cut", **values, resume=True)
    assert steps == 10
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")


@pytest.mark.parametrize("name", ["pmf", "ncf", "lightgcn"])
def test_adversaries_train_on_vectors_of_ids(name, tmp_path):
    metrics = run_main(tmp_path, backbone=name, **BY_IDS, enable_fairness=True)["metrics"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train/adversary/user"] > 0
    assert metrics["test/ndcg@10"] > metrics["reference/random/ndcg@10"]


@pytest.mark.slow
@pytest.mark.probes
@pytest.mark.pictures
def test_pictures_and_probes_need_no_history(tmp_path):
    result = run_main(tmp_path, backbone="gccf", **BY_IDS, enable_fairness=True, rerank_fair=True)
    assert result["method"] == "fabuhs"
    assert 0 <= result["metrics"]["test/leakage_auc/gender"] <= 1
    names = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert {"training", "exposure", "accuracy_by_group", "rerank_trade_off"} <= names
    assert "histories" not in names


@pytest.mark.parametrize(
    ("backbone", "flag"),
    [(name, "graph_norm") for name in ("gccf", "bprmf", "pmf", "ncf", "sparsenn", "slim")]
    + [(name, "table_start") for name in ("sparsenn", "slim")],
)
def test_forms_of_graphs_and_tables_are_refused_where_there_are_none(tmp_path, capsys, backbone, flag):
    value = "rows" if flag == "graph_norm" else "xavier_normal"
    values = {**dict.fromkeys(("user_hidden", "item_hidden", "batch_size", "epochs", "num_negatives")), flag: value}
    line = refused(capsys, tmp_path, backbone=backbone, **values)
    assert f"--{flag}" in line and "has no effect" in line and f"--backbone={backbone}" in line


def test_the_forms_of_a_graph_give_different_runs(tmp_path):
    values = {"backbone": "lightgcn", **BY_IDS, "epochs": 1}
    plain = run_main(tmp_path / "plain", **values)["metrics"]
    means = run_main(tmp_path / "means", **values, graph_norm="rows", table_start="xavier_uniform")["metrics"]
    assert plain["test/gini@5"] != means["test/gini@5"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"enable_fairness": True, "fairness_sampling": True}, "--backbone=bprmf, which draws no histories"),
        ({"synthesis_type": "gru"}, "--backbone=bprmf"),
        ({"graph_layers": 2}, "--backbone=bprmf"),
    ],
    ids=str,
)
def test_settings_that_ids_cannot_follow_are_refused(tmp_path, capsys, values, words):
    assert words in refused(capsys, tmp_path, backbone="bprmf", **BY_IDS, **values)
