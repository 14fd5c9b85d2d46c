"""Sums and rows over ranks, SIGReg and batch norm of two ranks against one process with all samples, and the watch.

Called with a file's name, to which each rank adds its number; leaves there the traceback, or None, of each check.
"""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from jepa.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    all_reduce_sum_with_gradient,
    broadcast_from_rank0,
    destroy_process_group,
    get_rank,
    get_world_size,
    init_process_group,
    mean_over_ranks,
    no_collectives,
    row_offset,
)
from jepa.distributed.parallel import Parallel, RankBatchNorm, span_ranks
from jepa.losses import Objective, SIGReg, SmoothL1
from jepa.masks import RandomMask
from jepa.models import MaskedJEPA, Predictor, TeacherTarget, vision_transformer
from jepa.types import Latents, StepRandomness
from jepa.utils.errors import UserError
from jepa.utils.tensors import is_dtensor

CLOSE = {"rtol": 2e-5, "atol": 1e-6}
EVEN, UNEVEN = (8, 8), (11, 5)


def mine(tensor: torch.Tensor, sizes: tuple[int, int]) -> torch.Tensor:
    """This rank's part along the first axis."""
    return tensor.split(sizes)[get_rank()]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def gradients_of(loss, parameters) -> list[torch.Tensor]:
    """Gradients of the mean of the ranks' losses, as DDP takes them."""
    return [all_reduce_sum(g) / get_world_size() for g in torch.autograd.grad(loss, parameters)]


def same(one, other) -> None:
    torch.testing.assert_close(one, other, **CLOSE)


def check_sum_and_mean():
    weight = randn(4, 3).requires_grad_()
    for sizes in (EVEN, UNEVEN):
        x = randn(sum(sizes), 4)
        part = mine(x, sizes) @ weight
        average, count = mean_over_ranks(part.sum(0), len(part))
        loss = average.square().sum() * count
        expected = (x @ weight).mean(0).square().sum() * 16
        same(loss, expected)
        assert int(count) == 16
        same(gradients_of(loss, [weight])[0], torch.autograd.grad(expected, [weight])[0])
        part = mine(x, sizes) @ weight
        loss, expected = (
            all_reduce_sum_with_gradient(part.exp().sum(0)).log().sum(),
            (x @ weight).exp().sum(0).log().sum(),
        )
        same(loss, expected)
        same(gradients_of(loss, [weight])[0], torch.autograd.grad(expected, [weight])[0])


def check_gathered_rows():
    weight = randn(4, 3).requires_grad_()
    for sizes in (EVEN, UNEVEN, (0, 16)):
        x = randn(16, 4)
        place = row_offset(len(mine(x, sizes)))
        assert place == (get_rank() * sizes[0], 16)
        for index in (None, torch.tensor([15, 0, 7, 8, 0])):
            rows = all_gather_rows(mine(x, sizes) @ weight, index)
            expected = x @ weight if index is None else (x @ weight)[index]
            same(rows, expected)
            given = all_gather_rows(mine(x, sizes), index, offset=place)
            assert torch.equal(given, x if index is None else x[index])
            loss, expected = rows.exp().sum(), expected.exp().sum()
            same(gradients_of(loss, [weight])[0], torch.autograd.grad(expected, [weight])[0])


def check_sigreg():
    term, weight = SIGReg(num_slices=8), randn(4, 6).requires_grad_()
    for sizes in (EVEN, UNEVEN):
        x = randn(16, 2, 4)  # (B, V, D)
        rng = StepRandomness(seed=3, step=5, total=16, start=0, count=16)
        loss = term(Latents(projections=(mine(x, sizes) @ weight).transpose(0, 1), rng=rng))
        with no_collectives():
            expected = term(Latents(projections=(x @ weight).transpose(0, 1), rng=rng))
            whole = torch.autograd.grad(expected, [weight])[0]
        same(loss, expected)
        same(gradients_of(loss, [weight])[0], whole)


def check_batch_norm():
    for sizes, shape in ((EVEN, (16, 4)), (UNEVEN, (16, 4)), (UNEVEN, (16, 4, 3))):
        for momentum in (0.1, None):
            own = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum))
            torch.nn.init.uniform_(own[0].weight)
            reference = copy.deepcopy(own)[0]
            span_ranks(own)
            assert isinstance(own[0], RankBatchNorm)
            for step in range(3):
                x = (randn(*shape) * (step + 1) + 100 * step).requires_grad_()
                out, expected = own(mine(x, sizes)), reference(x)
                torch.testing.assert_close(out, mine(expected, sizes), rtol=1e-4, atol=1e-4)
                # The loss of a rank is a mean over its own samples, so that equal shares weigh alike.
                factor = out.numel() / expected.numel() * 2
                loss, expected = out.cos().mean() * factor, expected.cos().mean()
                inputs = [own[0].weight, own[0].bias]
                for one, two in zip(
                    gradients_of(loss, inputs), torch.autograd.grad(expected, list(reference.parameters()))
                ):
                    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
            assert own.state_dict().keys() == {f"0.{name}" for name in reference.state_dict()}
            for name, buffer in reference.named_buffers():
                torch.testing.assert_close(own[0].get_buffer(name), buffer, rtol=1e-5, atol=1e-5)
            own.eval(), reference.eval()
            same(own(x), reference(x))


def check_batch_norm_passes_gradients_to_its_inputs():
    own, x = RankBatchNorm(4), randn(16, 4)
    weight = randn(4, 4).requires_grad_()
    loss = own(mine(x, UNEVEN) @ weight).pow(3).sum() / 8
    with no_collectives():
        expected = torch.autograd.grad(own(x @ weight).pow(3).mean() * 4, [weight])[0]
    torch.testing.assert_close(gradients_of(loss, [weight])[0], expected, rtol=1e-3, atol=1e-4)


def check_batch_norm_of_large_means():
    """Sums of squares would cancel here."""
    x = (randn(16, 2) + 4000).float()
    out = RankBatchNorm(2)(mine(x, UNEVEN))
    torch.testing.assert_close(out, mine(nn.BatchNorm1d(2)(x), UNEVEN), rtol=1e-2, atol=1e-2)


def check_alone():
    x = torch.ones(3)
    with no_collectives():
        assert (get_rank(), get_world_size()) == (0, 1)
        same(all_reduce_sum_with_gradient(x), x)
    assert get_world_size() == 2
    same(all_reduce_sum_with_gradient(x), 2 * x)


def check_agreement():
    assert all_reduce_max(torch.tensor([get_rank(), 5 - get_rank()])).tolist() == [1, 5]
    assert broadcast_from_rank0(lambda: f"from {get_rank()}") == "from 0"

    def fail():
        raise UserError("only rank 0 knows")

    message = ""
    try:
        broadcast_from_rank0(fail)
    except UserError as error:
        message = str(error)
    assert message == "only rank 0 knows"


def check_a_frozen_teacher():
    """The same targets and gradients as in one process; its weights are sharded by FSDP, and in no state dict."""

    def encoder(width: int) -> nn.Module:
        sizes = {"image_size": 8, "channels": 1, "patch_size": 2, "depth": 1, "num_heads": 2}
        return vision_transformer(embed_dim=width, **sizes)

    loss = partial(Objective, terms={"prediction": {"weight": 1.0, "term": SmoothL1()}})
    x, rng = randn(16, 1, 8, 8), StepRandomness(seed=0, step=0, total=16, start=8 * get_rank(), count=8)
    for strategy in ("ddp", "fsdp"):
        torch.manual_seed(0)
        parts = {"predictor": partial(Predictor, embed_dim=16, depth=1), "mask": RandomMask(context_share=0.5)}
        target = partial(TeacherTarget, teacher=encoder(32))
        model = MaskedJEPA(encoder=encoder(16), target=target, loss=loss, **parts)
        weight = model.predictor.project.weight
        with no_collectives():
            whole = StepRandomness(seed=0, step=0, total=16, start=0, count=16)
            [expected] = torch.autograd.grad(model.training_step({"x": x}, whole)["loss"], [weight])
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        parallel = Parallel(strategy, model, optimizer, device=torch.device("cpu"), find_unused=False)
        parallel(model.training_step, {"x": mine(x, EVEN)}, rng)["loss"].backward()
        gradient = model.predictor.project.weight.grad
        same(gradient.full_tensor() if strategy == "fsdp" else gradient, expected)
        [kernel] = [p for n, p in model.target.named_parameters() if n.endswith("patch_embed.proj.weight")]
        assert is_dtensor(kernel) == (strategy == "fsdp")
        assert not any(p.requires_grad or p.grad is not None for p in model.target.parameters())
        assert not any(name.startswith("target.") for name in model.state_dict())


CHECKS = {name.removeprefix("check_"): function for name, function in globals().items() if name.startswith("check_")}


def main(path: str, checks: dict[str, Callable[[], None]]) -> None:
    """Run all checks in this rank."""
    torch.set_num_threads(1)
    init_process_group(torch.device("cpu"))
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
        dist.barrier()
    torch.save(results, f"{path}{get_rank()}.pt")
    destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], CHECKS)
