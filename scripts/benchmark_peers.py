"""Peers that train I-JEPA or LeJEPA, from the package index, each step in a process of an environment of its own."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from benchmark_timing import ROOT

from jepa.trainer import Trainer

PACKAGES = ("lightly==1.6.*", "stable-pretraining==0.1.8")
ENVIRONMENT = ROOT / "outputs" / "benchmark_peers"
OF_CASE = {"ijepa_vits16_224": ("lightly_ijepa", "stable_ijepa"), "ijepa_vitti8_96": ("lightly_ijepa", "stable_ijepa")}


class Peers:
    """A context in which peers can be timed, installed for the first case that has some.

    None, and a line that says why, where they cannot be installed.
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen] = []
        self._python = ENVIRONMENT / "bin" / "python"
        self._wanted = "\n".join([*PACKAGES, f"torch=={torch.__version__.split('+')[0]}"])
        self._note = ENVIRONMENT / "installed.txt"  # written last

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @functools.cached_property
    def _installed(self) -> bool:
        """Whether they are there, or could be installed."""
        if not self._ready():
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            try:
                self._install()
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"no peers, as they could not be installed: {error}", file=sys.stderr)
        return self._ready()

    def _ready(self) -> bool:
        return self._note.is_file() and self._note.read_text() == self._wanted

    def _install(self) -> None:
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT)], check=True)
        packages = self._wanted.split()
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(self._python), *packages], check=True)
        self._note.write_text(self._wanted)

    def steps(self, name: str, trainer: Trainer, batch: Any) -> dict[str, Callable[[], float]]:
        """For each peer of the case what makes a step on as many samples and tokens, and returns its seconds."""
        self._end()
        return {peer: self._step(peer, trainer, batch) for peer in OF_CASE.get(name, ()) if self._installed}

    def _step(self, peer: str, trainer: Trainer, batch: Any) -> Callable[[], float]:
        encoder, predictor = trainer.model.encoder, trainer.model.predictor
        [mask] = trainer.model.mask_sampler(encoder, batch["x"], trainer._randomness(batch))["masks"]
        sizes = {
            "shape": list(batch["x"].shape),
            "patch": encoder.patch_size[0],
            "width": encoder.embed_dim,
            "depth": encoder.depth,
            "heads": encoder.num_heads,
            "predictor_width": predictor.embed.out_features,
            "predictor_depth": len(predictor.blocks),
            "context": mask.context.shape[1],
            "blocks": mask.targets.shape[1],
            "tokens": mask.targets.shape[2],
            "bf16": trainer.precision.name == "bf16",
            "threads": torch.get_num_threads(),
            "device": trainer.device.type,
        }
        command = [str(self._python), str(ROOT / "scripts" / "benchmark_peer_step.py"), peer, json.dumps(sizes)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment)
        self._processes.append(process)

        def step() -> float:
            print("step", file=process.stdin, flush=True)
            for line in process.stdout:
                if line.startswith("seconds "):
                    return float(line.split()[1])
            raise SystemExit(f"{peer} has ended: {' '.join(command)}")

        return step

    def _end(self) -> None:
        for process in self._processes:
            process.stdin.close()
            process.wait()
        self._processes.clear()
