"""A mode that refuses what would make the host wait for an accelerator, for code that runs on the host in tests."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# operators whose output, or its shape, the host must know before it can go on
SYNCHRONISING = {
    *("_local_scalar_dense", "argwhere", "bincount", "equal", "is_nonzero", "masked_select", "nonzero"),
    *("_unique", "_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive"),
}
# reads of a tensor's memory that no operator shows
READS = {"__array__", "cpu", "item", "numpy", "tolist"}


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            raise AssertionError(f"Tensor.{name} makes the host wait for the device; keep the value on the device")
        return function(*args, **(kwargs or {}))


class NoHostSync(TorchDispatchMode):
    """Raise AssertionError at any operator or read that would synchronise host and device if tensors were on one.

        with NoHostSync():
            batch = sampler.sample(edges, negatives, histories)

    What is copied to or from the device is not seen, since all tensors are on the host here.
    """

    def __enter__(self):
        self._reads = _NoReads()
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator.overloadpacket.__name__
        refused = name in SYNCHRONISING
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            # a mask is turned into positions first, whose number only the device knows
            refused = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name == "repeat_interleave":
            refused = kwargs.get("output_size") is None
        if refused:
            raise AssertionError(f"{operator} makes the host wait for the device; use an operator of a fixed shape")
        return operator(*args, **kwargs)
