"""A guard for step functions: the host must never wait for the device in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostReads(TorchDispatchMode):
    """Fails on every operation that would make the host wait for the device."""

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self._numbers: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"the step reads back with aten::{name}"
        if name == "copy_":  # as in `flags[row] = True`; `fill_` takes the number along
            assert not any(args[1] is n for n in self._numbers), "a number of the host is copied"
        if name == "index":
            masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype is torch.bool]
            assert not masks, "the step reads back with an index by mask"
        made = func(*args, **(kwargs or {}))
        if name == "lift_fresh":  # a number, or a list of them, has become a tensor
            self._numbers.append(made)
        return made
