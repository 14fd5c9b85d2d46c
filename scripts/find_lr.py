"""Find a learning rate: python scripts/find_lr.py [the options of train.py] [find_lr.max_lr=10]

Trains for find_lr.steps steps at a rising rate (a range test), prints a suggestion, and writes find_lr.json and
find_lr.png into the run folder. No checkpoint is written and nothing is kept of the training.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import hydra
from omegaconf import DictConfig

from jepa.config.command import complete, reported_errors, run_command
from jepa.config.compose import register_resolvers

register_resolvers()


@hydra.main(config_path="../conf", config_name="find_lr", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, build, try; gives the suggestion."""
    from jepa.config.build import build, build_trainer  # torch is not needed for --help
    from jepa.report.figures import learning_rate_figure

    config = complete(config)
    with reported_errors():
        trainer = build_trainer(config)
        finding = build(config, "find_lr")(trainer)
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        values = {**dataclasses.asdict(finding), "overrides": list(config.overrides)}
        (folder / "find_lr.json").write_text(json.dumps(values, indent=2) + "\n")
        learning_rate_figure(finding, folder / "find_lr.png")
    print(told(finding, config))
    print(f"{folder / 'find_lr.png'}, find_lr.json")
    return finding.suggestion


def told(finding, config: DictConfig) -> str:
    """The finding in words, with the command that uses it."""
    last = finding.learning_rates[-1]
    reasons = {
        "max_lr": f"went up to {last:.1e} without the loss diverging",
        "diverged": f"stopped at {last:.1e}, where the loss diverged",
        "not finite": f"stopped after {last:.1e}, where the loss was no longer finite",
    }
    lines = [f"{len(finding.losses)} steps: {reasons[finding.ended]}."]
    if finding.suggestion is None:
        lines.append(
            "No suggestion: the loss never fell by more than its noise. Try another range (find_lr.min_lr, "
            "find_lr.max_lr), more find_lr.steps or a larger data.batch_size."
        )
        return "\n".join(lines)
    others = [
        o.removeprefix("++") for o in config.overrides if not o.lstrip("+~").startswith(("find_lr.", "optimizer.lr="))
    ]
    command = shlex.join(["python", "train.py", *others, f"optimizer.lr={finding.suggestion:.2g}"])
    lines += [
        f"The loss falls most steeply at {finding.suggestion:.2g} and is lowest at {finding.lowest:.2g}; with AdamW a "
        f"tenth of the latter, {finding.lowest / 10:.2g}, is often the better peak. To use the former:",
        "",
        f"  {command}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, "find_lr")
