"""Hyper-parameters that depend on the data set, the protocol, the backbone and the recipe.

They do not depend on how much data there are: settings are resolved before data are read, and a preset is the number
that its source states. Each says which data it is made for, and a run on others warns (model/results/cautions.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from data import datareader
from data.protocols import PROTOCOLS
from model import BACKBONES

# The settings that choose presets.
SELECTORS = ("dataset", "recipe", "backbone", "protocol")
# What a recipe changes. Decision 25: tuned is ours, by ablation on MovieLens-1M.
RECIPES: dict[str, dict] = {
    "upstream": {},
    "tuned": {"batch_size": 4096, "epochs": 15, "loss": "softmax", "lr": 1e-3, "num_negatives": 10, "patience": 3},
}
# the data set of presets that name none
TUNED_ON = "ml"
# settings whose right value depends on how much data there are
BY_SIZE = ("batch_size", "epochs", "lr")


class Layer(NamedTuple):
    """A place that presets come from: its values, the data set they are made for, and whether a protocol sets them."""

    values: Mapping[str, Any]
    dataset: str = TUNED_ON
    of_protocol: bool = False


def layers(dataset: str, recipe: str, backbone: str, protocol: str) -> dict[str, Layer]:
    """Name the places that presets come from; a later one wins."""
    network = BACKBONES[backbone]
    own = dataset if dataset in datareader.PRESETS else TUNED_ON
    return {
        f"data set {dataset}": Layer(datareader.PRESETS.get(dataset, datareader.MOVIELENS), own),
        f"backbone {backbone}": Layer(network.defaults),
        f"protocol {protocol}": Layer(PROTOCOLS[protocol].presets, of_protocol=True),
        f"backbone {backbone} under protocol {protocol}": Layer(
            network.defaults_under.get(protocol, {}), of_protocol=True
        ),
        f"backbone {backbone} on data set {dataset}": Layer(network.defaults_on.get(dataset, {}), dataset),
        f"recipe {recipe}": Layer(RECIPES[recipe]),
    }


def origins(dataset: str, recipe: str, backbone: str, protocol: str) -> dict[str, tuple[Any, str]]:
    """Give each hyper-parameter that a preset names: its value, and where that comes from."""
    named = layers(dataset, recipe, backbone, protocol).items()
    return {name: (value, origin) for origin, layer in named for name, value in layer.values.items()}


def in_effect(values: Mapping[str, Any]) -> dict[str, Layer]:
    """Find the settings of `BY_SIZE` that have a preset's value among `values` of all settings, and its place."""
    named = layers(*(values[name] for name in SELECTORS)).values()
    last = {name: layer for layer in named for name in layer.values}
    return {name: last[name] for name in BY_SIZE if name in last and last[name].values[name] == values[name]}


def preset(dataset: str, recipe: str = "upstream", backbone: str = "sparsenn", protocol: str = "loo") -> dict[str, Any]:
    """Give the hyper-parameters of `backbone` on `dataset` by `recipe` and `protocol`."""
    return {name: value for name, (value, _) in origins(dataset, recipe, backbone, protocol).items()}


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give `values` of all settings with presets in place of those that are left open (None)."""
    defaults = preset(*(values[name] for name in SELECTORS))
    values = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    if values["in_batch_negatives"] is None:
        values["in_batch_negatives"] = values["num_negatives"]
    if values["mask_sensitive_feature"] is None:  # Decision 17
        values["mask_sensitive_feature"] = values["enable_fairness"]
    return values
