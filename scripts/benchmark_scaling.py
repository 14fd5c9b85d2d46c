"""What a step sends between processes, counted on two of them, and what that asks of a network with more."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections import Counter
from typing import Any

import torch
from benchmark_gpu import MODELS, OF_PICTURES
from benchmark_timing import STEPS_ALONE, trainer_of
from torch.profiler import ProfilerActivity, profile

from jepa import load_config
from jepa.config.build import build_model
from jepa.distributed.collectives import destroy_process_group
from jepa.types import StepRandomness
from jepa.utils.linear_layer import operation_counter

COLLECTIVES = {"c10d::_allgather_base_": "all-gather", "c10d::_reduce_scatter_base_": "reduce-scatter"}
COLLECTIVES |= {"gloo:all_reduce": "all-reduce"}
BATCH = 2048  # samples of a step, of all GPUs together
RATE = 0.4 * 989e12  # floating-point operations per second of a GPU: an assumed share of an H100's, dense bf16
GPUS = (8, 64, 512)
SAMPLES = 64  # whose masks are drawn


def scaling() -> dict[str, Any]:
    """Collectives of a step by strategy, and the bandwidth that large models need, on paper."""
    return {"counted": {kind: counted(kind) for kind in ("ddp", "fsdp")}, "on_paper": [on_paper(n) for n in MODELS]}


def counted(kind: str) -> dict[str, Any]:
    """Number and megabytes of each collective in a step of the tuned digits model on two processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = context.Pipe()
    processes = [context.Process(target=one_step, args=(rank, port, kind, theirs)) for rank in range(2)]
    for process in processes:
        process.start()
    found = ours.recv()
    for process in processes:
        process.join()
    return found


def one_step(rank: int, port: int, kind: str, pipe: Any) -> None:
    """A process of two: rank 0 sends what its fourth step communicated."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    overrides = ["experiment=digits", f"trainer={kind}", "trainer.device=cpu", "trainer.precision=fp32"]
    overrides += ["logger=[jsonl]", "trainer.log_every=100", *STEPS_ALONE]
    with trainer_of(*overrides) as trainer:
        batches = trainer._batches()
        for _ in range(3):
            trainer._after_step(trainer.train_step(next(batches)))
        batch = next(batches)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            trainer._after_step(trainer.train_step(batch))
        if rank == 0:
            calls, sent = Counter(), Counter()
            scattered = {str(event.input_shapes[1:2]) for event in profiler.events() if "reduce_scatter" in event.name}
            for event in profiler.events():
                shapes = event.input_shapes
                if event.name not in COLLECTIVES or (event.name == "gloo:all_reduce" and str(shapes) in scattered):
                    continue  # gloo reduces and scatters by reducing all
                whole = shapes[1 if "reduce_scatter" in event.name else 0]
                calls[COLLECTIVES[event.name]] += 1
                sent[COLLECTIVES[event.name]] += 4 * torch.Size(whole).numel() / 1e6
            parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
            pipe.send(
                {"megabytes_of_gradients": 4 * parameters / 1e6}
                | {name: {"calls": calls[name], "megabytes": sent[name]} for name in calls}
            )
        destroy_process_group()


def on_paper(name: str) -> dict[str, Any]:
    """What a model's step costs and sends, without its weights or a GPU.

    gigabytes_per_second: that each GPU must send so that the gradients of `BATCH` samples, in fp32 around a ring, are
    there when the backward pass ends; two thirds of the operations are its, at `RATE`.
    """
    _, *overrides = MODELS[name]
    config = load_config([*OF_PICTURES, *overrides])
    with torch.device("meta"):
        model = build_model(config)
    rng = StepRandomness(seed=0, step=0, total=SAMPLES, start=0, count=SAMPLES)
    x = torch.empty(SAMPLES, 3, 224, 224, device="meta")
    grid = model.encoder.grid(x)
    masks = model.mask_sampler.masker(SAMPLES, grid, generator=torch.Generator().manual_seed(0))
    batch = {"x": x, "masks": [mask.to("meta") for mask in masks], "target_weights": [None], "rng": rng}
    with operation_counter() as counter:
        model.loss(model(batch))["loss"].backward()
    operations = counter.get_total_flops() / SAMPLES
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    needed = {}
    for gpus in GPUS:
        seconds = 2 / 3 * BATCH / gpus * operations / RATE
        needed[gpus] = 2 * (gpus - 1) / gpus * 4 * trained / seconds / 1e9
    return {
        "name": name,
        "trained_millions": trained / 1e6,
        "gflop_per_sample": operations / 1e9,
        "gigabytes_of_state": (4 * whole + 12 * trained) / 1e9,  # weights, gradients, two moments
        "gigabytes_per_second": needed,
    }
