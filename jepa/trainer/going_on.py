"""Going on from a checkpoint with other settings: what is refused, and what is then not bit-exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.types import RunLength
from jepa.utils.errors import UserError

if TYPE_CHECKING:
    from jepa.trainer.trainer_parts import TrainerParts

ROUNDING = {"world_size": "ranks", "precision": "precision", "device": "device", "micro_batches": "micro-batches"}
"""Facts of a run that change its numbers by rounding alone, and dropout for the ranks, with their words."""

DRAWS = {"seed": "trainer.seed", "num_train": "training samples"}
"""Facts of a run that change which samples, masks and augmentations are drawn."""


def facts(trainer: TrainerParts) -> dict[str, Any]:
    """Return what decides how exactly a run can go on from a checkpoint of now."""
    return {
        "batch_size": trainer.data.batch_size,
        "num_train": trainer.data.spec.num_train,
        "seed": trainer.seed,
        "world_size": trainer.world_size,
        "micro_batches": trainer.data.batch_size // trainer.world_size // trainer.micro_batch_size,
        "precision": trainer.precision.name,
        "device": trainer.device.type,
        "teachers": getattr(trainer.model, "teachers", {}),
    }


def stored_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the run that wrote a checkpoint; of an old one what its configuration tells."""
    config = content["config"]
    told = {"batch_size": config.get("data", {}).get("batch_size"), "seed": config.get("trainer", {}).get("seed")}
    known = content.get("run") or told
    return {name: value for name, value in known.items() if value is not None}


def check_batch_size(then: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Raise UserError if a run would go on with another batch size. then, now: facts."""
    before, size = then.get("batch_size", now["batch_size"]), now["batch_size"]
    if before == size:
        return
    share, ranks = before // now["world_size"], now["world_size"]
    fits = max((n for n in range(1, size // ranks + 1) if share % n == 0), default=1)
    less = f" (trainer.micro_batch_size={fits} needs less memory with the same batch)" if size < before else ""
    raise UserError(
        f"{source} was trained with data.batch_size={before}, and this is data.batch_size={size}, with which its place "
        f"in the data and in the schedules would jump: go on with data.batch_size={before}{less}, or start a new run "
        f"from its weights with init_from={source}"
    )


def check_teachers(then: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Raise UserError if a run would go on towards other targets, of a frozen teacher. then, now: facts."""
    before, teachers = then.get("teachers", now["teachers"]), now["teachers"]
    for name in {**before, **teachers}:
        was, now_is = (each.get(name, {"source": "none", "fingerprint": "none"}) for each in (before, teachers))
        if was["fingerprint"] != now_is["fingerprint"]:
            raise UserError(
                f"{source} was trained with the frozen teacher {was['source']} (fingerprint {was['fingerprint'][:8]}); "
                f"model.target.checkpoint={now_is['source']} holds other weights ({now_is['fingerprint'][:8]}): give "
                f"the former ones, or start a new run from the weights trained so far with init_from={source}"
            )


def check_length(step: int, run_length: RunLength, source: Path | None) -> None:
    """Raise UserError for a step past the end of the run."""
    if step > run_length.max_steps:
        raise UserError(
            f"the checkpoint {source or 'loaded'} is at step {step}, past the end of this run "
            f"({run_length.max_steps} steps): raise trainer.max_epochs or trainer.max_steps"
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return sentences on what is not bit-exact in a run that goes on. then, now: facts."""

    def changed(names: Mapping[str, str]) -> str:
        pairs = ((word, now[name], then.get(name, now[name])) for name, word in names.items())
        return ", ".join(f"{word} {after} (before {before})" for word, after, before in pairs if after != before)

    rounding, draws = changed(ROUNDING), changed(DRAWS)
    return [
        *[f"not bit-exact from here on: {rounding}: as before up to rounding and dropout"] * bool(rounding),
        *[f"not bit-exact from here on: {draws}: other samples, masks and augmentations are drawn"] * bool(draws),
    ]
