"""Flags taken together: which the mode reads, presets, and the Config and Request that follow from them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data.files import file_and_list
from data.messages import shown
from data.protocols import PROTOCOLS
from model import BACKBONES, METHODS
from model.runs.config import Config, Request, network_name, restored_settings
from model.runs.presets import filled, origins
from model.runs.setting import Setting, declared


@dataclass(frozen=True)
class Settings:
    """The `values` of all flags.

    `given` are the names of flags whose value differs from the default; `named` are those on the command line, which
    may repeat the default: a checkpoint's settings differ from it. `kind` declares the settings of a run.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    named: frozenset[str] = frozenset()
    kind: type[Config] = Config

    @property
    def declared(self) -> dict[str, Setting]:
        """All settings by name, in order."""
        return declared(Request) | declared(self.kind)

    @property
    def request(self) -> Request:
        """What is asked of the program."""
        return Request(**{name: setting.converted(self.values[name]) for name, setting in declared(Request).items()})

    @property
    def mode(self) -> str:
        """What the program does."""
        return self.values["mode"]

    def reads(self, name: str) -> bool:
        """Tell whether the mode reads a setting at all."""
        return self.mode in self.declared[name].modes

    def check(self) -> None:
        """Refuse flags that nothing would read, and those that do not go together."""
        values = self.values
        for name in self._given():
            if not self.reads(name):
                raise ValueError(f"{self._typed(name)} has no effect {self._out_of_mode(name)}")
            _check_value(self.declared[name], values[name])
        for name, setting in self.declared.items():
            if setting.required and self.reads(name) and not values[name]:
                raise ValueError(f"--mode={self.mode} needs --{name}")
        if {"seed", "seeds"} <= self.given:
            raise ValueError("--seed and --seeds exclude each other; name every seed in --seeds")
        if not values["checkpoint"]:  # `over` knows the settings of a checkpoint
            self._check_read(self.config())

    def config(self) -> Config:
        """Give all settings, with presets where the user left them open."""
        names = declared(self.kind)
        values = filled({name: setting.converted(self.values[name]) for name, setting in names.items()})
        values = {name: setting.converted(values[name]) for name, setting in names.items()}
        if values["run_name"] is None:
            values["run_name"] = f"{self._subject()}-{datetime.now():%Y%m%d-%H%M%S}"
        return self.kind(**values)

    def over(self, trained: Config) -> Config:
        """Put the settings given here over those of a `trained` run."""
        # where results go, what computes them and what stands beside them is never taken from the trained run
        named = {name for name in self.named if self.reads(name) and self.values[name] is not None}
        names = (self.given | named | {"output_dir", "device", "wandb_mode", "beside"}) & declared(self.kind).keys()
        chosen = {name: self.declared[name].converted(self.values[name]) for name in names}
        if "run_name" not in chosen:
            chosen["run_name"] = f"{trained.run_name}-{self.mode}-{datetime.now():%Y%m%d-%H%M%S}"
        config = dataclasses.replace(trained, **chosen)
        self._check_read(config)
        return config

    def after(self, path: Path) -> Settings:
        """Put these settings over those of a run's config.json at `path` (Decision 43).

        What the command line names wins; a setting of the file that nothing would then read falls back to its default.
        """
        kept = {
            name: value
            for name, value in _of_file(path, self.kind).items()
            if self.declared[name].fed_back and name not in self.named | self.given
        }
        if self.values["seeds"]:
            kept.pop("seed", None)
        while True:
            settings = self._with(kept)
            config = settings.config()
            unread = [name for name in kept if name in settings.given and not is_read(name, config)]
            if not unread:
                return settings
            kept = {name: value for name, value in kept.items() if name not in unread}

    def _with(self, kept: Mapping[str, Any]) -> Settings:
        """Add settings `kept` from a file to these.

        One that differs from what it would be without the file counts as given, so that `--seeds` passes it on to its
        processes.
        """
        closed = {name: value for name, value in kept.items() if self.declared[name].default_from is None}
        names = declared(self.kind)
        before = {name: names[name].converted(names[name].default) for name in closed}
        without = {name: setting.converted(self.values[name]) for name, setting in names.items()} | closed
        before |= {name: value for name, value in filled(without).items() if name in kept.keys() - closed.keys()}
        given = {name for name, value in kept.items() if value != before[name]}
        return dataclasses.replace(self, values={**self.values, **kept}, given=self.given | given)

    def arguments(self, without: Collection[str], changes: Mapping[str, Any]) -> list[str]:
        """Write a command line with the same flags but those of `without`, and with `changes`."""
        values = {name: self.values[name] for name in sorted(self.given - set(without))} | dict(changes)
        return [
            f"--{name}={part}"
            for name, value in values.items()
            for part in (value if self.declared[name].flag_each else [_comma_separated(value)])
        ]

    def _given(self) -> list[str]:
        return [name for name in self.declared if name in self.given]

    def _typed(self, name: str) -> str:
        return f"--{name}={shown(self.values[name])}"

    def _out_of_mode(self, name: str) -> str:
        first = self.declared[name].modes[0]
        if first == "train":
            return f"with --mode={self.mode}; leave it out"
        return f"without --mode={first}; set both, or leave --{name} out"

    def _check_read(self, config: Config) -> None:
        """Refuse what is given and would not be read in a run under `config`."""
        for name in self._given():
            # a setting that the mode does not read cannot be changed, so it is no reason
            needs = [need for need in self.declared[name].needs if need.about is None or self.reads(need.about)]
            reason = _obstacle(name, needs, config)
            if reason is not None:
                raise ValueError(f"{self._typed(name)} has no effect {reason}")

    def _subject(self) -> str:
        values = self.values
        if self.mode == "compare":
            return "compare"
        if self.mode == "score":
            path, chosen = file_and_list(values["rankings"])
            return "-".join([values["dataset"], "score", path.stem, *filter(None, chosen.split("/"))])
        method = values["fairness_method"] if values["enable_fairness"] else "none"
        run = f"{values['dataset']}-{method}-{network_name(values['backbone'], values['synthesis_type'])}"
        return run if values["seeds"] else f"{run}-seed{values['seed']}"


def _obstacle(name: str, needs: Iterable, config: Config) -> str | None:
    """Say why nothing reads the setting `name` in a run under `config`; None where something does."""
    for need in needs:
        if not need.holds(config):
            return need.lacking(config, name)
    for flag, unread in (
        (f"--backbone={config.backbone}", BACKBONES[config.backbone].unread(config)),
        (f"--fairness_method={config.method}", METHODS[config.method].unread(config)),
        (f"--protocol={config.protocol}", PROTOCOLS[config.protocol].unread),
    ):
        if name in unread:
            return f"with {flag}; leave it out"
    return None


def is_read(name: str, config: Config) -> bool:
    """Tell whether a run under `config` reads the setting `name`."""
    return _obstacle(name, declared(type(config))[name].needs, config) is None


def preset_lines(config: Config) -> list[str]:
    """List the settings that a run reads and presets may fill in, with a line for each place that values come from."""
    known = origins(config.dataset, config.recipe, config.backbone, config.protocol)
    parts_by_origin: dict[str, list[str]] = {}
    for name, setting in declared(type(config)).items():
        if setting.default_from is None or not setting.fed_back or not is_read(name, config):
            continue
        value, (preset, origin) = getattr(config, name), known.get(name, (None, setting.default_from))
        if preset is None:
            origin = setting.default_from
        elif preset != value:
            origin = "given"
        parts_by_origin.setdefault(origin, []).append(f"{name}={shown(value)}")
    return [f"{origin}: {', '.join(parts)}" for origin, parts in parts_by_origin.items()]


def _check_value(setting: Setting, value: Any) -> None:
    """Raise ValueError for a `value` of the setting `one` that is not allowed."""
    if setting.choices is not None and value is not None:
        try:
            setting.check_choice(value)
        except ValueError as error:
            raise ValueError(f"--{setting.name}={value}: {error}") from error
    setting.converted(value)


def _of_file(path: Path, kind: type[Config]) -> dict[str, Any]:
    path = path.expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        values = restored_settings(json.loads(path.read_text(encoding="utf-8")), kind)
        for name, value in values.items():
            _check_value(declared(kind)[name], value)
        return values
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"--config={path}: {error}; allowed is the config.json of a run") from error


def _comma_separated(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(value)
    return text.getvalue()
