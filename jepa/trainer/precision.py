"""Devices, number formats and the kernels that compute with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jepa.distributed.launch import read_launch
from jepa.utils.errors import UserError
from jepa.utils.memory import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a name; "auto" takes CUDA, then MPS, then the CPU; of several processes each its own GPU.

    Raises UserError when the name is unknown or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() and "RANK" not in os.environ else "cpu"
    try:
        device = torch.device(name)
        if device == torch.device("cuda"):
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"trainer.device={name} cannot be used here ({str(error).splitlines()[0]}): use auto, cpu, cuda or mps"
        ) from error
    return device


def prepare_device(name: str) -> torch.device:
    """Return the device of a name, made ready for this process. Raises UserError as `resolve_device`."""
    device = resolve_device(name, read_launch().local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16"; "auto" takes bf16 where the hardware multiplies it natively.

    That is CUDA from Ampere on (before it auto is fp16) and CPUs with AMX or AVX512_BF16, where a step takes 0.6 of its
    time in fp32, or less; elsewhere auto is fp32. Raises UserError for any other name.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "bf16" if device.type == "cpu" and native else "fp32"
    if name not in DTYPES:
        raise UserError(f"trainer.precision={name}: expected auto, {', '.join(DTYPES)}")
    return name


class Precision:
    """Autocast, for fp16 loss scaling, and the choice of kernels.

    attention: auto lets torch choose, but on a CPU in bf16 multiplies explicitly; flash, efficient or math ask for
        that kernel of torch's scaled_dot_product_attention. tf32: let CUDA multiply fp32 matrices in TF32.
    deterministic: use kernels that give the same numbers every time, with a warning where there is none.
    detect_anomaly: let autograd name the operation that made a NaN.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        *,
        attention: Literal["auto", "flash", "efficient", "math"] = "auto",
        tf32: bool = False,
        deterministic: bool = False,
        detect_anomaly: bool = False,
    ) -> None:
        if attention not in ("auto", *KERNELS):
            raise UserError(f"trainer.attention={attention}: expected auto, {', '.join(KERNELS)}")
        self.name, self.device, self.attention = resolve_precision(name, device), device, attention
        self.tf32, self.deterministic, self.detect_anomaly = tf32, deterministic, detect_anomaly
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when first used
        if attention != "auto":
            self._try_attention()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of matrix products."""
        return DTYPES[self.name]

    def autocast(self) -> torch.autocast:
        """Return a context that computes matrix products in this precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.name != "fp32")

    def update(self, optimizer: torch.optim.Optimizer, skip: Tensor | None = None) -> None:
        """Make the optimizer's step, through the loss scaler.

        skip: leave it out where this is 1.0, a scalar on the device, without waiting for it; for fused optimizers.
        """
        if skip is not None:
            optimizer.found_inf = skip  # as the scaler hands it over
        self.scaler.step(optimizer)
        self.scaler.update()
        if skip is not None:
            del optimizer.found_inf

    def skip_step(self) -> None:
        """Lower the loss scale after a step that overflowed, on every rank alike: only some may have met infinities."""
        if not self.scaler.is_enabled():
            return
        state = self.scaler.state_dict()
        self.scaler.update()
        lower = {"scale": state["scale"] * self.scaler.get_backoff_factor(), "_growth_tracker": 0}
        self.scaler.load_state_dict({**state, **lower})

    def choose_attention(self, model: nn.Module) -> None:
        """Let attention, timm's and ours, multiply explicitly in bf16 on a CPU, whose fused kernel is slow.

        Measured 2 to 4 times faster forward and backward at 60 to 200 tokens; in fp32 the fused kernel wins.
        """
        explicit = self.attention == "auto" and self.device.type == "cpu" and self.name == "bf16"
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = not explicit

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """Return a context with the asked kernels; what was set before comes back after it."""
        with contextlib.ExitStack() as stack:
            if self.attention != "auto":
                stack.enter_context(sdpa_kernel(KERNELS[self.attention]))
            if self.detect_anomaly:
                stack.enter_context(torch.autograd.set_detect_anomaly(True))
            if self.device.type == "cuda":
                stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                stack.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
                torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
                torch.backends.cudnn.allow_tf32 = self.tf32  # convolutions, by default in TF32
            if self.deterministic:
                warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
                before = torch.are_deterministic_algorithms_enabled()
                stack.callback(torch.use_deterministic_algorithms, before, warn_only=warns_only)
                torch.use_deterministic_algorithms(True, warn_only=True)
            try:
                yield
            except RuntimeError as error:
                if self.attention != "auto" and "No available kernel" in str(error):
                    raise UserError(self._unavailable(error)) from error
                raise

    def _try_attention(self) -> None:
        sample = torch.zeros(1, 1, 16, 64, device=self.device, dtype=self.dtype)
        try:
            with sdpa_kernel(KERNELS[self.attention]):
                torch.nn.functional.scaled_dot_product_attention(sample, sample, sample)
        except RuntimeError as error:
            raise UserError(self._unavailable(error)) from error

    def _unavailable(self, error: Exception) -> str:
        return (
            f"trainer.attention={self.attention} has no kernel for {self.name} on {self.device} "
            f"({str(error).splitlines()[0]}); flash takes no padding and no fp32 on CUDA: use trainer.attention=auto"
        )
