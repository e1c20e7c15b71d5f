"""History synthesis: masks, empty histories, order, and agreement with independent implementations."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from model import SYNTHESIZERS
from model.sparsenn import AttentionSynthesis, GRUSynthesis
from tests.support.runs import refused

USER, ITEM, LENGTH, ITEMS = 8, 12, 5, 20
CASES = [("mean", 1), ("attention", 1), ("attention", 2), ("attention", 3), ("attention", 4), ("gru", 1)]
every_case = pytest.mark.parametrize(("name", "heads"), CASES)


def make(name, heads=1):
    torch.manual_seed(0)
    return SYNTHESIZERS[name](USER, ITEM, LENGTH, heads).double()


def inputs(lengths, seed=0):
    """User features, item features, and histories of the given lengths with padding (item 0) at the end."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.randn(len(lengths), USER, generator=generator, dtype=torch.float64)
    features = torch.randn(ITEMS, ITEM, generator=generator, dtype=torch.float64)
    items = torch.randint(1, ITEMS, (len(lengths), LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    return user, features, items.masked_fill(~mask, 0), mask


@every_case
def test_padded_items_do_not_matter(name, heads):
    module = make(name, heads)
    user, features, items, mask = inputs([5, 3, 1, 0])
    plain = module(user, features, items, mask)
    # the first padded-in item is far from all others, so that a leak of any size shows
    features = torch.cat([features, torch.full((1, ITEM), 1e6, dtype=torch.float64)])
    changed = module(user, features, items.masked_fill(~mask, ITEMS), mask)
    assert plain.shape == (4, module.width)
    assert torch.equal(plain, changed)


@every_case
def test_padded_items_get_no_gradient(name, heads):
    module = make(name, heads)
    user, features, items, mask = inputs([4, 2, 0])
    features.requires_grad_()
    module(user, features, items, mask).square().sum().backward()
    assert torch.all(features.grad[0] == 0)
    assert torch.all(features.grad[torch.unique(items[mask])].abs().sum(1) > 0)


@every_case
def test_an_empty_history_gives_zeros_and_finite_gradients(name, heads):
    module = make(name, heads)
    user, features, items, mask = inputs([0, 4])
    features.requires_grad_()
    user.requires_grad_()
    output = module(user, features, items, mask)
    assert torch.all(output[0] == 0)
    assert torch.any(output[1] != 0)
    output.sum().backward()
    leaves = [features, user, *module.parameters()]
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)
    assert user.grad is None or torch.all(user.grad[0] == 0)


@every_case
def test_order_matters_to_the_gru_alone(name, heads):
    module = make(name, heads)
    user, features, items, mask = inputs([5, 5, 5])
    order = torch.tensor([3, 0, 4, 1, 2])
    difference = (module(user, features, items, mask) - module(user, features, items[:, order], mask)).abs().max()
    if name == "gru":
        assert difference > 1e-3
    else:
        assert difference < 1e-14


@every_case
def test_two_calls_agree(name, heads):
    module, arguments = make(name, heads), inputs([5, 2, 0])
    assert torch.equal(module(*arguments), module(*arguments))


def test_mean_is_the_mean_of_the_unmasked_items():
    user, features, items, mask = inputs([5, 2, 1])
    output = make("mean")(user, features, items, mask)
    for row, length in enumerate([5, 2, 1]):
        assert_close(output[row], features[items[row, :length]].mean(0))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_a_literal_softmax_per_row_and_head(heads):
    module = make("attention", heads)
    lengths = [5, 3, 1]
    user, features, items, mask = inputs(lengths)
    expected = []
    for row, length in enumerate(lengths):
        past = features[items[row, :length]]
        query, key = module.query(user[row]).chunk(heads), module.key(past).chunk(heads, dim=1)
        value = past.chunk(heads, dim=1)
        mixed = [
            torch.softmax(key[head] @ query[head] / len(query[head]) ** 0.5, dim=0) @ value[head]
            for head in range(heads)
        ]
        expected.append(module.output(torch.cat(mixed)))
    assert_close(module(user, features, items, mask), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_attention_keeps_apart_very_different_keys():
    module = make("attention")
    user, features, items, mask = inputs([5])
    output = module(user * 1e6, features, items, mask)
    logits = module.key(features)[items[0]] @ module.query(user * 1e6)[0]
    assert_close(output[0], module.output(features[items[0, logits.argmax()]]))


def test_attention_heads_split_the_widths_but_not_the_parameters():
    shapes = [[parameter.shape for parameter in AttentionSynthesis(96, 96, 5, heads).parameters()] for heads in (1, 3)]
    assert shapes[0] == shapes[1]


def reference_gru(module):
    """torch's own two-layer GRU with the same weights."""
    reference = nn.GRU(ITEM, module.hidden, num_layers=2, batch_first=True).double()
    with torch.no_grad():
        for index, layer in enumerate(module.layers):
            getattr(reference, f"weight_ih_l{index}").copy_(layer.input.weight)
            getattr(reference, f"bias_ih_l{index}").copy_(layer.input.bias)
            getattr(reference, f"weight_hh_l{index}").copy_(layer.recurrent.weight)
            getattr(reference, f"bias_hh_l{index}").copy_(layer.recurrent.bias)
    return reference


def test_gru_equals_torch_in_values_and_gradients():
    module = make("gru")
    reference = reference_gru(module)
    user, features, items, mask = inputs([LENGTH] * 4)
    own, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    ours = module(user, own, items, mask)
    theirs = reference(other[items])[0].flatten(1)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12)
    for index, layer in enumerate(module.layers):
        assert_close(layer.input.weight.grad, getattr(reference, f"weight_ih_l{index}").grad, rtol=1e-10, atol=1e-12)
        assert_close(layer.input.bias.grad, getattr(reference, f"bias_ih_l{index}").grad, rtol=1e-10, atol=1e-12)
        assert_close(
            layer.recurrent.weight.grad, getattr(reference, f"weight_hh_l{index}").grad, rtol=1e-10, atol=1e-12
        )
        assert_close(layer.recurrent.bias.grad, getattr(reference, f"bias_hh_l{index}").grad, rtol=1e-10, atol=1e-12)


def test_gru_of_a_short_history_equals_torch_on_the_short_sequence_padded_with_zeros():
    module = make("gru")
    user, features, items, mask = inputs([2, 4])
    output = module(user, features, items, mask).view(2, LENGTH, -1)
    for row, length in enumerate([2, 4]):
        expected = reference_gru(module)(features[items[row, :length]][None])[0][0]
        assert_close(output[row, :length], expected, rtol=1e-12, atol=1e-12)
        assert torch.all(output[row, length:] == 0)


def test_gru_skips_a_masked_step_in_the_middle():
    module = make("gru")
    user, features, items, mask = inputs([5])
    mask[0, 2] = False
    output = module(user, features, items, mask).view(LENGTH, -1)
    expected = reference_gru(module)(features[items[mask]][None])[0][0]
    assert_close(output[mask[0]], expected, rtol=1e-12, atol=1e-12)
    assert torch.all(output[2] == 0)


def test_gru_starts_from_noise_only_when_given_a_generator():
    module, arguments = make("gru"), inputs([5, 2, 0])
    plain = module(*arguments)
    module.random_state_generator = torch.Generator().manual_seed(3)
    first, second = module(*arguments), module(*arguments)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, second)
    module.random_state_generator = torch.Generator().manual_seed(3)
    assert torch.equal(module(*arguments), first)
    assert torch.all(first[2] == 0)


def test_gru_output_width_is_length_times_hidden():
    assert GRUSynthesis(USER, ITEM, 15, 1).width == 15 * 64


def test_heads_must_divide_both_widths_of_attention(tmp_path, capsys):
    with pytest.raises(ValueError, match="--attention_heads=8 does not divide the width 12 of an item's features"):
        make("attention", heads=8)
    error = refused(capsys, tmp_path, synthesis_type="attention", attention_heads=3, embedding_dim=50)
    assert "--attention_heads=3 does not divide the width" in error and "--embedding_dim" in error
