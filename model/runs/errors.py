"""Errors that end a run in one line, and work in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data.messages import warn


class NotFiniteError(ValueError):
    """A loss, a score or a weight that is no finite number: training has diverged."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocator (Python's, torch's own or a GPU's) found no memory."""
    # torch has no class of its own for what its CPU allocator raises
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def out_of_memory(error: BaseException) -> ValueError:
    """Make the error that ends the program where memory ran out."""
    return ValueError(
        f"out of memory ({_first_line(error)}); lower --batch_size, --num_negatives, --sample_size or --eval_block_mb, "
        "or use a machine with more"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def in_blocks(work: Callable[[range], None], count: int, size: int, what: str, done: Callable[[int], object]) -> None:
    """Do `work` on consecutive ranges of at most `size` of `count` rows, and tell `done` how many rows each had.

    A range that does not fit in memory is done again in halves, and so is all that follows; `work` must allow that.
    `what` names the work in the one warning, and in the ValueError of a single row that does not fit.
    """
    limit, pending = size, [range(start, min(start + size, count)) for start in range(0, count, size)][::-1]
    while pending:
        rows = pending.pop()
        if len(rows) > limit:
            pending += [rows[start : start + limit] for start in range(0, len(rows), limit)][::-1]
            continue
        reason = _try(work, rows)
        if reason is None:
            done(len(rows))
            continue
        if len(rows) == 1:
            raise ValueError(f"{what} does not fit in memory even one at a time ({reason}); use a machine with more")
        if limit == size:
            warn(f"{what}: {len(rows)} at a time do not fit in memory ({reason}); going on with fewer")
        limit = len(rows) // 2
        pending.append(rows)


def _try(work: Callable[[range], None], rows: range) -> str | None:
    """Do `work`; None where it fits in memory. An error that were kept would keep its tensors."""
    try:
        work(rows)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = _first_line(error)
    else:
        return None
    torch.cuda.empty_cache()
    return reason
