"""Batches whose values may be dicts of tensors: one input for each modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The value with `function` applied to its tensors: a tensor, or dicts of them; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(each, function) for name, each in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, as `map_tensors` finds them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)


def batch_length(batch: Mapping[str, Any]) -> int:
    """Samples of a batch."""
    return len(next(tensors_in(batch)))


def batch_slice(batch: Mapping[str, Any], samples: slice) -> dict[str, Any]:
    """Some samples of a batch that has not been prepared."""
    return map_tensors(batch, lambda tensor: tensor[samples])
