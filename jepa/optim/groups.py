"""Parameter groups: which weights decay, and which are matrices to an optimizer that cares."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters in up to three groups: matrices, other weights that decay, and what does not decay.

    The published rule: biases and 1-D parameters do not decay; mask tokens, which have three axes, do. Each group
    carries `decays`, so that the loop applies a weight-decay schedule to those alone, and `use_muon`, by which
    timm's Muon tells the matrices it orthogonalises from what it leaves to AdamW; other optimizers read neither.
    Groups without parameters are left out.

    Raises ValueError when nothing is trainable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameters")
    still = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    kept, matrices = {id(p) for p in still}, matrix_ids(model)
    decaying = [p for _, p in named if id(p) not in kept]
    groups = [
        {"params": [p for p in decaying if id(p) in matrices], "decays": True, "use_muon": True},
        {"params": [p for p in decaying if id(p) not in matrices], "decays": True, "use_muon": False},
        {"params": still, "decays": False, "use_muon": False, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def matrix_ids(model: nn.Module) -> set[int]:
    """The ids of the weights that map features to features.

    They are the 2-D weights of layers, and the kernels of convolutions, patch embeddings above all, which are
    matrices (out, in * kernel) once flattened. Not: tables whose rows are looked up (`nn.Embedding`, also where a
    layer shares it), free parameters such as mask tokens and learned positions, and depthwise kernels.
    """
    found: set[int] = set()
    tables: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                tables.add(id(parameter))
            elif isinstance(module, _ConvNd):
                is_matrix = name == "weight" and module.groups == 1
            else:
                is_matrix = parameter.ndim == 2 and name.endswith("weight")
            if id(parameter) not in tables and is_matrix and min(parameter.shape[0], parameter[0].numel()) > 1:
                found.add(id(parameter))
    return found - tables
