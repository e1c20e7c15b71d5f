"""Cofair's attacker: against autograd and scikit-learn, on vectors whose content is known, and in a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from data.structs import Group
from model.evaluation import cofair_attack
from model.evaluation.chance import level, permutations
from model.evaluation.cofair_attack import adam, attack, cofair_leakage, descent, hard_auc, trained
from model.evaluation.keys import CHANCE_PARTS, MetricKey
from model.evaluation.metric_table import METRICS
from model.evaluation.probes import held_out_users, leakage
from tests.support.runs import run_main

NAMES = ("leakage_auc_hard", "leakage_auc_discriminator")


def planted(num_users=320, groups=2, shift=6.0, width=8, seed=0):
    """Gaussian vectors [U, D], each group's moved by `shift` along an axis of its own, and the users held out."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, groups, num_users)
    vectors = rng.normal(size=(num_users, width)) + shift * np.eye(width)[codes]
    return vectors, codes, held_out_users(codes, 0.3, seed)


# --- The network ---


def literal(vectors, labels, others, make_optimiser, epochs, seed):
    """Train as `trained` does, by autograd and an optimiser of torch, on the same random draws: logits `[E, T, G]`."""
    rng = np.random.default_rng(seed)
    groups, width = labels.max() + 1, vectors.shape[1]
    layers = nn.Linear(width, width // 2), nn.Linear(width // 2, 1 if groups == 2 else groups)
    for layer in layers:
        shape = (layer.in_features + 1, layer.out_features)
        draw = torch.from_numpy((rng.uniform(-1, 1, shape) / np.sqrt(layer.in_features)).astype(np.float32))
        bound = max(layer.weight.abs().max(), layer.bias.abs().max())  # of torch's own draw
        assert draw.abs().max() <= layer.in_features**-0.5 and bound <= layer.in_features**-0.5
        layer.weight.data, layer.bias.data = draw[:-1].T.clone(), draw[-1].clone()
    optimiser = make_optimiser([parameter for layer in layers for parameter in layer.parameters()])
    vectors, labels, others = torch.tensor(vectors).float(), torch.tensor(labels), torch.tensor(others).float()
    found = []
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(vectors)))
        kept = torch.from_numpy(rng.random((len(vectors), width // 2), dtype=np.float32) >= 0.2) / 0.8
        for rows, mask in zip(order.split(128), kept.split(128), strict=True):
            logits = layers[1](F.leaky_relu(layers[0](vectors[rows]), 0.2) * mask)
            if groups == 2:
                loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels[rows].float())
            else:
                loss = F.cross_entropy(logits, labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            logits = layers[1](F.leaky_relu(layers[0](others), 0.2))
        found.append(torch.cat([torch.zeros_like(logits), logits], dim=1) if groups == 2 else logits)
    return torch.stack(found).numpy()


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize(
    ("optimiser", "of_torch"),
    [
        (descent, lambda weights: torch.optim.SGD(weights, lr=1e-3, weight_decay=1e-4)),
        (adam, lambda weights: torch.optim.Adam(weights, lr=1e-3)),
    ],
)
def test_training_is_that_of_autograd(groups, optimiser, of_torch):
    vectors, labels, _ = planted(300, groups, shift=1.0)
    problem = vectors[:260], labels[:260], vectors[260:]
    found = np.stack(list(trained(*problem, optimiser, 8, seed=1)))
    assert found.shape == (8, 40, groups)
    assert found == pytest.approx(literal(*problem, of_torch, 8, seed=1), abs=1e-6)
    assert np.abs(found[-1] - found[0]).max() > 1e-3, "it moves by more than rounding"


# --- The AUC of 0/1 predictions ---


@pytest.mark.parametrize("groups", [2, 4])
def test_the_auc_of_predictions_is_scikit_learns_folded_and_the_largest_of_all_epochs(groups):
    rng = np.random.default_rng(groups)
    codes, predicted = rng.integers(0, groups, 40), rng.integers(0, groups, (6, 40))
    predicted[2] = 1  # an epoch that says the same of everybody
    classes = np.arange(groups)
    blocks = np.concatenate([codes[None], *permutations(codes, 5)])
    of_epochs = np.array(
        [
            [roc_auc_score(labels[:, None] == classes, told[:, None] == classes, average="macro") for told in predicted]
            for labels in blocks
        ]
    )  # [6, E]
    assert of_epochs.min() < 0.5
    assert hard_auc(blocks, predicted) == pytest.approx(np.maximum(of_epochs, 1 - of_epochs).max(axis=1))
    assert hard_auc(blocks, predicted[2:3]).tolist() == [0.5] * 6


def test_classes_that_nobody_or_everybody_has_are_left_out():
    predicted = np.array([[0, 0, 1, 2]])
    # class 0 is told apart in full, 1 in full, 2 by nobody; -1 is a group that no class stands for
    assert hard_auc(np.array([[0, 0, 1, -1]]), predicted).tolist() == [1.0]
    assert np.isnan(hard_auc(np.array([[-1, -1, -1, -1], [1, 1, 1, 1]]), predicted)).all()


def test_p_is_uniform_where_predictions_know_nothing_and_chance_is_above_a_half():
    rng = np.random.default_rng(0)
    ps, means = [], []
    for _ in range(80):
        codes, predicted = rng.integers(0, 2, 120), rng.integers(0, 2, (15, 120))
        permuted = np.concatenate([hard_auc(block, predicted) for block in permutations(codes, 60)])
        parts = level(float(hard_auc(codes[None], predicted)[0]), permuted)
        ps.append(parts["p"])
        means.append(parts["chance"])
    # a uniform p has mean .5 and standard deviation .29: of 80 the standard error of the mean is .03
    assert np.mean(ps) == pytest.approx(0.5, abs=0.1) and np.std(ps) == pytest.approx(0.29, abs=0.06)
    assert min(means) > 0.55


# --- The attack ---


@pytest.mark.parametrize("groups", [2, 3])
def test_a_planted_attribute_is_read_and_noise_is_not(groups):
    (hard, of_hard), (soft, of_soft) = attack(*planted(640, groups, shift=6.0), 0).values()
    assert hard > 0.95 and soft > 0.99
    assert of_hard.max() < 0.7 and of_soft.max() < 0.7
    for value, permuted in attack(*planted(640, groups, shift=0.0, seed=1), 0).values():
        assert 0.02 < level(value, permuted)["p"] < 0.98 and value < 0.65


def test_the_maximum_over_epochs_has_chance_above_a_half_and_the_other_has_not():
    (_, hard), (_, soft) = attack(*planted(320, shift=0.0, seed=1), 0).values()
    assert hard.shape == soft.shape == (200,)
    assert hard.min() >= 0.5 and hard.mean() > 0.53
    assert soft.mean() == pytest.approx(0.5, abs=0.02) and soft.min() < 0.5


@pytest.fixture
def few_epochs(monkeypatch):
    """For what does not depend on how long SGD trains."""
    monkeypatch.setattr(cofair_attack, "HARD_EPOCHS", 60)
    monkeypatch.setattr(cofair_attack, "EPOCHS", 20)


@pytest.mark.usefixtures("few_epochs")
def test_vectors_that_are_all_alike_give_a_half():
    _, codes, held_out = planted(100)
    for value, permuted in attack(np.ones((100, 3)), codes, held_out, 0).values():
        assert value == 0.5 and (permuted == 0.5).all()


@pytest.mark.usefixtures("few_epochs")
def test_held_out_attributes_and_unknown_users_reach_neither_training_nor_judgement():
    vectors, codes, held_out = planted(200, shift=1.0)
    codes[::7] = -1
    held_out &= codes >= 0
    moved = vectors + 50 * (codes < 0)[:, None]
    flipped = np.where(held_out, 1 - codes, codes)
    (hard, soft), of_moved, of_flipped = (
        [value for value, _ in attack(*problem, held_out, 0).values()]
        for problem in ((vectors, codes), (moved, codes), (vectors, flipped))
    )
    assert of_moved == [hard, soft]
    assert of_flipped == pytest.approx([hard, 1 - soft]) and hard != soft


@pytest.mark.usefixtures("few_epochs")
def test_the_same_seed_gives_the_same_numbers_and_nobody_elses_draws_move():
    problem = planted(200, shift=0.5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (attack(*problem, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    for name in NAMES:
        assert first[name][0] == again[name][0] and first[name][1].tobytes() == again[name][1].tobytes()
    assert first[NAMES[1]][0] != other[NAMES[1]][0]


@pytest.mark.parametrize(
    ("fit_codes", "test_codes"),
    [([0] * 20, [0, 1] * 5), ([0, 1] * 10, [1] * 10), ([-1] * 20, [0, 1] * 5), ([0, 1] * 10, []), ([0, 1], [2, 3])],
)
def test_not_computable_is_nan(fit_codes, test_codes):
    codes = np.array(fit_codes + test_codes)
    held_out = np.arange(len(codes)) >= len(fit_codes)
    found = attack(np.random.default_rng(0).normal(size=(len(codes), 3)), codes, held_out, 0)
    assert list(found) == list(NAMES)
    for value, permuted in found.values():
        assert np.isnan(value) and permuted.shape == (200,) and np.isnan(permuted).all()


# --- The probe ---


@pytest.mark.usefixtures("few_epochs")
def test_the_standard_figures_stay_and_each_new_one_has_its_chance():
    vectors, codes, held_out = planted(60, shift=3.0)
    groups = {"gender": Group("gender", codes, ("F", "M"))}
    found, standard = (probe(vectors, groups, held_out, 3) for probe in (cofair_leakage, leakage))
    assert {key: found[key] for key in standard} == standard
    new = [MetricKey(name, group="gender") for name in NAMES]
    assert set(found) - set(standard) == {str(key.of(part)) for key in new for part in ("", *CHANCE_PARTS)}
    for key, (value, permuted) in zip(new, attack(vectors, codes, held_out, 3).values(), strict=True):
        assert found[str(key)] == value
        assert {part: found[str(key.of(part))] for part in CHANCE_PARTS} == level(value, permuted)


@pytest.mark.probes
def test_a_run_under_cofairs_protocol_is_attacked_as_published(tmp_path):
    network = {"backbone": "bprmf", "embedding_dim": 8, "user_hidden": None, "item_hidden": None, "num_negatives": 1}
    metrics = run_main(tmp_path, protocol="cofair", **network, epochs=1, eval_k=["10"])["metrics"]
    assert 0.5 <= metrics["test/leakage_auc_hard/chance/gender"] <= 1 and metrics["test/leakage_auc/gender"] is not None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert 0 <= metrics[f"test/{name}/gender"] <= 1
        assert METRICS[name].head in page
