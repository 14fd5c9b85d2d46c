"""What I-JEPA's accuracy loses by a smaller predictor: a table of docs/speed.md (`reproduce.py predictor`).

Each run trains a small ViT with one of PREDICTORS for the same number of steps on the same batches and masks, and
probes its frozen features on the test split.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
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
COLUMNS = ("predictor", "operations", *DATA)
WANTED = ("data", "predictor", "seed", "overrides", "teraflop", "trained", "random_init")


def rows_of_predictors(
    options: argparse.Namespace, rows: list[dict[str, Any]], keep: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Make the runs that `rows` lack, call `keep` with all rows after each, and return them.

    Rows whose overrides are not those of now are left out.
    """
    from reproduce import side_by_side, table_lines
    from reproduce_table import Recipe, check_places, placed

    recipes = {
        (data, name): Recipe(data, name, (*RUN, *overrides, *predictor), places)
        for (data, (places, overrides)), (name, predictor) in itertools.product(DATA.items(), PREDICTORS.items())
    }
    check_places(options.root, list(recipes.values()))
    current = {key: list(recipe.overrides) for key, recipe in recipes.items()}
    rows = [row for row in rows if row["overrides"] == current.get((row["data"], row["predictor"]))]
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
    print("\n".join(table_lines(COLUMNS, page(rows))))
    return rows


def page(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the lines of docs/speed.md: operations beside those of the first predictor; probes, means over seeds."""

    def cell(name: str, data: str, of: str) -> str:
        mine = [row[of] for row in rows if (row["data"], row["predictor"]) == (data, name)]
        return ", ".join(f"{statistics.mean(found[probe] for found in mine):.3f}" for probe in ("linear", "knn"))

    first, *_ = PREDICTORS
    cost = {name: statistics.mean(row["teraflop"] for row in rows if row["predictor"] == name) for name in PREDICTORS}
    for name in PREDICTORS:
        yield [name, f"{cost[name] / cost[first]:.2f}", *(cell(name, data, "trained") for data in DATA)]
    yield ["random weights", "-", *(cell(first, data, "random_init") for data in DATA)]


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
