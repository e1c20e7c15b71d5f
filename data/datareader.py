"""READERS names every data set; a new one is a file in `readers/` and an entry here."""

from data.registry import Registry

READERS = Registry(
    ml="data.readers.movielens:read",
    bx="data.readers.bookcrossing:read",
    synthetic="data.readers.synthetic:read_synthetic",
)
