"""The contracts between models, masks, losses, data, trainer and evaluation, and the legend of shapes.

    B batch    V views    C channels    S input axes    N tokens on the grid    K context tokens kept
    M target blocks       P tokens per block            D width

Every package of jepa imports this file and `jepa.utils`, and no other package of jepa: configs wire them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from jepa.utils.random import generator

Grid: TypeAlias = tuple[int, ...]
"""Tokens along each axis: (L,) for text and series, (H, W) for images, (T, H, W) for video."""

Batch: TypeAlias = dict[str, Any]
"""What a loader yields and the model prepares, all tensors with B first:

`x` (B, C, *S), or (B, L) int64 ids, or `views` (B, V, C, *S) when each sample is augmented V times; `local_views`
(B, L, C, *s), smaller crops beside them; `label` (B,) int64, read by evaluation only; `masks`, a list of `Mask` over
B * V samples, and `target_weights`, once the model has drawn them.

Padding and missing values stand in `x` itself, so that they need no second tensor on the way to the encoder: NaN in
float inputs, a padding id in ids. Only encoders that have `token_valid` take such inputs.
"""


@dataclass(frozen=True)
class Mask:
    """Which tokens the context encoder sees and which the predictor must predict, by flat grid index.

    context (B, K) and targets (B, M, P) are int64 indices into the N grid tokens in row-major order, disjoint unless
    overlap was asked for; target blocks of one sample may overlap each other. context_valid (B, K) and target_valid
    (B, M, P) are bool and mark the entries that are not padding; None means that all are valid.
    """

    context: Tensor
    targets: Tensor
    context_valid: Tensor | None = None
    target_valid: Tensor | None = None

    def __getitem__(self, samples: slice) -> Mask:
        """The mask of some of the batch's samples."""
        return self._map(lambda tensor: tensor[samples])

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Mask:
        return Mask(**{name: tensor if tensor is None else function(tensor) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class StepRandomness:
    """The random choices of one step, made for the whole global batch, of which a slice is taken.

    Samples start .. start + count - 1 of the `total` samples of the batch belong to this rank and micro-batch.
    """

    seed: int
    step: int
    total: int
    start: int
    count: int

    def generator(self, device: torch.device | str, stream: str) -> torch.Generator:
        """A generator of (seed, step) for one named purpose; the same on every rank."""
        return generator(device, self.seed, stream, self.step)

    @property
    def samples(self) -> slice:
        """This rank's and micro-batch's part of the global batch."""
        return slice(self.start, self.start + self.count)


@dataclass
class Latents:
    """What a model hands to its loss. Fields a method does not use are None.

    predictions, targets: lists with one (B, M, P, D) per mask; targets are layer-normed without parameters and
        carry no gradient where the method wants none.
    target_weights: None (all tokens count alike), or a list like `targets` of (B, M, P) weights >= 0,
        of mean 1 over the samples of all ranks and micro-batches.
    positions: list like `targets` of (B, M, P, A) int64, the place of each target token on the A axes of the grid.
    inputs: list like `targets` of what the input holds at the target tokens: (B, M, P, values), or (B, M, P) int64
        for inputs that are ids. Like positions made only where a term of the loss needs them.
    embeddings: (V, B, D), the mean over the seen tokens of every view (each mask of a sample gives one view).
    global_views: how many of the views, the first ones, show the whole of a sample; None: all do.
    projections: (V, B, E), `embeddings` through the loss's projector.
    rng: where a loss's random choices come from; None takes torch's global generator.
    context: the same of the tokens that are seen, where these are predicted too (V-JEPA 2.1): predictions, targets and
        target_weights, lists of (B, M, K, D) and (B, M, K), the weights not scaled to a mean of 1.
    """

    predictions: list[Tensor] | None = None
    targets: list[Tensor] | None = None
    target_weights: list[Tensor | None] | None = None
    positions: list[Tensor] | None = None
    inputs: list[Tensor] | None = None
    embeddings: Tensor | None = None
    global_views: int | None = None
    projections: Tensor | None = None
    rng: StepRandomness | None = None
    context: Latents | None = None


@dataclass
class WorldLatents(Latents):
    """Latents of a world model, of windows of T frames, the first h of them its history, and the T - 1 actions between.

    states, target_states (B, T, D): of all frames, by the encoder, and by the network that makes the targets.
    one_step (B, T - 1, D): predictions of frames 1 ... T - 1, each from the states before it (teacher-forced).
    history: h.
    actions (B, T - 1, A): standardised; action t leads from frame t to t + 1.

    `predictions` and `targets` are one list entry (B, 1, k, D) of frames h ... h + k - 1, rolled out from the history;
    `embeddings` are the states, with a view for each time step: (T, B, D).
    """

    states: Tensor | None = None
    target_states: Tensor | None = None
    one_step: Tensor | None = None
    actions: Tensor | None = None
    history: int = 1


@dataclass(frozen=True)
class RunLength:
    """The length of a run, which turns durations into steps and steps into shares of the run.

    max_steps: optimizer steps of the whole run. steps_per_epoch: samples / batch size; need not be whole, as the
    sample stream crosses epochs. batch_size: samples of a step, of all ranks and micro-batches together.
    """

    max_steps: int
    steps_per_epoch: float
    batch_size: int = 1

    def epoch(self, step: int) -> float:
        """Epochs that lie behind after `step` steps."""
        return step / self.steps_per_epoch


class Schedule(Protocol):
    """A pure function of the step: the value in force at a step of a run of that length."""

    def __call__(self, step: float, run_length: RunLength) -> float: ...


EXAMPLE_RUN = RunLength(max_steps=10_000, steps_per_epoch=100, batch_size=64)
"""100 epochs, longer than the usual warm-up, to check schedules before the length of the run is known."""


def sample_schedule(schedule: Schedule) -> list[float]:
    """Return the values of a schedule over EXAMPLE_RUN, four per epoch."""
    return [schedule(step, EXAMPLE_RUN) for step in range(0, EXAMPLE_RUN.max_steps + 1, 25)]


class Encoder(Protocol):
    """Tokens in, features out. Positions are added before tokens are dropped, so kept ones know their place.

    embed_dim: width of the features. token_values: how many input values a token covers; of ids, how
    many there are. Like `token_inputs` read only where the loss reconstructs the input; an encoder may lack both.

    An encoder whose inputs may be padded has `token_valid(x) -> (B, N) bool` (see `jepa.utils.tensors.token_valid`):
    tokens marked False hold padding alone. It attends to none of these itself when called without `valid`.
    """

    embed_dim: int
    token_values: int

    def grid(self, x: Tensor) -> Grid:
        """The token grid of inputs x (B, C, *S)."""

    def token_inputs(self, x: Tensor) -> Tensor:
        """What the input holds at each token of the grid: (B, N, token_values), or ids (B, N) int64."""

    def __call__(
        self, x: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """Features (B, K, D) of the tokens `keep` (B, K), or (B, N, D) of all; a list, one per asked layer."""


class Masker(Protocol):
    """Draws the masks of a batch on the generator's device, one `Mask` per mask group."""

    def __call__(
        self, batch_size: int, grid: Grid, *, valid: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Mask]: ...


@dataclass(frozen=True)
class DataSpec:
    """What only the built data knows.

    input_shape: of one sample, (C, *S), or (L,) for ids. classes: number of labels, None for data without.
    found: values that a configuration may leave open (null, or auto) and that the data found out, such as
        {"channels": 12}.
    """

    num_train: int
    num_test: int
    input_shape: tuple[int, ...]
    classes: int | None
    class_names: tuple[str, ...] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
