"""What a method was asked to hide of its users, beside which leakage is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from model import BACKBONES
from model.methods.base import Method
from model.runs.config import Config

# control -> attributes that its vectors hide
Hidden = Mapping[str, tuple[str, ...]]


def hidden_attributes(method: Method) -> dict[str, tuple[str, ...]]:
    """Give the attributes that `method` was asked to hide under each of its controls."""
    return {control: method.hides(control) for control in method.controls()}


def masked_attributes(trained: Config) -> tuple[str, ...]:
    """Name the attributes that a network `trained` under these settings does not get as inputs."""
    reads_features = "mask_sensitive_feature" not in BACKBONES[trained.backbone].unread(trained)
    return (trained.attribute,) if trained.mask_sensitive_feature and reads_features else ()


def as_json(hidden: Hidden) -> list[str] | dict[str, list[str]]:
    """Give plain values: the attributes, or by control where there are several."""
    lists = {control: list(attributes) for control, attributes in hidden.items()}
    return lists if len(lists) > 1 else next(iter(lists.values()))


def hidden_text(hidden: Hidden, masked: Sequence[str], reported: Iterable[str]) -> str:
    """Say which of the `reported` attributes training was asked to hide, and which nobody asked it to hide.

    An attribute that is `masked` is left out of the network's inputs, which alone hides little.
    """

    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"{name} (not an input)" if name in masked else name for name in names)

    asked = dict.fromkeys(name for names in hidden.values() for name in names)
    others = [name for name in reported if name not in asked]
    if len(set(hidden.values())) > 1:
        under = {names: [control for control in hidden if hidden[control] == names] for names in hidden.values()}
        words = "; ".join(
            f"under {', '.join(controls)} {listed(names) or 'nothing'}" for names, controls in under.items()
        )
    else:
        words = listed(asked)
    parts = [f"asked to hide {words}" if words else "", f"nobody asked to hide {listed(others)}" if others else ""]
    return "; ".join(part for part in parts if part)
