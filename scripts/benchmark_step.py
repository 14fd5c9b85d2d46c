"""Training steps: samples per second, beside the published way of writing them and beside the machine's matrix rate."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchmark_peers import Peers
from benchmark_published import PublishedStep
from benchmark_timing import STEPS_ALONE, in_turns, medians, seconds_of, trainer_of
from PIL import Image

from jepa.trainer import Trainer
from jepa.trainer.precision import resolve_device, resolve_precision
from jepa.utils.linear_layer import operation_counter

PICTURES = ("data=image_folder", "data.root={folder}/pictures", "data.num_workers=0")
CASES = {
    "ijepa_vitti8_96": (
        *PICTURES,
        "model=vit",
        "data.image_size=96",
        "data.hints={size: tiny, patch_size: 8}",
        "data.batch_size=8",
    ),
    "ijepa_vits16_224": (*PICTURES, "model=vit", "data.hints={size: small, patch_size: 16}", "data.batch_size=8"),
    "ijepa_vits16_224_joint": (
        *PICTURES,
        "model=vit",
        "data.hints={size: small, patch_size: 16}",
        "data.batch_size=8",
        "model.predictor.joint=true",
    ),
    "ijepa_vits16_224_narrow": (
        *PICTURES,
        "model=vit",
        "data.hints={size: small, patch_size: 16}",
        "data.batch_size=8",
        "model.predictor.embed_dim=192",
        "model.predictor.depth=3",
    ),
    "ijepa_vitb16_224": (
        *PICTURES,
        "model=vit",
        "model/encoder=vit_base",
        "data.hints={size: small, patch_size: 16}",
        "data.batch_size=4",
    ),
    "lejepa_vitti8_96": (
        *PICTURES,
        "model=lejepa",
        "data.image_size=96",
        "data.views=2",
        "data.local_views=4",
        "data.local_size=48",
        "data.local_augment={_target_: jepa.data.Augment, crop_scale: [0.05, 0.3]}",
        "data.hints={size: tiny, patch_size: 8}",
        "data.batch_size=8",
    ),
    "vjepa_vits_8x112": (
        "data=video_folder",
        "data.root={folder}/clips",
        "data.num_workers=0",
        "model=video",
        "data.num_frames=8",
        "data.image_size=112",
        "data.hints={size: small, patch_size: 16}",
        "data.batch_size=4",
    ),
    "series_512": ("data=series_csv", "data.root={folder}/series.csv", "model=series", "data.batch_size=32"),
    "text_128": ("data=text_lines", "data.root={folder}/lines.txt", "model=text", "data.batch_size=32"),
}
"""Overrides of each case."""
PUBLISHED_PREDICTORS = {"ijepa_vits16_224_narrow": (384, 6, 6)}
"""Width, blocks and heads of the predictor beside which a case is measured, if not its own: those of `small`."""

SIDE = 2048
MATRIX_FLOP = 2 * SIDE**3


def step(rounds: int = 5, cases: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rates of every case, in turns with the published step, with peers and with one large matrix product.

    In fp32, and where `auto` takes another precision in that too.
    """
    best = resolve_precision("auto", resolve_device("auto"))
    with tempfile.TemporaryDirectory() as folder, Peers() as peers:
        write_samples(Path(folder))
        return [
            measured(name, [*(each.replace("{folder}", folder) for each in CASES[name]), precision], rounds, peers)
            for name in cases or CASES
            for precision in dict.fromkeys(f"trainer.precision={each}" for each in ("fp32", best))
        ]


def measured(name: str, overrides: list[str], rounds: int, peers: Peers) -> dict[str, Any]:
    """The row of one case."""
    options = ["trainer.max_steps=1000000", "trainer.log_every=1000000", "logger=[jsonl]"]
    with trainer_of(*overrides, *STEPS_ALONE, *options) as trainer:
        batch = next(trainer._batches())
        steps = {"ours": lambda: trainer._after_step(trainer.train_step(batch)), "matrix": matrix_product(trainer)}
        if name.startswith("ijepa"):
            published = published_step(trainer, PUBLISHED_PREDICTORS.get(name))
            steps["published"] = lambda: published(batch["x"], trainer.model.mask_sampler._cache[1][0])
        timed = {each: lambda run=run: synchronised(run, trainer.device) for each, run in steps.items()}
        timed |= peers.steps(name, trainer, batch)
        seconds = in_turns(timed, rounds)
        with operation_counter() as counted:
            trainer.train_step(batch)
        size, operations = trainer.data.batch_size, counted.get_total_flops()
        others = [each for each in seconds if each not in ("ours", "matrix")]
        ratios = {f"ratio_to_{other}": ratio(seconds[other], seconds["ours"]) for other in others}
        return {
            "name": name,
            "precision": trainer.precision.name,
            "device": device_name(trainer.device),
            "samples_per_second": size / medians(seconds)["ours"],
            "samples_per_second_range": [size / of(seconds["ours"]) for of in (max, min)],
            "ratio_to_published": None,
            **ratios,
            "gflop_per_sample": operations / size / 1e9,
            "matrix_gflops": MATRIX_FLOP / medians(seconds)["matrix"] / 1e9,
            "utilisation": ratio(seconds["matrix"], seconds["ours"]) * operations / MATRIX_FLOP,
            "shares": breakdown(trainer, batch),
        }


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios of what was measured in one turn."""
    return statistics.median(one / other for one, other in zip(of, to))


def synchronised(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, and of what it has left to a GPU."""

    def call() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return seconds_of(call)


def matrix_product(trainer: Trainer) -> Callable[[], object]:
    """One product of two large matrices in the run's precision."""
    one, other = (torch.randn(SIDE, SIDE, device=trainer.device, dtype=trainer.precision.dtype) for _ in range(2))
    return lambda: one @ other


def published_step(trainer: Trainer, predictor_sizes: tuple[int, int, int] | None = None) -> Callable[..., None]:
    """The published step, of the sizes of our model, on inputs and a mask.

    predictor_sizes: width, blocks and heads of its predictor; None: those of ours.
    """
    encoder, predictor = trainer.model.encoder, trainer.model.predictor
    sizes = {
        "side": trainer.data.spec.input_shape[-1],
        "patch": encoder.patch_size[0],
        "channels": encoder.channels,
        "width": encoder.embed_dim,
        "depth": encoder.depth,
        "heads": encoder.num_heads,
    }
    attention = predictor.blocks[0].attn
    own = attention.proj.in_features, len(predictor.blocks), attention.num_heads
    step = PublishedStep(sizes, predictor_sizes or own, trainer.device)

    def run(x: torch.Tensor, mask: Any) -> None:
        step(x, mask, trainer.precision.autocast())

    return run


def breakdown(trainer: Trainer, batch: Any, steps: int = 3) -> dict[str, float]:
    """The share of a step that each of its parts takes; loop is what is left, checks and logging among it."""
    model = trainer.model
    places = {
        "masks": (model, "mask_sampler"),
        "target": (getattr(model, "target", None), "targets"),
        "context": (getattr(model, "encoder", None), "forward"),
        "predictor": (getattr(model, "predictor", None), "forward"),
        "loss": (model.loss, "forward"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (trainer.optimizer, "step"),
        "ema": (model, "update_target"),
    }
    seconds = dict.fromkeys(places, 0.0)

    def timed(part: str, function: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **options)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[part] += time.perf_counter() - begun
            return result

        return call

    def run() -> None:
        trainer._after_step(trainer.train_step(batch))

    with contextlib.ExitStack() as stack:
        for part, (owner, name) in places.items():
            if (function := getattr(owner, name, None)) is not None:
                stack.enter_context(mock.patch.object(owner, name, timed(part, function)))
        total = sum(synchronised(run, trainer.device) for _ in range(steps))
    return {**{part: spent / total for part, spent in seconds.items()}, "loop": 1 - sum(seconds.values()) / total}


def device_name(device: torch.device) -> str:
    """The card's name, or the CPU's with what it has for matrices."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")
    caps = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name}, {torch.get_num_threads()} threads, {' '.join(caps)}"


def write_samples(folder: Path) -> None:
    """Write pictures, clips, a table and lines for the sources to read."""
    rng = np.random.default_rng(0)

    def picture(path: Path, side: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

    for number in range(64):
        picture(folder / "pictures" / f"{number}.jpg", 256)
    for clip in range(16):
        for frame in range(32):
            picture(folder / "clips" / str(clip) / f"{frame:03}.jpg", 128)
    walk = rng.standard_normal((4000, 7)).cumsum(axis=0)
    np.savetxt(folder / "series.csv", walk, delimiter=",", header=",".join("abcdefg"), comments="", fmt="%.4f")
    words = [f"word{number}" for number in range(500)]
    (folder / "lines.txt").write_text("".join(" ".join(rng.choice(words, 80)) + "\n" for _ in range(2000)))
