"""Title vectors without a model: signed counts of character n-grams in hashed buckets.

The vectors are those of scikit-learn's `HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=384,
dtype=float32)`, bit for bit. Loading scikit-learn takes over a second, a quarter of what a dry run may take.
"""

from __future__ import annotations

from collections.abc import Sequence

import mmh3
import numpy as np
from scipy.sparse import csr_array

DIMENSION = 384
LENGTHS = (3, 4)  # of n-grams, in characters


def hashed_vectors(texts: Sequence[str]) -> np.ndarray:
    """Give `texts` (N) vectors `[N, 384]` float32 of length 1; a text without a word gets zeros.

    The n-grams are those of each word in lower case between two spaces. Their hash does not depend on PYTHONHASHSEED.
    """
    words, grams = {}, {}
    of_texts = [[words.setdefault(word, len(words)) for word in text.lower().split()] for text in texts]
    of_words = [[grams.setdefault(gram, len(grams)) for gram in _grams(word)] for word in words]
    # MurmurHash3 for 32 bits with seed 0, signed, of the UTF-8 bytes
    hashes = np.array([mmh3.hash(gram) for gram in grams], dtype=np.int64)  # [G]
    signs = csr_array(
        (np.where(hashes < 0, -1.0, 1.0), np.abs(hashes) % DIMENSION, np.arange(len(grams) + 1)),
        shape=(len(grams), DIMENSION),
    )
    # [N, W] @ [W, G] @ [G, 384]
    counts = (_counts(of_texts, len(words)) @ (_counts(of_words, len(grams)) @ signs)).toarray()
    norms = np.sqrt((counts**2).sum(axis=1, keepdims=True))
    return np.divide(counts, norms, out=counts, where=norms > 0).astype(np.float32)


def _grams(word: str) -> list[str]:
    padded = f" {word} "
    return [padded[start : start + n] for n in LENGTHS for start in range(len(padded) - n + 1)]


def _counts(lists: Sequence[Sequence[int]], columns: int) -> csr_array:
    """Count how often each of `lists` (R) holds each number: `[R, columns]`."""
    indptr = np.concatenate([[0], np.cumsum([len(numbers) for numbers in lists], dtype=np.int64)])
    indices = np.fromiter((number for numbers in lists for number in numbers), np.int64, indptr[-1])
    return csr_array((np.ones(len(indices)), indices, indptr), shape=(len(lists), columns))
