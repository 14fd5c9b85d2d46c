"""Random streams, the check of configurations, suggestions, memory, weights, run folders."""

from __future__ import annotations

import collections.abc
import functools
import platform
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Optional

import pytest
import torch

from jepa.checkpoint.load import load_state, locate, read_file
from jepa.config.check import check_config, describe, fits
from jepa.config.compose import dotted_keys, known_keys, run_folder_of
from jepa.config.overrides import override_key
from jepa.utils.errors import CheckpointError, UserError, convert_system_errors
from jepa.utils.linear_layer import Linear, linear, operation_counter
from jepa.utils.memory import keep_freed_memory
from jepa.utils.random import derive_seed, generator, seeded, uniform
from jepa.utils.tensors import gather_tokens, layer_norm, masked_mean, nearest_rows

# Random streams.


def test_seeds_differ_by_everything():
    seeds = [derive_seed(s, stream, *c) for s in (0, 1, 11) for stream in ("a", "b") for c in ((), (1,), (1, 1), (11,))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "mask", 3) == 8568783435518715260  # the same on every machine


def test_generators_are_functions_of_their_arguments():
    def draw(*key):
        return torch.rand(4, generator=generator("cpu", *key))

    assert torch.equal(draw(0, "mask", 5), draw(0, "mask", 5))
    assert not torch.equal(draw(0, "mask", 5), draw(0, "mask", 6))
    assert not torch.equal(draw(0, "mask", 5), draw(0, "augment", 5))


def test_numbers_are_functions_of_their_arguments_in_any_company():
    whole = uniform(0, "augment", range(100, 1100), (3, 30))
    assert whole.shape == (1000, 3, 30)
    assert torch.equal(uniform(0, "augment", [104, 105, 101], (2, 30)), whole[[4, 5, 1], :2])
    assert len(whole.unique()) > 0.99 * whole.numel()
    assert 0 <= whole.min() < 1e-4 < 1 - 1e-4 < whole.max() < 1
    torch.testing.assert_close(whole.mean(dim=0), torch.full((3, 30), 0.5), rtol=0, atol=0.05)
    assert whole.flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.2
    first = uniform(0, "augment", [3], (1, 32))
    assert first[0, 0, :2].tolist() == [0.27824729681015015, 0.11102849245071411]  # the same on every machine
    assert not torch.equal(uniform(1, "augment", [3], (1, 32)), first)


def test_seeded_blocks_put_the_state_back():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with seeded(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError), seeded(0, "init"):  # noqa: PT012
        assert torch.equal(torch.rand(3), first)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)


# The check of configurations.


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1.0, int, False),
        (True, int, False),
        ("1", int, False),
        (1, float, True),
        (1.5, float, True),
        (True, float, False),
        (None, float, False),
        (None, float | None, True),
        (None, Optional[float], True),  # noqa: UP045
        ("x", int | None, False),
        (True, bool, True),
        (0, bool, False),
        ("a", str, True),
        (1, str, False),
        ("min", Literal["min", "max"], True),
        ("low", Literal["min", "max"], False),
        ([1, 2], Sequence[int], True),
        ([1, "b"], Sequence[int], False),
        ([1, 2.5], tuple[float, float], True),
        ((), list[int], False),
        ("ab", Sequence[str], False),
        (3, Sequence[int], False),
        ([8, 8], int | Sequence[int], True),
        (8, int | Sequence[int], True),
        ({"a": 1}, Mapping[str, int], True),
        (3, Mapping[str, int], False),
        ({"_target_": "x.Y"}, int, True),
        ({"a": 1}, int, False),
        ("anything", typing.Any, True),
        (3, Callable[..., int], True),
        (3, collections.abc.Callable, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


def test_describe():
    assert describe(int) == "a whole number"
    assert describe(Literal["a", "b", "c"]) == "a, b or c"
    assert describe(float | torch.Tensor | None) == "a number or null"
    assert describe(Sequence[int]) == "a list of whole numbers"
    assert describe(torch.nn.Module) == "Module"


def takes(*, width: int, names: Sequence[str] = (), inner: object = None) -> tuple:
    """Something to name in a config."""
    return width, names, inner


def lacks_a_name(width: Unknown) -> int:  # noqa: F821
    """As a class whose base is annotated with names that its own file lacks."""
    return width


def takes_any(**others: object) -> dict:
    """Takes whatever it is given."""
    return others


TAKES = f"{__name__}.takes"


def test_check_config():
    good = {"_target_": TAKES, "width": 3, "names": ["a"], "inner": {"_target_": TAKES, "width": 1}}
    check_config({"model": good, "list": [good], "other": 3})
    check_config({"_target_": f"{__name__}.takes_any", "x": 1})
    check_config({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1, "betas": [0.9, 0.99]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, r"model.part.widht: .*takes takes no widht. Did you mean model.part.width\?"),
        ({"zzz": 3}, "model.part.zzz: .*It takes width, names, inner"),
        ({"width": "3"}, r"model.part.width='3': .* expects a whole number"),
        ({"names": [1]}, r"model.part.names=\[1\]: .* expects a list of texts"),
        ({"inner": {"_target_": TAKES, "width": None}}, r"model.part.inner.width=null: .* expects a whole number"),
        ({"inner": [{"_target_": TAKES, "x": 1}]}, r"model.part.inner\[0\].x"),
        ({"_target_": f"{__name__}.nothing"}, "model.part._target_=.*nothing cannot be imported"),
        ({"_target_": "no_such_package.Thing"}, "no_such_package.Thing cannot be imported"),
        (
            {"_target_": f"{__name__}.lacks_a_name", "widht": 3},
            "lacks_a_name takes no widht. Did you mean model.part.width.?; ~model.part.widht leaves it out",
        ),
        (
            {"_target_": "torch.optim.AdamW", "_partial_": True, "lrr": 1},
            r"model.part.lrr: torch.optim.AdamW .*mean model.part.lr\?",
        ),
    ],
)
def test_check_config_names_the_key(change, message):
    node = {"_target_": TAKES, "width": 1, **change}
    if change.get("_target_", TAKES) != TAKES:
        node.pop("width")
    with pytest.raises(UserError, match=message):
        check_config({"model": {"part": node}})


# Configurations and run folders.


def test_the_folder_of_a_resumed_run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.pt").touch()
    (tmp_path / "lone.pt").touch()
    for given in (run, run / "checkpoints", run / "checkpoints" / "last.pt"):
        assert run_folder_of(str(given), "default") == str(run)
    assert run_folder_of(str(tmp_path / "lone.pt"), "default") == str(tmp_path)
    for given in (None, "auto"):
        assert run_folder_of(given, "default") == "default"


def test_keys():
    keys = {"a=1": "a", "+a.b=1": "a.b", "++a.b=1": "a.b", "~a": "a", "~a.b=1": "a.b"}
    assert {override: override_key(override) for override in keys} == keys
    assert dotted_keys({"a": {"b": 1, "c": {"d": 2}}}) == ["a", "a.b", "a.c", "a.c.d"]
    assert {"resume", "optimizer.lr", "model.encoder.depth", "trainer.max_steps"} <= set(known_keys())


@pytest.mark.faults
def test_what_the_system_refuses_is_no_bug():
    with pytest.raises(UserError, match=r"/x/y: No space left on device.*hydra.run.dir"), convert_system_errors():
        raise OSError(28, "No space left on device", "/x/y")
    with pytest.raises(FileNotFoundError), convert_system_errors():
        raise FileNotFoundError(2, "No such file", "/x/y")


def test_memory():
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


# Weights.


def test_locate(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        locate(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.touch()
    failed = tmp_path / "2024-01-02" / "10-00-00"
    failed.mkdir(parents=True)
    for folder in (tmp_path, failed):  # of any day
        with pytest.raises(CheckpointError, match=f"holds no checkpoint.*the newest run with one is {tmp_path}/run$"):
            locate(folder)
    for given in (last, last.parent, tmp_path / "run", str(tmp_path / "run")):
        assert locate(given) == last


@pytest.mark.faults
def test_a_file_of_other_objects_than_tensors_is_refused(tmp_path):
    torch.save(functools.partial(print), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"(cannot|was not) read"):
        read_file(tmp_path / "x.pt")


def model():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda w: w.pop("0.bias"), ["0.bias: missing in the file", "1 keys missing"]),
        (lambda w: w.update(extra=torch.ones(1)), ["extra: in the file only", "1 unexpected"]),
        (
            lambda w: w.update({"1.weight": torch.ones(1, 4)}),
            ["1.weight: (1, 4) in the file, (1, 3) in the model"],
        ),
        (lambda w: w.update({f"x{i}": torch.ones(1) for i in range(20)}), ["... and 8 more"]),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_alone(tmp_path, change, lines):
    own, weights = model(), model().state_dict()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError) as caught:
        load_state(own, weights, tmp_path / "x.pt")
    for line in lines:
        assert line in str(caught.value)
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_that_fit(tmp_path):
    own, weights = model(), model().state_dict()
    load_state(own, weights, tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.state_dict().items())
    other = model().state_dict()
    kept = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    del other["1.bias"]
    other["1.weight"] = torch.ones(9, 9)
    load_state(own, other, tmp_path, keep=("1.",))
    assert torch.equal(own[0].weight, other["0.weight"])
    assert torch.equal(own[1].weight, kept["1.weight"])


# Tensors.


def test_tokens():
    tokens = torch.arange(12.0).view(1, 6, 2)
    assert gather_tokens(tokens, torch.tensor([[[3, 0], [5, 5]]])).tolist() == [
        [[[6, 7], [0, 1]], [[10, 11], [10, 11]]]
    ]
    normed = layer_norm(torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    valid = torch.tensor([[True, True, False, False, False, False]])
    assert masked_mean(tokens, valid).tolist() == [[1.0, 2.0]]
    assert masked_mean(tokens).tolist() == [[5.0, 6.0]]
    assert masked_mean(tokens, torch.zeros_like(valid)).tolist() == [[0.0, 0.0]]


def test_nearest_rows():
    features = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [-1.0, -0.5]])
    assert nearest_rows(features, [0, 2], 2)[1].tolist() == [[1, 2], [1, 0]]
    cosines, rows = nearest_rows(features, [3], 9, left_out=torch.eye(4, dtype=torch.bool).flip(0))
    assert rows.tolist() == [[2, 1, 0]], "only the others"
    assert cosines[0, 2] == -torch.inf, "left out"


# Linear layers.


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (0, 12), (2, 0, 12)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_by_onednn_is_torchs(monkeypatch, shape, bias):
    monkeypatch.setattr("jepa.utils.linear_layer.ONEDNN", True)
    torch.manual_seed(0)
    own = Linear(12, 8, bias=bias)
    theirs = torch.nn.Linear(12, 8, bias=bias)
    theirs.load_state_dict(own.state_dict())
    found = []
    for layer, apply in ((own, linear), (theirs, torch.nn.functional.linear)):
        x = torch.randn(*shape[:-1], 24, generator=torch.Generator().manual_seed(1))[..., ::2].requires_grad_()
        part = apply(x, layer.weight[3:], None if layer.bias is None else layer.bias[3:])
        y = layer(x)
        (y.square().sum() + part.exp().sum()).backward()
        found.append([y, part, *torch.autograd.grad(layer(x).sum(), [x]), *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*found)
    own(torch.randn(12)).sum().backward()
    assert "aten::linear" in str(torch.jit.trace(own, torch.randn(shape), check_trace=False).inlined_graph)
    with operation_counter() as counter:
        own(torch.randn(shape))
    assert counter.get_total_flops() == 2 * 8 * torch.Size(shape).numel()
    with torch.autocast("cpu", torch.bfloat16):
        assert own(torch.randn(shape)).dtype == torch.bfloat16
