"""Several processes, one model: FSDP2 for backbone and depth decoder.

Start it with `torchrun --nproc-per-node N -m chroma_plugin.cli train ...`. Every process has
batches of its own and a folder of its own for the run; weights, gradients and optimiser states lie
in shards, and a block is put together when it computes. Give the budget in steps: processes that
end by the clock may end at different ones, and wait for each other.

Source: torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from chroma_plugin.errors import ConfigError
from chroma_plugin.training.speaking import SpeechModule


def ranks() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it.

    The first call joins the others.

    Raises:
        ConfigError: torch was built without torch.distributed.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return 0, 1
    import torch.distributed as dist

    if not dist.is_available():
        raise ConfigError("torchrun started several processes, but this torch cannot join them.")
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
    return dist.get_rank(), dist.get_world_size()


def wait() -> None:
    """Until every process has come as far as this; nothing if there is but one."""
    if ranks()[1] > 1:
        torch.distributed.barrier()


def shard(module: SpeechModule, *, bfloat16: bool = True) -> None:
    """Parts a module's weights among the processes, in place; they must have joined.

    Args:
        module: on its device, with the same weights in every process.
        bfloat16: gather weights and compute in bfloat16; gradients are summed in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32
    )
    for stack in (module.backbone.transformer, module.depth.transformer):
        for block in stack.blocks:
            fully_shard(block, mp_policy=policy)
    fully_shard(module, mp_policy=policy)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """The whole weights on the CPU, in the first process; nothing in the others."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return state
