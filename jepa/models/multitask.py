"""Several models trained in one run, each on data of its own: their losses add up.

python train.py experiment=multitask_digits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor, nn

from jepa.models.base_model import JEPA
from jepa.types import Batch, Latents, RunLength, StepRandomness


class Task(TypedDict):
    """One entry of `model.tasks`: a model, to be completed with `loss=`, and the factor its loss enters with.

    model may be the name of another task: both are then done by that one's model, as pictures and clips are by an
    encoder that takes both (`TubeletStem` with images).
    """

    weight: float
    model: Callable[..., nn.Module] | str


class MultiTask(JEPA):
    """A model for each part of `jepa.data.TaskData`; the loss is the weighted sum of theirs.

    tasks: name of the part -> Task; an entry of None is left out.
    loss: called as the models call it, once for each, so that every task has heads of its own.
    share_trunk: encode all tasks by the blocks of the first one's encoder; stems, predictors and targets stay apart.
        Needs encoders with equal `blocks` and `norm` (`TransformerEncoder` of one size), and targets without weights of
        their own, as an average of the trunk for each task would be moved by each.

    Raises ValueError without tasks, for weights that are not above 0, and for trunks that cannot be shared.
    """

    def __init__(
        self, *, tasks: Mapping[str, Task | None], loss: Callable[..., nn.Module], share_trunk: bool = False
    ) -> None:
        super().__init__()
        present = {name: task for name, task in tasks.items() if task is not None}
        if not present:
            raise ValueError("model.tasks is empty: give each part of the data a model (conf/experiment/multitask_*)")
        for name, task in present.items():
            if set(task) != {"weight", "model"}:
                raise ValueError(f"model.tasks.{name} has the keys {sorted(task)}, expected weight and model")
            if not task["weight"] > 0:
                raise ValueError(f"model.tasks.{name}.weight={task['weight']}: expected a number above 0")
        own = {name: task["model"] for name, task in present.items() if not isinstance(task["model"], str)}
        self.done_by = {name: name if name in own else task["model"] for name, task in present.items()}
        if unknown := {name: other for name, other in self.done_by.items() if other not in own}:
            raise ValueError(f"model.tasks: {unknown} name tasks without a model of their own; others are {list(own)}")
        self.tasks = nn.ModuleDict({name: model(loss=loss) for name, model in own.items()})
        self.loss = TaskLosses(
            {name: self.tasks[other].loss for name, other in self.done_by.items()},
            {name: float(task["weight"]) for name, task in present.items()},
        )
        if share_trunk:
            share_trunks(list(self.tasks.values()))

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        """The batch with what each task's model draws for its part of it."""
        prepared: Batch = {"rng": rng}
        for name, other in self.done_by.items():
            part = self.tasks[other].prepare(part_of(batch, name), rng)
            prepared |= {f"{name}/{key}": value for key, value in part.items()}
        return prepared

    def forward(self, batch: Batch) -> dict[str, Latents]:
        """Latents of each task, of a prepared batch."""
        return {name: self.tasks[other](part_of(batch, name)) for name, other in self.done_by.items()}

    def set_step(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Put in force what the losses schedule for this step. Gives values to log."""
        return self._of_all(lambda model: model.set_step(step, run_length))

    def update_target(self, step: int, run_length: RunLength) -> dict[str, float]:
        """Let each target follow its encoder. Gives values to log."""
        return self._of_all(lambda model: model.update_target(step, run_length))

    def _of_all(self, ask: Callable[[Any], dict[str, float]]) -> dict[str, float]:
        return {f"{name}/{key}": value for name, model in self.tasks.items() for key, value in ask(model).items()}


class TaskLosses(nn.Module):
    """The losses of all tasks as one. losses: the models', which own them; weights: of each task."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self._losses = dict(losses)  # no submodules: they are the models', and would be saved twice
        self.weights = dict(weights)

    @property
    def batch_statistics(self) -> bool:
        """Whether micro-batches do not add up to the batch, in any task."""
        return any(getattr(loss, "batch_statistics", False) for loss in self._losses.values())

    def forward(self, latents: Mapping[str, Latents]) -> dict[str, Tensor]:
        """{"loss": the weighted sum, "loss/<task>": its own loss, "loss/<task>/<term>": its terms}."""
        values: dict[str, Tensor] = {}
        for name, loss in self._losses.items():
            found = loss(latents[name])
            values |= {f"loss/{name}{key.removeprefix('loss')}": value for key, value in found.items()}
        total = sum(self.weights[name] * values[f"loss/{name}"] for name in self._losses)
        return {"loss": total, **values}


def part_of(batch: Batch, name: str) -> Batch:
    """The keys of one part, without its name before them."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}


def share_trunks(models: list[nn.Module]) -> None:
    """Have all models encode by the first one's `blocks` and `norm`. Raises ValueError where they cannot."""
    first = models[0].encoder
    for model in models:
        encoder = model.encoder
        if not all(isinstance(getattr(encoder, part, None), nn.Module) for part in ("blocks", "norm")):
            raise ValueError(f"model.share_trunk: {type(encoder).__name__} has no blocks and norm to share")
        if getattr(getattr(model, "target", None), "encoder", None) is not None:
            raise ValueError(
                "model.share_trunk: an averaged target would be moved once by each task: use model/target=shared"
            )
        sizes = [[tuple(p.shape) for p in nn.ModuleList([e.blocks, e.norm]).parameters()] for e in (first, encoder)]
        num_heads = [getattr(e, "num_heads", None) for e in (first, encoder)]  # no weight tells them
        if sizes[0] != sizes[1] or num_heads[0] != num_heads[1]:
            raise ValueError(
                "model.share_trunk: the encoders differ in width, depth, heads or MLP: give them the same sizes"
            )
    for model in models[1:]:
        model.encoder.blocks, model.encoder.norm = first.blocks, first.norm
