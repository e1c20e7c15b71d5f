"""Gradient reversal and the pool of label-conditioned discriminators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from fairness_utils import (
    RIDGE,
    ConditionalAdversary,
    SolvedDiscriminator,
    class_label_weights,
    ramp,
    reverse_gradient,
)

WIDTHS = (6, 9)


def make_adversary(inputs=4, groups=3, seed=0, weight=None):
    weight = torch.ones(groups, 2) if weight is None else weight
    return ConditionalAdversary(inputs, weight, WIDTHS, seed).double()


def make_rows(rows=12, inputs=4, groups=3, unknown=()):
    generator = torch.Generator().manual_seed(5)
    representation = torch.randn(rows, inputs, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(groups, (rows,), generator=generator)
    target[list(unknown)] = -1
    return representation, torch.tensor([1, 0]).repeat(rows // 2), target


def parameter_gradients(adversary, *arguments):
    adversary.zero_grad()
    adversary.loss(*arguments).backward()
    return {name: parameter.grad.clone() for name, parameter in adversary.named_parameters()}


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.5])
def test_reversal_passes_values_and_turns_gradients_exactly(scale):
    value = torch.randn(3, 4, requires_grad=True)
    gradient = torch.randn(3, 4)
    passed = reverse_gradient(value, scale)
    assert torch.equal(passed, value)
    passed.backward(gradient)
    assert torch.equal(value.grad, -scale * gradient)


def test_representation_gets_the_reversed_gradient_in_proportion_to_scale():
    adversary, (representation, label, target) = make_adversary(), make_rows()
    (unit,) = torch.autograd.grad(adversary.loss(representation, label, target, 1.0), representation)
    (scaled,) = torch.autograd.grad(adversary.loss(representation, label, target, 0.3), representation)
    assert_close(scaled, 0.3 * unit)
    # the reversed direction is the one that raises the discriminators' loss
    before = adversary.loss(representation, label, target, 0.0)
    after = adversary.loss(representation - 1e-3 * unit, label, target, 0.0)
    assert after > before


def gradient_of(loss, value):
    return torch.autograd.grad(loss, value)[0]


@pytest.mark.parametrize("widths", [(6,), (6, 9), (3, 5, 7)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_reversed_gradient_is_minus_scale_times_that_of_the_discriminators_mean_loss(widths, scale):
    weight = torch.tensor([[0.5, 2.0], [1.0, 0.25], [3.0, 0.75]])
    adversary = ConditionalAdversary(4, weight, widths, 0).double()
    representation, label, target = make_rows(unknown=(1, 4))
    row_weight = torch.linspace(0.2, 2.0, len(label), dtype=torch.float64)
    # the same loss, written out without a reversal
    value = torch.cat([F.layer_norm(representation, (4,)), adversary.label_embedding(label)], dim=1)
    known = target >= 0
    share = weight.double()[target[known], label[known]] * row_weight[known]
    losses = []
    for discriminator in adversary.discriminators:
        logits = torch.log_softmax(discriminator(value[known]), dim=1)
        losses.append(-(share * logits.gather(1, target[known, None])[:, 0]).sum() / share.sum())
    plain = gradient_of(torch.stack(losses).mean(), representation)
    loss = adversary.loss(representation, label, target, scale, None, row_weight)
    assert_close(gradient_of(loss, representation), -scale * plain)


def test_discriminators_train_at_full_strength_whatever_the_scale():
    adversary, rows = make_adversary(), make_rows()
    reference = parameter_gradients(adversary, *rows, 0.0)
    assert all(gradient.abs().sum() > 0 for gradient in reference.values())
    for scale in (0.1, 10.0):
        for name, gradient in parameter_gradients(adversary, *rows, scale).items():
            assert torch.equal(gradient, reference[name]), name


def test_scale_zero_leaves_no_path_to_the_representation():
    adversary, (representation, label, target) = make_adversary(), make_rows()
    loss = adversary.loss(representation, label, target, 0.0)
    (gradient,) = torch.autograd.grad(loss, representation, allow_unused=True)
    assert gradient is None


def test_loss_equals_a_naive_weighted_cross_entropy():
    weight = torch.tensor([[0.5, 2.0], [1.0, 0.25], [3.0, 0.75]])
    adversary = make_adversary(weight=weight)
    representation, label, target = make_rows(unknown=(1, 4))
    total = 0.0
    for discriminator in adversary.discriminators:
        numerator = denominator = 0.0
        for row in range(len(label)):
            if target[row] < 0:
                continue
            z = representation[row]
            z = (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
            logits = discriminator(torch.cat([z, adversary.label_embedding.weight[label[row]]]))
            share = weight[target[row], label[row]]
            numerator -= share * torch.log_softmax(logits, 0)[target[row]]
            denominator += share
        total += numerator / denominator
    assert_close(adversary.loss(representation, label, target, 1.0), total, rtol=1e-10, atol=1e-12)


def test_the_label_reaches_the_discriminators():
    adversary, (representation, label, target) = make_adversary(), make_rows()
    assert adversary.loss(representation, label, target, 0.0) != adversary.loss(representation, 1 - label, target, 0.0)


def test_unknown_rows_weigh_nothing():
    adversary = make_adversary()
    representation, label, target = make_rows(unknown=(0, 3, 7))
    known = target >= 0
    loss = adversary.loss(representation, label, target, 1.0)
    (gradient,) = torch.autograd.grad(loss, representation)
    assert_close(loss, adversary.loss(representation[known], label[known], target[known], 1.0))
    assert torch.all(gradient[~known] == 0)
    assert torch.all(gradient[known].abs().sum(1) > 0)


def test_a_batch_without_known_rows_gives_exactly_zero():
    adversary = make_adversary()
    representation, label, target = make_rows(unknown=range(12))
    loss = adversary.loss(representation, label, target, 1.0)
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, [representation, *adversary.parameters()], allow_unused=True)
    assert all(gradient is None or torch.all(gradient == 0) for gradient in gradients)


@given(st.floats(0.01, 1e4))
@settings(max_examples=20, deadline=None)
def test_the_size_of_the_representation_does_not_matter(factor):
    adversary, (representation, label, target) = make_adversary(), make_rows()
    loss = adversary.loss(representation * 100, label, target, 1.0)
    assert_close(adversary.loss(representation * 100 * factor, label, target, 1.0), loss, rtol=1e-4, atol=0)


def test_gradient_shrinks_as_the_representation_grows():
    """Layer normalisation: pushing the vectors' scale cannot lower the adversary's loss, so it gets no pull there."""
    adversary, (representation, label, target) = make_adversary(), make_rows()
    (gradient,) = torch.autograd.grad(adversary.loss(representation * 100, label, target, 1.0), representation)
    radial = (gradient * representation).sum(1).abs()
    assert torch.all(radial < 1e-6 * gradient.norm(dim=1) * representation.norm(dim=1))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_class_label_weights_give_every_filled_cell_the_same_total(cells):
    counts = np.array(cells, dtype=float)
    weights = class_label_weights(counts).double().numpy()
    filled = counts > 0
    assert np.all(weights[~filled] == 0)
    if filled.any():
        np.testing.assert_allclose((weights * counts)[filled], counts.sum() / filled.sum(), rtol=1e-6)


def test_class_label_weights_closed_form():
    weights = class_label_weights(np.array([[30.0, 10.0], [0.0, 20.0]]))
    assert_close(weights, torch.tensor([[20 / 30, 2.0], [0.0, 1.0]]))


def test_parameters_come_from_the_seed_alone_and_leave_the_global_stream_alone():
    state = torch.get_rng_state()
    first = make_adversary(seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = make_adversary(seed=3).state_dict(), make_adversary(seed=4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def snapshot(adversary):
    return {name: value.clone() for name, value in adversary.state_dict().items()}


@pytest.mark.parametrize(("turn", "index"), [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_reinitialise_changes_one_discriminator_in_place(turn, index):
    adversary = make_adversary()
    parameters, before = list(adversary.parameters()), snapshot(adversary)
    state = torch.get_rng_state()
    assert adversary.reinitialise(turn) == index
    assert torch.equal(torch.get_rng_state(), state)
    assert all(now is then for now, then in zip(adversary.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in adversary.parameters())
    for name, value in snapshot(adversary).items():
        assert torch.equal(value, before[name]) != name.startswith(f"discriminators.{index}."), name


def test_reinitialise_depends_on_seed_and_turn_alone():
    first, second = make_adversary(), make_adversary()
    second.reinitialise(0)
    torch.rand(7)
    first.reinitialise(2)
    second.reinitialise(2)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    fresh = snapshot(first)
    first.reinitialise(4)
    assert not torch.equal(first.state_dict()["discriminators.0.0.weight"], fresh["discriminators.0.0.weight"])
    other = make_adversary(seed=1)
    other.reinitialise(2)
    assert not torch.equal(other.state_dict()["discriminators.0.0.weight"], fresh["discriminators.0.0.weight"])


def test_ramp_rises_linearly_and_then_stays():
    assert [ramp(step, 100, 0.1) for step in (0, 1, 5, 10, 11, 99)] == [0.0, 0.1, 0.5, 1.0, 1.0, 1.0]
    assert ramp(0, 100, 0.0) == 1.0
    assert ramp(50, 100, 1.0) == 0.5
    assert ramp(0, 0, 0.5) == 1.0


def test_discriminators_learn_a_separable_group():
    """The reversed gradient is worth something only if the discriminators do find what there is to find."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 2
    representation = torch.randn(200, 4, generator=generator) + 3 * F.one_hot(target, 4)
    adversary = ConditionalAdversary(4, torch.ones(2, 2), WIDTHS, 0)
    optimiser = torch.optim.Adam(adversary.parameters(), lr=0.02)
    label = torch.tensor([1, 0]).repeat(100)
    for _ in range(60):
        optimiser.zero_grad()
        loss = adversary.loss(representation, label, target, 0.0)
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * len(WIDTHS)


def solved_case(rows=40, groups=3, unknown=(1, 4)):
    weight = torch.tensor([[0.5, 2.0], [1.0, 0.25], [3.0, 0.75]])[:groups]
    row_weight = torch.rand(rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    return SolvedDiscriminator(weight).double(), *make_rows(rows, groups=groups, unknown=unknown), row_weight


def test_the_solved_discriminator_is_ridge_regression_with_an_offset_per_label():
    discriminator, representation, label, target, row_weight = solved_case()
    weights, offsets = discriminator.solve(representation, label, target, row_weight)
    known = (target >= 0).numpy()
    z = F.layer_norm(representation.detach(), (4,)).numpy()[known]
    y, g = label.numpy()[known], target.numpy()[known]
    w = discriminator.weight.numpy()[g, y] * row_weight.numpy()[known]
    variance = 0.0
    for value in (0, 1):
        part, share = z[y == value], w[y == value, None]
        variance += (share * (part - (share * part).sum(0) / share.sum()) ** 2).sum(0)
    # rows of the penalty below those of the data; the offsets are not penalised
    design = np.concatenate([z, np.eye(2)[y]], axis=1) * np.sqrt(w)[:, None]
    penalty = np.eye(4, 6) * np.sqrt(RIDGE * variance.mean())
    wanted = np.concatenate([np.eye(3)[g] * np.sqrt(w)[:, None], np.zeros((4, 3))])
    expected = np.linalg.lstsq(np.concatenate([design, penalty]), wanted, rcond=None)[0]
    np.testing.assert_allclose(weights, expected[:4], atol=1e-9)
    np.testing.assert_allclose(offsets, expected[4:], atol=1e-9)
    error = (np.eye(3)[g] - np.concatenate([z, np.eye(2)[y]], axis=1) @ expected) ** 2
    loss = discriminator.loss(representation, label, target, 1.0, (weights, offsets), None, row_weight)
    assert loss.item() == pytest.approx((w * error.sum(1)).sum() / w.sum() / (1 - 1 / 3), rel=1e-9)


def test_the_solved_loss_of_parts_adds_up():
    discriminator, representation, label, target, row_weight = solved_case()
    solution = discriminator.solve(representation, label, target, row_weight)
    mass = discriminator.mass(label, target, row_weight)
    losses = [
        discriminator.loss(representation[part], label[part], target[part], 1.0, solution, mass, row_weight[part])
        for part in (slice(0, 13), slice(13, 40))
    ]
    assert_close(sum(losses), discriminator.loss(representation, label, target, 1.0, solution, None, row_weight))


def test_the_solved_discriminator_finds_nothing_between_equal_means_and_everything_between_distant_ones():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    discriminator, target = SolvedDiscriminator(torch.ones(2, 2)).double(), torch.arange(100) % 2
    label = torch.arange(100) // 2 % 2
    same = F.layer_norm(noise, (4,)).clone()
    for value in (0, 1):
        means = [same[(label == value) & (target == g)].mean(0) for g in (0, 1)]
        for g in (0, 1):
            same[(label == value) & (target == g)] -= means[g]
    # layer normalisation would move the means apart again: leave it out
    discriminator._reversed = lambda representation, scale: reverse_gradient(representation, scale)
    weights, offsets = discriminator.solve(same, label, target)
    assert weights.abs().max() < 1e-12
    assert discriminator.loss(same, label, target, 1.0, (weights, offsets)).item() == pytest.approx(1)
    apart = same + 100 * F.one_hot(target, 4)
    assert discriminator.loss(apart, label, target, 1.0, discriminator.solve(apart, label, target)) < 0.01


def test_unknown_rows_do_not_reach_the_solved_discriminator():
    discriminator, representation, label, target, row_weight = solved_case()
    known = target >= 0
    rows = [part[known] for part in (representation, label, target, row_weight)]
    for found, expected in zip(
        discriminator.solve(representation, label, target, row_weight), discriminator.solve(*rows), strict=True
    ):
        assert_close(found, expected)
    nobody = torch.full_like(target, -1)
    solution = discriminator.solve(representation, label, nobody)
    assert all(torch.equal(part, torch.zeros_like(part)) for part in solution)
    loss = discriminator.loss(representation, label, nobody, 1.0, solution)
    (gradient,) = torch.autograd.grad(loss, representation)
    assert loss.item() == 0 and not gradient.any()


def test_the_gradient_of_the_solved_loss_is_reversed_and_in_proportion():
    discriminator, representation, label, target, row_weight = solved_case()
    solution = discriminator.solve(representation, label, target, row_weight)

    def gradient(scale):
        loss = discriminator.loss(representation, label, target, scale, solution, None, row_weight)
        return torch.autograd.grad(loss, representation)[0]

    still = discriminator.loss(representation, label, target, 0.0, solution, None, row_weight)
    assert not still.requires_grad
    # the same squared error, written out without a reversal
    known = target >= 0
    share = (discriminator.weight[target.clamp(min=0), label] * row_weight)[known]
    weights, offsets = solution
    guess = F.layer_norm(representation, (4,)) @ weights + offsets[label]
    error = (F.one_hot(target[known], 3) - guess[known]).square().sum(1)
    plain = torch.autograd.grad((share * error).sum() / share.sum() / (1 - 1 / 3), representation)[0]
    for scale in (0.3, 1.0, 4.0):
        assert_close(gradient(scale), -scale * plain)
    moved = representation - 1e-3 * gradient(1.0)
    assert discriminator.loss(moved, label, target, 0.0, solution, None, row_weight) > still


def test_descent_on_the_reversed_gradient_hides_the_group_from_every_linear_attacker():
    """No trained discriminator does this: the vectors go on while it lags behind."""
    generator = torch.Generator().manual_seed(0)
    target, label = torch.arange(300) % 2, torch.arange(300) // 2 % 2
    vectors = torch.randn(300, 6, generator=generator, dtype=torch.float64) + F.one_hot(target, 6)
    discriminator = SolvedDiscriminator(torch.ones(2, 2)).double()
    optimiser = torch.optim.Adam([vectors.requires_grad_()], lr=0.02)
    losses = []
    for _ in range(150):
        loss = discriminator.loss(vectors, label, target, 1.0, discriminator.solve(vectors, label, target))
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] < 0.8 and losses[-1] > 0.999
