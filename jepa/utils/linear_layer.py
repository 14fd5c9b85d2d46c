"""Linear layers by the faster of the two libraries that torch brings for CPUs, and their operations counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies fp32 matrices faster than MKL, which torch takes: on AMD's CPUs.

    Measured on an EPYC with AVX-512, one thread, widths of 192 to 1,536: outputs and gradients of inputs 5 to 17 %
    faster, gradients of weights up to 18 % slower, which therefore stay with MKL. A step of ViT-S/16 takes 7 % less.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.11 on
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AMD" in capabilities.get("cpu_name", "")


ONEDNN = prefers_onednn()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `torch.nn.functional.linear` (..., out) of x (..., in), weight (out, in) and bias (out)."""
    plain = type(weight) in (Tensor, nn.Parameter) and x.is_cpu and x.dtype == weight.dtype == torch.float32
    captured = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a trace may run where there is no oneDNN
    if captured or torch.is_autocast_enabled("cpu") or not (ONEDNN and plain and x.ndim > 1 and x.numel()):
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class OneDNNLinear(torch.autograd.Function):
    """A linear layer whose output and gradient of the input oneDNN computes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            onednn_product(grad, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias. The operation is the one that torch.compile calls."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def operation_counter() -> FlopCounterMode:
    """Return a context that counts floating-point operations of matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton

    def of_linear(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
        return 2 * weight[1] * torch.Size(out_shape).numel()

    own = {torch.ops.mkldnn._linear_pointwise: of_linear} if ONEDNN else {}
    return FlopCounterMode(display=False, custom_mapping=own)
