"""Words that errors share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def shown(value: Any) -> str:
    """Write the value of a setting as it is typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def suggestion(text: str, known: Iterable[str]) -> str:
    """Write the end of an error about `text`: the most similar of the `known` names, or nothing."""
    near = difflib.get_close_matches(text, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
