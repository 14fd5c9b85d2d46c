"""Who recovers from collapse: collapsed weights, then the same steps with each regulariser (`reproduce.py recovery`).

A small ViT with LeJEPA's views of the digits is trained on their agreement alone until it has collapsed. From these
weights, projector and all, it goes on with a regulariser beside the agreement. The projector has layer norm: batch norm
would scale the collapsed embeddings up before the regulariser sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jepa import Trainer, build_trainer, load_config
from jepa.utils.tensors import rankme

STEPS, EVERY, SAMPLES = 300, 10, 256
"""Of collapsing and of recovering; between measurements; held-out pictures whose embeddings are measured."""

RUN = (
    *("model=lejepa", "model.encoder.embed_dim=64", "model.encoder.depth=2", "data.batch_size=64"),
    *("trainer.device=cpu", "trainer.precision=fp32", f"trainer.max_steps={STEPS}", "scheduler=constant"),
    "trainer.grad_clip_norm=1",
    *("evaluation=none", "monitor=none", "visualise=none", "logger=[]", "run_dir=outputs/recovery"),
)
PROJECTOR = ("loss.projector.norm=layer", "loss.projector.hidden=[128]", "loss.projector.out_dim=16")
ALONE = ("loss=sigreg_views", "loss.terms.sigreg=null", "model.allow_collapse=true")
VISREG = ("loss=visreg_views", "loss.terms.shape.term.num_slices=64")
REGULARISERS = {
    "none": ALONE,
    "SIGReg": ("loss=sigreg_views", "loss.terms.sigreg.term.num_slices=64"),
    "VICReg": ("loss=vicreg_views",),
    "VISReg": VISREG,
    "VISReg, detach_scale": (*VISREG, "loss.terms.shape.term.detach_scale=true"),
}
OPTIMIZERS = {
    "AdamW, 1e-3": ("optimizer=adamw", "optimizer.lr=1e-3"),
    "SGD, 0.05": ("optimizer=sgd", "optimizer.lr=0.05"),
}


def over_regularisers(seeds: Sequence[int], keep: Callable[[dict], None]) -> dict:
    """Return what came of each regulariser with each optimizer; `keep` gets it after every seed.

    steps: until the rank is that of random weights, one for each seed, None where it is not reached.
    """
    names = [(name, optimizer) for optimizer in OPTIMIZERS for name in REGULARISERS]
    rows = [{"regulariser": n, "optimizer": o, "steps": [], "rank_at_end": []} for n, o in names]
    content = {"run": [*RUN, *PROJECTOR], "steps": STEPS, "random_rank": [], "collapsed_rank": [], "rows": rows}
    for seed in seeds:
        first = build([*ALONE, *OPTIMIZERS["AdamW, 1e-3"]], seed)
        batches = first.data.evaluation_batches("test", batch_size=SAMPLES, limit=SAMPLES)
        x = torch.cat([batch["x"] for batch in batches])
        random = rank(first.model, x)
        content["random_rank"].append(round(random, 2))
        content["collapsed_rank"].append(round(ranks(first, x)[-1], 2))
        for row in rows:
            trainer = build([*REGULARISERS[row["regulariser"]], *OPTIMIZERS[row["optimizer"]]], seed)
            trainer.model.load_state_dict(first.model.state_dict())
            found = ranks(trainer, x)
            reached = (EVERY * number for number, value in enumerate(found, start=1) if value >= random)
            row["steps"].append(next(reached, None))
            row["rank_at_end"].append(round(found[-1], 2))
        keep(content)
    return content


def build(overrides: Sequence[str], seed: int) -> Trainer:
    """Return the trainer of a run."""
    return build_trainer(load_config([*RUN, *overrides, *PROJECTOR, f"trainer.seed={seed}"]))


def ranks(trainer: Trainer, x: Tensor) -> list[float]:
    """Train, and return the rank after every EVERY steps."""
    batches = trainer.data.train_batches(seed=trainer.seed, start_step=0, stop_step=STEPS)
    found = []
    for step, batch in enumerate(batches, start=1):
        trainer.train_step(batch)
        if step % EVERY == 0:
            found.append(rank(trainer.model, x))
    return found


@torch.no_grad()
def rank(model: nn.Module, x: Tensor) -> float:
    """Return the effective rank (RankMe) of the embeddings of pictures; that of equal ones is 1."""
    return rankme(model.eval().encode_target(x).mean(dim=1))
