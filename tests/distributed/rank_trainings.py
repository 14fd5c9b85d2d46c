"""Short trainings, one after the other in the same ranks (or in one process): what test_rank_equivalence.py compares.

Called with a folder and names of trainings; leaves <name>_<rank>.pt there with what each came to.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import time
import traceback
from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from jepa import load_config
from jepa.config.build import build_trainer
from jepa.distributed.collectives import destroy_process_group, get_rank
from jepa.types import StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.tensors import is_dtensor

BASE = [
    "data.batch_size=32",
    "model.encoder.embed_dim=32",
    "model.encoder.depth=2",
    "model.predictor.embed_dim=32",
    "model.predictor.depth=1",
    "model/mask=multiblock_4x4",
    "loss=invariance_sigreg",
    "loss.projector.hidden=[32]",
    "loss.projector.out_dim=16",
    "optimizer=sgd",
    "scheduler=constant",
    "trainer.max_steps=5",
    "trainer.log_every=1",
    "trainer.validate_every_epochs=null",
    "trainer.save_every_epochs=null",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "~logger.tensorboard",
    "~logger.console",
    "evaluation=none",
]
FEW = ["data.source._target_=rank_helpers.few_digits", "trainer.validate_every_steps=3"]
TOKENS = [
    "loss.terms.sigreg=null",
    "loss.terms.invariance=null",
    "loss.projector=null",
    "loss.terms.prediction.weight=1",
]
FP16 = ["trainer.precision=fp16", "trainer.max_steps=8", "optimizer=adamw"]
EVALUATED = ["evaluation=frozen", "evaluation.max_train_samples=64", "evaluation.max_test_samples=64"]
ONLINE = ["evaluation=online", "evaluation.at_end=false", "evaluation.online.every_steps=2"]
STOPPED = [
    "callbacks=early_stopping",
    "callbacks.early_stopping.patience=1",
    "callbacks.early_stopping.min_delta=10",
    *FEW,
    "+data.source.tests=32",
    "trainer.validate_every_steps=1",
]

COVERAGE = [*TOKENS, "model.token_weights=inverse_coverage", "model.mask.target_scale=[0.25,0.25]"]
IN_PARTS = ["trainer.micro_batch_size=4"]

CLIPPED = ["trainer.grad_clip_norm=0.05", "trainer.grad_clip_value=0.01", "trainer.grad_clip_apart=[encoder]"]

SINGLE = {
    "default": [*CLIPPED, *FEW, *ONLINE, "+data.source.tests=35"],
    "val33": [*FEW, "+data.source.tests=33", "trainer.max_steps=1"],
    "tokens": TOKENS,
    "coverage": COVERAGE,
    "own": ["trainer._target_=rank_helpers.OwnStep", "trainer.max_steps=3"],
    "adamw": ["optimizer=adamw", "trainer.grad_clip_norm=1", "trainer.log_gradients=true", *EVALUATED],
    "stopped": STOPPED,
}
"""Also trained by one process."""

OF_RANKS = {
    **{name: SINGLE[name] for name in ("default", "val33", "coverage", "own", "adamw", "stopped")},
    "tokens_in_parts": [*TOKENS, *IN_PARTS],
    "coverage_in_parts": [*COVERAGE, *IN_PARTS],
    "muon": ["optimizer=muon"],
    "lars": ["optimizer=lars"],
    "fp16": FP16,
}
OF_FSDP = {
    "recomputed": [*SINGLE["default"], "trainer.activation_checkpointing=true"],
    "fp16_sgd": [*FP16, "optimizer=sgd"],
}

TRAININGS = {
    **SINGLE,
    **{f"ddp_{name}": ["trainer=ddp", *more] for name, more in OF_RANKS.items()},
    **{f"fsdp_{name}": ["trainer=fsdp", *more] for name, more in (OF_RANKS | OF_FSDP).items()},
}


@functools.cache
def composed(groups: tuple[str, ...]) -> DictConfig:
    """The configuration of these options; composing takes longer than the training."""
    return load_config(groups)


def config_of(overrides: list[str]) -> DictConfig:
    """The configuration of overrides: options of groups first, then values."""
    values = [override for override in overrides if "." in override.partition("=")[0] and not override.startswith("~")]
    values += [override for override in overrides if override.startswith("run_dir")]
    config = copy.deepcopy(composed(tuple(override for override in overrides if override not in values)))
    for key, value in (value.split("=", 1) for value in values):
        OmegaConf.update(config, key.lstrip("+"), yaml.safe_load(value), force_add=True, merge=False)
    return config


def train(name: str, folder: Path) -> dict:
    """What a training came to."""
    trainer = build_trainer(config_of([*BASE, *TRAININGS[name], f"run_dir={folder / name}"]))
    if "fp16" in name:
        trainer.precision.scaler._init_scale = 2.0**22  # so that the first steps overflow
    trainer.fit()
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return {
        "lines": lines,
        "step": trainer.step,
        "metrics": trainer.metrics,
        "model": {name: full(tensor) for name, tensor in trainer.model.state_dict().items()},
        "scaler": trainer.precision.scaler.state_dict(),
        "wrapped": trainer.parallel.name,
    }


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of all ranks."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def unused(name: str, folder: Path) -> dict:
    """The stock step on a model with a parameter that it does not use."""
    more = ["model._target_=rank_helpers.idle_model", f"run_dir={folder / name}", *more_of(name)]
    trainer = build_trainer(config_of([*BASE, *more]))
    trainer.model.train()
    batch = next(trainer._batches())
    try:
        trainer.train_step(batch)
    except UserError as error:
        return {"refused": str(error)}
    return {"step": trainer.step}


def more_of(name: str) -> list[str]:
    """ddp_<name> -> trainer=ddp."""
    kind = name.partition("_")[0]
    return [f"trainer={kind}"] if kind in ("ddp", "fsdp") else []


def shares(name: str, folder: Path) -> dict:
    """Data and masks of two steps, as this rank takes them."""
    trainer = build_trainer(config_of([*BASE, *more_of(name), f"run_dir={folder / name}"]))
    batches, taken = trainer._batches(), []
    share = 32 // trainer.world_size
    for step in range(2):
        rng = StepRandomness(seed=0, step=step, total=32, start=trainer.rank * share, count=share)
        batch = trainer.model.prepare(next(batches), rng)
        taken.append({"views": batch["views"], **{f: getattr(batch["masks"][0], f) for f in ("context", "targets")}})
    return {"taken": taken}


def main(folder: Path, names: list[str]) -> None:
    """Run them; the first failure ends it, as the ranks may no longer be at the same place."""
    torch.set_num_threads(1)
    for name in names:
        kind = {"unused": unused, "shares": shares}.get(name.rpartition("_")[2], train)
        begun = time.monotonic()
        try:
            result = kind(name, folder)
        except BaseException:
            torch.save({"failed": traceback.format_exc()}, folder / f"{name}_{get_rank()}.pt")
            raise
        torch.save(result, folder / f"{name}_{get_rank()}.pt")
        print(f"{name} took {time.monotonic() - begun:.2f} s", flush=True)
    destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
