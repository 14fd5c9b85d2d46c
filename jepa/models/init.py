"""The one weight initialisation of encoders and predictors."""

from __future__ import annotations

import math

import torch
from torch import nn


def init_transformer(module: nn.Module, blocks: nn.Sequential | nn.ModuleList) -> None:
    """Truncated normal of standard deviation 1 / sqrt(3 fan_in), zero biases, residual branches scaled with depth.

    That deviation is the published 0.02 at the width of a ViT-B and for 16 x 16 RGB patches, and grows for narrower
    layers and smaller patches, where 0.02 would leave blocks idle and drown the pixels in the positions. The output
    layers of block l (from 1) are divided by sqrt(2 l), as I-JEPA's constructors mean it; the published code undoes
    that by initialising every Linear once more afterwards, which we do not copy.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=(3 * layer.weight[0].numel()) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            for layer in residual_outputs(block):
                layer.weight.div_(math.sqrt(2 * depth))


def residual_outputs(block: nn.Module) -> list[nn.Linear]:
    """The linear layers whose output a transformer block adds to its residual stream."""
    names = ("attn.proj", "mlp.fc2")
    return [layer for name, layer in block.named_modules() if name in names]
