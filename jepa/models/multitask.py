"""Several models trained in one run, each on its own data, by the weighted sum of their losses.

python train.py experiment=multitask_digits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor, nn

from jepa.models.base_model import JEPA
from jepa.models.transformer import share_trunks
from jepa.types import Batch, Latents, RunLength, StepRandomness


class Task(TypedDict):
    """One entry of `model.tasks`.

    weight: factor of the task's loss in the sum.
    model: called with `loss=` to be completed; or the name of another task, whose model serves both, as for images and
        clips with an encoder that takes both (`TubeletStem` with images).
    """

    weight: float
    model: Callable[..., nn.Module] | str


class MultiTask(JEPA):
    """One model per task of `jepa.data.TaskData`; the loss is the weighted sum of theirs.

    tasks: name -> Task; None leaves a task out. loss: completed by each model, so that every task has its own heads.
    share_trunk: use the blocks and the final norm of the first encoder for all tasks; stems, predictors and targets
        stay separate. Needs encoders of the same size and targets without weights of their own: an averaged trunk would
        be updated once per task.
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
        self.model_of_task = {name: name if name in own else task["model"] for name, task in present.items()}
        if unknown := {name: other for name, other in self.model_of_task.items() if other not in own}:
            raise ValueError(f"model.tasks: {unknown} name tasks without a model of their own; others are {list(own)}")
        self.tasks = nn.ModuleDict({name: model(loss=loss) for name, model in own.items()})
        self.loss = TaskLosses(
            {name: self.tasks[other].loss for name, other in self.model_of_task.items()},
            {name: float(task["weight"]) for name, task in present.items()},
        )
        if share_trunk:
            if any(getattr(getattr(m, "target", None), "encoder", None) is not None for m in self.tasks.values()):
                raise ValueError(
                    "model.share_trunk: an averaged target would be moved once by each task: use model/target=shared"
                )
            share_trunks([model.encoder for model in self.tasks.values()], "model.share_trunk")

    def prepare(self, batch: Batch, rng: StepRandomness) -> Batch:
        prepared: Batch = {"rng": rng}
        for name, other in self.model_of_task.items():
            part = self.tasks[other].prepare(part_of(batch, name), rng)
            prepared |= {f"{name}/{key}": value for key, value in part.items()}
        return prepared

    def forward(self, batch: Batch) -> dict[str, Latents]:
        return {name: self.tasks[other](part_of(batch, name)) for name, other in self.model_of_task.items()}

    def set_step(self, step: int, run_length: RunLength) -> dict[str, float]:
        return self._collect(lambda model: model.set_step(step, run_length))

    def update_target(self, step: int, run_length: RunLength, *, skip: Tensor | None = None) -> dict[str, float]:
        return self._collect(lambda model: model.update_target(step, run_length, skip=skip))

    def _collect(self, call: Callable[[Any], dict[str, float]]) -> dict[str, float]:
        return {f"{name}/{key}": value for name, model in self.tasks.items() for key, value in call(model).items()}


class TaskLosses(nn.Module):
    """The weighted sum of the tasks' losses. losses: task -> its model's loss. weights: task -> factor."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self._losses = dict(losses)  # not as submodules: those of the models would be saved twice
        self.weights = dict(weights)

    @property
    def over_batch(self) -> list[str]:
        """What depends on all samples of the batch at once, in any task."""
        return [f"{name}: {each}" for name, loss in self._losses.items() for each in getattr(loss, "over_batch", [])]

    @property
    def batch_statistics(self) -> bool:
        """Whether the loss of a batch differs from the mean over its micro-batches, in any task."""
        return any(getattr(loss, "batch_statistics", False) for loss in self._losses.values())

    def forward(self, latents: Mapping[str, Latents]) -> dict[str, Tensor]:
        """Return {"loss": the weighted sum, "loss/<task>": its own loss, "loss/<task>/<term>": its terms}."""
        values: dict[str, Tensor] = {}
        for name, loss in self._losses.items():
            terms = loss(latents[name])
            values |= {f"loss/{name}{key.removeprefix('loss')}": value for key, value in terms.items()}
        total = sum(self.weights[name] * values[f"loss/{name}"] for name in self._losses)
        return {"loss": total, **values}


def part_of(batch: Batch, name: str) -> Batch:
    """Return the entries of one task, without the prefix of its name."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}
