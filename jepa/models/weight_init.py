"""The weight initialisation of encoders and predictors."""

from __future__ import annotations

import math

import torch
from torch import nn


def init_transformer(module: nn.Module, blocks: nn.Sequential | nn.ModuleList) -> None:
    """Initialise weights from a truncated normal of standard deviation 1 / sqrt(3 fan_in), and biases with 0.

    For a ViT-B and 16 x 16 RGB patches that is the published 0.02. It is larger for narrower layers and smaller
    patches, where 0.02 makes blocks contribute almost nothing and patch embeddings vanish beside the positions. The
    output layers of block l (from 1) are divided by sqrt(2 l), as in I-JEPA's constructors; the published code then
    undoes this by initialising every Linear again, which is not copied here.
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
    """Return the linear layers whose output a transformer block adds to the residual stream."""
    names = ("attn.proj", "mlp.fc2")
    return [layer for name, layer in block.named_modules() if name in names]
