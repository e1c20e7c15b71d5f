"""The unfair baseline (`--fairness_method=none`)."""

from __future__ import annotations

from model.methods.base import Method


class Unfair(Method):
    """Train or fit the backbone as its own paper does."""

    fits_at_once = True
