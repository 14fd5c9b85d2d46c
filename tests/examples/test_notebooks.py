"""The notebooks of examples/: their cells run one after another, with a few steps of training."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


def test_there_is_one_for_each_modality():
    names = {path.stem for path in EXAMPLES}
    assert names == {"multimodal", "series", "sound", "text", "video", "vision"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook(path, monkeypatch, tmp_path, capsys):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert 10 <= len(cells) <= 15
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)  # none in git
    monkeypatch.setenv("JEPA_EXAMPLE_STEPS", "4")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf().axes[0].get_title()) or plt.close("all"))
    names: dict = {}
    for cell in code:
        exec(compile("".join(cell["source"]), str(path), "exec"), names)
    assert len(drawn) >= 2
    assert "Encoder of" in capsys.readouterr().out
