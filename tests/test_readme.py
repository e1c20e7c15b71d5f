"""The tables of flags and presets say what the program does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

import main
from model.runs.config import Config, Request
from model.runs.presets import BACKBONE_PRESETS, PRESETS

PAGE = (Path(__file__).parents[1] / "model/FLAGS.md").read_text(encoding="utf-8")
TYPES = {"string": "str", "float": "float", "int": "int", "bool": "bool", "string enum": "str"}
LISTS = {"comma separated list of strings": "list", "multi string": "str, repeated"}
FIELDS = (*dataclasses.fields(Request), *dataclasses.fields(Config))


def flag_rows() -> list[str]:
    """A table row for each flag of `main.py`, in the order of definition; `python -m tests.test_readme` prints them."""
    own = [flags.FLAGS[field.name] for field in FIELDS]
    rows = []
    for flag in own:
        presets = any(flag.name in preset for preset in (*PRESETS.values(), *BACKBONE_PRESETS.values()))
        default = "*preset*" if presets else f"`{flag.default}`" if flag.default not in (None, []) else "none"
        help_text = flag.help.partition(";\n")[0].replace("None: preset.", "").strip().replace("|", "\\|")
        kind = {**TYPES, **LISTS}[flag.flag_type()]
        choices = getattr(flag, "enum_values", None)
        chosen = f"{', '.join(choices)}. " if choices else ""
        rows.append(f"| `--{flag.name}` | {kind} | {default} | {chosen}{help_text} |")
    return rows


def preset_rows() -> list[str]:
    """A table row for each preset setting, one column per data set."""
    names = sorted(next(iter(PRESETS.values())))

    def shown(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [
        f"| `--{name}` | " + " | ".join(shown(preset[name]) for preset in PRESETS.values()) + " |" for name in names
    ]


def test_every_flag_is_in_the_table_as_it_is_defined():
    missing = [row for row in flag_rows() if row not in PAGE]
    assert not missing, "\n".join(missing)


def test_every_preset_is_in_the_table():
    missing = [row for row in preset_rows() if row not in PAGE]
    assert not missing, "\n".join(missing)


def test_every_flag_of_the_program_is_a_setting_and_in_the_help():
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["main"]}
    assert own == {field.name for field in FIELDS}
    text = main.help_text()
    assert all(f"--{name}  " in text for name in own)
    assert all(f"\n{title}:\n" in text for title in main.GROUPS.values())


if __name__ == "__main__":
    print("\n".join(flag_rows()))
