"""A run imports what it uses: most of the time from `python train.py` to its first line is spent on imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from core_only import ROOT

from jepa.utils.lazy_import import keep_dynamo_out

CODE = """
import json, runpy, sys

sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path({script!r}, run_name="__main__")
at_end = sorted(sys.modules)
import jepa.config.report_run
print(json.dumps([at_end, sorted(sys.modules)]), file=sys.stderr)
""".format(script=str(ROOT / "train.py"))

UNUSED = {
    *("timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "transformers", "datasets"),
    *("plotly", "optuna", "sqlalchemy", "submitit", "tokenizers", "av", "soundfile", "onnx"),
    *("torch.distributed.checkpoint", "jepa.checkpoint.sharded", "jepa.interop"),
    # What torch's own optimizers import in their first step, or when they are saved.
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._inductor", "sympy", "triton"),
}
"""What the default run without evaluation never needs."""

UNUSED_BY_THE_PAGE = {"timm", "torchvision", "sklearn", "scipy", "wandb", "torch._dynamo"}
"""What the page on such a run never needs."""


def test_a_real_process_imports_what_it_uses(tmp_path):
    """Without the fork server of the other tests, and without what this environment has imported."""
    small = ["trainer.max_steps=1", "model.encoder.depth=1", "trainer.device=cpu", "evaluation=none", "report=none"]
    command = [sys.executable, "-c", CODE, "train.py", *small, "hydra.run.dir=run"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run/checkpoints/last.pt").exists()
    assert len(process.stderr.splitlines()) == 1  # ours
    at_end, with_page = map(set, json.loads(process.stderr))
    assert {"torch", "jepa.trainer"} <= at_end
    assert "jepa.config.report_run" in with_page
    assert sorted(UNUSED & at_end) == []
    assert sorted(UNUSED_BY_THE_PAGE & with_page) == []


@pytest.mark.parametrize("differentiable", [False, True])
def test_optimizers_without_dynamo_set_gradients_as_asked(differentiable):
    keep_dynamo_out()
    weights = torch.ones(3, requires_grad=True)
    parameter = weights.clone() if differentiable else weights
    parameter.retain_grad()
    optimizer = torch.optim.Adagrad([parameter], lr=0.1, differentiable=differentiable)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(torch.is_grad_enabled()))

    def loss():
        optimizer.zero_grad()
        parameter.grad = torch.full((3,), 2.0)
        called.append(torch.is_grad_enabled())
        return 1.0

    assert optimizer.step(loss) == 1.0
    assert called == [True, True]  # in the closure, and after the step
    assert torch.allclose(parameter, torch.tensor(0.9))
    assert ("Addcdiv" in type(parameter.grad_fn).__name__) is differentiable
