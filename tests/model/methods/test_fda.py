"""FDA: the losses of both forms against literal loops, what each step may change, and runs on every backbone."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from data.options import parse_options
from model.methods.fda import FDA
from model.runs.streams import torch_generator
from model.training.update import update
from tests.support.methods import identical
from tests.support.no_host_sync import NoHostSync
from tests.support.runs import refused, run_main


def loss_of(loss):
    return loss.detach().item()


def softplus(value):
    return math.log1p(math.exp(value))


def spread_out(network, method, size=0.7):
    """Give tables and noise values of a size at which losses differ."""
    generator = torch_generator(3)
    with torch.no_grad():
        for weight in (network.user.weight, network.item.weight, method.noise):
            weight.normal_(std=size, generator=generator)


# --- What a step changes ---


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("backbone", ["bprmf", "ncf", "gccf", "lightgcn", "sparsenn"])
def test_a_noise_step_leaves_the_model_alone_and_a_model_step_the_noise(made, backbone, form):
    network, method, batch = made(backbone, [f"form={form}", "epsilon=0.02", "noise_lr=0.05"])
    weights, noise = copy.deepcopy(network.state_dict()), method.noise.detach().clone()
    for _ in range(3):
        values = method.train_step(batch, "method", "noise", update)
        assert method.noise.abs().max() <= 0.02
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not torch.equal(method.noise, noise)
    assert values["noise/size"] == pytest.approx(float(method.noise.detach().square().mean().sqrt()))
    assert all(parameter.requires_grad for parameter in network.parameters())
    noise = method.noise.detach().clone()
    method.train_step(batch, "method", "model", update)
    assert torch.equal(method.noise, noise)
    assert any(not torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_the_noise_of_the_released_form_is_unbounded_and_that_of_the_paper_is_not():
    assert math.isinf(FDA.Options(form="code").bound)
    assert FDA.Options(form="code", epsilon=0.25).bound == 0.25
    assert FDA.Options(form="paper").bound == 0.5 and FDA.Options(form="paper", epsilon=0.1).bound == 0.1


@pytest.mark.parametrize("form", ["paper", "code"])
def test_each_form_takes_its_passes_in_its_order(made, form):
    _, method, _ = made(options=[f"form={form}", "noise_passes=2", "model_passes=3"])
    expected = ["noise"] * 2 + ["model"] * 3
    assert list(method.passes("method", 1)) == (expected if form == "paper" else expected[2:] + expected[:2])


def test_the_warm_up_trains_the_plain_model_and_has_no_noise_pass(made):
    plain, none, batch = made(name="none", l2=0.01)
    network, method, _ = made(options=["warmup_epochs=2", "model_passes=2"], l2=0.01)
    noise = method.noise.detach().clone()
    for epoch in (1, 2):
        method.begin_epoch("method", epoch)
        assert method.passes("method", epoch) == ("plain", "plain")
        method.train_step(batch, "method", "plain", update)
        none.train_step(batch, "method", "train", update)
    assert identical(plain, network)
    assert torch.equal(noise, method.noise)
    assert method.passes("method", 3) == ("model", "model", "noise")


# --- Without fakes FDA is its backbone ---


@pytest.mark.parametrize("options", [["form=paper"], ["form=code", "rotate_negatives=False"]])
@pytest.mark.parametrize("backbone", ["bprmf", "gccf"])
def test_without_fakes_loss_and_gradients_are_those_of_bpr(made, backbone, options):
    plain, none, batch = made(backbone, name="none", l2=0.01)
    network, method, _ = made(backbone, [*options, "mask_ratio=0"], l2=0.01)
    with torch.no_grad():
        method.noise.fill_(7.0 if options[0] == "form=code" else 0.4)
    ours, theirs = method._model_loss(batch, "method"), none.batch_loss(none.forward(batch), batch, "method")
    assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    for (name, own), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert_close(own.grad, other.grad, msg=name)


@pytest.mark.parametrize("backbone", ["bprmf", "ncf", "gccf", "lightgcn", "sparsenn"])
def test_without_noise_a_fake_is_the_real_item(made, backbone):
    network, method, _ = made(backbone, ["form=paper"])
    with torch.no_grad():
        method.noise.zero_()
        items = torch.arange(network.num_items)
        clean = network.encode_items(network.prepare(), items)
        assert torch.equal(network.encode_items(method._noisy(method.noise, items), items), clean)


# --- The paper's form against a loop ---


def twin_paper(network, method, batch, masked=None):
    """Both losses of the paper, row by row; `masked [I]` makes the outer one, None the inner one."""
    state = method.generator.get_state()
    partners, exists = method._partners(method.codes[batch.users])
    method.generator.set_state(state)
    user, item = network.user.weight.detach(), network.item.weight.detach()
    noisy = item + method.noise.detach()
    positive, negative = method.options.positive_hypothesis, method.options.negative_hypothesis
    rows, by_group = [], {}
    for row in range(len(batch.users)):
        u, i, negatives = user[batch.users[row]], batch.positives[row], batch.negatives[row]
        real_positive = float(u @ item[i])
        real = [float(u @ item[j]) for j in negatives]
        values = []
        for column in range(partners.shape[1]):
            if not exists[row, column]:
                continue
            partner = partners[row, column]
            i1, negatives1 = batch.positives[partner], batch.negatives[partner]
            terms = []
            if positive:
                fake = float(u @ noisy[i1]) if masked is None or masked[i1] else real_positive
                terms.append(np.mean([softplus(j - fake) for j in real]))
            if negative:
                fakes = [
                    float(u @ noisy[j1]) if masked is None or masked[j1] else own
                    for j1, own in zip(negatives1, real, strict=True)
                ]
                terms.append(np.mean([softplus(fake - real_positive) for fake in fakes]))
            values.append(np.mean(terms))
        if values:
            by_group.setdefault(int(method.codes[batch.users[row]]), []).append(np.mean(values))
        rows.append(np.mean(values) if values else np.mean([softplus(j - real_positive) for j in real]))
    return np.mean(rows) if masked is not None else sum(np.mean(values) for values in by_group.values())


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(2, 4),
    unknown=st.floats(0, 0.6),
    hypotheses=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_both_losses_of_the_paper_equal_a_loop(shared_made, seed, groups, unknown, hypotheses):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(60) < unknown, -1, rng.integers(0, groups, 60))
    labels = tuple("abcd"[:groups])
    options = ["form=paper", f"positive_hypothesis={hypotheses[0]}", f"negative_hypothesis={hypotheses[1]}"]
    network, method, batch = shared_made(options=options, codes=codes, labels=labels)
    spread_out(network, method)
    method.generator.manual_seed(seed)
    expected = twin_paper(network, method, batch)
    assert loss_of(method._noise_loss(batch)) == pytest.approx(expected, rel=1e-4)
    masked = torch.from_numpy(rng.random(network.num_items) < 0.5)
    method._mask = lambda: masked
    expected = twin_paper(network, method, batch, masked)
    assert loss_of(method._model_loss(batch, "method")) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 5), rows=st.integers(1, 40))
def test_a_partner_is_a_row_of_another_group_and_every_such_row_may_be_one(shared_made, seed, groups, rows):
    rng = np.random.default_rng(seed)
    _, method, _ = shared_made(codes=rng.integers(0, groups, 60), labels=tuple(map(str, range(groups))))
    codes = torch.from_numpy(rng.integers(-1, groups, rows))
    partners, exists = method._partners(codes)
    present = set(codes.tolist())
    for row in range(rows):
        own = int(codes[row])
        others = [(own + shift) % groups for shift in range(1, groups)]
        if own < 0:
            assert not exists[row].any()
            continue
        assert exists[row].tolist() == [other in present for other in others]
        for column, other in enumerate(others):
            assert not exists[row, column] or int(codes[partners[row, column]]) == other


def test_partners_are_drawn_evenly(made):
    _, method, _ = made(codes=np.arange(60) % 2)
    codes = torch.tensor([0] + [1] * 4)
    drawn = torch.stack([method._partners(codes)[0][0, 0] for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert shares[0] == 0
    assert_close(shares[1:], torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_the_mask_takes_no_more_than_its_share_of_items(made):
    for ratio in (0.0, 0.13, 0.4, 1.0):
        network, method, _ = made(options=["form=paper", f"mask_ratio={ratio}"])
        masks = torch.stack([method._mask() for _ in range(200)])
        assert (masks.sum(1) == int(ratio * network.num_items)).all()
        # redrawn each time, no item is left out
        assert ratio in (0.0, 1.0) or (masks.any(0).all() and not masks.all(0).any())


@pytest.mark.parametrize("form", ["paper", "code"])
def test_names_of_two_groups_do_not_matter(made, form):
    codes = np.arange(60) % 2
    losses = []
    for own in (codes, 1 - codes):
        network, method, batch = made(options=[f"form={form}"], codes=own)
        spread_out(network, method)
        losses.append([loss_of(method._noise_loss(batch)), loss_of(method._model_loss(batch, "method"))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_group_without_users_changes_nothing(made, form):
    """Three groups of which one is empty are two groups."""
    codes = np.arange(60) % 2
    losses = []
    for labels in (("a", "b"), ("a", "b", "nobody")):
        network, method, batch = made(options=[f"form={form}"], codes=codes, labels=labels)
        spread_out(network, method)
        # a row draws a partner from each other group: the draws of the two must be the same
        draws = torch.rand(len(batch.users), 1, generator=torch_generator(5))

        def partners(own, method=method, draws=draws):
            real = torch.rand
            try:
                torch.rand = lambda shape, **options: draws.expand(shape)
                return FDA._partners(method, own)
            finally:
                torch.rand = real

        method._partners = partners
        masked = torch.arange(network.num_items) % 2 == 0
        method._mask = lambda masked=masked: masked
        losses.append([loss_of(method._noise_loss(batch)), loss_of(method._model_loss(batch, "method"))])
    if form == "code":
        # the released form sums over the groups; an average over ordered pairs keeps its scale
        losses[1][0] *= 2 / 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- The released form against a loop ---


def twin_released(network, method, batch, l2):
    user, item, noise = network.user.weight.detach(), network.item.weight.detach(), method.noise.detach()
    noisy = item.clamp(-1, 1) + noise
    codes = method.codes[batch.users].tolist()
    rows, inner = range(len(codes)), 0.0
    for own, other in ((0, 1), (1, 0)):
        mine, theirs = [row for row in rows if codes[row] == own], [row for row in rows if codes[row] == other]
        losses, norms = [], []
        for place, row in enumerate(mine):
            borrowed = batch.positives[theirs[place % len(theirs)]]
            u, fake = user[batch.users[row]], noisy[borrowed]
            losses += [softplus(float(u @ item[j]) - float(u @ fake)) for j in batch.negatives[row]]
            norms.append(float(fake @ fake))
        inner += np.mean(losses) + l2 * np.mean(norms)
    count = int(method.options.mask_ratio * len(codes))
    outer, norms = [], []
    for row in rows:
        u = user[batch.users[row]]
        positive = (noisy if row >= len(codes) - count else item)[batch.positives[row]]
        source = (row - count) % len(codes) if method.options.rotate_negatives else row
        table = noisy if row < count else item
        outer += [softplus(float(u @ table[j]) - float(u @ positive)) for j in batch.negatives[source]]
        own = [float(item[j] @ item[j]) for j in batch.negatives[row]]
        norms.append(float(u @ u) + float(positive @ positive) + sum(own))
    return inner, np.mean(outer) + l2 * np.mean(norms)


def looped_noise_loss(method, batch):
    """The released inner loss by a loop over ordered pairs of groups that have rows in the batch."""
    forward, codes = method.forward(batch), method.codes[batch.users]
    noisy = method._noisy(method.noise, batch.positives)
    total, pairs = 0 * method.noise.sum(), 0
    members = [torch.nonzero(codes == code).flatten() for code in range(method.num_groups)]
    for rows, theirs in itertools.permutations([own for own in members if len(own)], 2):
        fake = batch.positives[theirs[torch.arange(len(rows)) % len(theirs)], None]
        scores = method.backbone.score(noisy, forward.user[rows], fake)
        total = total + torch.nn.functional.softplus(forward.scores[rows, 1:] - scores).mean()
        total = total + method.config.l2 * method._squared_norm(noisy, fake).mean()
        pairs += 1
    return total * (method.num_groups / max(pairs, 1))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), groups=st.integers(2, 6), unknown=st.floats(0, 1), rows=st.integers(2, 50))
def test_the_inner_loss_of_any_groups_equals_a_loop_over_their_pairs(shared_made, seed, groups, unknown, rows):
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(60) < unknown, -1, rng.integers(0, groups, 60))
    network, method, batch = shared_made(codes=codes, labels=tuple("abcdef"[:groups]), l2=0.03, batch_size=rows)
    spread_out(network, method, size=0.9)
    slopes = []
    for loss in (looped_noise_loss(method, batch), method._noise_loss(batch)):
        (slope,) = torch.autograd.grad(loss, method.noise)
        slopes.append((loss.detach(), slope))
    assert_close(*slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("backbone", ["bprmf", "ncf"])
def test_no_step_makes_the_host_wait_for_the_device(made, form, backbone):
    _, method, batch = made(backbone, [f"form={form}"], codes=np.arange(60) % 4 - 1, l2=0.01)
    with NoHostSync():
        losses = [method._noise_loss(batch), method._model_loss(batch, "method")]
        sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize(("backbone", "clamps"), [("bprmf", True), ("pmf", False), ("lightgcn", False)])
def test_the_released_form_clamps_the_items_of_the_backbone_that_asks_for_it(made, backbone, clamps):
    network, method, batch = made(backbone)
    with torch.no_grad():
        network.item.weight.fill_(3.0)
        method.noise.fill_(0.25)
        seen, prepare = [], network.prepare
        network.prepare = lambda items, noise: seen.append(network.item.weight + noise) or prepare(items, noise)
        method._noisy(method.noise, batch.positives)
    assert_close(seen[0], torch.full_like(seen[0], 1.25 if clamps else 3.25))


def test_the_loss_flag_is_read_by_a_warm_up_alone(make_config):
    plain, warm = make_config(), make_config(method_option=("warmup_epochs=1",))
    assert "loss" in FDA.unread(plain) and "loss" not in FDA.unread(warm)
    assert "adversarial_ramp" in FDA.unread(warm)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.5])
def test_both_losses_of_the_released_form_equal_a_loop(made, rotate, ratio):
    options = ["form=code", f"mask_ratio={ratio}", f"rotate_negatives={rotate}"]
    network, method, batch = made(options=options, codes=np.arange(60) % 2, l2=0.03)
    spread_out(network, method, size=0.9)
    inner, outer = twin_released(network, method, batch, 0.03)
    assert loss_of(method._noise_loss(batch)) == pytest.approx(inner, rel=1e-5)
    assert loss_of(method._model_loss(batch, "method")) == pytest.approx(outer, rel=1e-5)


def test_noise_of_the_released_form_is_on_one_side_of_a_pair(made, monkeypatch):
    _, method, batch = made(options=["form=code", "mask_ratio=0.5"])
    fakes = []
    real = torch.where

    def where(condition, *arguments):
        fakes.append(condition)
        return real(condition, *arguments)

    monkeypatch.setattr(torch, "where", where)
    method._model_loss(batch, "method")
    fake = next(mask for mask in fakes if mask.shape == (len(batch.users), 3))
    assert not (fake[:, :1] & fake[:, 1:]).any()
    assert fake[:, 0].sum() == fake[:, 1].sum() == len(batch.users) // 2


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_inner_loss_gives_a_group_the_items_of_the_other(made, monkeypatch, form):
    """Every fake positive of a user is an item that some user of another group has in the batch, and never a noisy
    item that nobody of another group has."""
    network, method, batch = made(options=[f"form={form}"])
    codes = method.codes[batch.users]
    asked = []
    score = type(network).score

    def spy(self, context, user, items):
        asked.append((context, user, items))
        return score(self, context, user, items)

    monkeypatch.setattr(type(network), "score", spy)
    method._noise_loss(batch)
    clean, *noisy = asked
    owner_of = {tuple(vector.tolist()): int(code) for vector, code in zip(clean[1], codes, strict=True)}
    assert noisy and all(context is not clean[0] for context, _, _ in noisy)
    seen = set()
    for _, user, items in noisy:
        for vector, fake in zip(user, items[:, 0], strict=True):
            own = owner_of[tuple(vector.tolist())]
            seen.add(own)
            assert fake in batch.positives[codes == 1 - own]
    assert seen == {0, 1}


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("code", [0, -1])
def test_a_batch_of_one_group_or_none_has_no_inner_loss(made, form, code):
    network, method, batch = made(options=[f"form={form}"], codes=np.full(60, code), labels=("a", "b"))
    assert loss_of(method._noise_loss(batch)) == 0
    method.train_step(batch, "method", "noise", update)
    assert network.item.weight.isfinite().all() and method.noise.isfinite().all()
    assert math.isfinite(loss_of(method._model_loss(batch, "method")))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_training_makes_the_other_groups_items_liked(made, form):
    """The inner problem does what it is for: fakes of the other group's positives come to beat clean negatives."""
    network, method, batch = made(options=[f"form={form}", "noise_lr=0.05", "epsilon=0.5"])
    spread_out(network, method, size=0.5)
    with torch.no_grad():
        method.noise.clamp_(-0.5, 0.5)
    before = loss_of(method._noise_loss(batch))
    for _ in range(60):
        method.train_step(batch, "method", "noise", update)
    assert loss_of(method._noise_loss(batch)) < 0.9 * before


# --- Settings ---


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("form=both", "allowed is paper or code"),
        ("epsilon=-1", "allowed is 0"),
        ("mask_ratio=1.5", r"allowed is a share in \[0, 1\]"),
        ("noise_passes=0", "allowed is 1 or more"),
        ("noise_lr=nan", "allowed is a positive number"),
        ("ratio=0.5", "allowed is name=value with name in"),
    ],
)
def test_an_option_out_of_range_is_an_error(assignment, words):
    with pytest.raises(ValueError, match=words):
        parse_options(FDA.Options, [assignment])


def test_both_hypotheses_cannot_be_off():
    with pytest.raises(ValueError, match="allowed is true where H2 is off"):
        FDA.Options(form="paper", positive_hypothesis=False, negative_hypothesis=False)


def test_an_option_that_a_form_does_not_read_is_an_error():
    for form, name in (("code", "positive_hypothesis"), ("code", "negative_hypothesis"), ("paper", "rotate_negatives")):
        with pytest.raises(ValueError, match=f"{name}=False: allowed is true but with form="):
            FDA.Options(form=form, **{name: False})


FAIR = {"enable_fairness": True, "fairness_method": "fda", "user_hidden": None, "item_hidden": None}


def test_what_fda_cannot_do_is_an_error(tmp_path, capsys):
    assert "leave --upstream_compat out" in refused(capsys, tmp_path, **FAIR, upstream_compat=True)


# --- Whole runs ---


@pytest.mark.parametrize(
    ("backbone", "form", "protocol"),
    [
        *itertools.product(["bprmf", "gccf"], ["paper", "code"], ["fda"]),
        ("ncf", "paper", "loo"),
        ("sparsenn", "paper", "loo"),
        ("sparsenn", "code", "fda"),
        ("lightgcn", "code", "loo"),
    ],
)
def test_a_run_of_each_form_on_each_kind_of_backbone(tmp_path, backbone, form, protocol):
    values = {"backbone": backbone, "protocol": protocol, "method_option": [f"form={form}", "noise_lr=0.01"]}
    if backbone == "sparsenn":
        values |= {"user_hidden": ["16"], "item_hidden": ["16"]}
    ks = ["10", "20"]
    result = run_main(tmp_path, **{**FAIR, "eval_k": ks, "eval_every": 1, **values})
    metrics = result["metrics"]
    assert result["method"] == "fda" and result["protocol"] == protocol
    assert 0 < metrics["test/hr@10"] < 1
    assert ("test/dp_code@10/gender" in metrics) == (protocol == "fda")
