"""Ask a task about some of its users."""

from __future__ import annotations

import dataclasses

import numpy as np

from data.structs import ItemLists


def ask_some(task, users):
    """The same task asked of some users only."""
    lengths = np.zeros(len(task.relevant.lengths), np.int64)
    lengths[users] = task.relevant.lengths[users]
    asked = ItemLists(np.concatenate([[0], np.cumsum(lengths)]), task.relevant.take(users).item)
    return dataclasses.replace(task, relevant=asked)
