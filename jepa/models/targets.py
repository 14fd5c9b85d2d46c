"""Who makes the targets: an exponential moving average of the encoder, or the encoder itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.types import Encoder, RunLength, Schedule
from jepa.utils.schedule_samples import sample_schedule
from jepa.utils.tensors import layer_norm, sample_entries


class Target(nn.Module):
    """What all targets share: from features to what is predicted.

    average_layers: predict the mean of the last so many blocks, each layer-normed, as data2vec does (arXiv 2202.03555,
        3.3, which normalises each block's output; here it has passed the final norm too). None: of the last alone.
    concat_layers: predict the outputs of these blocks, numbered from 0, side by side, each layer-normed (the deep
        supervision of V-JEPA 2.1, arXiv 2603.14482).

    Raises ValueError for both at once, and layers that the encoder does not have.
    """

    prevents_collapse = False

    def __init__(
        self, *, encoder: Encoder, average_layers: int | None = None, concat_layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if average_layers is not None and concat_layers is not None:
            raise ValueError("model.target: set average_layers or concat_layers, not both")
        depth = getattr(encoder, "depth", None)
        if average_layers is not None and not 1 <= average_layers <= (depth or 0):
            raise ValueError(
                f"model.target.average_layers={average_layers}: expected 1 to {depth}, the encoder's blocks"
            )
        if concat_layers is not None and (
            not concat_layers or not all(0 <= layer < (depth or 0) for layer in concat_layers)
        ):
            raise ValueError(
                f"model.target.concat_layers={list(concat_layers)}: expected blocks from 0 to {(depth or 0) - 1}"
            )
        self.average = average_layers is not None
        self.layers = list(range(depth - average_layers, depth)) if self.average else concat_layers
        self.out_dim: int = encoder.embed_dim * (1 if self.average or self.layers is None else len(self.layers))

    def targets(self, encoder: Encoder, x: Tensor) -> Tensor:
        """What is to be predicted of whole inputs, (B, N, out_dim): features layer-normed without parameters, fp32."""
        if self.layers is None:
            return layer_norm(self.encode(encoder, x))
        features = [layer_norm(layer) for layer in self.encode(encoder, x, self.layers)]
        if self.average:
            return layer_norm(torch.stack(features).mean(dim=0))
        return torch.cat(features, dim=-1)


class EMATarget(Target):
    """A copy of the encoder that follows it slowly: target <- m * target + (1 - m) * encoder.

    momentum: m as a schedule over the run, called with the number of updates made before this one (the first
    update uses the schedule's value at 0, as published). The copy stays in evaluation mode, so that targets carry
    no dropout, and takes no gradient. Buffers are copied, not averaged.

    reference_batch_size: the batch size B0 that m was chosen for. A run at B uses m ** (B / B0), so that the average
        forgets as fast per sample (Busbridge et al. 2023, arXiv 2307.13813); None uses m at any batch size.

    average_layers, concat_layers: see `Target`.

    Raises ValueError for a momentum that leaves 0 to 1 at any time, and a reference below 1.
    """

    prevents_collapse = True  # by itself: in practice, with a slow enough momentum

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
        """Switch everything but the averaged copy, which stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D) of whole inputs by the averaged copy; a list, one per asked layer."""
        return self.encoder(x, layers=layers)

    @torch.no_grad()
    def update(self, encoder: nn.Module, step: int, run_length: RunLength) -> dict[str, float]:
        """Follow the encoder by one update; gives {"momentum": m}."""
        momentum = self.momentum_at(step, run_length)
        torch._foreach_lerp_(list(self.encoder.parameters()), list(encoder.parameters()), 1 - momentum)
        for mine, theirs in zip(self.encoder.buffers(), encoder.buffers()):
            mine.copy_(theirs)
        return {"momentum": momentum}

    @torch.no_grad()
    def drift(self, encoder: nn.Module) -> Tensor:
        """Sums of squares (2,), fp32, of target - encoder and of the encoder, over some entries of this rank's part.

        Of each parameter every n-th entry is looked at, at most 2048; the root of the ratio tells how far the target
        lags behind.
        """
        mine, theirs = (sample_entries(network.parameters()) for network in (self.encoder, encoder))
        change = torch._foreach_norm(torch._foreach_sub(mine, theirs))
        return torch.stack([torch.stack(norms).square().sum() for norms in (change, torch._foreach_norm(theirs))])

    def momentum_at(self, step: float, run_length: RunLength) -> float:
        """The momentum in force after `step` updates, scaled to the run's batch size; itself a schedule."""
        momentum = check_momentum(self.momentum(step, run_length))
        if self.reference_batch_size is None:
            return momentum
        return momentum ** (run_length.batch_size / self.reference_batch_size)


class SharedTarget(Target):
    """The encoder itself, with gradient: targets move towards predictions too.

    Collapses unless a loss term prevents it. LeWM does so with SIGReg: one network, no moving average.

    encoder: every target is completed with it; nothing of it is kept here. The other arguments are those of `Target`.
    """

    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D) of whole inputs by the encoder that is being trained; a list, one per asked layer."""
        return encoder(x, layers=layers)

    def update(self, encoder: nn.Module, step: int, run_length: RunLength) -> dict[str, float]:
        """Nothing to follow."""
        return {}


class StopGradientTarget(SharedTarget):
    """The encoder itself, without gradient; collapses unless a loss term prevents it."""

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features (B, N, D) of whole inputs by the encoder that is being trained; a list, one per asked layer."""
        return encoder(x, layers=layers)


def check_momentum(momentum: float) -> float:
    """The momentum, within 0 to 1. Raises ValueError for one outside, with which the target would be no average."""
    if not -1e-9 <= momentum <= 1 + 1e-9:  # a ramp to 1 may end a rounding error above it
        raise ValueError(
            f"model.target.momentum becomes {momentum:g}: it must stay between 0 (the encoder itself) and 1 (frozen)"
        )
    return min(1.0, max(0.0, momentum))
