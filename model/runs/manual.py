"""Settings in words: `--help`, and model/FLAGS.md, which `python -m model.runs.manual` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from data import datareader
from data.messages import shown
from data.protocols import PROTOCOLS
from model import BACKBONES
from model.runs.config import Config, Request
from model.runs.presets import RECIPES
from model.runs.setting import Setting, declared

FLAGS = Path(__file__).parents[1] / "FLAGS.md"
INTRODUCTION = """# Flags

Made from the declarations in `model/runs/config.py` by `python -m model.runs.manual > model/FLAGS.md`; a test holds it
to them. `--flagfile=FILE` reads flags from a file, one a line; `--config=runs/NAME/config.json` takes the settings of a
run. A flag that nothing would read is an error.

*modes*: which values of `--mode` read the flag. *resume*: whether `--resume` may change it.
"""
PRESETS = """## Presets

What stands for a flag that is left open. Later tables win over earlier ones: data set, backbone, protocol, backbone
under a protocol, backbone on a data set, recipe. `--dry_run` shows each value and where it comes from.

Presets do not adapt to the size of the data: they are the numbers of their source, and settings are known before data
are read. Those of a data set are made for it as published, ModCloth's and all others for MovieLens-1M. A run on data of
less than half or more than twice as many interactions, or of another data set, warns of its presets for `--batch_size`,
`--epochs` and `--lr`; a batch of at most a tenth of the train interactions is where to begin.
"""
TYPES = {"Path": "path", "str": "text", "tuple[str, ...]": "list", "tuple[int, ...]": "list of int"}


def described(setting: Setting) -> str:
    """Say what a setting means, with its range and its default."""
    default = f"default: {setting.default_from or shown(setting.default)}"
    if setting.default_from is None and setting.default in (None, []):
        default = ""
    facts = "; ".join(part for part in (setting.allowed, default) if part)
    return f"{setting.help}{f' ({facts})' if facts else ''}."


def help_text(introduction: str, settings: Iterable[Setting]) -> str:
    """Write every flag by group, with its choices, range, unit and default, below the `introduction`."""
    lines = [introduction.strip()]
    for group, members in groupby(settings, lambda setting: setting.group):
        lines += ["", f"{group}:"]
        for setting in members:
            choices = f"<{'|'.join(setting.choices)}>  " if setting.choices is not None else ""
            text = f"--{setting.name}  {choices}{described(setting)}"
            lines.append(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines)


def flag_tables(settings: Iterable[Setting]) -> str:
    """Write a table of flags for each group, in Markdown."""
    lines = []
    for group, members in groupby(settings, lambda setting: setting.group):
        lines += ["", f"## {group}", "", "| flag | type | modes | resume | meaning |", "|---|---|---|---|---|"]
        for setting in members:
            kind = "text, repeated" if setting.flag_each else TYPES.get(setting.base, setting.base)
            choices = f"{', '.join(setting.choices)}. " if setting.choices is not None else ""
            meaning = (choices + described(setting)).replace("|", "\\|")
            resume = "yes" if setting.free else ""
            lines.append(f"| `--{setting.name}` | {kind} | {', '.join(setting.modes)} | {resume} | {meaning} |")
    return "\n".join(lines[1:])


def preset_tables() -> str:
    """Write a table of each kind of preset, in Markdown: a row for each setting, a column for each owner."""
    networks = {name: BACKBONES[name] for name in BACKBONES}
    parts = {
        "data set": datareader.PRESETS,
        "backbone": {name: network.defaults for name, network in networks.items()},
        "protocol": {name: PROTOCOLS[name].presets for name in PROTOCOLS if PROTOCOLS[name].presets},
        "backbone under a protocol": {
            f"{name}, {protocol}": values
            for name, network in networks.items()
            for protocol, values in network.defaults_under.items()
        },
        "backbone on a data set": {
            f"{name}, {dataset}": values
            for name, network in networks.items()
            for dataset, values in network.defaults_on.items()
        },
        "recipe": RECIPES,
    }
    return "\n\n".join(_table(title, columns) for title, columns in parts.items())


def _table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    names = sorted({name for values in columns.values() for name in values})
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = ["" if values.get(name) is None else shown(values[name]) for values in columns.values()]
        lines.append(f"| `--{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def flags_page() -> str:
    """Write the content of model/FLAGS.md."""
    settings = (declared(Request) | declared(Config)).values()
    return "\n".join([INTRODUCTION, flag_tables(settings), "", PRESETS, preset_tables()])


if __name__ == "__main__":
    print(flags_page())
