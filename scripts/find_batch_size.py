"""Find the micro-batch size: python scripts/find_batch_size.py [the options of train.py] [find_batch_size.limit_gib=8]

Runs forward and backward at growing sizes within the memory, prints what each takes and how fast it is, and the
largest that divides data.batch_size. Writes find_batch_size.json into the run folder; trains nothing.
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


@hydra.main(config_path="../conf", config_name="find_batch_size", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """Compose, build, try; gives the suggestion."""
    from jepa.config.build import build, build_trainer  # torch is not needed for --help

    config = complete(config)
    with reported_errors():
        trainer = build_trainer(config)
        finding = build(config, "find_batch_size")(trainer)
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "find_batch_size.json").write_text(json.dumps(dataclasses.asdict(finding), indent=2) + "\n")
    show(finding, trainer)
    others = [o.removeprefix("++") for o in config.overrides if not o.lstrip("+~").startswith(OWN)]
    print(f"To use {finding.suggestion}:\n\n  {shlex.join(['python', 'train.py', *others, *finding.overrides])}\n")
    if len(finding.overrides) > 1:
        print(
            "The loss looks at statistics of the batch, which then are those of each micro-batch. "
            f"Instead, data.batch_size={finding.largest} fits whole."
        )
    return finding.suggestion


OWN = ("find_batch_size.", "trainer.micro_batch_size=", "trainer.allow_microbatch_statistics=")


def show(finding, trainer) -> None:
    """Print the table of sizes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("micro-batch", "memory (GiB)", "samples/s", ""):
        table.add_column(name, justify="left" if not name else "right")
    for trial in finding.trials:
        note = "" if trial.fits else ("does not fit" if trial.tried else "would exceed the limit (predicted)")
        if trial.size == finding.suggestion:
            note = f"divides data.batch_size={trainer.data.batch_size}"
        table.add_row(
            f"{trial.size:,}",
            "-" if trial.memory_gib is None else f"{trial.memory_gib:.2f}",
            "-" if trial.samples_per_second is None else f"{trial.samples_per_second:,.0f}",
            note,
        )
    limit = "all of the GPU" if finding.limit_gib is None else f"{finding.limit_gib:.2f} GiB"
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"forward and backward on {trainer.device} in {trainer.precision.name}, memory limit: {limit}")
    console.print(table)
    console.print(f"Largest tried that fits: {finding.largest:,}.")


if __name__ == "__main__":
    run_command(main, "find_batch_size")
