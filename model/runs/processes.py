"""Many processes (torchrun): each works on its rows of the global batch, and sums put the parts together again.

Draws belong to the global batch: every process makes the whole batch from the same random streams and takes every
world-th row. A process's loss is its share of the batch's, so that gradients and reported values add up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from absl import logging
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous

from data.messages import warn, without_warnings
from data.structs import ItemLists, Ranking
from model.runs.surroundings import TORCHRUN, torchrun_ranks

# the others wait while the first downloads data, encodes titles or probes for leakage
TIMEOUT = timedelta(hours=4)


@dataclass(frozen=True)
class Processes:
    """This process: number `rank` of `world` processes; alone by default."""

    rank: int = 0
    world: int = 1
    store: distributed.Store | None = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def own(self, count: int) -> range:
        """Give the numbers of this process's rows of `count`."""
        return range(self.rank, count, self.world)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add `tensor` up over all processes, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def any_of(self, number: int) -> int:
        """Give the largest `number` of any process; all must call."""
        if self.world == 1:
            return number
        largest = torch.tensor(number)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def from_first(self, value: Any) -> Any:
        """Give what the first process passed as `value`; all must call."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def from_all(self, value: Any) -> list[Any]:
        """Give what every process passed as `value`, in their order; all must call."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Let the first process through alone, then the others, which read the caches that it filled."""
        if not self.first:
            self.any_of(0)
        yield
        if self.first:
            self.any_of(0)

    def sum_values(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add up scalars that every process holds under the same names."""
        if self.world == 1 or not values:
            return values
        return dict(zip(values, self.sum(torch.stack(list(values.values()))), strict=True))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add gradients up in one bucket; a parameter without one counts as 0, and keeps none if no process has one."""
        if self.world == 1:
            return
        parameters = list(parameters)
        # on the host, so that it need not wait for a GPU
        present = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in parameters]))
        parameters = [parameter for parameter, count in zip(parameters, present.tolist(), strict=True) if count]
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in parameters]
        bucket = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        pieces = bucket.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def gather(self, part: Ranking) -> Ranking | None:
        """Join the rankings of all processes, each of other users, in the first process; the others get None."""
        if self.world == 1:
            return part
        parts = [None] * self.world if self.first else None
        distributed.gather_object(part, parts)
        return join_rankings(parts) if self.first else None

    def speaks_for_failure(self) -> bool:
        """Tell whether this process is the first to fail: it prints what went wrong, and the others end silently."""
        if self.store is None:
            return True
        try:
            return self.store.add("failed", 1) == 1
        except RuntimeError:  # the store went with the process that held it
            return False


ALONE = Processes()


def join_rankings(parts: list[Ranking]) -> Ranking:
    """Join rankings of different users into one, in the order of `parts`."""
    lengths = np.concatenate([part.relevant.lengths for part in parts])
    item = np.concatenate([part.relevant.item for part in parts])
    relevant = ItemLists(np.concatenate([[0], np.cumsum(lengths)]), item)
    fields = ("users", "ranks", "topk", "scores", "candidates")
    return Ranking(
        relevant=relevant, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
    )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did: NCCL on GPUs (`device` not cpu), else gloo.

    Only the first prints. What torchrun started ends at once when this context does: a thread of torch's that asks for
    the interpreter while that shuts down aborts the process (pytorch/pytorch pull request 179291).
    """
    ranks = torchrun_ranks()
    if ranks is None and TORCHRUN & os.environ.keys():
        leftovers = ", ".join(f"{name}={os.environ[name]}" for name in sorted(TORCHRUN & os.environ.keys()))
        variables = ", ".join(sorted(TORCHRUN))
        warn(f"{leftovers} in the environment, where torchrun would set all of {variables}; running alone")
    if ranks is None or ranks["WORLD_SIZE"] == 1:
        yield ALONE
        return
    code = 1
    try:
        with _process_group(device) as processes:
            yield processes
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def _process_group(device: str) -> Iterator[Processes]:
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    try:
        store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"error: the processes of torchrun cannot be joined ({reason}); start them anew", file=sys.stderr)
        sys.exit(2)
    with contextlib.ExitStack() as stack:
        if rank:
            logging.set_verbosity(logging.ERROR)
            stack.enter_context(without_warnings())
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield Processes(rank, world, store)
    # not after an error: it would wait for processes that are gone
    distributed.destroy_process_group()
