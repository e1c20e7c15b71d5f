"""The unfair baseline (`--fairness_method=none`)."""

from __future__ import annotations

from model.methods.fitted import Fitted


class Unfair(Fitted):
    """Train or fit the backbone as its own paper does."""
