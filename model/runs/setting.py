"""Declarations of settings: each is a field of `Config` or `Request`, from which all that is said of it is read."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.messages import shown, suggestion


@dataclass(frozen=True)
class Need:
    """What other settings must be for a setting to be read.

    `holds` tells from a Config whether they are so; `about` names the setting that it looks at (None: no single one);
    `lacking` says in an error, behind "--name=value has no effect", what is in the way and what to do.
    """

    holds: Callable[[Any], bool]
    lacking: Callable[[Any, str], str]
    about: str | None = None


def when(about: str, *allowed: Any) -> Need:
    """Make the need that setting `about` has one of the `allowed` values; an error proposes the first."""
    return Need(
        lambda config: getattr(config, about) in allowed,
        lambda config, name: f"without --{about}={allowed[0]}; set both, or leave --{name} out",
        about,
    )


@dataclass(frozen=True)
class Setting:
    """One declared setting.

    `kind` is the type of its field. `default` is its value on the command line; where that is open (None),
    `default_from` says where the value comes from. `low` and `high` are bounds; `above` is a bound that is not allowed
    itself. Bounds of a list are those of each number. `modes` are the modes that read it; where it is `required`, they
    cannot do without it.
    """

    name: str
    kind: str
    default: Any
    help: str
    group: str
    default_from: str | None = None
    choices: Collection[str] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    # `infinite`: a float may be infinite; `repeats`: a list's values may repeat
    infinite: bool = False
    repeats: bool = False
    # a list with a flag for each value instead of commas
    flag_each: bool = False
    # raises ValueError for a value that is not allowed
    check: Callable[[Any], object] | None = None
    needs: tuple[Need, ...] = ()
    modes: tuple[str, ...] = ("train",)
    required: bool = False
    # a resumed run may have another value, since results do not depend on it
    free: bool = False
    # it makes a network and its inputs what they are: the weights of a run with another value do not fit
    network: bool = False
    # `--config` takes it from a run's config.json
    fed_back: bool = True

    @property
    def base(self) -> str:
        """The type of a value that is not None."""
        return self.kind.removesuffix(" | None")

    @property
    def allowed(self) -> str:
        """The range of values in words; empty where there is none."""
        low = self.low if self.above is None else self.above
        if self.high is not None:
            return f"in {'[' if self.above is None else '('}{low:g}, {self.high:g}]"
        return "" if low is None else f"{'>=' if self.above is None else '>'} {low:g}"

    def check_choice(self, value: str) -> None:
        """Raise ValueError for a value that is not among the choices; it proposes the most similar one."""
        if value not in self.choices:
            raise ValueError(f"allowed is one of {', '.join(self.choices)}{suggestion(value, self.choices)}")

    def converted(self, value: Any) -> Any:
        """Turn a flag's `value` into the setting's; one that is not allowed is a ValueError."""
        if value is None:
            return None
        if self.base == "Path":
            try:
                value = Path(value).expanduser()
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"--{self.name}={value}: {reason} Pass a path without ~") from error
        elif self.base == "tuple[int, ...]":
            value = self._integers(value)
        elif self.base.startswith("tuple"):
            value = tuple(value)
        elif self.base == "float":
            value = self._number(float(value))
        if self.check is not None:
            self.check(value)
        return value

    def _number(self, value: float) -> float:
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            raise ValueError(f"--{self.name}={value}: allowed is a {'' if math.isnan(value) else 'finite '}number")
        if self.above is not None and not value > self.above:
            raise ValueError(f"--{self.name}={value} must be above {self.above:g}")
        return value

    def _integers(self, parts: list | tuple) -> tuple[int, ...]:
        if self.default == [] and not parts:
            return ()
        given = f"--{self.name}={shown(parts)}"
        try:
            numbers = tuple(int(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"{given}: allowed are whole numbers, comma-separated") from error
        if not numbers or min(numbers) < self.low:
            raise ValueError(f"{given}: every number must be at least {self.low}")
        if not self.repeats and len(set(numbers)) < len(numbers):
            raise ValueError(f"{given}: a number occurs twice; leave the repeat out")
        return numbers


def setting(default: Any, help: str, **facts: Any) -> Any:
    """Declare a field of `Config` or `Request`; `facts` are the further fields of `Setting`."""
    metadata = {"default": default, "help": help, **facts}
    if isinstance(default, Path):
        # expanded when used, as there may be no home folder
        return dataclasses.field(default_factory=default.expanduser, metadata=metadata)
    return dataclasses.field(default=() if default == [] else default, metadata=metadata)


@functools.cache
def declared(kind: type) -> Mapping[str, Setting]:
    """Give all settings of a dataclass by name, in order."""
    fields = dataclasses.fields(kind)
    return MappingProxyType({field.name: Setting(field.name, field.type, **field.metadata) for field in fields})


def saving_interval(text: str) -> tuple[int | None, float | None]:
    """Read `--checkpoint_every`: (epochs, None), or (None, minutes) where it ends in `min`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(min)?", text)
    if match is None or not float(match[1]) > 0 or (match[2] is None and "." in match[1]):
        raise ValueError(f"--checkpoint_every={text}: allowed is a number of epochs (1) or of minutes (10min), above 0")
    return (None, float(match[1])) if match[2] else (int(match[1]), None)


def check_table_path(path: Path | str) -> None:
    """Raise ValueError where no table can be written: the suffix is another one, or there is no such folder."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: allowed is a file name that ends in .csv or .parquet")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: allowed is a file in a folder that exists and can be written")
