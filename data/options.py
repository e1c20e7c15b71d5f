"""Options set by repeated `name=value` flags: a small dataclass, parsed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from data.messages import shown, suggestion


def by_dataset(default: Any, **values: Any) -> Any:
    """Declare an option whose default depends on the data set: `default`, or the value under the data set's name."""
    return dataclasses.field(default=default, metadata=values)


def parse_options(kind: type, assignments: Sequence[str], flag: str = "method_option", dataset: str = "") -> Any:
    """Make the options dataclass `kind` from the `name=value` strings of `--flag`; defaults are those on `dataset`.

    Values take the type of the default. Raises ValueError for an unknown name and for a value of another form.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {name: field.metadata[dataset] for name, field in fields.items() if dataset in field.metadata}
    for assignment in assignments:
        name, equals_sign, text = assignment.partition("=")
        if not equals_sign or name not in fields:
            names = ", ".join(sorted(fields))
            allowed = f"allowed is name=value with name one of {names}" if fields else "there are no options"
            raise ValueError(f"--{flag}={assignment}: {allowed}{suggestion(name, fields)}")
        default = fields[name].default
        try:
            values[name] = _parse_value(text, default)
        except ValueError as error:
            raise ValueError(
                f"--{flag}={assignment}: {text!r} is not of the form of the default {shown(default)}"
            ) from error
    return kind(**values)


def check_options(options: Any, *rules: tuple[str, bool, str], flag: str = "method_option") -> None:
    """Refuse an option of `options` whose rule does not hold: (name, whether it holds, what is allowed).

    `flag` is the one that sets them. Raises ValueError.
    """
    for name, holds, allowed in rules:
        if not holds:
            raise ValueError(f"--{flag}={name}={shown(getattr(options, name))}: allowed is {allowed}")


def _parse_value(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, tuple):
        return tuple(type(default[0])(part) for part in text.split(","))
    return type(default)(text)
