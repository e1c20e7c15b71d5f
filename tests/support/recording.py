"""Settings that know which of them the program reads."""

from __future__ import annotations

import sys

from model.runs.config import Config
from model.runs.setting import declared

# who looks at settings without making anything of them; presets alone read the recipe
ONLOOKERS = {"dataclasses", "model.runs.config", "model.runs.presets", "model.runs.setting", "model.runs.settings"}
PROPERTIES = {"method": ("enable_fairness", "fairness_method"), "attribute": ("user_attribute",)}


def recording() -> tuple[type[Config], set[str]]:
    """A kind of Config, and the names of the settings that were read from those of that kind so far."""
    names, read = declared(Config).keys(), {"recipe"}

    class Recording(Config):
        def __getattribute__(self, name):
            if sys._getframe(1).f_globals["__name__"] not in ONLOOKERS:
                read.update(PROPERTIES.get(name, {name} & names))
            return super().__getattribute__(name)

    return Recording, read
