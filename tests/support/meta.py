"""Torch's meta device, whose tensors have no values: it stands in for a GPU, which the machines of the tests lack."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch

META = torch.device("meta")


@contextlib.contextmanager
def meta_stand_ins():
    """Torch's autocast and fused Adam refuse the meta device: the CPU's rules and plain Adam do as well here."""
    autocast, adam = torch.autocast, torch.optim.Adam

    def on_cpu(kind, *rest, **more):
        return autocast(kind.replace("meta", "cpu"), *rest, **more)

    def plain(parameters, fused, **settings):
        return adam(parameters, **settings)

    with mock.patch.object(torch, "autocast", on_cpu), mock.patch.object(torch.optim, "Adam", plain):
        yield
