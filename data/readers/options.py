"""What a reader needs to know: where data are, how strict to be, how large synthetic data are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_DATASET_DIR = Path("datasets")  # the one folder that a download may create
MIN_PER_USER = 3  # one interaction each to train, validate and test


@dataclass(frozen=True)
class SyntheticOptions:
    """Sizes of a synthetic data set; every user has at least 3 interactions and at most half of the catalogue."""

    num_users: int = 600
    num_items: int = 400
    num_interactions: int = 24_000

    def __post_init__(self):
        if self.num_users < 2 or self.num_items < 2 * MIN_PER_USER:
            raise ValueError(
                f"synthetic data with {self.num_users} users and {self.num_items} items: needs at least 2 users and "
                f"{2 * MIN_PER_USER} items; raise num_users or num_items"
            )
        low, high = MIN_PER_USER * self.num_users, self.num_users * self.num_items // 2
        if not low <= self.num_interactions <= high:
            raise ValueError(
                f"synthetic num_interactions is {self.num_interactions}, allowed is {low}..{high} for {self.num_users} "
                f"users and {self.num_items} items (3 per user to half of all pairs); change one of the three sizes"
            )


@dataclass(frozen=True)
class ReadOptions:
    """Where data are and how they are read; `max_bad_rows` is the fraction of a file's rows in [0, 1].

    Without `may_download` a data set that is missing is an error. Without `may_write` too, and caches are only read.
    """

    dataset_dir: Path
    title_encoder: str
    cache_dir: Path
    max_bad_rows: float = 0.001
    keep_incomplete_users: bool = False
    may_download: bool = True
    may_write: bool = True
    seed: int = 0
    synthetic: SyntheticOptions = field(default_factory=SyntheticOptions)

    def __post_init__(self):
        if not 0 <= self.max_bad_rows <= 1:
            raise ValueError(f"max_bad_rows is {self.max_bad_rows}, allowed is a fraction in [0, 1]")
