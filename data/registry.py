"""Registries: plain dicts from a name to what it stands for."""

from __future__ import annotations

import pkgutil
from typing import Any


class Registry(dict):
    """A dict whose entry may be "module:name", which is imported when it is read.

    So the names are known without loading any of what they stand for: `--help` needs no torch.
    """

    def __getitem__(self, name: str) -> Any:
        entry = super().__getitem__(name)
        return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
