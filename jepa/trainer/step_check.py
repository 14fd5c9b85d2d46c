"""What all ranks agree on before the weights move: that the step is finite, and whether to stop or save after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.distributed.collectives import all_reduce_max
from jepa.trainer.step_metrics import to_floats
from jepa.utils.errors import NonFiniteError

MAX_SKIPPED_STEPS = 20
"""fp16 steps in a row that may be skipped for overflow before the run stops."""


@dataclass(frozen=True)
class StepAgreement:
    """finite: whether loss and gradient are, on every rank. signal: to stop for, 0 without. save: after the step."""

    finite: bool
    signal: int
    save: bool


def agree_on_step(
    values: Mapping[str, Tensor], *, step: int, signal: int | None, save: bool, may_skip: bool
) -> StepAgreement:
    """Exchange over all ranks what each has seen of a step: one small all-reduce.

    values: `train/loss` and `grad_norm` decide. step: its number, from 1. may_skip: whether a gradient that is not
    finite is the loss scaler's to skip.

    Raises NonFiniteError for what is not finite and may not be skipped.
    """
    bad = torch.stack([~torch.isfinite(values["train/loss"]), ~torch.isfinite(values["grad_norm"])])
    requests = bad.new_tensor([signal or 0, save], dtype=torch.float32)
    bad_loss, bad_gradient, signal, save = all_reduce_max(torch.cat([bad.float(), requests])).tolist()
    if bad_loss or (bad_gradient and not may_skip):
        shown = ", ".join(
            f"{name}={value:.4g}" for name, value in to_floats(values).items() if not name.startswith("grad_norm/")
        )
        raise NonFiniteError(
            f"not finite at step {step}: {shown}. The weights were not changed by it. Lower optimizer.lr, "
            "lengthen the warm-up, set trainer.grad_clip_norm=1, or use trainer.precision=fp32 to find the cause"
        )
    return StepAgreement(finite=not (bad_loss or bad_gradient), signal=int(signal), save=bool(save))
