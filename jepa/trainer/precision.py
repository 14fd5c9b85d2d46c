"""Devices and number formats."""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import nn

from jepa.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA, then MPS, then the CPU.

    Raises UserError when the name is unknown or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"trainer.device={name} cannot be used here ({str(error).splitlines()[0]}): use auto, cpu, cuda or mps"
        ) from error
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16"; "auto" takes bf16 where the hardware multiplies it natively.

    That is CUDA from Ampere on (before it auto is fp16) and CPUs with AMX, where bf16 matrix products run several
    times faster; elsewhere auto is fp32. Raises UserError for any other name.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"
    if name not in DTYPES:
        raise UserError(f"trainer.precision={name}: expected auto, {', '.join(DTYPES)}")
    return name


class Precision:
    """Autocast and, for fp16, loss scaling."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = resolve_precision(name, device)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> torch.autocast:
        """A context that computes matrix products in this precision."""
        return torch.autocast(self.device.type, dtype=DTYPES[self.name], enabled=self.name != "fp32")

    def choose_attention(self, model: nn.Module) -> None:
        """Let timm's attention multiply explicitly in bf16 on a CPU, whose fused kernel does not use AMX.

        Measured 2 to 4 times faster forward and backward at 60 to 200 tokens; in fp32 the fused kernel wins.
        """
        explicit = self.device.type == "cpu" and self.name == "bf16"
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = not explicit


def clip_gradients(model: nn.Module, norm: float | None, value: float | None) -> torch.Tensor:
    """Clip gradients by value, then by total norm; gives the norm as it was before either, a scalar tensor."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    if value is not None:
        torch.nn.utils.clip_grad_value_(model.parameters(), value)
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    elif norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), norm, total)
    return total
