"""Evaluate a checkpoint: python scripts/evaluate.py checkpoint=<run folder, file or name> [data=...] [output=<json>]

Scores frozen features by the probes of conf/evaluation, beside the same architecture untrained and the raw input, and
writes them as JSON with the keys of a run's results.json. --help shows what can be loaded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import CommandLine, addable

register_resolvers()


@hydra.main(config_path="../conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, open, score; gives the linear probe's accuracy, which a sweep may optimise."""
    config = complete(config)
    with reported_errors():
        results = evaluate(config)
    metric = config.optimized_metric or "eval/trained/linear"
    _, _, rest = metric.partition("/")
    row, _, name = rest.partition("/")
    value = results.get(row)
    return value.get(name) if isinstance(value, dict) else None


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Open, score and write; gives what is written.

    Raises UserError for what is missing, does not fit or cannot be written.
    """
    import torch  # not needed for --help
    from rich.console import Console

    from jepa.config.build import build, convert_errors, to_plain
    from jepa.config.open_checkpoint import open_checkpoint
    from jepa.models.base_model import flatten_views
    from jepa.trainer.precision import Precision, resolve_device
    from jepa.utils.files import check_output, write_text

    check_output(Path(config.output), OmegaConf.select(config, "checkpoint"))
    loaded, joined = open_checkpoint(config, data="splits")
    for line in loaded.lines:
        print(line, flush=True)
    plain = to_plain(joined)
    settings = joined.trainer
    device = resolve_device(settings.device)
    precision = Precision(
        settings.precision, device, attention=settings.get("attention", "auto"), tf32=settings.get("tf32", False)
    )
    evaluation = build(joined, "evaluation")
    data = build(joined, "data")
    model = loaded.model.to(device)
    precision.choose_attention(model)

    @torch.no_grad()
    def try_once() -> None:
        model.encode_target(flatten_views(data.blank_batch(1))[0].to(device))

    convert_errors("data.image_size" if "image_size" in joined.data else "data", try_once)()
    key = cache_key(loaded.fingerprint, plain["data"], data.spec, f"{precision.name} {device.type}")
    with precision.kernels(), precision.autocast():
        rows, spread = score(evaluation, loaded, data, device, settings.seed, joined.cache_dir, key)
    Console().print(evaluation.table(rows))
    results = {**rows, **of_the_run(loaded, CommandLine(config.overrides)), "checkpoint": str(config.checkpoint)}
    results |= {"scored_on": "validation"} if getattr(data, "score_on", "test") == "validation" else {}
    results |= {"data": plain["data"]} | ({"spread": spread} if spread else {})
    write_text(Path(joined.output), json.dumps(results, indent=2) + "\n")
    print(joined.output)
    return results


def score(
    evaluation: Any, loaded: Any, data: Any, device: Any, seed: int, cache_dir: str | None, key: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Rows of metrics, and their standard deviation over the probes' seeds where there are several.

    cache_dir, key: where features are kept, and what they are of.
    """
    from jepa.evaluation import FeatureCache

    cache = FeatureCache(folder=Path(cache_dir), key=key) if cache_dir else None
    trained = None if loaded.format == "random" else loaded.model
    rows = evaluation(trained, data, random_init=loaded.random_init, device=device, seed=seed, cache=cache)
    return rows, evaluation.std


def of_the_run(loaded: Any, given: CommandLine) -> dict[str, Any]:
    """What a run's results.json holds beside the rows: the monitor's verdict, why it was stopped, and the step.

    On its own data also the validation loss then.
    """
    own_data = not given.option("data") and not given.below("data")
    loss = {"val/loss": loaded.metrics["val/loss"]} if own_data and "val/loss" in loaded.metrics else {}
    told = {"collapse": loaded.collapse, "stopped": loaded.stopped, "step": loaded.step}
    return loss | {name: value for name, value in told.items() if value is not None}


def cache_key(fingerprint: str, data: Mapping[str, Any], spec: Any, number: str) -> str:
    """A name for the features of a checkpoint on data: all that evaluation does not know of itself.

    number: the format and kind of device they are computed in.
    """
    loading = (
        "augment",
        "views",
        "local_views",
        "local_size",
        "local_augment",
        "batch_size",
        "num_workers",
        "prefetch_factor",
        "pin_memory",
        "max_bad_share",
    )
    content = {
        "checkpoint": fingerprint,
        "data": {name: value for name, value in data.items() if name not in loading},
        "samples": [spec.num_train, spec.num_test],
        "number": number,
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "evaluate")
