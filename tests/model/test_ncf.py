"""Both forms of NCF: their equations written out pair by pair, their sizes and starts, and what weight decay moves."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from data.structs import Batch
from model import NCF_FORMS
from model.losses import cross_entropy_loss
from model.ncf import NCFBPR, NeuMF
from model.training.update import update
from tests.support.contracts import begun, config_of
from tests.support.methods import identical
from tests.support.runs import refused, run_main

every_form = pytest.mark.parametrize("form", NCF_FORMS)
USERS, ITEMS, DIM = 7, 9, 4
ROWS = torch.tensor([0, 3, 3, 6, 1])
# the flags of a tiny run of FADE's form
FADES = {"backbone": "ncf", "ncf_form": "ncf_bpr", "loss": "bpr", "lr": 0.02, "user_hidden": None, "item_hidden": None}


def literal(backbone, user, item):
    """Score one pair by the equations, from the parameters by their names."""
    weights = dict(backbone.named_parameters())
    p, p_deep = backbone.user.weight[user].split(DIM)
    q, q_deep = backbone.item.weight[item].split(DIM)
    hidden = torch.cat([p_deep, q_deep])
    for number in range(len(backbone.layers)):
        hidden = weights[f"layers.{number}.weight"] @ hidden + weights.get(f"layers.{number}.bias", 0)
        hidden = torch.relu(hidden)
    score = weights["output.weight"][0] @ torch.cat([p * q, hidden]) + weights.get("output.bias", 0)
    if "user_bias.weight" in weights:
        score = score + weights["user_bias.weight"][user] + weights["item_bias.weight"][item]
    return score.squeeze()


@pytest.fixture
def backbone(form):
    """A network whose weights are large enough for every part to matter."""
    torch.manual_seed(3)
    network = NCF_FORMS[form](USERS, ITEMS, DIM).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.4)
    return network


@every_form
def test_scores_and_gradients_are_those_of_the_equations(form, backbone):
    items = torch.randint(ITEMS, (len(ROWS), 3))  # some of them twice
    context = backbone.prepare()
    scores = backbone.score(context, backbone.encode_users(context, ROWS, None), items)
    pairs = [
        torch.stack([literal(backbone, user, item) for item in row]) for user, row in zip(ROWS, items, strict=True)
    ]
    assert_close(scores, torch.stack(pairs))
    parameters = list(backbone.parameters())
    gradients = [torch.autograd.grad(cross_entropy_loss(value), parameters) for value in (scores, torch.stack(pairs))]
    assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


@every_form
def test_the_catalogue_is_scored_by_the_equations(form, backbone):
    context = backbone.prepare()
    user, item = backbone.encode_users(context, ROWS, None), backbone.encode_items(context, torch.arange(ITEMS))
    assert user.shape == (len(ROWS), backbone.vector_width) and item.shape == (ITEMS, backbone.vector_width)
    pairs = [torch.stack([literal(backbone, row, other) for other in range(ITEMS)]) for row in ROWS]
    assert_close(backbone.score_catalogue(user, item), torch.stack(pairs))


def test_number_of_parameters():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    # MovieLens-1M: two pairs of tables; 128 -> 64 -> 32 -> 16, and 64 + 16 -> 1
    mlp = (128 * 64 + 64) + (64 * 32 + 32) + (32 * 16 + 16)
    assert count(NeuMF(6040, 3952, 64)) == 2 * 639_488 + mlp + 81
    # ModCloth: 2,441,984 are FADE's matrix factorisation; 128 -> 64 -> 64 -> 64 -> 64, 64 + 64 -> 1, a bias each
    mlp = 128 * 64 + 3 * 64 * 64
    assert count(NCFBPR(37_142, 1_014, 64)) == 2 * 2_441_984 + mlp + 128 + 37_142 + 1_014 == 4_942_732


def test_every_weight_of_fades_form_starts_with_one_deviation():
    torch.manual_seed(0)
    network = NCFBPR(3000, 2000, 64)
    for name, parameter in network.named_parameters():
        assert float(parameter.detach().mean()) == pytest.approx(0, abs=3e-3), name
        # 128 numbers of the output, thousands of everything else
        assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.25 if name == "output.weight" else 0.04), (
            name
        )


def test_neither_noise_nor_the_penalty_reaches_the_biases():
    torch.manual_seed(0)
    network = NCFBPR(USERS, ITEMS, DIM)
    assert network.noise_shape == (ITEMS, 2 * DIM)
    everything = torch.arange(ITEMS)
    clean = network.encode_items(network.prepare(), everything)
    noisy = network.encode_items(network.prepare(item_noise=torch.ones(ITEMS, 2 * DIM)), everything)
    assert_close(noisy - clean, torch.tensor([1.0] * 2 * DIM + [0.0]).expand(ITEMS, -1))
    items = torch.tensor([[1, 2], [8, 1]])
    expected = network.user.weight[:2].square().sum(1) + network.item.weight[items].square().sum((1, 2))
    assert_close(network.squared_norms(network.prepare(), torch.tensor([0, 1]), items), expected)


def test_weight_decay_shrinks_every_row_and_no_bias():
    def after_a_step(decay):
        trained = begun(backbone="ncf", ncf_form="ncf_bpr", loss="bpr", weight_decay=decay)
        trained.begin_stage("method")
        before = {name: value.clone() for name, value in trained.backbone.state_dict().items()}
        whole = next(trained.batches("method", 1))
        few = Batch(whole.users[:8], whole.positives[:8], whole.negatives[:8], None)
        trained.method.train_step(few, "method", "train", update)
        return trained.backbone, before, few

    (plain, before, batch), (decayed, *_) = after_a_step(0.0), after_a_step(100.0)
    untouched = torch.ones(len(before["user.weight"]), dtype=torch.bool)
    untouched[batch.users] = False
    assert untouched.sum() > 10
    rows = {name: network.user.weight[untouched] for name, network in (("plain", plain), ("decayed", decayed))}
    assert torch.equal(rows["plain"], before["user.weight"][untouched])
    # Adam's first step is the rate times the sign
    moved = rows["decayed"] - before["user.weight"][untouched]
    assert_close(moved, -0.01 * before["user.weight"][untouched].sign(), rtol=1e-3, atol=1e-6)
    for name in ("user_bias", "item_bias"):
        assert identical(getattr(plain, name), getattr(decayed, name)), name
    assert not torch.equal(plain.item_bias.weight, before["item_bias.weight"])


@pytest.mark.slow
def test_the_form_reaches_a_run_and_its_weights_do_not_fit_the_other(tmp_path, capsys):
    metrics = run_main(tmp_path, **FADES, epochs=10, weight_decay=1e-4)["metrics"]
    assert metrics["test/ndcg@10"] > metrics["reference/random/ndcg@10"]
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["backbone"]
    assert checkpoint["layers.3.weight"].shape == (64, 64) and checkpoint["item_bias.weight"].shape == (50, 1)
    above = {"enable_fairness": True, "fairness_method": "cofair", "backbone_checkpoint": str(tmp_path / "run")}
    levels = {
        **above,
        "method_option": ["levels=1"],
        "run_name": "levels",
        "loss": None,
        "lr": None,
        "batch_size": None,
    }
    error = refused(capsys, tmp_path, **{**FADES, **levels, "ncf_form": "neumf"})
    assert "--ncf_form was ncf_bpr, is neumf" in error


@pytest.mark.slow
@pytest.mark.parametrize(("method", "served"), [("cofair", "test/t1"), ("fabuhs", "test"), ("fda", "test")])
def test_methods_act_on_vectors_with_a_bias(tmp_path, method, served):
    options = ["levels=1", "epochs=1"] if method == "cofair" else []
    values = {**FADES, "loss": None if method == "fda" else "bpr", "epochs": 1}
    result = run_main(tmp_path, **values, enable_fairness=True, fairness_method=method, method_option=options)
    assert result["metrics"][f"{served}/ndcg@10"] > 0


@pytest.mark.parametrize("backbone", ["bprmf", "sparsenn", "lightgcn", "slim"])
def test_other_backbones_refuse_the_form(backbone):
    assert config_of(backbone=backbone).ncf_form is None
    with pytest.raises(ValueError, match="--ncf_form=ncf_bpr has no effect without --backbone=ncf"):
        config_of(backbone=backbone, ncf_form="ncf_bpr")


def test_the_form_is_the_papers_unless_the_protocol_is_fades():
    papers, fades = (config_of(backbone="ncf", protocol=protocol) for protocol in ("loo", "fade"))
    assert (papers.ncf_form, papers.weight_decay) == ("neumf", 0.0)
    assert (fades.ncf_form, fades.loss, fades.weight_decay) == ("ncf_bpr", "bpr", 1e-4)
