"""What every reader of the registry must do: sound containers, the same every time, and the same from the cache."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.datareader import READERS
from data.protocols.base import ProtocolSettings
from data.protocols.loo import leave_one_out
from data.readers.options import ReadOptions
from data.readers.rows import DataError
from data.structs import InteractionData
from tests.support.raw_files import cleaned_bytes, dump_bytes, movielens_bytes, prepared_bytes, release_bytes, write
from tests.support.settings import TINY

# raw files of every form that a reader knows; a reader without an entry makes its data itself
FORMS = {
    "ml": {"ml-1m": movielens_bytes()},
    "bx": {"cleaned": cleaned_bytes(), "2004": dump_bytes()},
    "modcloth": {"release": release_bytes(), "prepared": prepared_bytes()},
}
CASES = [(name, form) for name in READERS for form in FORMS.get(name, {"": {}})]
every_case = pytest.mark.parametrize(("name", "form"), CASES)


@pytest.fixture
def options(name, form, tmp_path):
    """Options under which the form's files are read."""
    write(tmp_path / "raw", FORMS.get(name, {}).get(form, {}))
    return ReadOptions(tmp_path / "raw", "hash", tmp_path / "cache", max_bad_rows=0.5, synthetic=TINY)


def same(first, second) -> bool:
    """Whether two containers agree in every field, down to the types of arrays."""
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(
            same(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
        )
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.tolist() == second.tolist()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return type(first) is type(second) and first == second


@every_case
def test_containers_are_sound(name, form, options):
    data = READERS[name](options)
    assert isinstance(data, InteractionData) and data.name == name
    assert data.num_users and data.num_items
    pairs = data.user_id * data.num_items + data.item_id
    assert len(np.unique(pairs)) == len(pairs), "a pair occurs once"
    # everybody in the catalogue of users has done something
    assert (np.bincount(data.user_id, minlength=data.num_users) > 0).all()
    for ids in (data.original_user_ids, data.original_item_ids):
        assert len(set(ids.tolist())) == len(ids)
    assert all(isinstance(title, str) for title in data.item_titles)
    assert np.isfinite(data.rating).all() and data.user_groups
    for group in data.user_groups.values():
        assert (group.codes >= 0).any()
        if group.name in data.users.columns:
            # a group that is a feature too, or bins of one, follows from it
            pairs = set(zip(data.users.columns[group.name].tolist(), group.codes.tolist(), strict=True))
            assert len(pairs) == len({value for value, _ in pairs})


@every_case
def test_reading_twice_gives_the_same_with_and_without_a_cache(name, form, options):
    first = READERS[name](options)
    kept = sorted((options.cache_dir / "data").rglob("*.npz"))
    assert same(READERS[name](options), first)
    assert sorted((options.cache_dir / "data").rglob("*.npz")) == kept
    for path in kept:
        path.unlink()
    assert same(READERS[name](options), first)
    # the seed is for data that are drawn
    other = READERS[name](dataclasses.replace(options, seed=1))
    assert same(other, first) == (name in FORMS)


@every_case
def test_reading_leaves_global_random_streams_alone(name, form, options):
    numbers, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    READERS[name](options)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@every_case
def test_what_is_read_can_be_split(name, form, options):
    data = READERS[name](options)
    options = ProtocolSettings(warm_threshold=0.5, ks=(2,), epochs=1, patience=1)
    split = leave_one_out(data, options, np.random.default_rng(0)).phases[0].split
    assert sum(len(part.item) for part in (split.train, split.valid, split.test)) == len(data.user_id)


@every_case
def test_broken_files_end_with_one_line_that_names_them(name, form, options):
    files = [path for path in options.dataset_dir.rglob("*") if path.is_file()] if options.dataset_dir.exists() else []
    assert bool(files) == (name in FORMS)
    for path in files:
        content = path.read_bytes()
        path.write_bytes(b"\x00\xff no such format \n" * 5)
        with pytest.raises(DataError, match=path.name) as caught:
            READERS[name](options)
        assert "\n" not in str(caught.value)
        path.write_bytes(content)
    READERS[name](options)
