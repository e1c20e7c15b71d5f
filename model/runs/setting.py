"""What a setting is: declared once, as a field of `Config` or `Request`; all that is said of it is read from there."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.messages import shown, suggestion


@dataclass(frozen=True)
class Need:
    """What other settings must be for a setting to be read.

    `holds` tells it from a Config; `about` names the setting that it looks at (None: it can always be told); `lacking`
    says in an error, behind "--name=value has no effect", what is in the way and what to do.
    """

    holds: Callable[[Any], bool]
    lacking: Callable[[Any, str], str]
    about: str | None = None


def when(about: str, *allowed: Any) -> Need:
    """The need that the setting `about` has one of the `allowed` values; an error proposes the first."""
    return Need(
        lambda config: getattr(config, about) in allowed,
        lambda config, name: f"without --{about}={allowed[0]}; set both, or leave --{name} out",
        about,
    )


@dataclass(frozen=True)
class Setting:
    """One declared setting.

    `kind` is the type of its field; `default` is its value on the command line, and `default_from` says where a value
    comes from that is left open (None). `low` and `high` are its bounds, `above` one that is no value itself; of a list
    they are the bounds of each number. `modes` read it; `required` says that those modes cannot do without it.
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
    # a float that may be infinite; a list whose values may repeat
    infinite: bool = False
    repeats: bool = False
    # a list that is given by a flag for each of its values, not by commas
    flag_each: bool = False
    # raises ValueError for a value that is not allowed
    check: Callable[[Any], object] | None = None
    needs: tuple[Need, ...] = ()
    modes: tuple[str, ...] = ("train",)
    required: bool = False
    # a resumed run may have another value: what it gives does not depend on it
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
        """Raise ValueError for a value that is not among the choices, with the one that is most like it."""
        if value not in self.choices:
            raise ValueError(f"allowed is one of {', '.join(self.choices)}{suggestion(value, self.choices)}")

    def converted(self, value: Any) -> Any:
        """The value that a flag's `value` stands for; one that is not allowed is a ValueError."""
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
        # at the time of use: there may be no home folder to expand
        return dataclasses.field(default_factory=default.expanduser, metadata=metadata)
    return dataclasses.field(default=() if default == [] else default, metadata=metadata)


def declared(kind: type) -> dict[str, Setting]:
    """All settings of a dataclass by name, in order."""
    return {field.name: Setting(field.name, field.type, **field.metadata) for field in dataclasses.fields(kind)}


def saving_interval(text: str) -> tuple[int | None, float | None]:
    """Read `--checkpoint_every`: (epochs, None), or (None, minutes) where it ends in `min`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(min)?", text)
    if found is None or not float(found[1]) > 0 or (found[2] is None and "." in found[1]):
        raise ValueError(f"--checkpoint_every={text}: allowed is a number of epochs (1) or of minutes (10min), above 0")
    return (None, float(found[1])) if found[2] else (int(found[1]), None)


def check_table_path(path: Path | str) -> None:
    """Raise ValueError where no table can be written: the suffix is another one, or there is no such folder."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: allowed is a file name that ends in .csv or .parquet")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: allowed is a file in a folder that exists and can be written")
