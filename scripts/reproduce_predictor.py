"""Does I-JEPA lose by a predictor of half its width and a fraction of its depth? (`reproduce.py predictor`)

The predictor takes over half of the operations of a step. Each row trains a small ViT with one of PREDICTORS for the
same number of steps on the same batches and masks, and probes its frozen features on the test split.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

RUN = (
    *("model=vit", "model/target=ema_fast", "scheduler=cosine", "scheduler.warmup_epochs=null", "data.num_workers=0"),
    *("scheduler.warmup_steps=50", "optimizer.lr=1e-3", "data.batch_size=64", "trainer.max_steps=500"),
)
DATA = {
    "Fashion-MNIST": (
        {"data.root": "fashion_mnist"},
        ("data=fashion_mnist", "data.hints={size: mini, patch_size: 4}", "evaluation.max_train_samples=20000"),
    ),
    "Tiny ImageNet, ten classes": (
        {"data.root": "tiny_imagenet10.tar.gz"},
        ("data=image_folder", "data.image_size=64", "data.hints={size: mini, patch_size: 8}"),
    ),
}
"""Name -> where the data lie below --root, and overrides. `mini` is a ViT of 6 blocks, 192 wide."""
PREDICTORS = {
    "as wide as the encoder, half as deep": ("model.predictor.embed_dim=192", "model.predictor.depth=3"),
    "half as wide, two blocks": ("model.predictor.embed_dim=96", "model.predictor.depth=2"),
    "half as wide, one block": ("model.predictor.embed_dim=96", "model.predictor.depth=1"),
}


def rows_of_predictors(
    options: argparse.Namespace, rows: list[dict[str, Any]], keep: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Make the runs that `rows` lack, call `keep` with all rows after each, and return them."""
    from reproduce import side_by_side
    from reproduce_table import Recipe, check_places, placed

    recipes = {
        (data, name): Recipe(data, name, (*RUN, *overrides, *predictor), places)
        for (data, (places, overrides)), (name, predictor) in itertools.product(DATA.items(), PREDICTORS.items())
    }
    check_places(options.root, list(recipes.values()))
    known = {(row["data"], row["predictor"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as unpacked:
        jobs = []
        for seed, (key, recipe) in itertools.product(options.seeds, recipes.items()):
            if (*key, seed) not in known:
                where = placed(recipe, options.root, unpacked)
                jobs.append((key, f"{', '.join(key)}, seed {seed}", functools.partial(measured, recipe, where, seed)))
        for _, row in side_by_side(jobs, options.jobs):
            rows = sorted([*rows, row], key=lambda each: (each["data"], each["predictor"], each["seed"]))
            keep(rows)
    return rows


def measured(recipe: Any, where: list[str], seed: int, threads: int) -> dict[str, Any]:
    """A row: operations and what the probes tell."""
    from reproduce import run
    from reproduce_table import teraflop_of

    overrides = [*recipe.overrides, *where]
    result = run(overrides, seed, threads)
    probes = {name: {probe: result[name][probe] for probe in recipe.metrics} for name in ("trained", "random_init")}
    return {
        "data": recipe.data,
        "predictor": recipe.method,
        "seed": seed,
        "overrides": list(recipe.overrides),
        "teraflop": teraflop_of(overrides),
        "core_minutes": round(result["cpu_seconds"] / 60, 2),
        **probes,
    }
