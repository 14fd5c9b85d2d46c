"""What is done to each layer of a network: recompute its activations, compile it, shard it.

A network keeps its layers in a `ModuleList` or `Sequential` called `blocks`, as timm's do. Working layer by layer keeps
compilation short (one graph serves all layers) and is where FSDP cuts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from jepa.utils.errors import UserError


def block_lists(model: nn.Module) -> Iterator[nn.ModuleList | nn.Sequential]:
    """Every list of layers in a model, once: networks may share theirs."""
    found = set()
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and blocks not in found:
            found.add(blocks)
            yield blocks


def blocks_of(model: nn.Module, setting: str) -> list[nn.Module]:
    """Every layer in a model. Raises UserError, naming the setting that needs them, when there is none."""
    found = [block for blocks in block_lists(model) for block in blocks]
    if not found:
        raise UserError(
            f"{setting} works on layers, and {type(model).__name__} has none: keep them in a ModuleList or Sequential "
            "called `blocks`"
        )
    return found


def change_layers(model: nn.Module, *, activation_checkpointing: bool, compile: bool | str) -> None:
    """Recompute activations of each trainable layer in the backward pass, and compile each, where asked for.

    compile may name a backend of torch. Sizes that change (masks, the last batch) become symbols after the first time.

    Raises UserError when the model has no layers, or torch does not know the backend.
    """
    if activation_checkpointing:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper  # slow to import

        blocks_of(model, "trainer.activation_checkpointing=true")
        for blocks in list(block_lists(model)):
            for number, block in enumerate(blocks):
                if any(p.requires_grad for p in block.parameters()):  # a frozen copy keeps no activations
                    blocks[number] = checkpoint_wrapper(block)
    if compile:
        backend = "inductor" if compile is True else compile
        if backend not in (known := torch._dynamo.list_backends(exclude_tags=())):
            raise UserError(f"trainer.compile={backend}: expected true, false or one of torch's backends {known}")
        for block in blocks_of(model, "trainer.compile=true"):
            block.compile(backend=backend)
