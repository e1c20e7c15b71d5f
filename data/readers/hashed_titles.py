"""Title vectors without a model: signed counts of character n-grams in hashed buckets.

The vectors are those of scikit-learn's `HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=384,
dtype=float32)`, bit for bit. Loading scikit-learn takes over a second, a quarter of what a dry run may take
(Decision 47).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    hashes = murmur3(list(grams)).view(np.int32).astype(np.int64)  # [G]
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


def murmur3(texts: Sequence[str]) -> np.ndarray:
    """Hash the UTF-8 bytes of `texts` (N) by MurmurHash3 for 32 bits (Appleby 2011) with seed 0: `[N]` uint32."""
    encoded = [text.encode() for text in texts]
    lengths = np.array([len(one) for one in encoded], dtype=np.uint32)
    width = 4 * -(-int(lengths.max(initial=1)) // 4)
    # the zeros that fill a text's last block leave the hash as it is
    blocks = np.array(encoded, dtype=f"S{width}").view("<u4").reshape(len(encoded), width // 4)  # [N, width / 4]
    hashes = np.zeros(len(encoded), dtype=np.uint32)
    for place, block in enumerate(blocks.T, start=1):
        hashes ^= _rotated(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        mixed = _rotated(hashes, 13) * np.uint32(5) + np.uint32(0xE6546B64)
        hashes = np.where(lengths >= 4 * place, mixed, hashes)
    hashes ^= lengths
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(factor)
    return hashes ^ (hashes >> np.uint32(16))


def _rotated(numbers: np.ndarray, bits: int) -> np.ndarray:
    return (numbers << np.uint32(bits)) | (numbers >> np.uint32(32 - bits))
