"""The unfair baseline (`--fairness_method=none`)."""

from __future__ import annotations

from model.methods.fitted import Fitted


class Unfair(Fitted):
    """The unfair baseline: the backbone is trained or fitted as its own paper does."""
