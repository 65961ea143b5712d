"""CUDA graphs without CUDA: a capture writes down the operations and their memory, a replay repeats
exactly these on exactly that memory.

What a graph cannot see, this cannot see either: a number that the host has changed since, a buffer
that was made anew, a branch that would go the other way. So a step that is right when it is
replayed here keeps its state in static buffers.

Captured graphs share their scratch memory, and what one returns lies there: here every replay
spoils what the others have returned.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chroma_plugin.engine.graphs import DeviceMode, Replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        memory = {x.untyped_storage().data_ptr() for x in inputs}
        if func._schema.is_mutable:
            self.operations.append(lambda: func(*args, **kwargs))
        elif not all(x.untyped_storage().data_ptr() in memory for x in outputs):

            def repeat() -> None:
                again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
                for old, new in zip(outputs, again, strict=True):
                    old.copy_(new)

            self.operations.append(repeat)
        return made  # a view needs no repeating: it looks at the same memory


_returned: list[weakref.ref[Tensor]] = []


def _spoil(but: object) -> None:
    _returned[:] = [ref for ref in _returned if ref() is not None]
    for ref in _returned:
        if (tensor := ref()) is not None and tensor is not but:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)


def record(call: Replay) -> Replay:
    """As `cuda_recorder` does: a call that repeats what this one did, and returns its memory."""
    recorder = _Recorder()
    with recorder:
        result = call()
    if isinstance(result, Tensor):
        _returned.append(weakref.ref(result))

    def replay() -> Any:
        with torch.inference_mode():
            _spoil(but=result)
            for operation in recorder.operations:
                operation()
        return result

    return replay


GPU_LIKE = DeviceMode(record=record, few_shapes=True, lag=1, codec_frames=1)
"""As on a GPU: every step replayed, few shapes, the next step launched before one is looked at."""
GRAPHS_OFF = DeviceMode(record=None, few_shapes=True, lag=1, codec_frames=1)
"""As on a GPU with `cuda_graphs=False`."""
