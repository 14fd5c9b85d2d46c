"""Plan with a world model: python scripts/plan.py checkpoint=<run> [environment=two_rooms] [planner=cem] [rules=strict]

Counts the episodes in which plans reach the goal, beside baselines on the same pairs of starts and goals, and writes
the shares with their intervals as JSON, and pictures. --help shows what can be set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers
from jepa.config.stored import addable

register_resolvers()

STORED = ("environment", "settings", "options", "planner", "cost", "seed", "random_encoder_steps")
"""Settings that stand in the JSON."""
WINDOWS = 8192
"""That the predictor of the baseline random_encoder is trained on."""
KINDS = {"environment": str, "settings": dict | None, "options": dict | None, "cost": dict, "baselines": list[str]}
KINDS |= {"pairs": Literal["validation", "test"], "rules": str, "output": str | int}
KINDS |= dict.fromkeys(("episodes", "seed", "random_encoder_steps", "pictures"), int)
"""Types of the settings."""
TASKS = {"two_rooms": "jepa.worlds.two_rooms_task.TwoRoomsTask"}
"""Name of an environment -> the class that plans are made in."""


@hydra.main(config_path="../conf", config_name="plan", version_base="1.3")
def main(config: DictConfig) -> float:
    """Compose, open, plan; gives the share of solved episodes, which a sweep may optimise."""
    config = complete(config)
    with reported_errors():
        return plan(config)["success"]


def plan(config: DictConfig) -> dict[str, Any]:
    """Plan, compare, draw and write; gives what is written.

    Raises UserError for what is missing, does not fit or cannot be written.
    """
    from rich.console import Console

    from jepa.config.build import build, to_plain
    from jepa.config.check import check_values
    from jepa.config.open_checkpoint import open_checkpoint
    from jepa.planning.comparison import Comparison, check_baselines, table
    from jepa.planning.episode_pictures import check_drawable
    from jepa.planning.policies import ModelView, together_on
    from jepa.trainer.precision import resolve_device
    from jepa.utils.files import check_output, write_text

    check_values(config, KINDS, {"episodes": 1, "random_encoder_steps": 1, "pictures": 0})
    output = Path(str(config.output))
    check_output(output, OmegaConf.select(config, "checkpoint"))
    check_baselines(config.baselines)
    check_pictures(config, output)
    loaded, joined = open_checkpoint(config, data="splits")
    check_is_world_model(loaded)
    for line in loaded.lines:
        print(line, flush=True)
    device, data = resolve_device(joined.trainer.device), build(joined, "data")
    chunk = getattr(data, "frame_skip", 1)

    def view(model: Any) -> ModelView:
        return ModelView(
            model=model.to(device).eval(),
            normalised=data.normalised,
            measure=measure,
            device=device,
            chunk=chunk,
            together=together_on(device),
        )

    measure, task = build(joined, "cost"), make_task(config)
    comparison = Comparison(
        task=task,
        planner=build(joined, "planner"),
        rules=config.rules,
        split=config.pairs,
        episodes=config.episodes,
        over=joined.cost.get("over", "sum"),
        seed=config.seed,
    )
    ours, kept = view(loaded.model), min(config.pictures, config.episodes)
    comparison.check_fits(ours)
    check_baselines(config.baselines, comparison.world)
    if kept:
        check_drawable(comparison.world, "pictures")
    found, episodes, policy = comparison.model(ours, keep=kept)
    results = {
        **found,
        "episodes": config.episodes,
        "rules": comparison.rules.name,
        "rules_text": comparison.rules.text,
        "pairs": {"list": config.pairs, "sha256": comparison.pairs.sha256},
        "baselines": {},
        "checkpoint": str(config.checkpoint),
        **{name: to_plain(joined)[name] for name in STORED},
    }
    write_text(output, json.dumps(results, indent=2) + "\n")  # baselines take as long again, and may be interrupted
    results["baselines"] = baselines(config, comparison, loaded, data, view)
    write_text(output, json.dumps(results, indent=2) + "\n")
    Console().print(table(results))
    print(output)
    if kept:
        draw(output, comparison, ours, episodes, policy, config.video)
    return results


def draw(output: Path, comparison: Any, view: Any, episodes: Any, policy: Any, video: str | None) -> None:
    """Write the GIF of the episodes that were kept, and their first plans and costs, beside the output.

    video: "mp4" writes them as that, too.
    """
    from jepa.planning.episode_pictures import frames, gif, imagined, mp4, plans_and_costs

    plans = imagined(view, comparison.world, policy)
    pictures = frames(episodes, comparison.world.goal, comparison.rules.distance, plans)
    files = {".gif": gif(pictures), ".png": plans_and_costs(view, comparison.world, episodes, policy, plans)}
    for suffix, content in (files | ({".mp4": mp4(pictures)} if video else {})).items():
        path = output.with_name(output.name.removesuffix(".json") + suffix)
        path.write_bytes(content)
        print(path)


def check_pictures(config: DictConfig, output: Path) -> None:
    """Raise UserError for a `video` that cannot be written, and an `output` that pictures would replace."""
    from jepa.utils.errors import UserError
    from jepa.utils.lazy_import import require

    if output.suffix in (".gif", ".png", ".mp4"):
        raise UserError(f"output={output} would hold a JSON file, with pictures beside it: end its name in .json")
    if config.video not in (None, "mp4"):
        raise UserError(f"video={config.video}: expected mp4, or null for the GIF alone")
    if config.video and config.pictures < 1:
        raise UserError(f"video=mp4 shows the first episodes, and pictures={config.pictures}: set pictures=4")
    if config.video:
        require("av", extra="video", purpose="video=mp4")


def make_task(config: DictConfig) -> Any:
    """The task of `environment=`. Raise UserError for one that there is not, and for settings that it does not take."""
    from hydra.utils import get_object

    from jepa.config.build import build
    from jepa.config.check import check_config
    from jepa.utils.errors import UserError

    name = str(config.environment)
    if name not in TASKS and "." not in name:
        raise UserError(f"environment={name}: expected {', '.join(TASKS)}, or the dotted path of a class")
    try:
        get_object(TASKS.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"environment={name} cannot be imported: {' '.join(str(error).split())}") from error
    given = {"options": config.options} if config.options else {}
    node = OmegaConf.create({"settings": {"_target_": TASKS.get(name, name), **(config.settings or {}), **given}})
    check_config(OmegaConf.to_container(node))
    return build(node, "settings")


def baselines(
    config: DictConfig, comparison: Any, loaded: Any, data: Any, view: Callable[[Any], Any]
) -> dict[str, dict[str, Any]]:
    """The scores of what `baselines=` names; of random_encoder also how well its predictor has learned."""
    from jepa.planning.random_encoder import fit_predictor
    from jepa.utils.random import seeded

    learned: dict[str, float] = {}

    def random_view() -> Any:
        untrained = view(loaded.random_init())
        batches = data.train_batches(seed=config.seed, start_step=0, stop_step=-(-WINDOWS // data.batch_size))
        with seeded(config.seed, "plan/random_encoder"):
            learned.update(fit_predictor(untrained.model, batches, config.random_encoder_steps))
        return untrained

    found = {name: comparison.baseline(name, random_view) for name in config.baselines}
    if learned:
        found["random_encoder"] |= learned
    return found


def check_is_world_model(loaded: Any) -> None:
    """Raise UserError for a model that predicts nothing from actions."""
    from jepa.utils.errors import UserError

    if not hasattr(loaded.model, "rollout"):
        raise UserError(
            f"checkpoint={loaded.source} holds a {type(loaded.model).__name__}, which knows no actions: expected a "
            "world model, as experiment=two_rooms trains"
        )


if __name__ == "__main__":
    sys.argv[1:] = addable(sys.argv[1:])
    run_command(main, "plan")
