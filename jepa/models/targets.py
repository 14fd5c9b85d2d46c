"""Target networks: an exponential moving average of the encoder, or the encoder itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.types import Encoder, RunLength, Schedule, sample_schedule
from jepa.utils.tensors import layer_norm, local_part, sample_entries


class Target(nn.Module):
    """Base class of target networks: features to targets.

    average_layers: the targets are the mean over the last `average_layers` blocks, each layer-normed (data2vec, arXiv
        2202.03555, section 3.3; there without, here with the final norm before). None: the last block.
    concat_layers: the targets are the concatenated outputs of these blocks, numbered from 0, each layer-normed (deep
        supervision of V-JEPA 2.1, arXiv 2603.14482).
    """

    prevents_collapse = False

    def __init__(
        self, *, encoder: Encoder, average_layers: int | None = None, concat_layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if average_layers is not None and concat_layers is not None:
            raise ValueError("model.target: set average_layers or concat_layers, not both")
        depth = getattr(encoder, "depth", None) or 0
        if average_layers is not None and not 1 <= average_layers <= depth:
            raise ValueError(
                f"model.target.average_layers={average_layers}: expected 1 to {depth} of the encoder's blocks"
            )
        if concat_layers is not None and (not concat_layers or not set(concat_layers) <= set(range(depth))):
            raise ValueError(f"model.target.concat_layers={list(concat_layers)}: expected blocks from 0 to {depth - 1}")
        self.average = average_layers is not None
        self.layers = list(range(depth - average_layers, depth)) if self.average else concat_layers
        self.out_dim: int = encoder.embed_dim * (1 if self.average or self.layers is None else len(self.layers))

    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return features (B, N, D) of unmasked inputs; with `layers` a list, one per layer."""
        return encoder(x, layers=layers)

    def update(
        self, encoder: nn.Module, step: int, run_length: RunLength, *, skip: Tensor | None = None
    ) -> dict[str, float]:
        """Update the target's own weights, if any, after `step` earlier updates; return values to log.

        skip: leave them as they are where this is 1.0, a scalar on their device.
        """
        return {}

    def targets(self, encoder: Encoder, x: Tensor) -> Tensor:
        """Return the targets (B, N, out_dim) of unmasked inputs: features layer-normed without parameters, fp32."""
        if self.layers is None:
            return layer_norm(self.encode(encoder, x))
        features = [layer_norm(layer) for layer in self.encode(encoder, x, self.layers)]
        if self.average:
            return layer_norm(torch.stack(features).mean(dim=0))
        return torch.cat(features, dim=-1)


class EMATarget(Target):
    """Exponential moving average of the encoder: target <- m * target + (1 - m) * encoder (I-JEPA, arXiv 2301.08243).

    The average stays in evaluation mode, without dropout. Buffers are copied, not averaged.

    momentum: schedule of m, called with the number of earlier updates.
    reference_batch_size: batch size B0 that m was chosen for. A run at batch size B uses m ** (B / B0), the same decay
        per sample (Busbridge et al. 2023, arXiv 2307.13813). None: m at any batch size.

    Raises ValueError if the momentum leaves 0 to 1 during a run.
    """

    prevents_collapse = True  # in practice, with a momentum near 1

    def __init__(
        self,
        *,
        encoder: nn.Module,
        momentum: Schedule,
        reference_batch_size: int | None = None,
        average_layers: int | None = None,
        concat_layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder=encoder, average_layers=average_layers, concat_layers=concat_layers)
        if not callable(momentum):
            raise ValueError(
                f"model.target.momentum={momentum!r}: expected a schedule, such as "
                "{_target_: jepa.optim.Constant, value: 0.996}"
            )
        for value in sample_schedule(momentum):
            check_momentum(value)
        if reference_batch_size is not None and reference_batch_size < 1:
            raise ValueError(
                f"model.target.reference_batch_size={reference_batch_size} (scaling.reference_batch_size): expected at "
                "least 1, or null for no scaling"
            )
        self.reference_batch_size = reference_batch_size
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> EMATarget:
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return self.encoder(x, layers=layers)

    @torch.no_grad()
    def update(
        self, encoder: nn.Module, step: int, run_length: RunLength, *, skip: Tensor | None = None
    ) -> dict[str, float]:
        momentum = self.momentum_at(step, run_length)
        own, source = ([local_part(p) for p in network.parameters()] for network in (self.encoder, encoder))
        weight = 1 - momentum if skip is None else [(1 - skip) * (1 - momentum)] * len(own)
        torch._foreach_lerp_(own, source, weight)
        for mine, theirs in zip(self.encoder.buffers(), encoder.buffers()):
            mine.copy_(theirs if skip is None else torch.where(skip > 0, mine, theirs))
        return {"momentum": momentum}

    @torch.no_grad()
    def drift(self, encoder: nn.Module) -> Tensor:
        """Return the sums of squares (2,) fp32 of target - encoder and of the encoder.

        Over at most 2048 entries of this rank's part of each parameter (`sample_entries`).
        """
        average, current = (sample_entries(network.parameters()) for network in (self.encoder, encoder))
        difference = torch._foreach_norm(torch._foreach_sub(average, current))
        return torch.stack([torch.stack(norms).square().sum() for norms in (difference, torch._foreach_norm(current))])

    def momentum_at(self, step: float, run_length: RunLength) -> float:
        """Return the momentum after `step` updates, scaled to the run's batch size (a `Schedule`)."""
        momentum = check_momentum(self.momentum(step, run_length))
        if self.reference_batch_size is None:
            return momentum
        return momentum ** (run_length.batch_size / self.reference_batch_size)


class SharedTarget(Target):
    """The encoder itself, with gradient, so that targets are trained towards predictions too.

    Collapses unless a loss term prevents it, as LeWM does with SIGReg.
    """


class StopGradientTarget(Target):
    """The encoder itself, without gradient; collapses unless a loss term prevents it."""

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return encoder(x, layers=layers)


def check_momentum(momentum: float) -> float:
    """Return the momentum, clamped to 0 to 1 within rounding. Raise ValueError if it is outside."""
    if not -1e-9 <= momentum <= 1 + 1e-9:  # a schedule that ends at 1 may exceed it by rounding
        raise ValueError(
            f"model.target.momentum becomes {momentum:g}: it must stay between 0 (the encoder itself) and 1 (frozen)"
        )
    return min(1.0, max(0.0, momentum))
