"""Several tasks in one run: the sum of their losses, their data side by side, shared trunks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from jepa.data import DataModule, TaskData
from jepa.data.sources import Splits
from jepa.losses import MSE, Objective
from jepa.masks import RandomMask
from jepa.masks.span import SpanMask
from jepa.models import EMATarget, MaskedJEPA, Predictor, SharedTarget, TransformerEncoder
from jepa.models.encoders.tubelet_stem import TubeletStem
from jepa.models.multitask import MultiTask
from jepa.monitor import CollapseMonitor
from jepa.optim import Constant
from jepa.types import StepRandomness


class Steps(nn.Module):
    """Every step of series (B, C, T) is a token."""

    def __init__(self, *, embed_dim: int, channels: int) -> None:
        super().__init__()
        self.project, self.token_values = nn.Linear(channels, embed_dim), channels

    def grid(self, x):
        return (x.shape[-1],)

    def token_inputs(self, x):
        return x.transpose(1, 2)

    def forward(self, x):
        return self.project(x.transpose(1, 2))


LOSS = partial(Objective, terms={"prediction": {"weight": 1.0, "term": MSE()}})


def task(channels: int, *, target=None, depth: int = 2, num_heads: int = 2):
    encoder = TransformerEncoder(stem=partial(Steps, channels=channels), embed_dim=16, depth=depth, num_heads=num_heads)
    return partial(
        MaskedJEPA,
        encoder=encoder,
        predictor=partial(Predictor, embed_dim=16, depth=1, num_heads=2),
        target=target or partial(EMATarget, momentum=Constant(value=0.9)),
        mask=SpanMask(),
        allow_collapse=True,
    )


def series(channels: int, count: int) -> DataModule:
    samples = [(torch.full((channels, 6), float(n)), None) for n in range(count)]
    data = DataModule(batch_size=99)
    splits = Splits(train=samples, test=samples[: count // 2])
    data.setup(splits, prepare=lambda sample, random: sample, input_shape=(channels, 6))
    return data


def data() -> TaskData:
    return TaskData(parts={"one": series(1, 20), "two": series(2, 9), "gone": None}, batch_size=4)


def test_the_loss_is_the_weighted_sum():
    torch.manual_seed(0)
    model = MultiTask(
        tasks={"one": {"weight": 1.0, "model": task(1)}, "two": {"weight": 0.5, "model": task(2)}}, loss=LOSS
    )
    batch = next(data().train_batches(seed=0, start_step=0, stop_step=1))
    batch = {name: torch.randn_like(value) for name, value in batch.items()}
    rng = StepRandomness(seed=0, step=0, total=4, start=0, count=4)
    values = model.loss(model(model.prepare(batch, rng)))
    alone = {}
    for name, part in model.tasks.items():
        alone[name] = part.loss(part(part.prepare({"x": batch[f"{name}/x"]}, rng)))["loss"]
    assert torch.allclose(values["loss"], alone["one"] + 0.5 * alone["two"])
    assert set(values) == {"loss", *(f"loss/{n}{t}" for n in ("one", "two") for t in ("", "/prediction"))}
    values["loss"].backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    before = model.tasks["two"].target.encoder.norm.weight.clone()
    with torch.no_grad():
        model.tasks["two"].encoder.norm.weight += 1
    assert model.update_target(0, None)["two/momentum"] == 0.9
    assert torch.allclose(model.tasks["two"].target.encoder.norm.weight, before + 0.1)
    assert not any(name.startswith("loss.") for name in model.state_dict())


def test_two_tasks_by_one_model():
    """Pictures and clips through one encoder: both give gradient, and the target moves once a step."""
    torch.manual_seed(0)
    encoder = TransformerEncoder(
        stem=partial(TubeletStem, channels=1, patch_size=4, tubelet_size=2, images=True),
        embed_dim=24,
        depth=1,
        num_heads=2,
    )
    narrow = partial(Predictor, embed_dim=24, depth=1, num_heads=2)
    clips = {"weight": 1.0, "model": partial(task(1), encoder=encoder, mask=RandomMask(), predictor=narrow)}
    model = MultiTask(tasks={"clips": clips, "pictures": {"weight": 0.5, "model": "clips"}}, loss=LOSS)
    batch = {"clips/x": torch.randn(2, 1, 4, 8, 8), "pictures/x": torch.randn(2, 1, 8, 8)}
    rng = StepRandomness(seed=0, step=0, total=2, start=0, count=2)
    values = model.loss(model(model.prepare(batch, rng)))
    assert torch.allclose(values["loss"], values["loss/clips"] + 0.5 * values["loss/pictures"])
    values["loss"].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert list(model.update_target(0, None)) == ["clips/momentum"]
    with pytest.raises(ValueError, match="without a model of their own"):
        MultiTask(tasks={"pictures": {"weight": 1.0, "model": "clips"}}, loss=LOSS)


def test_data_of_all_parts_side_by_side():
    tasks = data()
    batches = list(tasks.train_batches(seed=0, start_step=0, stop_step=5))
    assert [batch["two/x"].shape for batch in batches] == [(4, 2, 6)] * 5
    alone = list(tasks.parts["one"].train_batches(seed=0, start_step=0, stop_step=5))
    assert all(torch.equal(batch["one/x"], own["x"]) for batch, own in zip(batches, alone))
    halves = [list(tasks.train_batches(seed=0, start_step=0, stop_step=5, rank=r, world_size=2)) for r in (0, 1)]
    assert torch.equal(torch.cat([half[3]["two/x"] for half in halves]), batches[3]["two/x"])
    sizes = [batch["one/x"].shape[0] for batch in tasks.validation_batches(batch_size=3)]
    assert sizes == [3, 1]  # as many as the smallest has
    assert tasks.spec.num_train == 20


def test_a_shared_trunk():
    tasks = {name: {"weight": 1.0, "model": task(c, target=SharedTarget)} for name, c in (("one", 1), ("two", 2))}
    model = MultiTask(tasks=tasks, loss=LOSS, share_trunk=True)
    one, two = model.tasks["one"].encoder, model.tasks["two"].encoder
    assert one.blocks is two.blocks
    assert one.stem is not two.stem
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if name.startswith("tasks.two.encoder.blocks")]


def weighted(model, weight: float = 1.0) -> dict:
    return {"weight": weight, "model": model}


def of_shared_targets(**sizes: int) -> dict:
    return {"one": weighted(task(1, target=SharedTarget)), "two": weighted(task(1, target=SharedTarget, **sizes))}


@pytest.mark.parametrize(
    ("tasks", "share", "message"),
    [
        ({}, False, "model.tasks is empty"),
        ({"one": weighted(task(1), 0.0)}, False, r"one.weight=0.0: expected a number above 0"),
        ({"one": {"model": task(1)}}, False, "expected weight and model"),
        ({"one": weighted(task(1))}, True, "averaged target"),
        (of_shared_targets(depth=3), True, "differ in width"),
        (of_shared_targets(num_heads=4), True, "differ in .*heads"),
    ],
)
def test_what_cannot_be_is_refused(tasks, share, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(tasks=tasks, loss=LOSS, share_trunk=share)


def test_parts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="is empty"):
        TaskData(parts={})
    with pytest.raises(ValueError, match="slash"):
        TaskData(parts={"a/b": series(1, 3)})


def test_the_monitor_looks_at_each_task():
    """One task collapses, the other does not; the verdict names the one."""
    torch.manual_seed(0)
    model = MultiTask(tasks={n: {"weight": 1.0, "model": task(1)} for n in ("sound", "stuck")}, loss=LOSS)
    monitor = CollapseMonitor(every_steps=1)
    for step in range(1, 11):
        if step == 7:
            with torch.no_grad():  # the target of the second gives the same whatever comes in
                model.tasks["stuck"].target.encoder.norm.weight.zero_()
                model.tasks["stuck"].target.encoder.norm.bias.normal_()
        batch = {f"{name}/x": torch.randn(32, 1, 6) for name in ("sound", "stuck")}
        rng = StepRandomness(seed=0, step=step, total=32, start=0, count=32)
        with monitor.watching(model):
            model(model.prepare(batch, rng))
        metrics = monitor.measure(model, step, {"train/loss": 1.0}, torch.device("cpu"))
    assert {"monitor/sound/target_spread", "monitor/stuck/target_spread"} <= metrics.keys()
    assert monitor.verdict.is_bad
    assert monitor.verdict.evidence.startswith("stuck: ")
    assert monitor.tasks["sound"].verdict.name == "healthy"
    again = CollapseMonitor(every_steps=1)
    again.load_state_dict(monitor.state_dict())
    assert again.state_dict() == monitor.state_dict()
