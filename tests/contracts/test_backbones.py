"""What every backbone of the registry must do, whatever it is: a new entry is tested without a change here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.structs import History
from model import BACKBONES
from model.modes import setup
from tests.support.contracts import begun, config_of, forms, is_refused
from tests.support.meta import META, meta_stand_ins

CPU = torch.device("cpu")
FORMS = forms()
every_form = pytest.mark.parametrize("form", FORMS)
SEED, ROWS, WIDTH = 3, 7, 4


@pytest.fixture(scope="module")
def prepared():
    """A function: form -> the run that reads the data for it."""
    known = {}

    def get(form):
        if form not in known:
            known[form] = setup.prepare(config_of(**FORMS[form]))
        return known[form]

    return get


@pytest.fixture(scope="module")
def build(prepared):
    """A function: form -> a fresh backbone on the phase's split, the same for the same seed."""

    def make(form, seed=SEED, device=CPU, begin=True):
        run = prepared(form)
        network = BACKBONES[run.config.backbone].build(run.data, run.config, seed, device)
        if begin:
            network.begin_phase(run.protocol.phases[0].split)
        return network

    return make


@pytest.fixture
def backbone(form, build):
    """A backbone that has something to say: one that is fitted is fitted."""
    network = build(form)
    if network.fitted:
        network.fit()
    network.eval()
    return network


@pytest.fixture
def rows(form, prepared, backbone):
    """Users `[B]`, some twice, items `[B, M]`, and histories of all lengths from none on where there are any."""
    return make_rows(prepared(form), backbone)


def make_rows(run, backbone, device=CPU):
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(run.data.num_users, (ROWS,), generator=generator)
    items = torch.randint(run.data.num_items, (ROWS, WIDTH), generator=generator)
    history = None
    if backbone.history_kind is not None:
        length = run.config.sample_size
        read = torch.randint(1, run.data.num_items, (ROWS, length), generator=generator)
        mask = torch.arange(length) < torch.arange(ROWS)[:, None]  # [B, N]
        history = History(torch.where(mask, read, 0).to(device), mask.to(device))
    return users.to(device), items.to(device), history


def some(history, rows):
    return None if history is None else History(history.items[rows], history.mask[rows])


def vectors(backbone, users, history, context=None):
    with torch.no_grad():
        return backbone.encode_users(backbone.prepare() if context is None else context, users, history)


@every_form
def test_it_says_what_it_can_do(form, prepared, backbone):
    config = prepared(form).config
    kind = type(backbone)
    assert backbone.history_kind == kind.history(config) and backbone.history_kind in (None, "sampled", "recent")
    for name in ("inner_product", "free_vectors", "fitted"):
        assert getattr(kind, name) in (True, False)
    assert backbone.num_items == prepared(form).data.num_items
    assert backbone.floats_per_pair > 0 and backbone.vector_width > 0
    if kind.free_vectors:
        assert (backbone.user.num_embeddings, backbone.item.num_embeddings) == (
            prepared(form).data.num_users, backbone.num_items
        )  # fmt: skip


@every_form
def test_shapes(form, prepared, backbone, rows):
    users, items, history = rows
    with torch.no_grad():
        context = backbone.prepare()
        user = backbone.encode_users(context, users, history)
        item = backbone.encode_items(context, items)
        scores = backbone.score(context, user, items)
        everything = backbone.encode_items(context, torch.arange(backbone.num_items))
    assert user.shape == (ROWS, backbone.vector_width)
    assert item.shape[:-1] == items.shape and item.shape[-1] >= backbone.vector_width
    assert scores.shape == items.shape
    assert backbone.score_catalogue(user, everything).shape == (ROWS, backbone.num_items)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in (user, item, scores))


@every_form
def test_scores_of_a_step_are_those_of_the_catalogue(form, backbone, rows):
    users, items, history = rows
    with torch.no_grad():
        context = backbone.prepare()
        user = backbone.encode_users(context, users, history)
        everything = backbone.encode_items(context, torch.arange(backbone.num_items))
        whole = backbone.score_catalogue(user, everything)
        step = backbone.score(context, user, items)
    assert_close(step, whole.gather(1, items), rtol=1e-4, atol=1e-5)
    assert whole.std() > 0
    if backbone.inner_product:
        assert_close(whole, context.users[users] @ context.items.T)


@every_form
def test_a_step_that_prepares_its_own_items_gives_the_same_scores(form, backbone, rows):
    users, items, history = (part if index else part[:2] for index, part in enumerate(rows))
    items, history = items[:2], some(history, slice(0, 2))
    needed = torch.cat([items.flatten(), *([] if history is None else [history.items.flatten()])])
    with torch.no_grad():
        scores = [
            backbone.score(context, backbone.encode_users(context, users, history), items)
            for context in (backbone.prepare(needed), backbone.prepare())
        ]
    assert_close(*scores, rtol=1e-4, atol=1e-5)


@every_form
def test_a_user_is_the_same_whoever_else_is_asked(form, backbone, rows):
    users, _, history = rows
    together = vectors(backbone, users, history)
    alone = torch.cat(
        [vectors(backbone, users[row : row + 1], some(history, slice(row, row + 1))) for row in range(ROWS)]
    )
    assert_close(together, alone, rtol=1e-4, atol=1e-5)
    order = torch.arange(ROWS).flip(0)
    assert_close(vectors(backbone, users[order], some(history, order)), together[order], rtol=1e-4, atol=1e-5)


@every_form
def test_what_a_mask_hides_is_not_read_and_an_empty_history_is_served(form, backbone, rows):
    users, _, history = rows
    if history is None:
        assert torch.equal(vectors(backbone, users, None), vectors(backbone, users, None))
        return
    plain = vectors(backbone, users, history)
    hidden = History(torch.where(history.mask, history.items, 5), history.mask)
    assert_close(vectors(backbone, users, hidden), plain, rtol=1e-5, atol=1e-6)
    assert not history.mask[0].any() and plain[0].isfinite().all()
    # what it shows is read, by its own user alone
    shown = History(
        torch.where(history.mask & (torch.arange(ROWS) == ROWS - 1)[:, None], 9, history.items), history.mask
    )
    changed = vectors(backbone, users, shown)
    assert not torch.allclose(changed[-1], plain[-1])
    assert_close(changed[:-1], plain[:-1], rtol=1e-5, atol=1e-6)


@every_form
def test_the_seed_alone_decides_the_weights(form, build):
    state = torch.get_rng_state()
    first = build(form).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "the global stream is left alone"
    torch.rand(3)
    again, other = build(form).state_dict(), build(form, seed=SEED + 1).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    # what is fitted has no initial weights
    drawn = [name for name, value in first.items() if value.is_floating_point() and value.numel()]
    assert not drawn or not all(torch.equal(first[name], other[name]) for name in drawn)


@every_form
def test_a_state_is_the_whole_network(form, build, backbone, rows):
    users, items, history = rows
    other = build(form, seed=SEED + 1)
    other.load_state_dict(backbone.state_dict())
    other.eval()
    scores = []
    with torch.no_grad():
        for network in (backbone, other):
            context = network.prepare()
            scores.append(network.score(context, network.encode_users(context, users, history), items))
    assert torch.equal(*scores)


@every_form
def test_serving_twice_gives_the_same_and_draws_nothing(form, backbone, rows):
    users, _, history = rows
    state = torch.get_rng_state()
    assert torch.equal(vectors(backbone, users, history), vectors(backbone, users, history))
    assert torch.equal(torch.get_rng_state(), state)


@every_form
def test_gradients_reach_every_weight_that_is_trained(form, build, prepared):
    network = build(form)
    if network.fitted:
        assert not any(parameter.requires_grad for parameter in network.parameters())
        return
    users, items, history = make_rows(prepared(form), network)
    context = network.prepare()
    scores = network.score(context, network.encode_users(context, users, history), items)
    (scores * torch.linspace(-1, 2, scores.numel()).view_as(scores)).sum().backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@every_form
def test_noise_moves_items_or_is_not_taken(form, build, prepared):
    network = build(form)
    if network.fitted:
        return
    noise = torch.zeros(network.noise_shape)
    items = torch.arange(network.num_items)
    assert noise.shape[0] == network.num_items
    with torch.no_grad():
        plain = network.encode_items(network.prepare(), items)
        assert_close(network.encode_items(network.prepare(item_noise=noise), items), plain)
        moved = network.encode_items(network.prepare(item_noise=noise + 0.3), items)
    assert (moved - plain).abs().flatten(1).amax(1).min() > 0


@every_form
def test_vectors_apart_are_the_same_vectors(form, backbone, rows):
    users, _, history = rows
    with torch.no_grad():
        context = backbone.prepare()
        plain, apart = backbone.encode_users_apart(context, users, history)
        assert_close(plain, backbone.encode_users(context, users, history))
    assert apart is None or torch.allclose(apart, plain, rtol=1e-4, atol=1e-5)


@every_form
def test_the_penalty_reads_a_number_a_row_where_it_is_read(form, build, prepared):
    run = prepared(form)
    network = build(form)
    if is_refused(**FORMS[form], l2=0.1):
        return
    users, items, _ = make_rows(run, network)
    norms = network.squared_norms(network.prepare(), users, items)
    assert norms.shape == (ROWS,) and (norms > 0).all() and norms.requires_grad


@every_form
def test_it_is_made_on_any_device_and_a_step_never_waits_for_it(form, prepared, build):
    # torch's meta device has no values: whoever asks for one fails
    network = build(form, device=META, begin=False)
    assert all(value.device == META for value in network.state_dict().values())
    if network.fitted:
        return
    run = prepared(form)
    network.begin_phase(run.protocol.phases[0].split)
    users, items, history = make_rows(run, network, META)
    with meta_stand_ins():
        context = network.prepare(items.flatten())
        scores = network.score(context, network.encode_users(context, users, history), items)
        scores.sum().backward()
    assert scores.shape == items.shape and scores.device == META
    assert all(parameter.grad.device == META for parameter in network.parameters())


@every_form
def test_a_phase_on_another_split_changes_what_is_read_of_it_and_no_weight(form, prepared, build):
    network, split = build(form), prepared(form).protocol.phases[0].split
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        first = network.encode_items(network.prepare(), torch.arange(network.num_items))
        network.begin_phase(split)
        again = network.encode_items(network.prepare(), torch.arange(network.num_items))
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@every_form
def test_steps_of_the_plain_method_lower_the_loss(form):
    trained = begun(**FORMS[form])
    trained.begin_stage("method")
    losses = []
    for _ in range(4):
        losses += [float(values["loss"]) for values in trained.step("method", 3)]
    if trained.backbone.fitted:
        assert not losses and trained.backbone.weight.numel()
        return
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
