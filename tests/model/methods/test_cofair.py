"""Cofair: its networks and losses in closed form, a whole step against a loop over levels, and what a step changes."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torch.testing import assert_close

from data.options import parse_options
from data.structs import Batch, Group
from model.factorisation import MatrixFactorisation
from model.methods.cofair import (
    Adapters,
    Cofair,
    adversarial_weights,
    group_losses,
    make_discriminator,
    monotonicity_loss,
)
from model.runs.environment import Environment
from model.runs.processes import Processes
from model.runs.streams import stream_seeds
from model.training.update import update
from tests.support.cofair import LiteralCofair, literal_layers
from tests.support.methods import identical

CPU = torch.device("cpu")
LN2 = math.log(2)


@pytest.fixture
def make(made):
    """A function: options and settings -> (backbone, Cofair on it in its second stage, a batch)."""
    return functools.partial(made, name="cofair")


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def spread_out(network, method):
    """Give users, items and the discriminator weights of a size at which losses differ; encode the users again."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (network.user.weight, network.item.weight, *method.discriminator.parameters()):
            weight.normal_(std=0.5, generator=generator)
    method.begin_stage("method")


# --- The networks ---


def test_sizes_are_those_of_the_paper():
    assert count(Adapters(64, 5, 64, 64)) == 33_216
    assert count(make_discriminator(64, 2, 0.2, 1)) == 2_113
    assert count(make_discriminator(64, 1, 0.2, 1)) == 65
    assert count(make_discriminator(64, 3, 0.2, 1)) == 64 * 32 + 32 + 32 * 16 + 16 + 17
    assert count(make_discriminator(64, 2, 0.2, 7)) == 64 * 32 + 32 + 33 * 7


@pytest.mark.parametrize("shared_width", [5, 0])
def test_levels_are_the_output_of_the_shared_and_the_own_layer_side_by_side(shared_width):
    adapters, user = Adapters(8, 3, shared_width, 6), torch.randn(11, 8)
    shared = [] if adapters.shared is None else [adapters.shared(user)]
    literal = [
        adapters.output(F.leaky_relu(torch.cat([*shared, own(user)], dim=1), 0.2)) for own in literal_layers(adapters)
    ]
    assert_close(adapters(user), torch.stack(literal, dim=1))
    for number in (1, 2, 3):
        assert_close(adapters.level(user, number), adapters(user)[:, number - 1])
    assert count(adapters) == 3 * (8 * 6 + 6) + (8 + 1) * shared_width + (shared_width + 6) * 8 + 8


def test_weights_start_by_xavier_uniform_for_each_layer_and_those_of_the_discriminator_small():
    torch.manual_seed(0)
    adapters = Adapters(64, 5, 32, 16)
    layers = {"shared": adapters.shared.weight, "output": adapters.output.weight}
    layers |= {f"own {number}": layer.weight for number, layer in enumerate(literal_layers(adapters))}
    for name, weight in layers.items():
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max() <= bound and weight.abs().max() > 0.97 * bound, name
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.06), name
    for parameter in make_discriminator(1024, 2, 0.2, 1).parameters():
        assert parameter.numel() == 1 or float(parameter.detach().std()) == pytest.approx(0.01, rel=0.15)


def change(weight, rows=slice(None)):
    with torch.no_grad():
        weight[rows] += 1.0


def test_a_levels_own_layer_changes_that_level_alone_and_common_layers_all_but_level_0(make):
    _, method, batch = make()
    user = method.users[batch.users]

    def served():
        with torch.no_grad():
            return {name: method.transform_users(user, batch.users, name) for name in method.controls()}

    before = served()
    assert before["t0"] is user and list(before) == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert len({tuple(vectors.flatten().tolist()) for vectors in before.values()}) == 6
    changes = {
        "own": lambda: change(method.adapters.own.weight, slice(64, 128)),
        "shared": lambda: change(method.adapters.shared.weight),
        "output": lambda: change(method.adapters.output.bias),
    }
    for name, make_change in changes.items():
        make_change()
        after = served()
        changed = {level for level in before if not torch.equal(before[level], after[level])}
        assert changed == ({"t2"} if name == "own" else {"t1", "t2", "t3", "t4", "t5"}), name
        assert name != "own" or not torch.isclose(before["t2"], after["t2"]).all(1).any()
        before = after


# --- Losses in closed form ---


def test_monotonicity_is_ln_2_for_equal_losses_and_less_where_they_rise():
    weight = torch.full((6,), 1 / 6)
    rows = torch.linspace(0.1, 2, 6)
    for gap in (0.0, 0.7, -0.7, 30.0):
        losses = rows + gap * torch.arange(4)[:, None]
        assert float(monotonicity_loss(losses, weight)) == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-5)
    assert float(monotonicity_loss(rows[None], weight)) == 0
    # a row counts by its weight
    losses = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert float(monotonicity_loss(losses, torch.tensor([0.0, 1.0]))) == pytest.approx(LN2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.integers(2, 6), rows=st.integers(1, 8))
def test_monotonicity_makes_the_first_level_easier_and_the_last_harder(seed, levels, rows):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(levels, rows, generator=generator, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(monotonicity_loss(losses, torch.full((rows,), 1 / rows).double()), losses)
    assert (slope[0] > 0).all() and (slope[-1] < 0).all()
    assert_close(slope.sum(0), torch.zeros(rows, dtype=torch.float64))
    # (g_t - g_{t-1}) / (B (T - 1)), g_t = sigmoid(l_t - l_{t+1})
    steps = F.pad((losses[:-1] - losses[1:]).sigmoid().detach(), (0, 0, 1, 1))
    assert_close(slope, (steps[1:] - steps[:-1]) / (rows * (levels - 1)))


@settings(max_examples=50, deadline=None)
@given(
    means=st.lists(st.floats(0, 3, width=32), min_size=1, max_size=7),
    start=st.floats(0, 1),
    growth=st.floats(0, 1),
)
def test_weights_equal_their_recursion(means, start, growth):
    expected = [start]
    for before, after in pairwise(means):
        expected.append(expected[-1] + growth * (1 - (after - before)))
    found = adversarial_weights(torch.tensor(means, requires_grad=True), start, growth)
    assert not found.requires_grad
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_weights_rise_evenly_where_levels_are_alike_and_rest_where_each_is_harder_by_one():
    alike = adversarial_weights(torch.full((5,), 0.6), 0.01, 0.02)
    assert alike.tolist() == pytest.approx([0.01, 0.03, 0.05, 0.07, 0.09])
    assert adversarial_weights(torch.arange(5.0), 0.01, 0.02).tolist() == pytest.approx([0.01] * 5)


@pytest.mark.parametrize("groups", [2, 3])
def test_a_rows_loss_is_minus_the_logarithm_of_its_groups_probability(groups):
    logits = torch.tensor([[1.5, -2.0, 0.3], [0.2, 0.1, 4.0], [-1.0, 0.0, 2.0]])[:, : 1 if groups == 2 else 3]
    target = torch.tensor([1, 0, groups - 1])
    odds = F.pad(logits, (1, 0)) if groups == 2 else logits
    rows = zip(odds.tolist(), target.tolist(), strict=True)
    expected = [-math.log(math.exp(row[code]) / sum(map(math.exp, row))) for row, code in rows]
    assert group_losses(logits, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_best_discriminators_loss_bounds_what_any_rule_can_tell():
    """sqrt((H - L*) / (2 pi_0 pi_1)) is no less than the total variation; sqrt(2 (ln 2 - L*)) for equal groups."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    step = grid[1] - grid[0]
    for share in (0.5, 0.3):
        for distance in (0.1, 0.5, 1.0, 2.0, 4.0):
            densities = [
                (-(grid - sign * distance / 2).square() / 2).exp() / math.sqrt(2 * math.pi) for sign in (-1, 1)
            ]
            best = (grid * distance + math.log(share / (1 - share)))[:, None]
            codes = torch.ones(len(grid), dtype=torch.int64)
            least = sum(
                part * (density * group_losses(best, code * codes)).sum() * step
                for code, part, density in zip((0, 1), (1 - share, share), densities, strict=True)
            )
            variation = float((densities[0] - densities[1]).abs().sum() * step / 2)
            entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
            bound = math.sqrt((entropy - float(least)) / (2 * share * (1 - share)))
            assert variation <= bound
            # near equality for close groups: the bound says something
            assert distance > 0.5 or bound < 1.3 * variation
            assert share != 0.5 or bound == pytest.approx(math.sqrt(2 * (LN2 - float(least))))


# --- A step ---


def test_ranking_loss_is_finite_at_any_margin_and_ln_2_at_none(make):
    network, method, _ = make(options=["levels=2"], num_negatives=1)
    with torch.no_grad():
        network.item.weight.zero_()
        network.item.weight[0, 0], network.item.weight[1, 0] = 1e4, -1e4
    method.begin_stage("method")
    levels = torch.zeros(1, 2, 8)
    levels[0, 0, 0] = 1.0
    levels.requires_grad_()
    for items, expected in (([1, 0], -math.log(1e-10)), ([0, 1], 0), ([2, 3], LN2)):
        losses = method.ranking_losses(levels, torch.tensor([items]))
        assert losses.tolist() == pytest.approx([expected, LN2], abs=1e-5)
        (slope,) = torch.autograd.grad(losses.sum(), levels)
        assert slope.isfinite().all()


@pytest.mark.parametrize("negatives", [1, 3])
def test_scores_of_any_backbone_and_inner_products_give_the_same_ranking_loss(make, negatives):
    network, method, batch = make(num_negatives=negatives)
    spread_out(network, method)
    levels = method.adapters(method.users[batch.users])
    by_product = method.ranking_losses(levels, batch.items)
    network.inner_product = False
    by_score = method.ranking_losses(levels, batch.items)
    assert by_product.shape == (5,) and by_product.std() > 1e-3
    assert_close(by_product, by_score)
    own = method.adapters.own.weight
    assert_close(*(torch.autograd.grad(loss.sum(), own, retain_graph=True) for loss in (by_product, by_score)))


@pytest.mark.parametrize("backbone", ["ncf", "sparsenn", "lightgcn", "gccf"])
def test_ranking_loss_is_that_of_the_scores_that_are_served(make, backbone):
    network, method, batch = make(backbone, ["levels=2"])
    levels = method.adapters(method.users[batch.users])
    with torch.no_grad():
        items = network.encode_items(network.prepare(), torch.arange(network.num_items))
        for number in range(2):
            scores = network.score_catalogue(levels[:, number], items).gather(1, batch.items)
            expected = -(scores[:, :1] - scores[:, 1:]).sigmoid().log().mean()
            assert_close(method.ranking_losses(levels, batch.items)[number], expected, rtol=1e-4, atol=1e-6)


def gradients_and_weights(method):
    """Those of the method by the names that they have in its literal twin."""
    found = {}
    for name in ("weight", "bias"):
        own, height = getattr(method.adapters.own, name), method.adapters.own.out_features // method.options.levels
        for number, parts in enumerate(zip(own.detach().split(height), own.grad.split(height), strict=True)):
            found[f"own.{number}.{name}"] = parts
    for part in ("shared", "output"):
        layer = getattr(method.adapters, part)
        if layer is not None:
            found |= {f"{part}.{name}": (weight.detach(), weight.grad) for name, weight in layer.named_parameters()}
    named = method.discriminator.named_parameters()
    return found | {f"discriminator.{name}": (weight.detach(), weight.grad) for name, weight in named}


STEPS = {
    "interleaved": [],
    "after": ["disc_update=after"],
    "users": ["regularise=users"],
    "no shared layer": ["shared_width=0"],
    "one level": ["levels=1"],
    "level weights": ["alpha=0"],
    "no monotonicity": ["beta=0", "disc_update=after"],
    "deep": ["discriminator_layers=3"],
}


def twins_after(made, options, groups=2, unknown=0.25, negatives=1, steps=3):
    """The method and its literal twin after some steps on one batch, and what each step of both reported."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random(60) < unknown, -1, rng.integers(0, groups, 60))
    given = ["lambda0=0.3", "alpha=0.2", "beta=0.5", "dropout=0"]
    given = [one for one in given if one.split("=")[0] not in {other.split("=")[0] for other in options}]
    labels = tuple("abc"[:groups])
    network, method, batch = made("bprmf", [*given, *options], codes, labels, "cofair", num_negatives=negatives)
    spread_out(network, method)
    literal = LiteralCofair(method)
    reports = []
    for _ in range(steps):
        own = method.train_step(batch, "method", "train", update)
        reports.append((own, literal.step(method.users, method.context.items, batch, method.codes)))
    return method, literal, reports


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_a_loop_over_levels_and_rows(made, name):
    groups = 3 if name == "after" else 2
    negatives = 3 if name == "deep" else 1
    method, literal, reports = twins_after(made, STEPS[name], groups, negatives=negatives)
    for own, other in reports:
        # a single level has none of the user-wise term
        assert own.keys() == other.keys() - ({"monotonicity"} if method.options.levels == 1 else set())
        for key, value in own.items():
            assert_close(value, other[key].detach(), rtol=1e-4, atol=1e-6, msg=key)
    found, expected = gradients_and_weights(method), dict(literal.named_parameters())
    assert found.keys() == expected.keys()
    for key, (weight, slope) in found.items():
        assert_close(slope, expected[key].grad, rtol=2e-3, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")
        assert_close(weight, expected[key].detach(), rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_reading_the_discriminator_itself_while_it_is_trained_is_what_torch_refuses(make):
    """The order of the paper's code needs the weights that each level met: hence the copies."""
    network, method, batch = make(options=["dropout=0"])
    spread_out(network, method)
    literal = LiteralCofair(method)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        literal.step(method.users, method.context.items, batch, method.codes, apart=False)
    values = method.train_step(batch, "method", "train", update)
    assert len(literal.means) == 5
    for name, mean in literal.means.items():
        assert_close(values[name], mean.detach(), msg=name)


@pytest.mark.parametrize("backbone", ["bprmf", "ncf", "lightgcn", "gccf", "sparsenn"])
def test_a_step_leaves_backbone_and_items_alone_and_moves_adapters_and_discriminator(make, backbone):
    network, method, batch = make(backbone)
    before, users = copy.deepcopy((network, method.adapters, method.discriminator)), method.users.clone()
    # users are encoded and items propagated once, when the stage begins
    network.encode_users = network.prepare = None
    for _ in range(2):
        values = method.train_step(dataclasses.replace(batch, history=None), "method", "train", update)
    assert all(value.isfinite() and not value.requires_grad for value in values.values())
    assert identical(before[0], network) and torch.equal(users, method.users)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    for old, new in zip(before[1:], (method.adapters, method.discriminator), strict=True):
        changed = [not torch.equal(*pair) for pair in zip(old.parameters(), new.parameters(), strict=True)]
        assert all(changed)


@pytest.mark.parametrize("backbone", ["bprmf", "lightgcn", "gccf"])
def test_the_vectors_that_are_kept_are_those_of_the_backbone(make, backbone):
    network, method, _ = make(backbone)
    with torch.no_grad():
        context = network.prepare()
    assert torch.equal(method.users, context.users) and torch.equal(method.context.items, context.items)
    assert not method.users.requires_grad and not method.context.items.requires_grad


def test_adapters_raise_what_the_discriminator_loses_and_its_steps_lower_it(make):
    # nothing but the adversary counts
    options = ["lambda0=10000", "alpha=0", "beta=0", "rho=0", "dropout=0", "disc_update=after"]
    network, method, batch = make(options=options)
    spread_out(network, method)
    target = method.codes[batch.users]

    def loss(discriminator, vectors):
        with torch.no_grad():
            return float(
                torch.stack([group_losses(discriminator(level), target) for level in vectors.unbind(1)]).mean()
            )

    def levels():
        with torch.no_grad():
            return method.adapters(method.users[batch.users])

    for _ in range(5):
        met, seen = copy.deepcopy(method.discriminator), levels()
        method.train_step(batch, "method", "train", update)
        assert loss(met, levels()) > loss(met, seen) > loss(method.discriminator, seen)


def test_a_batch_without_known_groups_trains_the_adapters_and_leaves_the_discriminator(make):
    _, method, batch = make(codes=np.full(60, -1), labels=("a", "b"))
    before = copy.deepcopy((method.adapters, method.discriminator))
    values = method.train_step(batch, "method", "train", update)
    assert not identical(before[0], method.adapters) and identical(before[1], method.discriminator)
    assert all(float(value) == 0 for name, value in values.items() if name.startswith("adversary/"))
    assert float(values["monotonicity"]) == 0 and float(values["loss"]) == float(values["ranking"]) > 0


def adapted(made, options, codes, held_out):
    """The adapters after some steps, of groups `codes`, and on whom leakage is measured."""
    network, method, batch = made("bprmf", options, codes, ("a", "b"), "cofair")
    environment = dataclasses.replace(method.environment, held_out=held_out)
    torch.manual_seed(0)
    other = Cofair(network, environment)
    other.split = method.split
    other.begin_stage("method")
    for _ in range(3):
        other.train_step(batch, "method", "train", update)
    return other.adapters


@pytest.mark.parametrize("spare", [True, False])
def test_groups_of_users_on_whom_leakage_is_measured_are_read_only_where_allowed(made, spare):
    held_out, codes = np.arange(60) % 3 == 0, np.arange(60) % 2
    swapped = np.where(held_out, 1 - codes, codes)
    first, second = (adapted(made, [f"spare_probe_users={spare}"], own, held_out) for own in (codes, swapped))
    assert identical(first, second) == spare


def test_without_an_adversary_what_the_groups_are_makes_no_difference(made):
    options = ["lambda0=0", "alpha=0", "beta=0"]
    codes, nobody = np.arange(60) % 2, np.zeros(60, dtype=bool)
    first, second = (adapted(made, options, own, nobody) for own in (codes, 1 - codes))
    assert identical(first, second)


# --- What it is for ---


@pytest.fixture(scope="module")
def planted(make_config):
    """Cofair on 400 users whose vectors are noise beside their group, which has to pass a narrow layer."""
    users, items, width = 400, 50, 8
    generator, codes = torch.Generator().manual_seed(0), np.arange(users) % 2
    network = MatrixFactorisation(users, items, width)
    with torch.no_grad():
        network.user.weight.normal_(generator=generator)[:, 0] = torch.from_numpy(2.0 * codes - 1)
        network.item.weight.normal_(std=0.5, generator=generator)
        liked = (network.user.weight @ network.item.weight.T).topk(10).indices
    widths = ("levels=3", "shared_width=0", "adapter_width=4")
    options = (*widths, "lr=0.01", "lambda0=1", "alpha=0.5", "beta=0.5", "dropout=0")
    config = make_config(backbone="bprmf", embedding_dim=width, fairness_method="cofair", method_option=options)
    groups = {"gender": Group("gender", codes, ("a", "b"))}
    torch.manual_seed(0)
    method = Cofair(network, Environment(config, groups, np.zeros(users, dtype=bool), stream_seeds(0), CPU))
    method.split = SimpleNamespace(num_users=users, histories=None)
    method.begin_stage("method")
    user = torch.arange(users)
    for _ in range(200):
        positive = liked[user, torch.randint(10, (users,), generator=generator)]
        negative = torch.randint(items, (users, 1), generator=generator)
        values = method.train_step(Batch(user, positive, negative, None), "method", "train", update)
    return method, codes, values


def attacked(method, codes, level):
    """How well a fresh attacker tells the groups apart on users whom it does not know: the AUC."""
    users = torch.arange(len(codes))
    with torch.no_grad():
        vectors = method.transform_users(method.users, users, level).numpy()
    known = np.arange(len(codes)) % 4 > 1
    attacker = LogisticRegression(C=10, max_iter=2000).fit(vectors[known], codes[known])
    return roc_auc_score(codes[~known], attacker.decision_function(vectors[~known]))


def test_a_fresh_attacker_reads_less_at_the_last_level(planted):
    method, codes, values = planted
    first, last = (attacked(method, codes, level) for level in ("t0", "t3"))
    assert first == 1 and last < 0.8
    losses = [float(values[f"adversary/t{number}"]) for number in (1, 2, 3)]
    assert losses[2] >= losses[0] - 0.02 and losses[2] > 0.65
    assert values["ranking"] < 0.6, "and it still ranks"


# --- Settings ---


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("levels=0", "1 or more"),
        ("lambda0=-0.1", "a finite number of 0 or more"),
        ("alpha=inf", "a finite number of 0 or more"),
        ("beta=nan", "a finite number of 0 or more"),
        ("rho=-1", "a finite number of 0 or more"),
        ("shared_width=-1", r"0 \(no shared layer\) or more"),
        ("adapter_width=0", "1 or more"),
        ("discriminator_layers=4", "1, 2 or 3"),
        ("discriminator_layers=0", "1, 2 or 3"),
        ("dropout=1", r"a share in \[0, 1\)"),
        ("disc_update=before", "interleaved or after"),
        ("regularise=items", "rows or users"),
        ("select=first", "last or mean"),
        ("lr=0", "a positive number"),
        ("batch_size=1", "2 or more"),
        ("epochs=0", "1 or more"),
    ],
)
def test_an_option_out_of_range_is_an_error(assignment, words):
    with pytest.raises(ValueError, match=f"{assignment.split('=')[0]}=.*allowed is {words}"):
        parse_options(Cofair.Options, [assignment])


def test_options_at_their_bounds_are_taken():
    given = ["levels=1", "lambda0=0", "alpha=0", "beta=0", "rho=0", "shared_width=0", "dropout=0", "batch_size=2"]
    assert parse_options(Cofair.Options, given).shared_width == 0


def test_one_group_is_refused(make):
    with pytest.raises(ValueError, match=r"needs two groups: gender has all alone; name another .*--user_attribute"):
        make(codes=np.zeros(60, dtype=np.int64), labels=("all",))


def test_several_processes_are_refused(make):
    network, method, _ = make()
    several = dataclasses.replace(method.environment, processes=Processes(rank=0, world=2))
    with pytest.raises(ValueError, match="run it in one process"):
        Cofair(network, several)
