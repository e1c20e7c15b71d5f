"""Hyper-parameters that depend on the data set, the protocol, the backbone and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data import datareader
from data.protocols import PROTOCOLS
from model import BACKBONES

# What a recipe changes. Decision 25: tuned is ours, by ablation on MovieLens-1M.
RECIPES: dict[str, dict] = {
    "upstream": {},
    "tuned": {"batch_size": 4096, "epochs": 15, "loss": "softmax", "lr": 1e-3, "num_negatives": 10, "patience": 3},
}


def layers(dataset: str, recipe: str, backbone: str, protocol: str) -> dict[str, Mapping[str, Any]]:
    """Name the places that presets come from, with what each says; a later one wins."""
    network = BACKBONES[backbone]
    return {
        f"data set {dataset}": datareader.PRESETS.get(dataset, datareader.MOVIELENS),
        f"backbone {backbone}": network.defaults,
        f"protocol {protocol}": PROTOCOLS[protocol].presets,
        f"backbone {backbone} under protocol {protocol}": network.defaults_under.get(protocol, {}),
        f"backbone {backbone} on data set {dataset}": network.defaults_on.get(dataset, {}),
        f"recipe {recipe}": RECIPES[recipe],
    }


def origins(dataset: str, recipe: str, backbone: str, protocol: str) -> dict[str, tuple[Any, str]]:
    """Give each hyper-parameter that a preset names: its value, and where that comes from."""
    named = layers(dataset, recipe, backbone, protocol).items()
    return {name: (value, origin) for origin, values in named for name, value in values.items()}


def preset(dataset: str, recipe: str = "upstream", backbone: str = "sparsenn", protocol: str = "loo") -> dict[str, Any]:
    """Give the hyper-parameters of `backbone` on `dataset` by `recipe` and `protocol`."""
    return {name: value for name, (value, _) in origins(dataset, recipe, backbone, protocol).items()}


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give `values` of all settings with presets in place of those that are left open (None)."""
    defaults = preset(*(values[name] for name in ("dataset", "recipe", "backbone", "protocol")))
    values = {name: defaults.get(name) if value is None else value for name, value in values.items()}
    if values["in_batch_negatives"] is None:
        values["in_batch_negatives"] = values["num_negatives"]
    if values["mask_sensitive_feature"] is None:  # Decision 17
        values["mask_sensitive_feature"] = values["enable_fairness"]
    return values
