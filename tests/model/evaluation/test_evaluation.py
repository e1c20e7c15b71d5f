"""Serving: the same weights give the same numbers, however the work is cut into blocks."""

from __future__ import annotations

import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.protocols.base import Protocol
from data.sampling.sources import history_source
from fairness_utils import target_shares
from model import METHODS
from model.evaluation import ranker
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import CHANCE_PARTS, MetricKey
from model.evaluation.metrics import evaluate
from model.evaluation.probes import held_out_users
from model.evaluation.questions import ask_tests
from model.evaluation.ranking import ENGINE_FLOATS
from model.evaluation.reranking import rerank_ranking
from model.runs.environment import Environment
from model.runs.run import Run
from model.runs.streams import stream_seeds, torch_generator
from model.sparsenn import SparseNN
from model.training.batches import batch_sampler
from tests.support.evaluation import ask_some

CPU = torch.device("cpu")
TOP = 10


@pytest.fixture
def make_evaluator(tiny_data, make_config):
    """A function: settings -> Evaluator of an untrained network, whose weights depend on the seed alone."""

    def make(name="none", **changes):
        config = make_config(**changes)
        seeds = stream_seeds(config.seed)
        backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], CPU)
        held_out = held_out_users(tiny_data.user_groups["gender"].codes, seed=1)
        environment = Environment(config, tiny_data.user_groups, held_out, seeds, CPU)
        return Evaluator(backbone, METHODS[name](backbone, environment), environment)

    return make


def rank(evaluator, phase, task=None):
    return evaluator.rank(phase.tests[0] if task is None else task, phase.split.test_histories, phase.split, TOP)


def assert_same(first, second):
    for field in ("users", "ranks", "topk", "candidates"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)


@pytest.mark.parametrize("synthesis", ["none", "mean", "attention", "gru"])
def test_the_same_weights_give_the_same_numbers_every_time(make_evaluator, tiny_phase, synthesis):
    evaluator = make_evaluator(synthesis_type=synthesis)
    first = rank(evaluator, tiny_phase)
    torch.rand(5)
    np.random.default_rng().random(3)
    rank(evaluator, tiny_phase, tiny_phase.valid)
    for again in (rank(evaluator, tiny_phase), rank(make_evaluator(synthesis_type=synthesis), tiny_phase)):
        assert_same(first, again)
        np.testing.assert_array_equal(first.scores, again.scores)
    other = make_evaluator(synthesis_type=synthesis, seed=1)
    assert not np.array_equal(first.ranks, rank(other, tiny_phase).ranks)


def test_ranks_follow_new_weights(make_evaluator, tiny_phase):
    evaluator = make_evaluator()
    before = rank(evaluator, tiny_phase)
    with torch.no_grad():
        for parameter in evaluator.backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch_generator(1)))
    assert not np.array_equal(before.ranks, rank(evaluator, tiny_phase).ranks)


def test_evaluation_leaves_weights_and_random_streams_alone(make_evaluator, tiny_phase):
    evaluator = make_evaluator()
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in evaluator.backbone.state_dict().items()}
    rank(evaluator, tiny_phase)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in evaluator.backbone.state_dict().items())
    assert evaluator.backbone.training
    assert not any(parameter.grad is not None for parameter in evaluator.backbone.parameters())


@pytest.mark.parametrize("scorer", ["dot_compress", "dot"])
@pytest.mark.parametrize("block_mb", [1e-5, 0.05, 0.2])
def test_ranks_do_not_depend_on_the_size_of_blocks(make_evaluator, tiny_phase, scorer, block_mb):
    whole = rank(make_evaluator(scorer=scorer), tiny_phase)
    blocks = rank(make_evaluator(scorer=scorer, eval_block_mb=block_mb), tiny_phase)
    assert_same(whole, blocks)
    np.testing.assert_allclose(whole.scores, blocks.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pairs", [1, 7, 100])
def test_ranks_do_not_depend_on_the_size_of_tiles(make_evaluator, tiny_phase, monkeypatch, pairs):
    evaluator = make_evaluator()
    whole = rank(evaluator, tiny_phase)
    monkeypatch.setattr(ranker, "CACHE_FLOATS", pairs * evaluator.backbone.floats_per_pair)
    assert_same(whole, rank(make_evaluator(), tiny_phase))


@pytest.mark.parametrize("block_mb", [0.05, 0.2])
def test_scorer_and_engine_together_keep_to_the_budget(make_evaluator, tiny_phase, monkeypatch, block_mb):
    evaluator = make_evaluator(eval_block_mb=block_mb)
    blocks, tiles = [], []
    engine, scorer = ranker.rank_catalogue, evaluator.backbone.score_catalogue

    def watch_engine(score, *arguments):
        return engine(lambda users: blocks.append(len(users)) or score(users), *arguments)

    def watch_scorer(user, item):
        tiles.append(len(user) * len(item))
        return scorer(user, item)

    monkeypatch.setattr(ranker, "rank_catalogue", watch_engine)
    monkeypatch.setattr(evaluator.backbone, "score_catalogue", watch_scorer)
    for on_cpu in (True, False):
        if on_cpu:
            monkeypatch.setattr(ranker, "CACHE_FLOATS", 3000)
        rank(evaluator, tiny_phase)
        used = max(blocks) * 40 * ENGINE_FLOATS + max(tiles) * evaluator.backbone.floats_per_pair
        limit = min(block_mb * 2**20 / 4, 2 * 3000 if on_cpu else np.inf)
        assert limit / 3 < used <= limit
        monkeypatch.setattr(ranker, "CACHE_FLOATS", 1 << 40)
        blocks.clear()
        tiles.clear()


def test_the_catalogue_is_encoded_once_a_ranking(make_evaluator, tiny_phase, monkeypatch):
    evaluator, modes = make_evaluator(), []
    prepare = evaluator.backbone.prepare
    monkeypatch.setattr(evaluator.backbone, "prepare", lambda: modes.append(evaluator.backbone.training) or prepare())
    rank(evaluator, tiny_phase)
    assert modes == [False]
    assert evaluator.backbone.training


def test_sampled_candidates_do_not_depend_on_the_size_of_blocks(make_evaluator, tiny_phase):
    task = dataclasses.replace(ask_some(tiny_phase.tests[0], np.arange(1, 60, 2)), candidates=8)
    whole = rank(make_evaluator(), tiny_phase, task)
    assert np.all(whole.candidates == 9)
    assert_same(whole, rank(make_evaluator(eval_block_mb=0.005), tiny_phase, task))


def test_a_ranking_equals_a_naive_loop(make_evaluator, tiny_phase):
    evaluator, split = make_evaluator(), tiny_phase.split
    task, backbone = tiny_phase.tests[0], evaluator.backbone
    ranking = rank(evaluator, tiny_phase)
    vectors = evaluator.represent(ranking.users, split.test_histories, split)
    with torch.no_grad():
        context, everything = backbone.prepare(), torch.arange(split.num_items)
        for row, user in enumerate(ranking.users):
            scores = backbone.score(context, vectors[row : row + 1], everything[None])[0].numpy().copy()
            scores[task.excluded[user]] = -np.inf
            target = task.relevant[user][0]
            assert ranking.ranks[row] == 1 + (scores > scores[target]).sum()
            order = np.argsort(-scores, kind="stable")[:TOP]
            np.testing.assert_array_equal(ranking.topk[row], order)


def test_only_users_with_a_question_are_ranked(make_evaluator, tiny_phase):
    some = np.arange(0, tiny_phase.split.num_users, 3)
    ranking = rank(make_evaluator(), tiny_phase, ask_some(tiny_phase.tests[0], some))
    np.testing.assert_array_equal(ranking.users, some)


@pytest.mark.parametrize("draws", [1, 3])
def test_draws_are_averaged(make_evaluator, tiny_phase, draws):
    evaluator, split = make_evaluator(eval_history_draws=draws), tiny_phase.split
    users = np.arange(split.num_users)
    vectors = evaluator.represent(users, split.test_histories, split)
    histories = split.test_histories
    weights = evaluator.method.history_weights(histories, split)
    sampler = history_source("sampled", histories, weights, evaluator.environment.config.sample_size, CPU)
    generator = torch_generator(evaluator.environment.seeds["evaluation"])
    backbone, rows = evaluator.backbone, torch.from_numpy(users)
    with torch.no_grad():
        context = backbone.prepare()
        parts = [backbone.encode_users(context, rows, sampler.sample(rows, None, generator)) for _ in range(draws)]
    assert draws == 1 or not torch.equal(parts[0], parts[1])
    assert_close(vectors, torch.stack(parts).mean(0))


def test_more_draws_come_closer_to_the_expected_vector(make_evaluator, tiny_phase):
    split, users = tiny_phase.split, np.arange(tiny_phase.split.num_users)

    def vectors(draws):
        return make_evaluator(eval_history_draws=draws).represent(users, split.test_histories, split)

    expected = vectors(200)
    assert (vectors(20) - expected).norm() < 0.5 * (vectors(1) - expected).norm()


def test_transform_of_the_method_reaches_what_is_served(make_evaluator, tiny_phase):
    evaluator, split = make_evaluator(), tiny_phase.split
    users, seen = np.array([3, 50]), []

    def transform(vectors, rows, control):
        seen.append((rows.tolist(), control))
        return 2 * vectors

    plain = evaluator.represent(users, split.test_histories, split)
    evaluator.method.transform_users = transform
    changed = evaluator.represent(users, split.test_histories, split, "mild")
    assert seen == [([3, 50], "mild")]
    assert_close(changed, 2 * plain)


@pytest.mark.probes
def test_users_are_encoded_once_for_all_controls_and_probes(make_evaluator, tiny_data, tiny_phase, monkeypatch):
    evaluator, encoded, probed = make_evaluator(), [], []
    strengths = {"none": 1.0, "half": 0.5, "strong": -1.0}
    evaluator.method.controls = lambda: tuple(strengths)
    evaluator.method.transform_users = lambda user, users, control: user * strengths[control]
    encode = evaluator.backbone.encode_users

    def counted(context, users, history):
        encoded.append(len(users))
        return encode(context, users, history)

    def probe(vectors, groups, held_out, seed):
        probed.append(vectors)
        return {"leakage_auc/gender": float(vectors.mean())}

    monkeypatch.setattr(evaluator.backbone, "encode_users", counted)
    run = Run(tiny_data, Protocol("toy", "", (TOP,), (tiny_phase,), probe=probe), evaluator.environment)
    answers = {answer.key.control: answer for answer in ask_tests(run, tiny_phase, evaluator)}
    assert encoded == [60], "all users in one block, once"
    split, task = tiny_phase.split, tiny_phase.tests[0]
    for control, vectors in zip(strengths, probed, strict=True):
        assert answers[control].metrics["leakage_auc/gender"] == float(vectors.mean())
        alone = evaluator.represent(np.arange(60), split.test_histories, split, control)
        np.testing.assert_array_equal(vectors, alone.numpy())
        assert_same(answers[control].ranking, evaluator.rank(task, split.test_histories, split, TOP, control))


def test_evaluation_puts_every_module_back_into_its_mode(make_evaluator, tiny_phase):
    evaluator = make_evaluator()
    modules = list(evaluator.backbone.modules())
    modules[-1].eval()
    before = [module.training for module in modules]
    assert len(set(before)) == 2
    rank(evaluator, tiny_phase)
    assert [module.training for module in modules] == before


def test_training_and_evaluation_share_a_source_of_histories_until_the_split_changes(make_evaluator, tiny_phase):
    evaluator = make_evaluator()
    method, split = evaluator.method, tiny_phase.split
    run = SimpleNamespace(config=evaluator.config, device=CPU)
    source = batch_sampler(run, tiny_phase, evaluator.backbone, method).history
    rank(evaluator, tiny_phase)
    assert method.histories.of(split.test_histories, split) is source
    freed = weakref.ref(source)
    del source
    other = dataclasses.replace(split)
    assert method.histories.of(other.histories, other) is not freed()
    assert freed() is None


def test_yardsticks_are_popularity_and_chance(make_evaluator, tiny_phase):
    split, task, evaluator = tiny_phase.split, tiny_phase.tests[0], make_evaluator()
    yardsticks = evaluator.yardsticks(task, split, TOP)
    assert list(yardsticks) == ["popular", "random"]
    popular = yardsticks["popular"]
    for row, user in enumerate(popular.users):
        degree = split.degree.astype(float)
        degree[task.excluded[user]] = -1
        np.testing.assert_array_equal(popular.topk[row], np.argsort(-degree, kind="stable")[:TOP])
    assert_same(yardsticks["random"], evaluator.yardsticks(task, split, TOP)["random"])
    place = yardsticks["random"].ranks / yardsticks["random"].candidates
    assert 0.4 < place.mean() < 0.62
    # untrained weights must not be able to do better than chance by any leak of the answer
    place = rank(evaluator, tiny_phase).ranks / popular.candidates
    assert 0.3 < place.mean() < 0.7


@pytest.mark.parametrize("target", ["catalogue", "train"])
def test_reranking_takes_its_settings_from_the_config(make_evaluator, tiny_phase, target):
    evaluator = make_evaluator(
        rerank_fair=True, rerank_alpha=0.5, exposure_floor=0.7, eval_k=(5,), rerank_pool=8, rerank_target=target
    )
    split, ranking = tiny_phase.split, rank(evaluator, tiny_phase)
    popularity = split.item_groups["popularity"]
    shares = target_shares(popularity, split.degree if target == "train" else None)
    expected, infeasible = rerank_ranking(ranking, popularity, 0.5, 0.7, 5, shares, 8)
    reranked, count = evaluator.rerank(ranking, split)
    np.testing.assert_array_equal(reranked.topk, expected.topk)
    assert count == infeasible.sum()
    for change in ({"alpha": 0.0}, {"k": 6}, {"exposure_floor": 0.0}, {"pool": 10}):
        settings = {"alpha": 0.5, "exposure_floor": 0.7, "k": 5, "target": shares, "pool": 8} | change
        other = rerank_ranking(ranking, popularity, **settings)[0]
        assert not np.array_equal(reranked.topk, other.topk), change


@pytest.mark.probes
def test_leakage_is_reported_per_attribute_and_sees_what_is_served(make_evaluator, tiny_data, tiny_phase):
    evaluator = make_evaluator()
    gender, split = tiny_data.user_groups["gender"], tiny_phase.split
    held_out = held_out_users(gender.codes, seed=1)

    def reveal(vectors, rows, control):
        assert control == "mild"
        return torch.cat([vectors[:, :2] * 0.01, torch.from_numpy(gender.codes)[rows, None].float()], dim=1)

    evaluator.method.transform_users = reveal
    results = evaluator.leakage(split, {"gender": gender}, held_out, "mild")
    figures = [
        MetricKey(f"leakage_auc{kind}", group="gender") for kind in ("", "_linear", "_mlp", "_within", "_erased")
    ]
    assert set(results) == {str(key.of(part)) for key in figures for part in ("", *CHANCE_PARTS)}
    # the strongest of three attackers has more than a half by chance
    assert 0.5 < results["leakage_auc/chance/gender"] < 0.8 and results["leakage_auc/p/gender"] < 0.01
    assert results["leakage_auc/gender"] == results["leakage_auc_linear/gender"] == 1.0
    # twelve held-out users: which of them a chance direction tells apart is up to the draw, all of them is not
    assert results["leakage_auc_erased/gender"] < 1.0


def test_metrics_of_an_evaluation_are_reproducible(make_evaluator, tiny_data, tiny_phase):
    groups = {"gender": tiny_data.user_groups["gender"]}
    runs = [evaluate(rank(make_evaluator("fabuhs"), tiny_phase), tiny_phase.split, groups, (TOP,)) for _ in range(2)]
    assert runs[0].summary.keys() == runs[1].summary.keys()
    for name, value in runs[0].summary.items():
        assert value == runs[1].summary[name] or np.isnan([value, runs[1].summary[name]]).all(), name
