"""Parameter groups: which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and biases and 1-D parameters, which do not.

    The published rule: mask tokens, which have three axes, decay. Each group carries `decays`, so that the loop
    applies a weight-decay schedule to the first alone. Raises ValueError when nothing is trainable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters")
    still = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    kept = {id(p) for p in still}
    decaying = [p for _, p in named if id(p) not in kept]
    return [{"params": decaying, "decays": True}, {"params": still, "decays": False, "weight_decay": 0.0}]
