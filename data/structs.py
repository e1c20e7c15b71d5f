"""Typed containers that the whole program shares, checked when they are made.

Host data are numpy arrays; what a model reads on its device (`FeatureTable`, `History`, `Batch`) are torch
tensors. Ids are 0-based per entity: items are never offset by the number of users. The file is long because it holds
all of them: who asks what a name means looks in one place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

FEATURE_KINDS = ("categorical", "multi_hot", "dense")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_ids(name: str, ids: np.ndarray, size: int) -> None:
    _require(ids.dtype == np.int64, f"{name}: dtype is {ids.dtype}, allowed is int64")
    if len(ids):
        low, high = int(ids.min()), int(ids.max())
        _require(low >= 0 and high < size, f"{name}: ids span {low}..{high}, allowed is 0..{size - 1}")


@dataclass(frozen=True)
class FeatureSpec:
    """One input column: `size` is the number of categories, or the width of a multi-hot or dense vector."""

    name: str
    kind: str
    size: int

    def __post_init__(self):
        _require(self.kind in FEATURE_KINDS, f"feature {self.name!r}: kind {self.kind!r}, allowed: {FEATURE_KINDS}")
        _require(self.size > 0, f"feature {self.name!r}: size {self.size} must be positive")


@dataclass(frozen=True)
class FeatureTable:
    """Features of every user or item: name -> `[N]` int64 (categorical) or `[N, size]` float32 (others)."""

    schema: tuple[FeatureSpec, ...]
    columns: dict[str, torch.Tensor]

    def __post_init__(self):
        names = [spec.name for spec in self.schema]
        _require(len(names) > 0, "a feature table needs at least one column")
        _require(len(set(names)) == len(names), f"feature names repeat: {names}")
        _require(names == list(self.columns), f"columns {list(self.columns)} do not match the schema {names}")
        for spec in self.schema:
            column = self.columns[spec.name]
            _require(len(column) == self.num_rows, f"feature {spec.name!r}: {len(column)} rows, not {self.num_rows}")
            if spec.kind == "categorical":
                _require(column.dtype == torch.int64 and column.dim() == 1, f"feature {spec.name!r}: needs [N] int64")
                _check_ids(f"feature {spec.name!r}", column.cpu().numpy(), spec.size)
            else:
                _require(
                    column.dtype == torch.float32 and tuple(column.shape[1:]) == (spec.size,),
                    f"feature {spec.name!r}: needs [N, {spec.size}] float32, not {tuple(column.shape)} {column.dtype}",
                )

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def without(self, names: tuple[str, ...]) -> FeatureTable:
        """Leave the named columns out (names that are not columns are an error)."""
        unknown = [name for name in names if name not in self.columns]
        _require(not unknown, f"features {unknown} are not in the table; it has {list(self.columns)}")
        schema = tuple(spec for spec in self.schema if spec.name not in names)
        return FeatureTable(schema, {spec.name: self.columns[spec.name] for spec in schema})

    def take(self, rows: np.ndarray) -> FeatureTable:
        """Give the table of `rows [N]`, in that order; a column `id`, which numbers the rows, numbers them anew."""
        chosen = torch.from_numpy(rows)
        columns = {name: column[chosen.to(column.device)] for name, column in self.columns.items()}
        if "id" in columns:
            columns["id"] = torch.arange(len(rows), device=columns["id"].device)
        schema = (replace(spec, size=len(rows)) if spec.name == "id" else spec for spec in self.schema)
        return FeatureTable(tuple(schema), columns)


@dataclass(frozen=True)
class Group:
    """A partition of users or items: `codes [N]` int64 index `labels`; -1 is 'unknown' and never a group."""

    name: str
    codes: np.ndarray
    labels: tuple[str, ...]

    def __post_init__(self):
        _require(self.codes.dtype == np.int64, f"group {self.name!r}: codes are {self.codes.dtype}, not int64")
        if len(self.codes):
            low, high = int(self.codes.min()), int(self.codes.max())
            _require(
                low >= -1 and high < len(self.labels),
                f"group {self.name!r}: codes span {low}..{high}, allowed is -1..{len(self.labels) - 1}",
            )

    @property
    def num_groups(self) -> int:
        return len(self.labels)

    def take(self, members: np.ndarray) -> Group:
        """Give the partition of `members [N]`, in that order."""
        return replace(self, codes=self.codes[members])

    def counts(self) -> np.ndarray:
        """Count the members of each group, unknown ones left out: `[G]` int64."""
        return np.bincount(self.codes[self.codes >= 0], minlength=self.num_groups)


@dataclass(frozen=True)
class Rejected:
    """Rows of one file that could not be read for one reason: `lines` are the numbers, from 1, of the first few."""

    file: str
    reason: str
    count: int
    lines: tuple[int, ...]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


@dataclass(frozen=True)
class ReadReport:
    """What became of every row: `rows` per file, malformed rows `rejected`, and rows `filtered` by documented rules.

    `encodings` names, by file, the encoding of a file whose encoding had to be found; `notes` say, each in a sentence,
    what the files lack and what is read in its place.
    """

    rows: dict[str, int] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    filtered: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Give the report in words, one finding a line."""
        read_as = {name: f", read as {encoding}" for name, encoding in self.encodings.items()}
        text = [f"{name}: {_rows(count)}{read_as.get(name, '')}" for name, count in self.rows.items()]
        for entry in self.rejected:
            where = ", ".join(str(line) for line in entry.lines)
            text.append(f"{entry.file}: {_rows(entry.count)} rejected ({entry.reason}; line {where})")
        text += [f"filtered, {reason}: {count:,}" for reason, count in self.filtered.items()]
        return [*text, *self.notes]


@dataclass(frozen=True)
class InteractionData:
    """A data set as read: features, interactions `[E]` in file order, user groups and original ids (Decision 13).

    `time` is in seconds, or None where the source has none; `rating` is on the source's own scale.
    """

    name: str
    users: FeatureTable
    items: FeatureTable
    user_id: np.ndarray
    item_id: np.ndarray
    rating: np.ndarray
    time: np.ndarray | None
    user_groups: dict[str, Group]
    original_user_ids: np.ndarray
    original_item_ids: np.ndarray
    item_titles: np.ndarray
    report: ReadReport = field(default_factory=ReadReport)

    def __post_init__(self):
        events = len(self.user_id)
        _require(events > 0, f"data set {self.name!r} has no interactions")
        for name in ("item_id", "rating", "time"):
            column = getattr(self, name)
            rows = events if column is None else len(column)
            _require(rows == events, f"{name} has {rows} rows, not {events}")
        _check_ids("user_id", self.user_id, self.num_users)
        _check_ids("item_id", self.item_id, self.num_items)
        for name, group in self.user_groups.items():
            _require(name == group.name, f"group {group.name!r} is filed under {name!r}")
            _require(
                len(group.codes) == self.num_users,
                f"group {name!r}: {len(group.codes)} codes for {self.num_users} users",
            )
        for name, size in (
            ("original_user_ids", self.num_users),
            ("original_item_ids", self.num_items),
            ("item_titles", self.num_items),
        ):
            _require(len(getattr(self, name)) == size, f"{name} has {len(getattr(self, name))} rows, not {size}")

    @property
    def num_users(self) -> int:
        return self.users.num_rows

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    def take(self, rows: np.ndarray, reason: str) -> InteractionData:
        """Give the data of the interactions `rows [E]` alone, in that order.

        Users and items without one are left out, and the rest numbered anew in the order in which `rows` first name
        them. The report counts the interactions that are left out under `reason`.
        """
        (users, user_id), (items, item_id) = (_by_appearance(ids[rows]) for ids in (self.user_id, self.item_id))
        left_out = len(self.user_id) - len(rows)
        filtered = self.report.filtered | ({reason: left_out} if left_out else {})
        return replace(
            self,
            users=self.users.take(users),
            items=self.items.take(items),
            user_id=user_id,
            item_id=item_id,
            rating=self.rating[rows],
            time=None if self.time is None else self.time[rows],
            user_groups={name: group.take(users) for name, group in self.user_groups.items()},
            original_user_ids=self.original_user_ids[users],
            original_item_ids=self.original_item_ids[items],
            item_titles=self.item_titles[items],
            report=replace(self.report, filtered=filtered),
        )


def _by_appearance(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the distinct `ids [E]` in the order in which they first appear: these ids, and the number of each row."""
    numbers, distinct = pd.factorize(ids)
    return distinct, numbers.astype(np.int64)


@dataclass(frozen=True)
class ItemLists:
    """Lists of items in CSR form: list n is `item[indptr[n]:indptr[n + 1]]`."""

    indptr: np.ndarray
    item: np.ndarray

    def __post_init__(self):
        for name in ("indptr", "item"):
            dtype = getattr(self, name).dtype
            _require(dtype == np.int64, f"item lists: {name} is {dtype}, allowed is int64")
        ends = self.indptr[[0, -1]].tolist() if len(self.indptr) else []
        _require(ends == [0, len(self.item)], f"item lists: indptr spans {ends}, not [0, {len(self.item)}]")
        _require(bool(np.all(np.diff(self.indptr) >= 0)), "item lists: indptr decreases; it must be cumulative lengths")

    @property
    def lengths(self) -> np.ndarray:
        """Length of each list: `[N]` int64."""
        return np.diff(self.indptr)

    @property
    def owner(self) -> np.ndarray:
        """The list that each entry belongs to: `[E]` int64."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.item[self.indptr[index] : self.indptr[index + 1]]

    def take(self, rows: np.ndarray) -> ItemLists:
        """Give the lists of `rows [T]`, in that order."""
        lengths = self.lengths[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths)
        return ItemLists(indptr, self.item[np.repeat(self.indptr[rows], lengths) + within])

    def merge(self, other: ItemLists) -> ItemLists:
        """Join the lists of two collections row by row: first this one's items, then the other's."""
        owner = np.concatenate([self.owner, other.owner])
        item = np.concatenate([self.item, other.item])
        return ItemLists(self.indptr + other.indptr, item[np.argsort(owner, kind="stable")])


@dataclass(frozen=True)
class Histories(ItemLists):
    """Interactions of each user in time order (file order where there are no times); `time [E]` in seconds."""

    time: np.ndarray | None = None

    def __post_init__(self):
        super().__post_init__()
        times = len(self.item) if self.time is None else len(self.time)
        _require(times == len(self.item), f"histories: {times} times for {len(self.item)} items")

    @staticmethod
    def order(user_id: np.ndarray, time: np.ndarray | None) -> np.ndarray:
        """Give which interaction stands at each place of the lists that `build` makes: `[E]` int64."""
        return np.argsort(user_id, kind="stable") if time is None else np.lexsort((time, user_id))

    @staticmethod
    def build(user_id: np.ndarray, item_id: np.ndarray, time: np.ndarray | None, num_users: int) -> Histories:
        """Sort interactions `[E]` by user, then time; equal times keep their order."""
        order = Histories.order(user_id, time)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(user_id, minlength=num_users))]).astype(np.int64)
        return Histories(indptr, item_id[order], None if time is None else time[order])


@dataclass(frozen=True)
class Split:
    """What may be learned from, and what is asked: every set has one list of items per user.

    `histories` are what the model may read in training, `test_histories` at test; `degree [I]` counts train
    interactions; `item_groups["popularity"]` has the labels head and tail. A (user, item) pair stands in one of the
    sets at most.
    """

    train: Histories
    valid: ItemLists
    test: ItemLists
    histories: Histories
    test_histories: Histories
    degree: np.ndarray
    item_groups: dict[str, Group]

    def __post_init__(self):
        num_users, num_items = self.num_users, self.num_items
        for name in ("train", "valid", "test", "histories", "test_histories"):
            lists = getattr(self, name)
            _require(
                len(lists.indptr) == num_users + 1, f"{name}: {len(lists.indptr) - 1} lists, not {num_users} users"
            )
            _check_ids(name, lists.item, num_items)
        keys = [getattr(self, name).owner * num_items + getattr(self, name).item for name in ("train", "valid", "test")]
        joined = np.sort(np.concatenate(keys), kind="stable")  # timsort: much of it is sorted already
        repeated = joined[1:][joined[1:] == joined[:-1]]
        pairs = [divmod(int(key), num_items) for key in repeated[:3]]
        _require(not pairs, f"(user, item) pairs {pairs} occur twice in train, valid and test; drop repeats")
        _require(len(self.train.item) > 0, "the train split is empty; every user may have too few interactions")
        wrong = np.flatnonzero(self.degree != np.bincount(self.train.item, minlength=num_items))
        _require(len(wrong) == 0, f"degree of items {wrong[:3].tolist()} is not their number of train interactions")
        for name, group in self.item_groups.items():
            _require(
                len(group.codes) == num_items, f"item group {name!r}: {len(group.codes)} codes for {num_items} items"
            )

    @property
    def num_users(self) -> int:
        return len(self.train.indptr) - 1

    @property
    def num_items(self) -> int:
        return len(self.degree)

    @property
    def is_tail(self) -> np.ndarray:
        """Which items are in the tail: `[I]` bool."""
        popularity = self.item_groups["popularity"]
        return popularity.codes == popularity.labels.index("tail")

    def fingerprint(self) -> str:
        """Hash all three sets, the same on every machine: numbers of two runs are comparable when it agrees."""
        return _fingerprint(self.train, self.valid, self.test)

    def train_fingerprint(self) -> str:
        """Hash the train set alone: weights may be tested on any split that has the same one."""
        return _fingerprint(self.train)


def _fingerprint(*sets: ItemLists) -> str:
    digest = hashlib.sha256()
    for lists in sets:
        digest.update(lists.indptr.astype("<i8").tobytes())
        digest.update(lists.item.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class History:
    """Sampled histories: `items [B, N]` int64 in time order with padding (item 0) at the end, `mask [B, N]` bool."""

    items: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """The rows of one training step: `users [B]`, `positives [B]` and `negatives [B, M]`.

    `history` has B rows, or B * (1 + M), one per scored item, under `--upstream_compat`; it is None where the backbone
    reads none. `rows [B]` are positions in the train split's lists (None: the batch is of no train split).
    """

    users: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    history: History | None
    rows: torch.Tensor | None = None

    @property
    def items(self) -> torch.Tensor:
        """The items that rows score, `[B, 1 + M]`, the positive first."""
        return torch.cat([self.positives[:, None], self.negatives], dim=1)


@dataclass(frozen=True)
class Ranking:
    """Full rankings of T users, reduced to what metrics need.

    `relevant` has the test items of each row's user, `ranks` the rank (from 1) of each of them in the same order, `topk
    [T, K']` the best items with -1 as padding, `scores [T, K']` their scores, and `candidates [T]` how many items were
    ranked.
    """

    users: np.ndarray
    relevant: ItemLists
    ranks: np.ndarray
    topk: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray

    def __post_init__(self):
        rows = len(self.users)
        _require(len(self.relevant.indptr) == rows + 1, "a ranking needs one list of relevant items per user")
        _require(self.ranks.shape == self.relevant.item.shape, "a ranking needs one rank per relevant item")
        _require(self.topk.ndim == 2 and len(self.topk) == rows, "topk needs one row per user")
        _require(self.scores.shape == self.topk.shape, "scores and topk differ in shape")
        _require(len(self.candidates) == rows, "candidates needs one count per user")

    def replace_lists(self, topk: np.ndarray, scores: np.ndarray, ranks: np.ndarray) -> Ranking:
        """Give the same users and test items with other lists and ranks (re-ranking)."""
        return replace(self, topk=topk, scores=scores, ranks=ranks)


@dataclass(frozen=True)
class EvalResult:
    """Metrics as fractions: `summary` name -> mean over users, `per_user` name -> `[T]` (NaN where undefined)."""

    summary: dict[str, float]
    per_user: dict[str, np.ndarray]


@dataclass(frozen=True)
class HistoryWeights:
    """How histories are drawn: a mixture of C distributions over each user's items.

    `log_mix [C]` are log mixing weights (they sum to 1 as probabilities), `log_weights [C, E]` unnormalised log
    probabilities in the CSR order of the histories that they belong to. Each component is normalised over a
    user's items, without the excluded target, before mixing.
    """

    log_mix: np.ndarray
    log_weights: np.ndarray

    def __post_init__(self):
        shape, total = self.log_weights.shape, float(np.exp(self.log_mix).sum())
        _require(
            len(shape) == 2 and shape[0] == len(self.log_mix),
            f"history log_weights are {list(shape)}, allowed is [{len(self.log_mix)}, E]: a row per mixing weight",
        )
        _require(bool(np.all(np.isfinite(self.log_weights))), "history log_weights are not all finite; clip them")
        _require(abs(total - 1) < 1e-9, f"mixing weights sum to {total}, not 1; pass logs of probabilities")
