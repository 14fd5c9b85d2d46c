"""Parts of a run: what `scripts/benchmark.py` says of masks, loop, ddp, saving, monitor, online, sweep and startup."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from benchmark_timing import ROOT, STEPS_ALONE, in_turns, medians, seconds_of, trainer_of
from torch.utils._pytree import tree_leaves

from jepa.checkpoint.saver import Saver, copied
from jepa.distributed.collectives import destroy_process_group
from jepa.masks import MultiBlockMask
from jepa.utils.read_data import read_json


def masks() -> dict[str, float]:
    """Time of one draw."""
    torch.set_num_threads(1)
    masker, generator = MultiBlockMask(), torch.Generator().manual_seed(0)
    draw = {"draw": lambda: seconds_of(lambda: masker(256, (14, 14), generator=generator))}
    return {"milliseconds": 1e3 * medians(in_turns(draw, 200))["draw"]}


def ddp(rounds: int = 7, steps: int = 12) -> dict[str, float]:
    """Rates of two processes together and apart."""
    if len(cores := sorted(os.sched_getaffinity(0))) < 2:
        raise SystemExit("ddp needs 2 cores")
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    groups: dict[str, list] = {"together": [], "apart": []}
    for name, group in groups.items():
        for number in range(2):
            ours, theirs = context.Pipe()
            arguments = (theirs, number, cores[number], port if name == "together" else None, steps * (rounds + 1))
            context.Process(target=train_when_told, args=arguments, daemon=True).start()
            group.append(ours)
    pipes, shares = [*groups["together"], *groups["apart"]], []

    def rate(name: str) -> float:
        for pipe in groups[name]:
            pipe.send(steps)
        times = [pipe.recv() for pipe in groups[name]]
        if name == "apart":
            shares.extend(busy / wall for wall, busy in times)
        return sum(64 * steps / wall for wall, _ in times)

    for pipe in pipes:
        pipe.recv()  # it is ready
    rates = in_turns({name: lambda name=name: rate(name) for name in groups}, rounds)
    for pipe in pipes:
        pipe.send(0)  # to all, as those that train together part together
    for pipe in pipes:
        pipe.recv()
    ratios = [one / other for one, other in zip(*rates.values())]
    return {
        **{f"samples_per_second_{name}": value for name, value in medians(rates).items()},
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "share_of_a_core_apart": statistics.median(shares),  # below 1 something else was running
    }


def train_when_told(pipe, number: int, core: int, port: int | None, most: int) -> None:
    """A process that trains as many steps as it is told through the pipe and answers with its seconds, 0 ends it.

    The answer is the wall time and the processor time.

    port: where two processes meet that train together; None for one that trains apart.
    """
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    if port is not None:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    overrides = ["experiment=digits", f"data.batch_size={64 if port is None else 128}", "logger=[jsonl]"]
    with trainer_of(*overrides, f"trainer.max_steps={most}", "trainer.device=cpu", *STEPS_ALONE) as trainer:
        batches = trainer._batches()
        pipe.send("ready")
        while steps := pipe.recv():
            begun = time.perf_counter(), time.process_time()
            for batch in islice(batches, steps):
                values = trainer.train_step(batch)
                if not trainer.ended:
                    trainer._after_step(values)
            pipe.send((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        destroy_process_group()
        pipe.send("over")


def saving(rounds: int = 5) -> dict[str, dict[str, float]]:
    """Seconds that one save holds the loop up, and of one copy of the state."""
    overrides = [
        "experiment=ijepa_digits",
        "model/encoder=vit_base",
        "model.encoder={patch_size: 2, depth: 8}",
        "model.predictor.embed_dim=384",
        "data.batch_size=2",
    ]
    ways = ("synchronous", "asynchronous")
    with trainer_of(*overrides) as trainer:
        trainer.train_step(next(trainer._batches()))  # so that the optimizer has its moments
        results, content = {}, trainer.checkpoints.content

        def save(saver: Saver) -> float:
            seconds = seconds_of(lambda: saver.save(content(), ["last"], []))
            saver.wait()  # the loop would go on here
            return seconds

        for kind in ("plain", "sharded"):
            folder = trainer.folder.path / kind
            savers = {name: Saver(folder / name, kind=kind, asynchronous=name == "asynchronous") for name in ways}
            trainer.checkpoints.saver = savers["synchronous"]
            measured: dict[str, Callable[[], float]] = {"copy": lambda: seconds_of(lambda: copied(content()))}
            for name, saver in savers.items():
                saver.folder.mkdir(parents=True)
                measured[name] = lambda saver=saver: save(saver)
            seconds = medians(in_turns(measured, rounds))
            for saver in savers.values():
                saver.close()
            results[kind] = {
                **{f"seconds_{name}": value for name, value in seconds.items()},
                "asynchronous_to_synchronous": seconds["asynchronous"] / seconds["synchronous"],
                "asynchronous_to_copy": seconds["asynchronous"] / seconds["copy"],
            }
        numbers = sum(leaf.numel() for leaf in tree_leaves(content()) if isinstance(leaf, torch.Tensor))
        return {"million_numbers": round(numbers / 1e6), **results}


def monitor(rounds: int = 30) -> dict[str, float]:
    """Milliseconds of a step that is looked at and of one that is not, logging of the figures included."""
    torch.set_num_threads(1)
    overrides = ["experiment=digits", "logger=jsonl", "trainer.log_every=1000000", "trainer.max_steps=1000000"]
    with trainer_of(*overrides, "trainer.save_every_epochs=null", "evaluation=none") as trainer:
        batches, every = trainer._batches(), trainer.monitor.every_steps

        def step(is_looked_at: bool) -> float:
            trainer.monitor.due = lambda step, run_length: is_looked_at
            batch = next(batches)
            return seconds_of(lambda: trainer.log_step(trainer.train_step(batch)))

        seconds = in_turns({"plain": lambda: step(False), "looked_at": lambda: step(True)}, rounds)
        added = statistics.median(one - other for one, other in zip(seconds["looked_at"], seconds["plain"]))
        return {
            **{f"milliseconds_{name}": 1e3 * value for name, value in medians(seconds).items()},
            "milliseconds_added": 1e3 * added,
            "every_steps": every,
            "share_of_the_run": added / every / statistics.median(seconds["plain"]),
        }


def online(turns: int = 4) -> dict[str, float]:
    """Milliseconds of a step with probes and of one without, in turns of as many steps as lie between two scores."""
    torch.set_num_threads(1)
    overrides = ["experiment=digits", "logger=jsonl", "trainer.max_steps=1000000", "trainer.save_every_epochs=null"]
    with trainer_of(*overrides, "evaluation=online") as trainer:
        batches, probes = trainer._batches(), trainer.callbacks["online probes"]

        def steps(are_probed: bool) -> float:
            probes.begin(trainer)
            if not are_probed:
                probes.end(trainer)
            trainer.callbacks = {"online probes": probes} if are_probed else {}
            count = probes.every_steps

            def run() -> None:
                for batch in islice(batches, count):
                    trainer.log_step(trainer.train_step(batch))
                    trainer._call_callbacks("step_end")

            return seconds_of(run) / count

        seconds = in_turns({"plain": lambda: steps(False), "probed": lambda: steps(True)}, turns)
        added = statistics.median(one - other for one, other in zip(seconds["probed"], seconds["plain"]))
        return {
            **{f"milliseconds_{name}": 1e3 * value for name, value in medians(seconds).items()},
            "milliseconds_added": 1e3 * added,
            "share_of_the_run": added / statistics.median(seconds["plain"]),
        }


SWEPT = (
    "data.batch_size=32",
    "model.encoder={embed_dim: 32, depth: 1}",
    "model.predictor={embed_dim: 32, depth: 1}",
    "trainer.max_steps=20",
    "trainer.device=cpu",
    "evaluation=none",
    "trainer.seed=0,1,2,3,4,5",
)


def sweep() -> dict[str, float]:
    """Seconds per run beside its steps, of whole sweeps as a user starts them; by SLURM where a cluster answers."""
    alone = ["hydra.launcher.poll_seconds=0.5"]
    kinds = {
        "basic": [],
        "local": ["hydra/launcher=local", "hydra.launcher.parallel=1", *alone],
        "slurm": ["hydra/launcher=slurm", "hydra.launcher.array_parallelism=1", *alone],
    }
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:  # no cluster answers
        del kinds["slurm"]
    seconds = {}
    for name, options in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", "-m", *SWEPT, *options, f"hydra.sweep.dir={folder}"]
            begun = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
            wall = time.monotonic() - begun
            statuses = [read_json(path) for path in Path(folder).glob("*/status.json")]
            if [status["state"] for status in statuses] != ["done"] * 6:
                raise SystemExit(f"{name}: not all of 6 runs are done")
            seconds[name] = (wall - sum(status["train_seconds"] for status in statuses)) / len(statuses)
    return seconds


def startup(rounds: int = 5) -> dict[str, float]:
    """Medians of whole processes."""
    steps: list[float] = []
    ends: list[float] = []

    def first_line() -> float:
        with tempfile.TemporaryDirectory() as folder:
            options = ["trainer.max_steps=1", "trainer.device=cpu", "evaluation=none", f"hydra.run.dir={folder}"]
            begun = time.perf_counter()
            with subprocess.Popen([sys.executable, "train.py", *options], cwd=ROOT, stdout=subprocess.PIPE) as process:
                process.stdout.readline()
                seconds = time.perf_counter() - begun
                next(line for line in process.stdout if b"step 1/1" in line)
                steps.append(time.perf_counter() - begun)
                process.communicate()
            ends.append(time.perf_counter() - begun)
            return seconds

    def torch_alone() -> float:
        return seconds_of(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))

    taken = in_turns({"torch": torch_alone, "first_line": first_line}, rounds)
    seconds = medians({**taken, "first_step": steps[1:], "end": ends[1:]})
    ratios = {f"{name}_to_torch": seconds[name] / seconds["torch"] for name in ("first_line", "first_step", "end")}
    return {f"{name}_seconds": value for name, value in seconds.items()} | ratios
