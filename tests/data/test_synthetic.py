"""Synthetic data: exact counts, the promised statistics, tastes that can be learned, and the MovieLens files."""

import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds
from scipy.stats import entropy

from data.readers.movielens import read_movielens
from data.readers.options import ReadOptions, SyntheticOptions
from data.readers.synthetic import GENRE_WORDS, NICHES_PER_GENRE, generate, read_synthetic
from data.readers.vocabulary import AGE_CODES, GENRES
from data.structs import Group, Histories
from tests.support.movielens import write_movielens

OPTIONS = SyntheticOptions()
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def generated():
    return {seed: generate(OPTIONS, seed) for seed in SEEDS}


def read_options(tmp_path, **changes):
    return ReadOptions(dataset_dir=tmp_path, title_encoder="hash", cache_dir=tmp_path / "cache", **changes)


def digest(arrays) -> str:
    columns = (getattr(arrays, field.name) for field in fields(arrays))
    return hashlib.sha256(b"".join(column.astype(str).tobytes() for column in columns)).hexdigest()


@st.composite
def sizes(draw):
    num_users, num_items = draw(st.integers(2, 40)), draw(st.integers(6, 60))
    low, high = 3 * num_users, num_users * num_items // 2
    count = draw(st.one_of(st.just(low), st.just(high), st.integers(low, high)))
    return SyntheticOptions(num_users, num_items, count)


@settings(max_examples=40, deadline=None)
@given(sizes(), st.integers(0, 2**32))
def test_counts_are_exact_and_pairs_distinct(options, seed):
    arrays = generate(options, seed)
    assert len(arrays.user_id) == len(arrays.item_id) == len(arrays.rating) == len(arrays.time)
    assert len(arrays.user_id) == options.num_interactions
    assert len(np.unique(arrays.user_id * options.num_items + arrays.item_id)) == options.num_interactions
    counts = np.bincount(arrays.user_id, minlength=options.num_users)
    assert len(counts) == options.num_users and counts.min() >= 3
    assert counts.max() <= (options.num_items + 1) // 2
    assert arrays.item_id.min() >= 0 and arrays.item_id.max() < options.num_items
    assert np.isin(arrays.rating, [1, 2, 3, 4, 5]).all()
    assert arrays.time.min() > 0
    assert len(np.unique(arrays.original_item_ids)) == options.num_items


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((600, 400, 1_799), r"num_interactions is 1799, allowed is 1800\.\.120000"),
        ((600, 400, 120_001), r"num_interactions is 120001, allowed is 1800\.\.120000"),
        ((1, 400, 10), "needs at least 2 users"),
        ((600, 5, 1_800), "6 items; raise num_users or num_items"),
        ((-600, -400, 24_000), "needs at least 2 users"),
    ],
)
def test_impossible_sizes_are_an_error(sizes, message):
    with pytest.raises(ValueError, match=message):
        SyntheticOptions(*sizes)


def test_seed_decides_everything(generated):
    assert digest(generate(OPTIONS, 0)) == digest(generated[0])
    assert len({digest(arrays) for arrays in generated.values()}) == len(SEEDS)


# by default, a run of tests/model/modes/test_seeds.py has a hash seed of its own
@pytest.mark.slow
def test_hash_seed_does_not_matter(generated, tmp_path):
    code = (
        "import sys, numpy\n"
        "from data.readers.options import SyntheticOptions\nfrom data.readers.synthetic import generate\n"
        "numpy.savez(sys.argv[1], **vars(generate(SyntheticOptions(), 0)))"
    )
    root, path = Path(__file__).parents[2], tmp_path / "arrays.npz"
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, env=environment, check=True)
    with np.load(path, allow_pickle=True) as other:
        for field in fields(generated[0]):
            assert np.array_equal(other[field.name], getattr(generated[0], field.name)), field.name


def test_global_random_state_is_neither_read_nor_moved(generated):
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert digest(generate(OPTIONS, 0)) == digest(generated[0])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("seed", SEEDS)
def test_popularity_has_a_long_tail(generated, seed):
    degree = np.sort(np.bincount(generated[seed].item_id, minlength=OPTIONS.num_items))[::-1]
    assert degree[: OPTIONS.num_items // 5].sum() > 0.55 * degree.sum()
    assert (degree < 5).mean() > 0.05
    assert degree[0] > 4 * degree.mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_activity_is_skewed(generated, seed):
    counts = np.bincount(generated[seed].user_id)
    assert counts.mean() > 1.2 * np.median(counts)
    assert np.std(np.log(counts)) == pytest.approx(0.75, abs=0.15)


def test_group_sizes_are_the_promised_shares(generated):
    arrays = generated[0]
    assert np.bincount(arrays.gender).tolist() == [420, 180]
    np.testing.assert_allclose(np.bincount(arrays.age) / 600, [0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06], atol=0.002)
    assert (np.bincount(arrays.occupation, minlength=21) > 0).all()


def divergence(arrays, codes) -> float:
    """Generalised JS divergence (natural log) between the groups' item distributions, groups weighted by size."""
    table = np.zeros((codes.max() + 1, OPTIONS.num_items))
    np.add.at(table, (codes[arrays.user_id], arrays.item_id), 1)
    return float(entropy(table.sum(axis=0)) - entropy(table, axis=1) @ table.sum(axis=1) / table.sum())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "factor"), [("gender", 2.5), ("age", 1.2), ("occupation", 1.03)])
def test_groups_differ_in_taste(generated, seed, name, factor):
    arrays = generated[seed]
    codes = getattr(arrays, name)
    rng = np.random.default_rng(0)
    relabelled = [divergence(arrays, rng.permutation(codes)) for _ in range(10)]
    assert divergence(arrays, codes) > factor * max(relabelled)


@pytest.mark.parametrize("seed", SEEDS)
def test_older_users_prefer_older_films(generated, seed):
    arrays = generated[seed]
    correlation = np.corrcoef(arrays.age[arrays.user_id], arrays.year[arrays.item_id])[0, 1]
    assert -0.4 < correlation < -0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_times_rise_with_some_exact_ties_and_files_are_not_sorted_by_time(generated, seed):
    arrays = generated[seed]
    assert (np.diff(arrays.user_id) >= 0).all()
    same_user = np.diff(arrays.user_id) == 0
    assert 0.4 < (np.diff(arrays.time)[same_user] < 0).mean() < 0.6
    order = np.lexsort((arrays.time, arrays.user_id))
    tied = (np.diff(arrays.time[order]) == 0) & (np.diff(arrays.user_id[order]) == 0)
    assert 0.05 < tied.mean() < 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_neighbours_in_time_share_a_niche_more_often_than_chance(generated, seed):
    arrays = generated[seed]

    def shared(key):
        order = np.lexsort((key, arrays.user_id))
        niche, user = arrays.niche[arrays.item_id[order]], arrays.user_id[order]
        return (niche[1:] == niche[:-1])[user[1:] == user[:-1]].mean()

    chance = np.mean([shared(np.random.default_rng(draw).random(len(arrays.time))) for draw in range(3)])
    assert 1.15 * chance < shared(arrays.time) < 2 * chance


@pytest.mark.parametrize("seed", SEEDS)
def test_ratings_use_the_scale_and_follow_popularity(generated, seed):
    arrays = generated[seed]
    assert np.bincount(arrays.rating.astype(int), minlength=6)[1:].min() > 0
    degree = np.bincount(arrays.item_id)
    assert np.corrcoef(np.log(degree[arrays.item_id]), arrays.rating)[0, 1] > 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_matrix_factorisation_beats_most_popular(generated, seed):
    arrays = generated[seed]
    histories = Histories.build(arrays.user_id, arrays.item_id, arrays.time, OPTIONS.num_users)
    is_train = np.ones(OPTIONS.num_interactions, dtype=bool)
    is_train[histories.indptr[1:] - 1] = is_train[histories.indptr[1:] - 2] = False
    target = histories.item[histories.indptr[1:] - 1]
    owner, item = histories.owner[is_train], histories.item[is_train]
    train = csr_matrix((np.ones(len(item)), (owner, item)), shape=(OPTIONS.num_users, OPTIONS.num_items))

    def hit_rate(scores):
        scores = np.where(train.toarray() > 0, -np.inf, scores)
        rank = (scores > scores[np.arange(len(target)), target][:, None]).sum(axis=1)
        return (rank < 10).mean()

    popular = hit_rate(np.tile(train.sum(axis=0), (OPTIONS.num_users, 1)))
    left, values, right = svds(train, k=8, random_state=0)
    assert 0.1 < popular < 0.35
    assert hit_rate((left * values) @ right) > 1.5 * popular


def test_titles_and_genres_tell_the_niche(generated):
    arrays = generated[0]
    primary = arrays.niche // NICHES_PER_GENRE
    assert (arrays.genres[np.arange(OPTIONS.num_items), primary] == 1).all()
    assert set(arrays.genres.sum(axis=1)) == {1.0, 2.0}
    for genre, words in zip(primary[:50], arrays.words[:50], strict=True):
        assert words.split()[0] in GENRE_WORDS[GENRES[genre]].split()


def test_read_synthetic_has_the_movielens_schema(tmp_path, generated):
    data = read_synthetic(read_options(tmp_path, seed=1))
    years = len(np.unique(generated[1].year))
    assert [(spec.name, spec.kind, spec.size) for spec in data.users.schema] == [
        ("id", "categorical", 600),
        ("gender", "categorical", 2),
        ("age", "categorical", 7),
        ("occupation", "categorical", 21),
    ]
    assert [(spec.name, spec.kind, spec.size) for spec in data.items.schema] == [
        ("id", "categorical", 400),
        ("year", "categorical", years),
        ("genres", "multi_hot", 18),
        ("title", "dense", 384),
    ]
    assert data.report.rows == {"synthetic": 24_000}
    assert list(data.user_groups) == ["gender", "age", "occupation"]
    assert data.user_groups["gender"].labels == ("M", "F")
    for name, group in data.user_groups.items():
        assert np.array_equal(data.users.columns[name].numpy(), group.codes)
    assert np.array_equal(data.item_id, generated[1].item_id)
    assert np.array_equal(np.unique(generated[1].year)[data.items.columns["year"].numpy()], generated[1].year)
    # Titles of one niche share words, so their vectors are nearer than those of different genres.
    vectors, niche = data.items.columns["title"].numpy(), generated[1].niche
    same = niche[:, None] == niche
    cosines = vectors @ vectors.T
    assert cosines[same & ~np.eye(400, dtype=bool)].mean() > 3 * cosines[~same].mean()


def test_movielens_files_hold_the_same_interactions(tmp_path):
    data = read_synthetic(read_options(tmp_path))
    write_movielens(data, tmp_path)
    lines = {
        name: (tmp_path / "ml-1m" / f"{name}.dat").read_text("latin-1").splitlines()
        for name in ("users", "movies", "ratings")
    }
    users = [line.split("::") for line in lines["users"]]
    movies = [line.split("::") for line in lines["movies"]]
    ratings = np.array([line.split("::") for line in lines["ratings"]], dtype=np.int64)
    assert {len(row) for row in users} == {5} and {len(row) for row in movies} == {3}
    user_row = {int(row[0]): index for index, row in enumerate(users)}
    movie_row = {int(row[0]): index for index, row in enumerate(movies)}
    assert np.array_equal([user_row[user] for user in ratings[:, 0]], data.user_id)
    assert np.array_equal([movie_row[movie] for movie in ratings[:, 1]], data.item_id)
    assert np.array_equal(ratings[:, 2], data.rating) and np.array_equal(ratings[:, 3], data.time)
    for name, column, codes in (("gender", 1, ("M", "F")), ("age", 2, AGE_CODES), ("occupation", 3, range(21))):
        expected = [str(codes[code]) for code in data.user_groups[name].codes]
        assert [row[column] for row in users] == expected
    assert [row[1] for row in movies] == list(data.item_titles)
    genres = data.items.columns["genres"].numpy()
    expected = ["|".join(genre for genre, is_set in zip(GENRES, row, strict=True) if is_set) for row in genres]
    assert [row[2] for row in movies] == expected
    assert any("é" in row[1] or "ñ" in row[1] for row in movies), "latin-1 should be exercised"


def test_the_movielens_reader_gives_the_same_data_back(tmp_path):
    options = read_options(tmp_path, seed=3)
    written = read_synthetic(options)
    write_movielens(written, tmp_path)
    data = read_movielens(options)
    for name in ("user_id", "item_id", "rating", "time", "original_user_ids", "original_item_ids", "item_titles"):
        assert np.array_equal(getattr(data, name), getattr(written, name)), name
        assert getattr(data, name).dtype == getattr(written, name).dtype, name
    for table in ("users", "items"):
        assert getattr(data, table).schema == getattr(written, table).schema
        for name, column in getattr(data, table).columns.items():
            assert torch.equal(column, getattr(written, table).columns[name]), name
    assert list(data.user_groups) == list(written.user_groups)
    for name, group in data.user_groups.items():
        assert group.labels == written.user_groups[name].labels
        assert np.array_equal(group.codes, written.user_groups[name].codes)
    assert not data.report.rejected


def test_what_movielens_files_cannot_carry_is_an_error(tmp_path):
    data = read_synthetic(read_options(tmp_path, synthetic=SyntheticOptions(10, 20, 60)))
    gender = data.user_groups["gender"]
    unknown = Group("gender", np.where(np.arange(10) == 3, -1, gender.codes), gender.labels)
    titles = data.item_titles.copy()
    for title in ("No year", "Two :: colons (1999)", "A\ttab (1999)", "A\nbreak (1999)"):
        titles[7] = title
        with pytest.raises(ValueError, match=r"cannot be written to movies\.dat"):
            write_movielens(replace(data, item_titles=titles.copy()), tmp_path)
    titles[7] = "夜 (1999)"
    with pytest.raises(ValueError, match="latin-1"):
        write_movielens(replace(data, item_titles=titles), tmp_path)
    with pytest.raises(ValueError, match="1 users of unknown gender"):
        write_movielens(replace(data, user_groups=data.user_groups | {"gender": unknown}), tmp_path)
    with pytest.raises(ValueError, match="has no times"):
        write_movielens(replace(data, time=None), tmp_path)


@pytest.mark.slow
def test_a_million_interactions_take_seconds_and_little_memory():
    tracemalloc.start()
    start = time.perf_counter()
    arrays = generate(SyntheticOptions(6_000, 4_000, 1_000_000), 0)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(arrays.user_id) == 1_000_000
    assert seconds < 15 and peak < 160 * 1_000_000, (seconds, peak)
