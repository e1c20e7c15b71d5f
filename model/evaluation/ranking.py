"""Rankings of the full catalogue, streamed: blocks of users, exact ranks and exact top-K in one pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from data.messages import progress_shown
from data.structs import ItemLists, Ranking
from model.runs.errors import NotFiniteError, in_blocks, is_out_of_memory, out_of_memory

ScoreBlock = Callable[[np.ndarray], torch.Tensor]
"""Scores of a block of users against the whole catalogue: user ids `[b]` -> `[b, I]`, on any device."""

CandidateLists = Callable[[np.ndarray], ItemLists]
"""Makes the candidates of a block: row numbers (positions in `users`) `[b]` -> one list of items per row."""

# Most float32 numbers per score that the engine itself holds at a time: measured 2.4 where few scores tie, 5.3 where a
# tie crosses the end of every top-K.
ENGINE_FLOATS = 6

# With more relevant items per user than this, sorting a row once is faster than comparing each score with all of it.
SORTED_FROM = 10


@torch.no_grad()
def rank_catalogue(
    score_block: ScoreBlock,
    users: np.ndarray,
    relevant: ItemLists,
    excluded: ItemLists,
    num_items: int,
    top: int,
    block_users: int,
    candidates: ItemLists | CandidateLists | None = None,
    progress: str | None = None,
) -> Ranking:
    """Rank the catalogue for `users [T]` in blocks of `block_users`; the scores `[T, I]` are never held at once.

    `relevant` has one list of items per row of `users`, `excluded` one per user id: its items are never ranked.
    `candidates` limits what is ranked to one list per row of `users`, given or made by a function for each block;
    relevant items are always added to it.

    The rank of a relevant item is 1 + candidates with a higher score + tied candidates that are not relevant + tied
    relevant ones earlier in the user's list, all in float32 (Decision 8). `topk [T, min(top, I)]` breaks ties by
    ascending item id; where there are fewer candidates, the row ends in -1 with score -inf.

    Memory is about `4 * ENGINE_FLOATS * block_users * num_items` bytes, beside the scorer's and the result. A block
    that does not fit in memory is ranked in halves, with the same result. `progress` names a progress bar on standard
    error; None shows none.

    Raises ValueError for ids out of range, a relevant item that is excluded or listed twice, scores of another shape,
    and a candidate whose score is not finite (NotFiniteError).
    """
    check_request(users, relevant, excluded, num_items, top, block_users)
    width = min(top, num_items)
    topk = np.empty((len(users), width), np.int64)
    scores = np.empty((len(users), width), np.float32)
    counts = np.empty(len(users), np.int64)
    at_least = np.empty(len(relevant.item), np.int64)
    own_score = np.empty(len(relevant.item), np.float32)
    drawn = _Drawn(candidates)

    def rank_block(block: range) -> None:
        rows = np.arange(block.start, block.stop)
        entries = slice(relevant.indptr[rows[0]], relevant.indptr[rows[-1] + 1])
        wanted = relevant.take(rows)
        allowed = drawn.take(rows)
        masked, dropped = _score_candidates(score_block, users[rows], wanted, excluded, allowed, num_items)
        extremes = torch.stack(masked.aminmax())
        masked[dropped] = -torch.inf  # [b, I]
        row, item = _coordinates(wanted, masked.device)  # [e]: the block's relevant items
        value = masked[row, item]  # [e]
        # extremes [2], best scores and items [b, K + 1], candidates [b], scores of at least `value` [e], value [e]
        results = (
            extremes,
            *masked.topk(min(width + 1, num_items), dim=1),
            _count(masked > -torch.inf),
            _count_at_least(masked, wanted, row, value),
            value,
        )
        # Copying waits for the device: once per block, and again only where a tie crosses the end of a list.
        extremes, best_score, best, count, above, value = (result.cpu().numpy() for result in results)
        if not np.isfinite(extremes).all():
            _raise_not_finite(masked, dropped, users[rows])
        _check_conflict(value, wanted, users[rows])
        topk[rows], scores[rows] = _settle_ties(masked, best, best_score, width)
        counts[rows], at_least[entries], own_score[entries] = count, above, value

    with progress_shown(progress, len(users), "user") as advance:
        in_blocks(rank_block, len(users), block_users, "ranking users", advance)
    ranks = 1 + at_least - _tied_from_here(relevant.owner, own_score)
    return Ranking(users, relevant, ranks, topk, scores, counts)


def block_users_for(num_items: int, block_mb: float, floats_per_score: float = ENGINE_FLOATS) -> int:
    """Choose how many users fit in a block of `block_mb` MiB (at least one).

    `floats_per_score` is the scorer's peak of float32 numbers per (user, item) score, its result included; the
    engine's own peak is used where that is larger. Raises ValueError for a size that is not positive.
    """
    if num_items < 1 or not block_mb > 0:
        raise ValueError(f"block of {block_mb} MiB for {num_items} items: both must be positive; raise --eval_block_mb")
    bytes_per_user = 4 * num_items * max(floats_per_score, ENGINE_FLOATS)
    return max(1, int(block_mb * 2**20 // bytes_per_user))


def check_request(
    users: np.ndarray, relevant: ItemLists, excluded: ItemLists, num_items: int, top: int, block_users: int
) -> None:
    """Raise ValueError for sizes below 1, lists that do not match the users, ids out of range and repeated items."""
    for name, value in (("num_items", num_items), ("top", top), ("block_users", block_users)):
        if value < 1:
            raise ValueError(f"{name} is {value}: allowed is 1 or more")
    if len(relevant.indptr) != len(users) + 1:
        raise ValueError(f"{len(relevant.indptr) - 1} lists of relevant items for {len(users)} users: need one each")
    for name, ids, size in (
        ("user", users, len(excluded.indptr) - 1),
        ("relevant item", relevant.item, num_items),
        ("excluded item", excluded.item, num_items),
    ):
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            raise ValueError(f"{name} ids span {ids.min()}..{ids.max()}: allowed is 0..{size - 1}")
    keys = np.sort(relevant.owner * num_items + relevant.item)
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if len(repeated):
        row, item = divmod(int(repeated[0]), num_items)
        raise ValueError(f"item {item} is listed twice as relevant for user {users[row]}: list each item once")


class _Drawn:
    """Candidates by block. A function that draws them is called once per row, even if a block is ranked in halves."""

    def __init__(self, candidates: ItemLists | CandidateLists | None):
        self._candidates, self._rows, self._lists = candidates, range(0), None

    def take(self, rows: np.ndarray) -> ItemLists | None:
        if not callable(self._candidates):
            return self._candidates and self._candidates.take(rows)
        if rows[-1] not in self._rows:
            try:
                self._lists = self._candidates(rows)
            except (MemoryError, RuntimeError) as error:
                # no second try, which would draw other candidates
                raise (out_of_memory(error) if is_out_of_memory(error) else error) from error
            self._rows = range(rows[0], rows[-1] + 1)
        return self._lists.take(rows - self._rows.start)


def _coordinates(lists: ItemLists, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The (row, item) pairs of CSR lists, `[E]` each, on `device`."""
    return torch.from_numpy(lists.owner).to(device), torch.from_numpy(lists.item).to(device)


def _score_candidates(
    score_block: ScoreBlock,
    users: np.ndarray,
    relevant: ItemLists,
    excluded: ItemLists,
    allowed: ItemLists | None,
    num_items: int,
) -> tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]:
    """Score a block: scores `[b, I]` with 0 where an item is not a candidate, and the index of those places.

    The index is a pair of rows and items, or a mask `[b, I]` where candidates are listed.
    """
    raw = score_block(users)  # [b, I]
    if raw.shape != (len(users), num_items):
        raise ValueError(f"scores are {list(raw.shape)}: need [{len(users)}, {num_items}] (users, items)")
    dropped = _coordinates(excluded.take(users), raw.device)
    if allowed is not None:
        barred, dropped = dropped, torch.ones(raw.shape, dtype=torch.bool, device=raw.device)
        dropped[_coordinates(allowed, raw.device)] = False
        dropped[_coordinates(relevant, raw.device)] = False
        dropped[barred] = True
    # Adding 0 copies the scorer's tensor and turns -0.0 into 0.0, which radix selection on a GPU tells apart.
    masked = raw.float().add(0.0)
    masked[dropped] = 0.0
    return masked, dropped


def _raise_not_finite(masked: torch.Tensor, dropped, users: np.ndarray) -> None:
    masked[dropped] = 0.0
    row, item = (~masked.isfinite()).nonzero()[0].tolist()
    raise NotFiniteError(
        f"user {users[row]}, item {item}: the score is {masked[row, item].item()}; ranking needs finite scores "
        "(the model may have diverged: lower the learning rate)"
    )


def _check_conflict(own_score: np.ndarray, relevant: ItemLists, users: np.ndarray) -> None:
    """Raise ValueError where a relevant item is not a candidate: its score, finite until then, became -inf."""
    conflict = np.flatnonzero(own_score == -np.inf)
    if len(conflict):
        user, item = users[relevant.owner[conflict[0]]], relevant.item[conflict[0]]
        raise ValueError(f"item {item} of user {user} is both relevant and excluded: take it out of one of the two")


def _count(flags: torch.Tensor) -> torch.Tensor:
    """Count the true entries of each row: `[b, I]` -> `[b]`."""
    # On a CPU, sum widens booleans to its own type first: int32 halves that copy and the time.
    return flags.sum(1, dtype=torch.int32)


def _count_at_least(masked: torch.Tensor, relevant: ItemLists, row: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Count the scores of `masked[row[e]]` that are at least `value[e]`, for every entry of `relevant`: `[E]`."""
    if len(row) > SORTED_FROM * len(masked):
        return _count_at_least_sorted(masked, relevant, row, value)
    return _count_at_least_compared(masked, row, value)


def _count_at_least_sorted(
    masked: torch.Tensor, relevant: ItemLists, row: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Count as `_count_at_least` does, by sorting each row once."""
    if masked.device.type == "cpu":
        # four times as fast as torch's sort, which also gives the order
        ordered = torch.from_numpy(np.sort(masked.numpy(), axis=1))
    else:
        ordered = masked.sort(dim=1).values
    within = np.arange(len(relevant.item)) - relevant.indptr[relevant.owner]
    place = torch.from_numpy(within).to(masked.device)
    wanted = masked.new_zeros((len(masked), int(relevant.lengths.max())))  # [b, most relevant items of a user]
    wanted[row, place] = value
    return masked.shape[1] - torch.searchsorted(ordered, wanted)[row, place]


def _count_at_least_compared(masked: torch.Tensor, row: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Count as `_count_at_least` does, by comparing each value with its whole row, a block of rows at a time."""
    counts = torch.empty(len(row), dtype=torch.int64, device=row.device)
    for part in (slice(start, start + len(masked)) for start in range(0, len(row), len(masked))):
        counts[part] = _count(masked[row[part]] >= value[part, None])
    return counts


def _tied_from_here(owner: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Count for every relevant item those with its score from its own place to the end of its list: `[E]`."""
    order = np.lexsort((score, owner))
    sorted_owner, sorted_score = owner[order], score[order]
    last = np.ones(len(order), bool)
    last[:-1] = (sorted_owner[1:] != sorted_owner[:-1]) | (sorted_score[1:] != sorted_score[:-1])
    ends = np.flatnonzero(last)  # the last place of each run of equal scores in one list
    position = np.arange(len(order))
    counts = np.empty(len(order), np.int64)
    counts[order] = ends[np.searchsorted(ends, position)] - position + 1
    return counts


def _settle_ties(
    masked: torch.Tensor, item: np.ndarray, score: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the best items `item [b, width or width + 1]` of each row by score, equal scores by ascending id.

    The item beyond `width` shows whether a tie crosses the end of the list; its place goes to the lowest tied ids.
    """
    if item.shape[1] > width:
        # topk picks freely among equal scores: a tie that crosses the boundary must be settled by item id.
        boundary = score[:, width - 1]  # [b]
        item, score, next_score = item[:, :width], score[:, :width], score[:, width]
        crossing = np.flatnonzero((next_score == boundary) & (boundary > -np.inf))
        if len(crossing):
            rows = masked[torch.from_numpy(crossing).to(masked.device)]
            lowest = _lowest_ids(rows, rows.new_tensor(boundary[crossing]), width)
            item[crossing], score[crossing] = lowest.cpu().numpy(), rows.gather(1, lowest).cpu().numpy()
    tied = np.flatnonzero((score[:, 1:] >= score[:, :-1]).any(1))
    order = np.lexsort((item[tied], -score[tied]), axis=1)
    for values in (item, score):
        values[tied] = np.take_along_axis(values[tied], order, axis=1)
    item[score == -np.inf] = -1
    return item, score


def _lowest_ids(rows: torch.Tensor, boundary: torch.Tensor, width: int) -> torch.Tensor:
    """Find the items scored above `boundary [r]`, and the lowest ids scored equal to it up to `width`: `[r, width]`."""
    above = rows > boundary[:, None]
    tied = rows == boundary[:, None]
    needed = width - _count(above)[:, None]
    taken = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= needed))
    return taken.nonzero()[:, 1].view(len(rows), width)
