"""Measure what the code costs: python scripts/benchmark.py [NAME ...] [--root=DIR]

masks:  milliseconds to draw multi-block masks for 256 images on a 14 x 14 grid, one thread.
loop:   the share of a ViT-S/16 step (batch 16, 224 px) that is not forward, backward, optimizer or target update.
ddp:    samples per second of 2 processes that train the default run on digits together, as a share of that of
        2 which train apart; one thread and one core each, 64 samples each, data and logging included.
saving: how long a checkpoint of 239 M numbers holds the loop up, written at once or in the background, beside the
        time of one copy of them in memory; both formats.
linear: seconds of the linear probe on 60,000 x 384 features of 10 classes beside scikit-learn's LogisticRegression
        (its default tolerance, as many threads) that does the same on the same standardised features: 7 penalties
        on 80 % of the samples, a choice on the others, the best again on all. `one_fit` is the last of its 8 fits
        alone, at the penalty that the probe chose. The features are synthetic, correlated like those of a network;
        with --root they are random ReLU features of the Fashion-MNIST in that folder. One round, as it takes minutes.
monitor: what a look of the collapse monitor adds to the run, as a share of the steps between two looks; the default
        run on digits, the same steps with and without a look in turns, one thread.
sweep:  seconds of a sweep per run that are not its training steps: to compose, import, set up, save and tear down, and
        to show the leaderboard at the end; 6 tiny runs one after the other in one process, by hydra/launcher=local
        in a process each, and by hydra/launcher=slurm where there is a SLURM (tests/cluster/slurm_cluster.py).
startup: seconds from `python train.py` to the first line and to the end of a run of one step without evaluation, and as
        multiples of a process that only imports torch, in turns.
Prints medians as JSON. Timings on a shared machine vary: compare ratios, not runs; what a ratio compares is measured
in turns.
"""

from __future__ import annotations

import json
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
from sklearn.linear_model import LogisticRegression

from jepa import build_trainer, load_config
from jepa.checkpoint.saver import Saver, copied
from jepa.data.sources import fashion_mnist
from jepa.distributed.collectives import destroy_process_group
from jepa.evaluation import Features, LinearProbe
from jepa.evaluation.stratified import stratified_holdout
from jepa.masks import MultiBlockMask
from jepa.trainer import RunInfo
from jepa.types import DataSpec

ROOT = Path(__file__).resolve().parents[1]


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call in milliseconds, after three calls to warm up."""
    times = []
    for number in range(repeats + 3):
        begun = time.perf_counter()
        function()
        if number >= 3:
            times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)


def masks() -> dict[str, float]:
    """Time of one draw."""
    torch.set_num_threads(1)
    masker, generator = MultiBlockMask(), torch.Generator().manual_seed(0)
    return {"milliseconds": median_ms(lambda: masker(256, (14, 14), generator=generator), 200)}


class FixedImages:
    """The same random pictures at every step, so that only the loop is measured."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.spec = DataSpec(num_train=10**6, num_test=0, input_shape=(1, 224, 224), classes=None)
        self._x = torch.randn(batch_size, 1, 224, 224)

    def train_batches(self, *, seed: int, start_step: int, stop_step: int, rank: int = 0, world_size: int = 1):
        """The batch, as often as there are steps."""
        for _ in range(start_step, stop_step):
            yield {"x": self._x}


def loop(steps: int = 8) -> dict[str, float]:
    """Time of whole steps, and of their forward, backward, optimizer and target update, in the same run."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                "experiment=ijepa_digits",
                "model/encoder=vit_small",
                "data.image_size=224",
                "data.hints.size=small",
                "model/mask=multiblock",
                "data.batch_size=16",
                f"trainer.max_steps={steps}",
                "trainer.validate_every_epochs=null",
                "trainer.save_every_epochs=null",
                "trainer.best_k=0",
                "trainer.log_every=1",
                "evaluation=none",
                f"run_dir={folder}",
            ]
        )
        trainer = build_trainer(config)
        trainer.data = FixedImages(16)
        for logger in trainer.loggers.values():
            logger.open(RunInfo(trainer.folder.path, 0, trainer.run_length))
        inside = 0.0

        def timed(function: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal inside
                begun = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    inside += time.perf_counter() - begun

            return call

        trainer.model.forward = timed(trainer.model.forward)
        trainer.model.loss.forward = timed(trainer.model.loss.forward)
        trainer.model.update_target = timed(trainer.model.update_target)
        trainer.optimizer.step = timed(trainer.optimizer.step)
        torch.Tensor.backward = timed(torch.Tensor.backward)
        shares = []
        batches = trainer.data.train_batches(seed=0, start_step=0, stop_step=steps)
        for number, batch in enumerate(batches):
            inside, begun = 0.0, time.perf_counter()
            trainer.train_step(batch)
            if number < steps - 1:
                trainer._after_step()
            total = time.perf_counter() - begun
            if number >= 2:
                shares.append(1 - inside / total)
        return {"overhead_share": statistics.median(shares), "steps": len(shares)}


def ddp(rounds: int = 7, steps: int = 12) -> dict[str, float]:
    """Rates of two processes together and apart, in turns, after one round to warm up."""
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
    rates: dict[str, list[float]] = {"together": [], "apart": []}
    shares = []
    for pipe in groups["together"] + groups["apart"]:
        pipe.recv()
    for _ in range(rounds + 1):
        for name, group in groups.items():
            for pipe in group:
                pipe.send(steps)
            times = [pipe.recv() for pipe in group]
            rates[name].append(sum(64 * steps / wall for wall, _ in times))
            shares += [busy / wall for wall, busy in times if name == "apart"]
    for pipe in groups["together"] + groups["apart"]:
        pipe.send(0)  # to all, as those that train together part together
    for pipe in groups["together"] + groups["apart"]:
        pipe.recv()
    ratios = [one / other for one, other in zip(*(values[1:] for values in rates.values()))]
    return {
        **{f"samples_per_second_{name}": statistics.median(values[1:]) for name, values in rates.items()},
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
    with tempfile.TemporaryDirectory() as folder:
        size = 64 if port is None else 128
        config = load_config(
            [
                "experiment=digits",
                f"data.batch_size={size}",
                f"trainer.max_steps={most}",
                "trainer.device=cpu",
                "trainer.validate_every_epochs=null",
                "trainer.save_every_epochs=null",
                "logger=[jsonl]",
                "evaluation=none",
                f"run_dir={folder}",
            ]
        )
        trainer = build_trainer(config)
        for logger in trainer.loggers.values():
            logger.open(RunInfo(Path(folder), 0, trainer.run_length))
        batches = trainer._batches()
        pipe.send("ready")
        while steps := pipe.recv():
            begun = time.perf_counter(), time.process_time()
            for batch in islice(batches, steps):
                trainer.train_step(batch)
                if not trainer.ended:
                    trainer._after_step()
            pipe.send((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        destroy_process_group()
        pipe.send("over")


def saving(rounds: int = 5) -> dict[str, dict[str, float]]:
    """Seconds that one save holds the loop up, and of one copy of the state, in turns; after one round to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "experiment=ijepa_digits",
            "model/encoder=vit_base",
            "model.encoder={patch_size: 2, depth: 8}",
            "model.predictor.embed_dim=384",
            "data.batch_size=2",
            f"run_dir={folder}",
        ]
        trainer = build_trainer(load_config(overrides))
        trainer.train_step(next(trainer._batches()))  # so that the optimizer has its moments
        results = {}
        for kind in ("plain", "sharded"):
            savers = {
                name: Saver(Path(folder, kind, name), kind=kind, asynchronous=name == "asynchronous") for name in WAYS
            }
            for saver in savers.values():
                saver.folder.mkdir(parents=True)
            seconds: dict[str, list[float]] = {"copy": [], **{name: [] for name in WAYS}}
            trainer.checkpoints.saver = savers["synchronous"]
            for _ in range(rounds + 1):
                begun = time.perf_counter()
                copied(trainer.checkpoints.content())
                seconds["copy"].append(time.perf_counter() - begun)
                for name, saver in savers.items():
                    begun = time.perf_counter()
                    saver.save(trainer.checkpoints.content(), ["last"], [])
                    seconds[name].append(time.perf_counter() - begun)
                    saver.wait()  # the loop would go on here
            for saver in savers.values():
                saver.close()
            medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
            results[kind] = {
                **{f"seconds_{name}": value for name, value in medians.items()},
                "asynchronous_to_synchronous": medians["asynchronous"] / medians["synchronous"],
                "asynchronous_to_copy": medians["asynchronous"] / medians["copy"],
            }
        numbers = sum(value.numel() for value in tensors(trainer.checkpoints.content()))
        return {"million_numbers": round(numbers / 1e6), **results}


def linear(rounds: int = 1, root: str | None = None) -> dict[str, object]:
    """Seconds and accuracies of both, in turns."""
    train, test = correlated_features() if root is None else pictures_as_features(root)
    labels = train.labels.numpy()
    rest = stratified_holdout(train.labels, 5, 0).numpy()
    seconds: dict[str, list[float]] = {"probe": [], "scikit_learn": [], "scikit_learn_one_fit": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        probe = LinearProbe()
        classifier = probe.fit(train, classes=10, seed=0)
        seconds["probe"].append(time.perf_counter() - begun)

        x, y = (((split.x - classifier.mean) / classifier.std).numpy() for split in (train, test))
        begun = time.perf_counter()
        scores = {}
        for penalty in probe.penalties:
            exact = LogisticRegression(C=1 / (penalty * (~rest).sum()), max_iter=10_000)
            scores[penalty] = exact.fit(x[~rest], labels[~rest]).score(x[rest], labels[rest])
        grid = time.perf_counter() - begun
        exact = LogisticRegression(C=1 / (classifier.penalty * len(x)), max_iter=10_000)
        begun = time.perf_counter()
        exact.fit(x, labels)
        seconds["scikit_learn_one_fit"].append(time.perf_counter() - begun)
        seconds["scikit_learn"].append(grid + seconds["scikit_learn_one_fit"][-1])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": list(train.x.shape),
        "threads": torch.get_num_threads(),
        **{f"seconds_{name}": value for name, value in medians.items()},
        "ratio": medians["probe"] / medians["scikit_learn"],
        "ratio_one_fit": medians["probe"] / medians["scikit_learn_one_fit"],
        "penalty": classifier.penalty,
        "penalty_scikit_learn": max(scores, key=scores.get),
        "accuracy_probe": float((classifier.predict(test.x) == test.labels).double().mean()),
        "accuracy_scikit_learn": float(exact.score(y, test.labels.numpy())),
    }


def correlated_features(width: int = 384) -> tuple[Features, Features]:
    """60,000 training and 10,000 test features whose variances fall as 1 / k along random directions."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    scale = torch.arange(1, width + 1).float().rsqrt()
    labels = torch.randint(10, (70_000,), generator=generator)
    centres = 1.2 * torch.randn(10, width, generator=generator) * scale
    x = (torch.randn(len(labels), width, generator=generator) * scale + 0.1 * centres[labels]) @ rotation
    return Features(x[:60_000], labels[:60_000]), Features(x[60_000:], labels[60_000:])


def pictures_as_features(root: str, width: int = 384) -> tuple[Features, Features]:
    """Fashion-MNIST through one random layer of ReLUs."""
    splits = fashion_mnist(root=root, download=False)
    weights = torch.randn(28 * 28, width, generator=torch.Generator().manual_seed(0)) / 28
    return tuple(
        Features((split.images.flatten(1).float() / 255 @ weights).relu(), torch.as_tensor(split.labels))
        for split in (splits.train, splits.test)
    )


WAYS = ("synchronous", "asynchronous")


def monitor(rounds: int = 30) -> dict[str, float]:
    """Milliseconds of a step that is looked at and of one that is not, logging of the figures included."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "experiment=digits",
            "evaluation=none",
            "logger=jsonl",
            "trainer.log_every=1000000",
            "trainer.save_every_epochs=null",
        ]
        trainer = build_trainer(load_config([*overrides, "trainer.max_steps=1000000", f"run_dir={folder}"]))
        for logger in trainer.loggers.values():
            logger.open(RunInfo(trainer.folder.path, 0, trainer.run_length))
        every, looks = trainer.monitor.every_steps, False
        trainer.monitor.due = lambda step, run_length: looks
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number, batch in enumerate(islice(trainer._batches(), 2 * rounds + 6)):
            looks = number % 2 == 1
            begun = time.perf_counter()
            trainer.log_step(trainer.train_step(batch))
            seconds[looks].append(time.perf_counter() - begun)
        plain, looked_at = (values[3:] for values in seconds.values())
        added = statistics.median(one - other for one, other in zip(looked_at, plain))
        return {
            "milliseconds_plain": 1e3 * statistics.median(plain),
            "milliseconds_looked_at": 1e3 * statistics.median(looked_at),
            "milliseconds_added": 1e3 * added,
            "every_steps": every,
            "share_of_the_run": added / every / statistics.median(plain),
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
    """Seconds per run beside its steps, of whole sweeps as a user starts them."""
    alone = ["hydra.launcher.poll_seconds=0.5"]
    kinds = {
        "basic": [],
        "local": ["hydra/launcher=local", "hydra.launcher.parallel=1", *alone],
        "slurm": ["hydra/launcher=slurm", "hydra.launcher.array_parallelism=1", *alone],
    }
    if shutil.which("sbatch") is None:
        del kinds["slurm"]
    seconds = {}
    for name, options in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", "-m", *SWEPT, *options, f"hydra.sweep.dir={folder}"]
            begun = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
            wall = time.monotonic() - begun
            statuses = [json.loads(path.read_text()) for path in Path(folder).glob("*/status.json")]
            if [status["state"] for status in statuses] != ["done"] * 6:
                raise SystemExit(f"{name}: not all of 6 runs are done")
            seconds[name] = (wall - sum(status["train_seconds"] for status in statuses)) / len(statuses)
    return seconds


def startup(rounds: int = 5) -> dict[str, float]:
    """Medians of whole processes, after one of each to warm up the disk's cache."""
    taken: dict[str, list[float]] = {"torch": [], "first_line": [], "end": []}
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        taken["torch"].append(time.perf_counter() - begun)
        with tempfile.TemporaryDirectory() as folder:
            options = ["trainer.max_steps=1", "trainer.device=cpu", "evaluation=none", f"hydra.run.dir={folder}"]
            begun = time.perf_counter()
            with subprocess.Popen([sys.executable, "train.py", *options], cwd=ROOT, stdout=subprocess.PIPE) as process:
                process.stdout.readline()
                taken["first_line"].append(time.perf_counter() - begun)
                process.communicate()
            taken["end"].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(times[1:]) for name, times in taken.items()}
    ratios = {f"{name}_to_torch": seconds[name] / seconds["torch"] for name in ("first_line", "end")}
    return {f"{name}_seconds": value for name, value in seconds.items()} | ratios


def tensors(node):
    """Every tensor in a nested state."""
    if isinstance(node, torch.Tensor):
        return [node]
    values = node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


if __name__ == "__main__":
    named = [argument for argument in sys.argv[1:] if not argument.startswith("--root=")]
    roots = [argument.removeprefix("--root=") for argument in sys.argv[1:] if argument not in named]
    chosen = named or ["masks", "loop"]
    known = {
        "masks": masks,
        "loop": loop,
        "ddp": ddp,
        "saving": saving,
        "monitor": monitor,
        "sweep": sweep,
        "startup": startup,
        "linear": lambda: linear(root=roots[-1] if roots else None),
    }
    print(json.dumps({name: known[name]() for name in chosen}, indent=2))
