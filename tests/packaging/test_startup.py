"""A run imports what it uses: most of the time from `python train.py` to its first line is spent on imports."""

from __future__ import annotations

import json
import subprocess
import sys

from core_only import ROOT

CODE = """
import json, runpy, sys

sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path({script!r}, run_name="__main__")
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
""".format(script=str(ROOT / "train.py"))

UNUSED = {
    *("timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "transformers", "datasets"),
    *("plotly", "optuna", "sqlalchemy", "submitit", "tokenizers", "av", "soundfile", "onnx"),
    *("torch.distributed.checkpoint", "jepa.checkpoint.sharded", "jepa.interop"),
    # What torch's own optimizers import in their first step, or when they are saved.
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._inductor", "sympy", "triton"),
}
"""What the default run without evaluation never needs."""


def test_a_run_imports_what_it_uses(tmp_path):
    small = ["trainer.max_steps=1", "model.encoder.depth=1", "trainer.device=cpu", "evaluation=none", "report=none"]
    command = [sys.executable, "-c", CODE, "train.py", *small, "hydra.run.dir=run"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    imported = json.loads(process.stderr.splitlines()[-1])
    assert {"torch", "jepa.trainer"} <= set(imported)
    assert sorted(UNUSED & set(imported)) == []
