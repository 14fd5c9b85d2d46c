"""Masks: which tokens the context encoder sees and which are predicted, drawn for a batch on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from jepa.masks.multiblock import MultiBlockMask
from jepa.masks.published_multiblock import PublishedMultiBlockMask
from jepa.masks.random_tokens import RandomMask
from jepa.masks.span import SpanMask
from jepa.utils.errors import check_choice


def multiblock_mask(
    *,
    num_targets: int = 4,
    context_scale: Sequence[float] = (0.85, 1.0),
    target_scale: Sequence[float] = (0.15, 0.2),
    aspect_ratio: Sequence[float] = (0.75, 1.5),
    min_context: int = 10,
    allow_overlap: bool = False,
    compat: Literal["rectangles", "published", "fixed"] = "rectangles",
) -> MultiBlockMask | PublishedMultiBlockMask:
    """Return `MultiBlockMask` for compat "rectangles", `PublishedMultiBlockMask` for "published".

    "fixed" is what runs before 2026-12 have: blocks of which P tokens are sampled (`MultiBlockMask.rectangles`).

    Raises ValueError for any other compat.
    """
    kinds = {
        "rectangles": MultiBlockMask,
        "published": PublishedMultiBlockMask,
        "fixed": partial(MultiBlockMask, rectangles=False),
    }
    check_choice("model.mask.compat", compat, kinds)
    return kinds[compat](
        num_targets=num_targets,
        context_scale=context_scale,
        target_scale=target_scale,
        aspect_ratio=aspect_ratio,
        min_context=min_context,
        allow_overlap=allow_overlap,
    )
