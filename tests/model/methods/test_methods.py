"""Training steps of `none` and FA-BUHS: what reaches the backbone, and what must never reach it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.options import parse_options
from data.structs import Batch, Group, Histories, History
from fairness_utils import fairness_history_weights, group_parity_log_weights
from model import METHODS
from model.evaluation.probes import held_out_users
from model.methods.base import Method
from model.methods.fabuhs import FABUHS
from model.runs.environment import Environment
from model.runs.processes import ALONE, Processes
from model.runs.streams import stream_seeds, torch_generator
from model.sparsenn import SparseNN
from model.training.update import update
from tests.support.methods import CPU, identical, make_sampler

STEPS = 4


@pytest.fixture(scope="module")
def held_out(tiny_data):
    return held_out_users(tiny_data.user_groups["gender"].codes, seed=1)


@pytest.fixture
def train(tiny_data, tiny_phase, make_config, held_out):
    """A function: method, groups and settings -> (backbone, method, logged values) after a few steps."""

    def run(name="fabuhs", groups=None, steps=STEPS, processes=ALONE, **changes):
        config = make_config(**changes)
        seeds = stream_seeds(config.seed)
        backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], CPU)
        groups = tiny_data.user_groups if groups is None else groups
        method = METHODS[name](backbone, Environment(config, groups, held_out, seeds, CPU, processes))
        sampler = make_sampler(tiny_phase, config, method, backbone)
        generators = [torch_generator(seeds[stream]) for stream in ("order", "negatives", "history")]
        method.begin_phase(tiny_phase, 100)
        values = []
        for _ in range(steps):
            edges = torch.randint(len(sampler.user), (config.batch_size,), generator=generators[0])
            batch = sampler.sample(edges, *generators[1:])
            values.append(method.train_step(batch, "method", "train", update))
        return backbone, method, values

    return run


def with_codes(groups, name, codes):
    return groups | {name: Group(name, codes, groups[name].labels)}


NO_ADVERSARY = {"adversarial_lambda_user": 0.0, "adversarial_lambda_item": 0.0}
FULL_ADVERSARY = {"adversarial_lambda_user": 5.0, "adversarial_lambda_item": 5.0, "adversarial_ramp": 0.0}


@pytest.mark.parametrize("synthesis", ["none", "mean", "attention", "gru"])
def test_without_lambda_the_backbone_is_bit_identical_to_training_without_adversaries(train, synthesis):
    plain, _, _ = train("none", synthesis_type=synthesis)
    fair, method, values = train("fabuhs", synthesis_type=synthesis, **NO_ADVERSARY)
    assert identical(plain, fair)
    assert values[-1]["adversary/user"] > 0
    # the discriminators trained all the same
    fresh = train("fabuhs", synthesis_type=synthesis, steps=0, **NO_ADVERSARY)[1]
    assert not identical(fresh.user_adversary, method.user_adversary)
    assert not identical(fresh.item_adversary, method.item_adversary)


@pytest.mark.parametrize(
    "options", [{"adversary_input": "pair"}, {"item_adversary": "user_attribute"}, {"precision": "bf16"}]
)
def test_without_lambda_the_variants_leave_the_backbone_alone_too(train, options):
    precision = options.get("precision", "fp32")
    assert identical(train("none", precision=precision)[0], train("fabuhs", **NO_ADVERSARY, **options)[0])


def test_bf16_rounds_the_step_and_keeps_parameters_and_scores_in_float32(train):
    full, _, exact = train(**FULL_ADVERSARY)
    half, _, rounded = train(**FULL_ADVERSARY, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    assert not identical(full, half)
    for name, value in exact[-1].items():
        assert float(rounded[-1][name]) == pytest.approx(float(value), rel=0.05)
        assert rounded[-1][name].dtype == torch.float32


def test_number_and_kind_of_discriminators_do_not_touch_the_backbone_without_lambda(train):
    options = ("discriminator_widths=8", "discriminator_steps=1", "reinitialise_every=2")
    assert identical(train("none")[0], train("fabuhs", **NO_ADVERSARY, method_option=options)[0])


@pytest.mark.parametrize("side", ["user", "item"])
def test_each_lambda_reaches_its_own_tower(train, side):
    on, _, _ = train(**(NO_ADVERSARY | {f"adversarial_lambda_{side}": 5.0, "adversarial_ramp": 0.0}), steps=1)
    off, _, _ = train(**NO_ADVERSARY, steps=1)
    other = "item" if side == "user" else "user"
    assert not identical(off.get_submodule(f"{side}_tower"), on.get_submodule(f"{side}_tower"))
    assert identical(off.get_submodule(f"{other}_tower"), on.get_submodule(f"{other}_tower"))


def test_the_ramp_starts_at_no_pressure(train):
    first = {"steps": 1, "adversarial_ramp": 0.5}
    assert identical(train(**NO_ADVERSARY, **first)[0], train(**(FULL_ADVERSARY | first))[0])
    assert not identical(train(**NO_ADVERSARY)[0], train(**(FULL_ADVERSARY | {"adversarial_ramp": 0.5}))[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"adversary_input": "pair"}, {"item_adversary": "user_attribute"}],
    ids=["user", "pair", "attribute"],
)
def test_attributes_of_held_out_users_never_reach_training(train, tiny_data, held_out, options):
    codes = tiny_data.user_groups["gender"].codes
    flipped = with_codes(tiny_data.user_groups, "gender", np.where(held_out, 1 - codes, codes))
    reference = train(**FULL_ADVERSARY, **options)
    changed = train(groups=flipped, **FULL_ADVERSARY, **options)
    assert held_out.sum() >= 5
    assert identical(reference[0], changed[0])
    assert identical(reference[1].user_adversary, changed[1].user_adversary)
    assert identical(reference[1].item_adversary, changed[1].item_adversary)
    # the others' attributes do
    flipped = with_codes(tiny_data.user_groups, "gender", np.where(held_out, codes, 1 - codes))
    assert not identical(reference[0], train(groups=flipped, **FULL_ADVERSARY, **options)[0])


def test_variants_of_the_adversaries_change_the_gradients(train):
    plain, _, _ = train(**FULL_ADVERSARY)
    pair, _, _ = train(**FULL_ADVERSARY, adversary_input="pair")
    attribute, _, _ = train(**FULL_ADVERSARY, item_adversary="user_attribute")
    for one, other in ((plain, pair), (plain, attribute), (pair, attribute)):
        assert not identical(one, other)


def test_training_is_deterministic(train):
    assert identical(train(**FULL_ADVERSARY)[0], train(**FULL_ADVERSARY)[0])


def test_unknown_attributes_and_many_groups_are_fine(train, tiny_data):
    nobody = with_codes(tiny_data.user_groups, "gender", np.full(tiny_data.num_users, -1))
    backbone, _, values = train(groups=nobody, **(FULL_ADVERSARY | {"adversarial_lambda_item": 0.0}))
    assert values[-1]["adversary/user"] == 0
    assert identical(backbone, train("none")[0])
    values = train(user_attribute=("occupation",), **FULL_ADVERSARY)[2]
    assert all(np.isfinite(float(value)) for step in values for value in step.values())


def test_rows_of_the_adversaries_carry_their_own_labels_items_and_users(train, tiny_data, tiny_phase):
    """Positive rows have label 1 and the positive's vector, negative rows 0 and the first negative's."""
    backbone, method, _ = train(adversary_input="pair", steps=0)
    history = History(torch.tensor([[3, 4, 0, 0, 0], [9, 0, 0, 0, 0]]), torch.arange(5) < torch.tensor([[2], [1]]))
    batch = Batch(torch.tensor([7, 21]), torch.tensor([5, 6]), torch.tensor([[8, 1], [2, 3]]), history)
    rows = method._adversary_rows(batch, batch, method.forward(batch))
    context = backbone.prepare()
    item = backbone.encode_items(context, torch.tensor([5, 8, 6, 2]))[:, : backbone.vector_width]
    user = backbone.encode_users(context, batch.users, history).repeat_interleave(2, 0)
    popularity = torch.from_numpy(tiny_phase.split.item_groups["popularity"].codes)
    gender = method.user_target[torch.tensor([7, 7, 21, 21])]
    assert_close(rows.user, torch.cat([user, user * item], 1))
    assert_close(rows.item, item)
    assert rows.label.tolist() == [1, 0, 1, 0]
    assert torch.equal(rows.user_target, gender)
    assert torch.equal(rows.item_target, popularity[torch.tensor([5, 8, 6, 2])])


def test_adversary_weights_count_known_users_and_items_of_the_train_set(train, tiny_data, tiny_phase, held_out):
    _, method, _ = train(steps=0)
    codes, split = tiny_data.user_groups["gender"].codes, tiny_phase.split
    count = np.bincount(codes[~held_out])
    expected = np.repeat(count.sum() / (2 * count)[:, None], 2, axis=1)
    np.testing.assert_allclose(method.user_adversary.weight, expected, rtol=1e-6)
    # an epoch shows a user once per interaction, and every user counts the same in it
    in_an_epoch = method.user_weight.double().numpy() * split.train.lengths
    np.testing.assert_allclose(in_an_epoch, split.train.lengths.mean(), rtol=1e-6)
    head = split.item_groups["popularity"].codes == 0
    positives, negatives = split.degree[head].sum() / split.degree.sum(), head.mean()
    shares = np.array([[negatives, positives], [1 - negatives, 1 - positives]])
    np.testing.assert_allclose(method.item_adversary.weight, 0.5 / shares, rtol=1e-6)


@pytest.mark.parametrize("synthesis", ["none", "mean", "attention", "gru"])
@pytest.mark.parametrize("options", [{}, {"adversary_input": "pair"}], ids=["user", "pair"])
def test_the_reversed_gradient_never_reaches_what_belongs_to_one_user(train, synthesis, options):
    """It would hide the attribute of the users whose attribute it knows, and of nobody else."""

    def id_rows(strengths, *method_option):
        made = train(synthesis_type=synthesis, steps=1, method_option=method_option, **strengths, **options)[0]
        return made.user_encoder.columns["id"].weight

    off = id_rows(NO_ADVERSARY)
    # steps are of size 1e-3; attention reads both users at once, which rounds differently
    assert_close(off, id_rows(FULL_ADVERSARY | {"adversarial_lambda_item": 0.0}), rtol=0, atol=1e-5)
    assert (off - id_rows(FULL_ADVERSARY, "scrub_own_embeddings=True")).abs().max() > 1e-4


@pytest.mark.parametrize("synthesis", ["none", "mean", "attention", "gru"])
def test_users_apart_from_their_own_embeddings_are_the_same_vectors(train, tiny_phase, synthesis):
    backbone, method, _ = train(synthesis_type=synthesis, steps=1)
    generator = torch_generator(0)
    batch = make_sampler(tiny_phase, method.config, method, backbone).sample(torch.arange(9), generator, generator)
    forward = method.forward(batch, apart=True)
    assert_close(forward.user, forward.apart)
    weight = backbone.user_encoder.columns["id"].weight
    others = [parameter for name, parameter in backbone.named_parameters() if name.startswith("user_tower")]
    gradients = torch.autograd.grad(forward.apart.square().sum(), [weight, *others], allow_unused=True)
    assert not gradients[0].any()
    for gradient in gradients[1:]:
        assert gradient.abs().sum() > 0


def test_discriminators_are_reinitialised_on_schedule_and_forget_their_moments(train):
    options = ("discriminator_widths=8,16", "reinitialise_every=3")
    _, method, _ = train(steps=2, method_option=options)
    assert len(method.discriminator_optimiser.state) == len(method.discriminator_optimiser.param_groups[0]["params"])
    _, method, _ = train(steps=3, method_option=options)
    reset = set()
    for adversary in (method.user_adversary, method.item_adversary):
        reset |= set(adversary.discriminators[1].parameters())
    for parameter in method.discriminator_optimiser.param_groups[0]["params"]:
        assert (parameter not in method.discriminator_optimiser.state) == (parameter in reset)


@pytest.mark.parametrize("steps", [1, 4])
def test_discriminators_step_on_parts_of_the_batch_before_the_joint_step_on_all_of_it(train, tiny_phase, steps):
    strengths = {"adversarial_lambda_user": 2.0, "adversarial_lambda_item": 3.0, "adversarial_ramp": 0.0}
    backbone, method, _ = train(steps=0, method_option=(f"discriminator_steps={steps}",), **strengths)
    generator, updates, seen = torch_generator(0), [], {"user": [], "item": []}
    batch = make_sampler(tiny_phase, method.config, method, backbone).sample(torch.arange(9), generator, generator)

    def spy_update(loss, *optimisers):
        updates.append(optimisers)
        update(loss, *optimisers)

    def spy_loss(side, adversary):
        original = adversary.loss

        def loss(*arguments):
            seen[side].append(arguments)
            return original(*arguments)

        adversary.loss = loss

    spy_loss("user", method.user_adversary)
    spy_loss("item", method.item_adversary)
    method.train_step(batch, "method", "train", spy_update)
    assert updates[:-1] == [(method.discriminator_optimiser,)] * (steps - 1)
    assert updates[-1] == (*method.optimisers, method.discriminator_optimiser)
    for side, scale in (("user", 2.0), ("item", 3.0)):
        assert [arguments[3] for arguments in seen[side]] == [0.0] * (steps - 1) + [scale]
        assert len(seen[side][-1][0]) == 18
        for column, whole in enumerate(seen[side][-1][:3]):
            parts = [arguments[column] for arguments in seen[side][:-1]]
            assert not parts or torch.equal(torch.cat(parts), whole)


def test_histories_follow_the_group_mixture_only_with_fairness_sampling(train, tiny_data, tiny_phase):
    split, group = tiny_phase.split, tiny_data.user_groups["gender"]
    plain = train("none", steps=0)[1].history_weights(split.histories, split)
    for switch in (False, True):
        weights = train(steps=0, fairness_sampling=switch)[1].history_weights(split.histories, split)
        assert len(weights.log_weights) == 1 + switch
        np.testing.assert_array_equal(weights.log_weights[0], plain.log_weights[0])
    expected = fairness_history_weights(split.histories, split.degree, group, 0.5, 0.01, 3.0 * split.num_items)
    fair = train(steps=0, fairness_sampling=True, method_option=("smoothing=3",))[1]
    np.testing.assert_allclose(fair.history_weights(split.histories, split).log_weights, expected.log_weights)


@pytest.mark.parametrize("name", ["none", "fabuhs"])
def test_steps_lower_the_loss_of_a_fixed_batch(train, tiny_phase, name):
    backbone, method, _ = train(name, steps=0)
    sampler = make_sampler(tiny_phase, method.config, method, backbone)
    generator = torch_generator(0)
    batch = sampler.sample(torch.arange(0, 600, 10), generator, generator)
    losses = [float(method.train_step(batch, "method", "train", update)["loss"]) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("synthesis", ["mean", "attention", "gru"])
@pytest.mark.parametrize("rows", [2, 30], ids=["items of the step", "catalogue"])
def test_a_history_per_row_scores_every_row_with_its_own_history(train, tiny_phase, synthesis, rows):
    backbone, method, _ = train("none", steps=1, synthesis_type=synthesis, upstream_compat=True, num_negatives=1)
    sampler = make_sampler(tiny_phase, method.config, method, backbone)
    generator = torch_generator(4)
    batch = sampler.sample(torch.arange(rows) * 11, generator, generator)
    width = 1 + batch.negatives.shape[1]
    assert batch.history.items.shape == (rows * width, 5)
    backbone.synthesis.random_state_generator = None
    scores = method.forward(batch).scores
    assert scores.shape == (rows, width)
    context = backbone.prepare()
    for row in range(rows):
        for column, item in enumerate([batch.positives[row], *batch.negatives[row]]):
            at = row * width + column
            history = History(batch.history.items[at : at + 1], batch.history.mask[at : at + 1])
            user = backbone.encode_users(context, batch.users[row : row + 1], history)
            score = backbone.score(context, user, item.view(1, 1))
            assert score.item() == pytest.approx(scores[row, column].item(), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"adversary_input": "pair", "item_adversary": "user_attribute"}])
def test_fabuhs_trains_with_a_history_per_row(train, options):
    _, _, values = train(upstream_compat=True, **FULL_ADVERSARY, **options)
    assert all(np.isfinite(float(value)) for step in values for value in step.values())


@dataclass(frozen=True)
class ExampleOptions:
    """One option of each type."""

    widths: tuple[int, ...] = (4, 8)
    rate: float = 0.5
    steps: int = 3
    deep: bool = False
    kind: str = "plain"


def test_options_take_the_type_of_their_default():
    text = ["widths=1,2,3", "rate=1e-3", "steps=7", "deep=True", "kind=a=b"]
    assert parse_options(ExampleOptions, text) == ExampleOptions((1, 2, 3), 1e-3, 7, True, "a=b")
    assert parse_options(ExampleOptions, []) == ExampleOptions()
    assert parse_options(ExampleOptions, ["deep=false", "widths=5"]) == ExampleOptions(widths=(5,))
    assert isinstance(parse_options(ExampleOptions, ["rate=2"]).rate, float)


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match="speed=3") as error:
        parse_options(ExampleOptions, ["speed=3"])
    assert all(name in str(error.value) for name in ("widths", "rate", "steps", "deep", "kind"))
    with pytest.raises(ValueError, match="name=value"):
        parse_options(ExampleOptions, ["steps"])


@pytest.mark.parametrize("text", ["steps=2.5", "steps=", "rate=fast", "deep=1", "widths=1,x", "widths="])
def test_a_bad_value_is_an_error_that_names_it(text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        parse_options(ExampleOptions, [text])


@pytest.mark.parametrize(
    "text",
    [
        "discriminator_widths=8,0",
        "discriminator_steps=0",
        "discriminator_lr=0",
        "reinitialise_every=-1",
        "smoothing=0",
        "smoothing=nan",
    ],
)
def test_options_of_fabuhs_out_of_range_are_errors(text):
    with pytest.raises(ValueError, match=text.split("=")[0]):
        parse_options(FABUHS.Options, [text])


def test_fabuhs_reads_the_settings_of_history_sampling_where_histories_are_drawn(make_config):
    on = make_config(fairness_sampling=True)
    assert FABUHS.unread(on) == {"backbone_checkpoint"}
    assert FABUHS.unread(make_config()) == {"backbone_checkpoint", "fairness_weight"}
    for changes in ({"synthesis_type": "none"}, {"backbone": "bprmf"}):
        unread = FABUHS.unread(make_config(fairness_sampling=True, **changes))
        assert {"fairness_sampling", "fairness_weight"} <= unread and "adversarial_ramp" not in unread
    assert {"fairness_sampling", "adversary_input"} <= METHODS["none"].unread(on)


def test_the_baseline_takes_no_options_and_keeps_no_state(train):
    with pytest.raises(ValueError, match="discriminator_steps=1"):
        parse_options(Method.Options, ["discriminator_steps=1"])
    _, method, _ = train("none", steps=0)
    method.load_state_dict(method.state_dict())
    with pytest.raises(ValueError, match="level"):
        method.load_state_dict({"level": torch.zeros(1)})


def test_sparse_updates_move_only_the_users_of_the_step_and_those_as_adam_does(train):
    """After one step rows that were read are Adam's to rounding, all others are as they began."""
    fresh, _, _ = train("none", steps=0)
    exact, _, _ = train("none", steps=1, batch_size=8)
    lazy, method, _ = train("none", steps=1, batch_size=8, sparse_updates=True)
    assert [type(optimiser).__name__ for optimiser in method.optimisers] == ["Adam", "SparseAdam"]
    # steps are of size 1e-3; the two differ in what they add to a denominator near zero
    assert_close(lazy.state_dict(), exact.state_dict(), rtol=0, atol=2e-4)
    before, after = (part.user_encoder.columns["id"].weight for part in (fresh, lazy))
    moved = (before != after).any(1)
    assert 1 <= moved.sum() <= 8
    # afterwards they differ: Adam goes on moving rows that the second step does not read
    exact, lazy = (train("none", steps=2, batch_size=8, sparse_updates=sparse)[0] for sparse in (False, True))
    difference = exact.user_encoder.columns["id"].weight - lazy.user_encoder.columns["id"].weight
    assert difference.abs().max() > 1e-4


def test_sparse_updates_refuse_several_processes(train):
    with pytest.raises(ValueError, match=r"--sparse_updates works in one process"):
        train("none", steps=0, sparse_updates=True, processes=Processes(0, 2))


def test_group_parity_at_test_counts_groups_in_train_alone(train, tiny_phase):
    """Histories that hold the validation items too are drawn by what groups like in train."""
    _, method, _ = train("fabuhs", steps=0, fairness_sampling=True, fairness_weight=0.0)
    split = tiny_phase.split
    joined = split.train.merge(split.valid)
    histories = Histories(joined.indptr, joined.item)
    group = method.group
    found = method.history_weights(histories, split).log_weights[0]
    assert np.array_equal(found, group_parity_log_weights(histories, group, split.num_items, counts_from=split.train))
    assert not np.allclose(found, group_parity_log_weights(histories, group, split.num_items))
