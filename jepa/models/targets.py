"""Target networks: an exponential moving average of the encoder, the encoder itself, or a frozen teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.types import Encoder, Grid, RunLength, Schedule, sample_schedule
from jepa.utils.tensors import layer_norm, local_part, sample_entries, token_valid


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
        """Return features (B, N, D) of unmasked inputs, for evaluation too; with `layers` a list, one per layer."""
        return encoder(x, layers=layers)

    def teach(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return the features of which targets are made, where `encode` gives others."""
        return self.encode(encoder, x, layers)

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
            return layer_norm(self.teach(encoder, x))
        features = [layer_norm(layer) for layer in self.teach(encoder, x, self.layers)]
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


class TeacherTarget(Target):
    """A frozen network of a checkpoint, in evaluation mode (SALT, arXiv 2509.24317; distillation into a small encoder).

    The predictor's last layer maps to its width. Features that are evaluated are the encoder's, as the teacher learns
    nothing. No checkpoint holds its weights; `jepa.config.teacher` loads them.

    teacher: a `jepa.types.Encoder` of inputs scale * x + shift; None where the encoder alone is of use, with out_dim.
    scale, shift: one per channel of the teacher; None leaves x as it is. image_size: (H, W) in pixels that pictures and
        clips are resampled to for it; None leaves them. A picture of one channel is repeated for a teacher of more.
    source, fingerprint: its name and a hash of its weights.

    Its features are brought to the encoder's grid: averaged where theirs is finer on all axes, else interpolated.
    """

    prevents_collapse = True  # it does not move

    def __init__(
        self,
        *,
        encoder: Encoder,
        teacher: nn.Module | None = None,
        out_dim: int | None = None,
        scale: Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
        image_size: Sequence[int] | None = None,
        source: str = "",
        fingerprint: str = "",
        average_layers: int | None = None,
        concat_layers: Sequence[int] | None = None,
    ) -> None:
        if teacher is None and out_dim is None:
            raise ValueError("model.target: a teacher that is absent needs out_dim, the width of its targets")
        layers = {} if teacher is None else {"average_layers": average_layers, "concat_layers": concat_layers}
        super().__init__(encoder=encoder if teacher is None else teacher, **layers)
        if out_dim is not None and teacher is not None and out_dim != self.out_dim:
            raise ValueError(
                f"model.target.out_dim={out_dim}, but {source or 'the teacher'} makes targets of width {self.out_dim}: "
                "is it another one than before? Leave out_dim at null"
            )
        self.out_dim = self.out_dim if out_dim is None else out_dim
        self.source, self.fingerprint, self.image_size = source, fingerprint, image_size and tuple(image_size)
        self.teacher = None if teacher is None else teacher.float().requires_grad_(False).eval()
        for name, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, None if values is None else torch.tensor(list(values)), persistent=False)
        self.register_state_dict_post_hook(_without_teacher)

    def train(self, mode: bool = True) -> TeacherTarget:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def encode(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        return encoder(x, layers=layers)

    @torch.no_grad()
    def teach(self, encoder: Encoder, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Return the teacher's features (B, N, D) on the encoder's grid; with `layers` a list, one per layer.

        Raises ValueError for inputs that no teacher takes, and for grids that do not go together.
        """
        if self.teacher is None:
            raise ValueError(
                "this model was loaded without its teacher, which makes its targets and is in no checkpoint"
            )
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ValueError(
                "model/target=teacher takes pictures, clips, sounds and series of one modality, no texts, whose ids "
                "mean something else in every run: use model/target=ema"
            )
        seen, grid = self.teacher_input(x), tuple(encoder.grid(x))
        try:
            own, found = tuple(self.teacher.grid(seen)), self.teacher(seen, layers=layers)
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"model.target: {self.source} does not take inputs of shape {tuple(seen.shape)} ({error}); "
                "model.target.image_size=<side> resamples pictures for it"
            ) from error
        if own == grid:
            return found
        if len(own) != len(grid) or token_valid(encoder, x) is not None:
            raise ValueError(
                f"model.target: {self.source} has tokens on a grid of {own}, and the model on one of {grid}: give the "
                "model patches of the teacher's size (features of padded inputs, or of other axes, are not resampled)"
            )
        return [resample(each, own, grid) for each in found] if layers is not None else resample(found, own, grid)

    def teacher_input(self, x: Tensor) -> Tensor:
        """Return inputs (B, C, *S) as the teacher takes them: its channels, its normalisation, its size."""
        axes = [1] * (x.ndim - 2)
        if self.scale is not None:
            x = x * self.scale.view(-1, *axes) + self.shift.view(-1, *axes)  # (B, 1, *S) to those of all channels
        if self.image_size in (None, tuple(x.shape[-2:])):
            return x
        pictures = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x  # frames (B * T, C, H, W)
        pictures = F.interpolate(pictures, size=self.image_size, mode="bilinear", antialias=True)
        return pictures.unflatten(0, (len(x), -1)).transpose(1, 2) if x.ndim == 5 else pictures


def _without_teacher(target: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Remove the weights of the teacher from a state dict."""
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def resample(features: Tensor, own: Grid, grid: Grid) -> Tensor:
    """Return features (B, N, D) of a grid on another: means over its cells where that is coarser, else interpolated."""
    mode = "area" if all(a >= b for a, b in zip(own, grid)) else ("linear", "bilinear", "trilinear")[len(grid) - 1]
    maps = features.float().transpose(1, 2).unflatten(2, own)  # (B, D, *own)
    return F.interpolate(maps, size=grid, mode=mode).flatten(2).transpose(1, 2)


def check_momentum(momentum: float) -> float:
    """Return the momentum, clamped to 0 to 1 within rounding. Raise ValueError if it is outside."""
    if not -1e-9 <= momentum <= 1 + 1e-9:  # a schedule that ends at 1 may exceed it by rounding
        raise ValueError(
            f"model.target.momentum becomes {momentum:g}: it must stay between 0 (the encoder itself) and 1 (frozen)"
        )
    return min(1.0, max(0.0, momentum))
