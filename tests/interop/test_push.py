"""A run on the hub, which a folder stands for: what is uploaded, and that it reads back the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import jepa
from jepa import load_config
from jepa.utils.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder: repositories are folders below it."""
    import huggingface_hub

    folder = tmp_path / "hub"

    class Api:
        def create_repo(self, repo, *, private, exist_ok):
            (folder / repo).mkdir(parents=True, exist_ok=exist_ok)
            (folder / repo / ".private").write_text(str(private))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def download(repo, name):
        if not (folder / repo / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(folder / repo / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


def test_a_run_on_pictures(run_folder, hub, push):
    common = [f"checkpoint={run_folder}", "repo=me/digits"]
    names = push(*common, "dry_run=true")
    assert not hub.exists()
    assert {"jepa.pt", "README.md", "configuration.yaml", "config.json", "model.safetensors"} <= set(names)
    assert push(*common, "private=true") == names
    assert (hub / "me/digits/.private").read_text() == "True"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    expected = jepa.load_encoder(run_folder)(pictures)
    for name in ("hf:me/digits", f"hf:{hub}/me/digits"):
        torch.testing.assert_close(jepa.load_encoder(name)(pictures), expected)
    # Without this repository, as the card says.
    card = (hub / "me/digits/README.md").read_text()
    assert 'timm.create_model("hf-hub:me/digits", pretrained=True)' in card
    model = timm.create_model(f"local-dir:{hub}/me/digits", pretrained=True).eval()
    settings = json.loads((hub / "me/digits/config.json").read_text())["pretrained_cfg"]
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - settings["mean"][0]) / settings["std"][0]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


def test_a_run_on_texts_brings_its_tokenizer_and_no_paths(hub, push, tmp_path):
    (tmp_path / "lines.txt").write_text("the sun of today\nthe moon of the night\n" * 20)
    small = ["evaluation=none", "logger=[jsonl]", "trainer.device=cpu", "trainer.max_steps=1", "data.batch_size=4"]
    options = ["model=text", "data=text_lines", f"data.root={tmp_path}/lines.txt", "data.vocab_size=300"]
    jepa.build_trainer(load_config([*small, *options, f"run_dir={tmp_path}/run"])).fit()
    expected = jepa.load_encoder(tmp_path / "run")("the sun")
    names = push(f"checkpoint={tmp_path}/run", "repo=me/texts")
    assert "tokenizer.json" in names
    assert "config.json" not in names  # timm has no such encoders
    shutil.rmtree(tmp_path / "run")
    torch.testing.assert_close(jepa.load_encoder("hf:me/texts")("the sun"), expected)
    for path in (hub / "me/texts").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_mistakes(run_folder, published, hub, push):
    for options, message in [
        (["repo=me/a"], "checkpoint is not set"),
        ([f"checkpoint={run_folder}", "repo=digits"], "repo=digits: expected user/name"),
        ([f"checkpoint={run_folder}", "repo=me/a", "private=3"], "private=3: expected true or false"),
        ([f"checkpoint={published}", "repo=me/a"], "expected a run of this project"),
    ]:
        with pytest.raises(UserError, match=message):
            push(*options)
    assert not Path(hub).exists()
