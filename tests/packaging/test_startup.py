"""A run imports what it uses: most of the time from `python train.py` to its first line is spent on imports."""

from __future__ import annotations

import json
import subprocess
import sys

from core_only import ROOT

CODE = """
import json, runpy, sys


class Output:
    def __init__(self, stream):
        self.stream, self.at_first_line = stream, None

    def write(self, text):
        if self.at_first_line is None and "training from scratch" in text:
            self.at_first_line = sorted(sys.modules)
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


sys.stdout = output = Output(sys.stdout)
sys.argv = ["train.py", *sys.argv[2:]]
runpy.run_path({script!r}, run_name="__main__")
print(json.dumps([output.at_first_line, sorted(sys.modules)]), file=sys.stderr)
""".format(script=str(ROOT / "train.py"))

UNUSED = {
    *("timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "transformers", "datasets"),
    *("plotly", "optuna", "sqlalchemy", "submitit", "tokenizers", "av", "soundfile", "onnx"),
    *("torch.distributed.checkpoint", "jepa.checkpoint.sharded", "jepa.interop"),
}
"""What the default run without evaluation never needs."""

LATER = {"torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._inductor", "sympy", "triton"}
"""What torch imports in the first step of an optimizer."""


def test_a_run_imports_what_it_uses(tmp_path):
    small = ["trainer.max_steps=1", "model.encoder.depth=1", "trainer.device=cpu", "evaluation=none", "report=none"]
    command = [sys.executable, "-c", CODE, "train.py", *small, "hydra.run.dir=run"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    at_first_line, at_end = map(set, json.loads(process.stderr.splitlines()[-1]))
    assert sorted((UNUSED | LATER) & at_first_line) == []
    assert sorted(UNUSED & at_end) == []
