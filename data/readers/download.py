"""Download of MovieLens-1M, once, where its folder is missing."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from data.readers.rows import DataError

MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MOVIELENS_HASH = "md5:c4d9eecfca2ab87c1945afe126590906"


def download_movielens(dataset_dir: Path) -> None:
    """Download and unpack MovieLens-1M to `dataset_dir/ml-1m`; raise DataError when that fails."""
    import pooch  # a start with data at hand does not need it

    folder = dataset_dir / "ml-1m"
    try:
        dataset_dir.mkdir(parents=True, exist_ok=True)
        # Unpacked aside and moved in one step: an interrupted download leaves no half-filled ml-1m.
        with tempfile.TemporaryDirectory(dir=dataset_dir, prefix=".ml-1m-") as scratch:
            pooch.retrieve(
                MOVIELENS_URL,
                known_hash=MOVIELENS_HASH,
                fname="ml-1m.zip",
                path=scratch,
                processor=pooch.Unzip(extract_dir="unpacked"),
                progressbar=True,
            )
            _move(Path(scratch) / "unpacked" / "ml-1m", folder)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{folder} is missing and MovieLens-1M could not be downloaded ({type(error).__name__}: {error}); "
            f"download {MOVIELENS_URL} on another machine and unpack it so that "
            f"{folder}/users.dat, {folder}/movies.dat and {folder}/ratings.dat exist, or run with --dataset=synthetic"
        ) from error


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process of the same run was first.
        if not target.is_dir():
            raise
