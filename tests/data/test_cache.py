"""The data cache: a second start gives the same data in every field, and anything that matters is a miss."""

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.datareader import READERS
from data.readers import bookcrossing, cache, modcloth, movielens
from data.readers.cache import cached
from data.readers.options import SyntheticOptions
from data.readers.rows import DataError
from data.structs import FeatureSpec, FeatureTable, Group, InteractionData, ReadReport, Rejected
from tests.support.raw_files import (
    BOOKS,
    MOVIELENS,
    PREPARED_ROWS,
    REVIEWS,
    cleaned_bytes,
    dump_bytes,
    movielens_bytes,
    options,
    prepared_bytes,
    release_bytes,
    write,
)

# Every form has a rejected row, so that the report is not trivial.
FORMS = {
    "ml": ("ml", movielens_bytes({"movies.dat": [*MOVIELENS["movies.dat"], "11::Broken"]})),
    "bx": ("bx", cleaned_bytes(books=[*BOOKS, BOOKS[0]])),
    "bx-2004": ("bx", dump_bytes(books=[*BOOKS, BOOKS[0]])),
    "modcloth": ("modcloth", prepared_bytes([*PREPARED_ROWS, PREPARED_ROWS[0]])),
    "modcloth-release": ("modcloth", release_bytes([*REVIEWS, REVIEWS[0]])),
}
FORM = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def warnings(capsys):
    """A function: the lines on standard error since it was last asked."""
    return lambda: capsys.readouterr().err.splitlines()


def read(form: str, folder: Path, **changes) -> InteractionData:
    return READERS[FORMS[form][0]](options(folder, **{"max_bad_rows": 0.5, **changes}))


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "data").rglob("*.*"))


def forbid_reading(monkeypatch) -> None:
    parsers = {
        movielens: ("read_integer_rows", "read_text_rows", "encode_titles"),
        bookcrossing: ("read_csv_rows", "encode_titles"),
        modcloth: ("read_csv_rows",),
    }
    for module, names in parsers.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("the raw files are read"))


def assert_same(left, right, where: str = "data") -> None:
    """Compare every field down to the types of single values."""
    assert type(left) is type(right), where
    if is_dataclass(left):
        for field in fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name), f"{where}.{field.name}")
    elif isinstance(left, dict):
        assert_same(list(left.items()), list(right.items()), where)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (first, second) in enumerate(zip(left, right, strict=True)):
            assert_same(first, second, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert left.device == right.device, where
        assert_same(left.numpy(), right.numpy(), where)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), where
        assert_same(left.tolist(), right.tolist(), where)
    else:
        assert left == right, where


@FORM
@pytest.mark.parametrize("keep", [False, True])
def test_the_second_start_reads_the_same_from_the_cache_alone(form, keep, tmp_path, monkeypatch, warnings):
    name, files = FORMS[form]
    write(tmp_path, files)
    choices = options(tmp_path, max_bad_rows=0.5, keep_incomplete_users=keep)
    fresh = READERS[name].__wrapped__(choices)
    assert entries(tmp_path) == []
    assert_same(READERS[name](choices), fresh)
    assert len(entries(tmp_path)) == 1
    forbid_reading(monkeypatch)
    again = READERS[name](choices)
    assert_same(again, fresh)
    assert again.report.lines() == fresh.report.lines() and again.report.rejected
    assert warnings() == []


TEXT = st.text(max_size=6) | st.sampled_from(["", "\x00", "\ud800", "a\r\nb", '"', "\\"])


@st.composite
def data_sets(draw):
    """Small data sets of any shape: with and without times, ids as numbers or text, every kind of feature."""
    users, items, events = (draw(st.integers(1, 4)) for _ in range(3))

    def numbers(size, low, high, dtype=np.int64):
        return np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size)), dtype=dtype)

    def texts(size):
        return np.array(draw(st.lists(TEXT, min_size=size, max_size=size)), dtype=object)

    vectors = draw(st.lists(st.floats(width=32), min_size=2 * items, max_size=2 * items))
    item_schema = (FeatureSpec("id", "categorical", 3), FeatureSpec("title", "dense", 2))
    item_columns = {
        "id": torch.from_numpy(numbers(items, 0, 2)),
        "title": torch.tensor(vectors, dtype=torch.float32).reshape(items, 2),
    }
    labels = tuple(draw(st.lists(TEXT, min_size=1, max_size=3)))
    counts = st.dictionaries(TEXT, st.integers(0, 2**40), max_size=3)
    rejected = st.builds(Rejected, TEXT, TEXT, st.integers(1, 9), st.lists(st.integers(1, 99), max_size=5).map(tuple))
    return InteractionData(
        name=draw(TEXT),
        users=FeatureTable((FeatureSpec("id", "categorical", 9),), {"id": torch.from_numpy(numbers(users, 0, 8))}),
        items=FeatureTable(item_schema, item_columns),
        user_id=numbers(events, 0, users - 1),
        item_id=numbers(events, 0, items - 1),
        rating=numbers(events, -5, 5, np.float32),
        time=draw(st.sampled_from([None, np.arange(events) * 10**12])),
        user_groups={name: Group(name, numbers(users, -1, len(labels) - 1), labels) for name in ("größe", "age")},
        original_user_ids=numbers(users, 0, 2**62) if draw(st.booleans()) else texts(users),
        original_item_ids=texts(items),
        item_titles=texts(items),
        report=ReadReport(
            draw(counts),
            tuple(draw(st.lists(rejected, max_size=2))),
            draw(counts),
            notes=tuple(draw(st.lists(TEXT, max_size=2))),
        ),
    )


@settings(deadline=None, max_examples=40)
@given(data_sets())
def test_any_data_set_survives(data):
    with tempfile.TemporaryDirectory() as folder:
        reader = cached("any", lambda _: data, lambda _: ())
        assert reader(options(folder)) is data
        again = reader(options(folder))
    assert again is not data
    # NaN is no equal of itself: vectors are compared as bits.
    left, right = (table.columns.pop("title").numpy().view(np.uint32) for table in (again.items, data.items))
    assert np.array_equal(left, right)
    assert_same(again, data)


def flip(folder: Path, name: str) -> None:
    """Change one byte of a MovieLens file: the last digit, of a zip code or a time."""
    path = folder / "ml-1m" / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + (b"2\n" if content.endswith(b"1\n") else b"1\n"))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, _: flip(folder, "users.dat"),
        lambda folder, _: flip(folder, "ratings.dat"),
        lambda folder, _: (folder / "ml-1m/movies.dat").write_bytes(b"\n" + FORMS["ml"][1]["ml-1m/movies.dat"]),
        lambda _, patch: patch.setattr(cache, "SOURCE", [("rows.py", "other"), *cache.SOURCE[1:]]),
        lambda _, patch: patch.setattr(cache, "version", lambda library: "0"),
        lambda *_: {"max_bad_rows": 0.6},
        lambda *_: {"keep_incomplete_users": True},
    ],
    ids=["users", "ratings", "movies", "source", "libraries", "max_bad_rows", "keep_incomplete_users"],
)
def test_a_change_of_what_is_read_misses(change, tmp_path, monkeypatch):
    write(tmp_path, FORMS["ml"][1])
    read("ml", tmp_path)
    changes = change(tmp_path, monkeypatch)
    read("ml", tmp_path, **(changes if isinstance(changes, dict) else {}))
    assert len(entries(tmp_path)) == 2
    forbid_reading(monkeypatch)
    read("ml", tmp_path, **(changes if isinstance(changes, dict) else {}))


def test_the_title_encoder_misses_and_so_does_a_file_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens, "encode_titles", lambda texts, *_: np.ones((len(texts), 2), dtype=np.float32))
    write(tmp_path, FORMS["ml"][1])
    model = write(tmp_path / "model", {"weights": b"one"})
    chosen = options(tmp_path, max_bad_rows=0.5)
    for count, encoder in enumerate(("hash", "other", str(model)), start=1):
        READERS["ml"](type(chosen)(**{**vars(chosen), "title_encoder": encoder}))
        assert len(entries(tmp_path)) == count
    write(model, {"weights": b"other"})
    READERS["ml"](type(chosen)(**{**vars(chosen), "title_encoder": str(model)}))
    assert len(entries(tmp_path)) == 4


def test_without_leave_to_write_nothing_is_stored_but_entries_are_read(tmp_path, monkeypatch):
    write(tmp_path, FORMS["ml"][1])
    fresh = read("ml", tmp_path, may_write=False)
    assert not (tmp_path / "cache").exists()
    read("ml", tmp_path)
    forbid_reading(monkeypatch)
    assert_same(read("ml", tmp_path, may_write=False), fresh)


def test_what_does_not_matter_hits(tmp_path, monkeypatch):
    write(tmp_path, FORMS["ml"][1])
    fresh = read("ml", tmp_path)
    moved = shutil.copytree(tmp_path / "ml-1m", tmp_path / "moved" / "ml-1m").parent
    forbid_reading(monkeypatch)
    elsewhere = type(options(moved))(**{**vars(options(moved, max_bad_rows=0.5)), "cache_dir": tmp_path / "cache"})
    assert_same(READERS["ml"](elsewhere), fresh)
    assert_same(read("ml", tmp_path, seed=7, synthetic=SyntheticOptions(9, 9, 40)), fresh)


def test_the_dialects_of_bookcrossing_are_told_apart(tmp_path):
    write(tmp_path, FORMS["bx-2004"][1])
    assert "BX-Books.csv" in read("bx", tmp_path).report.rows
    write(tmp_path, FORMS["bx"][1])
    assert "Books.csv" in read("bx", tmp_path).report.rows


def test_the_key_covers_every_loaded_module_of_the_package():
    loaded = {Path(module.__file__).name for name, module in sys.modules.items() if name.split(".")[0] == "data"}
    # rows.py and titles.py are in a folder of their own
    assert {"datareader.py", "rows.py", "titles.py", "structs.py"} <= loaded <= {name for name, _ in cache.SOURCE}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes() + b"\n" * 70_000),
        lambda path: np.savez(path, user_id=np.zeros(3)),
        lambda path: np.savez(path, facts=np.frombuffer(b"{}", dtype=np.uint8)),
        lambda path: np.savez(path, facts=np.array([{"a": 1}], dtype=object)),
        lambda path: np.savez(path, **(dict(np.load(path)) | {"user_id": np.array([0, 1, 0, 99])})),
    ],
)
def test_a_spoilt_entry_is_read_anew_with_one_warning(spoil, tmp_path, monkeypatch, warnings):
    write(tmp_path, FORMS["ml"][1])
    fresh = read("ml", tmp_path)
    (path,) = entries(tmp_path)
    spoil(path)
    assert_same(read("ml", tmp_path), fresh)
    (warning,) = warnings()
    assert warning.startswith("warning: ") and str(path) in warning
    forbid_reading(monkeypatch)
    assert_same(read("ml", tmp_path), fresh)
    assert warnings() == [] and entries(tmp_path) == [path]


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1), st.integers(1, 255))
def test_no_flipped_byte_changes_the_data(tmp_path_factory, place, mask):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        write(folder, FORMS["ml"][1])
    fresh = read("ml", folder)
    (path,) = entries(folder)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= mask
    path.write_bytes(content)
    assert_same(read("ml", folder), fresh)


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, warnings):
    write(tmp_path, FORMS["bx"][1] | {"cache": b"not a folder"})
    first, second = read("bx", tmp_path), read("bx", tmp_path)
    assert_same(first, second)
    (warning,) = warnings()
    assert str(tmp_path / "cache") in warning and "cannot be cached" in warning


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch, warnings):
    def fail(source, target):
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    write(tmp_path, FORMS["ml"][1])
    read("ml", tmp_path)
    (warning,) = warnings()
    assert entries(tmp_path) == [] and "disk full" in warning


def test_many_may_read_and_write_one_entry(tmp_path, warnings):
    write(tmp_path, FORMS["ml"][1])
    fresh = READERS["ml"].__wrapped__(options(tmp_path, max_bad_rows=0.5))
    reader = cached("ml", lambda _: fresh, movielens._movielens_files)

    def start(_):
        for path in (tmp_path / "cache").rglob("*.npz"):
            path.unlink(missing_ok=True)
        return reader(options(tmp_path))

    with ThreadPoolExecutor(8) as pool:
        for data in pool.map(start, range(80)):
            assert_same(data, fresh)
    assert warnings() == [] and len(entries(tmp_path)) <= 1


def test_a_file_that_changes_while_it_is_read_is_not_stored(tmp_path):
    write(tmp_path, FORMS["ml"][1])

    def read_and_change(choices):
        data = movielens.read_movielens(choices)
        flip(tmp_path, "users.dat")
        return data

    cached("ml", read_and_change, movielens._movielens_files)(options(tmp_path, max_bad_rows=0.5))
    assert entries(tmp_path) == []


def test_missing_files_are_the_readers_business(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="BookCrossing is not in"):
        read("bx", tmp_path)
    monkeypatch.setattr(movielens, "download_movielens", lambda folder: write(folder, FORMS["ml"][1]))
    assert read("ml", tmp_path).name == "ml"
    (tmp_path / "ml-1m/ratings.dat").unlink()
    with pytest.raises(DataError, match=r"ratings\.dat: the file cannot be read"):
        read("ml", tmp_path)


def test_data_that_cannot_be_read_are_not_stored(tmp_path):
    write(tmp_path, FORMS["ml"][1])
    with pytest.raises(DataError, match=r"movies\.dat"):
        read("ml", tmp_path, max_bad_rows=0.0)
    assert entries(tmp_path) == []


def test_the_oldest_entries_of_a_data_set_go(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "KEPT", 2)
    write(tmp_path, FORMS["ml"][1] | FORMS["bx"][1])
    read("bx", tmp_path)
    for fraction in (0.5, 0.6, 0.7):
        read("ml", tmp_path, max_bad_rows=fraction)
    assert [path.parent.name for path in entries(tmp_path)] == ["bx", "ml", "ml"]
    forbid_reading(monkeypatch)
    for fraction in (0.6, 0.7):
        read("ml", tmp_path, max_bad_rows=fraction)
    with pytest.raises(pytest.fail.Exception):
        read("ml", tmp_path, max_bad_rows=0.5)
