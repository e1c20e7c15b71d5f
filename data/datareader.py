"""READERS names every data set."""

from __future__ import annotations

from collections.abc import Callable

from data.readers.bookcrossing import _bookcrossing_files, read_bookcrossing
from data.readers.cache import cached
from data.readers.movielens import _movielens_files, read_movielens
from data.readers.options import ReadOptions
from data.readers.synthetic import read_synthetic
from data.structs import InteractionData

READERS: dict[str, Callable[[ReadOptions], InteractionData]] = {
    "ml": cached("ml", read_movielens, _movielens_files),
    "bx": cached("bx", read_bookcrossing, _bookcrossing_files),
    "synthetic": read_synthetic,
}
