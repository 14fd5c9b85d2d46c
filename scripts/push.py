"""Upload a trained model to the Hugging Face hub: python scripts/push.py checkpoint=<run> repo=<user/name>

The repository holds `jepa.pt` (weights without the optimizer's state, and the configuration without paths), a card,
`configuration.yaml`, results and the tokenizer where there are any; of a Vision Transformer on pictures also
`model.safetensors` and `config.json`, which timm reads.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config.command import reported_errors, run_command
from jepa.config.compose import register_resolvers

register_resolvers()

KEPT = ("model", "loss", "data", "evaluation", "optimizer", "scheduler", "monitor", "trainer")
"""Sections of the configuration that are uploaded."""


@hydra.main(config_path="../conf", config_name="push", version_base="1.3")
def main(config: DictConfig) -> None:
    """Make the files, and upload them."""
    with reported_errors():
        push(config)


def push(config: DictConfig) -> list[str]:
    """Upload the files of a run, or name them; gives their names.

    Raises UserError for what is missing or is no run, and when the hub refuses the upload.
    """
    from jepa.utils.errors import UserError, first_line
    from jepa.utils.lazy_import import require

    for key in ("checkpoint", "repo"):
        if OmegaConf.is_missing(config, key):
            raise UserError(f"{key} is not set: give it on the command line, {key}=...")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.repo):
        raise UserError(f"repo={config.repo}: expected user/name")
    for key in ("private", "dry_run", "trust"):
        if not isinstance(config[key], bool):
            raise UserError(f"{key}={config[key]}: expected true or false")
    hub = require("huggingface_hub", extra="hub", purpose="scripts/push.py")
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), config)
        files = sorted(path for path in Path(folder).iterdir())
        for path in files:
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        if config.dry_run:
            print(f"dry_run=true: nothing is uploaded to {config.repo}")
            return [path.name for path in files]
        try:
            api = hub.HfApi()
            api.create_repo(config.repo, private=config.private, exist_ok=True)
            api.upload_folder(repo_id=config.repo, folder_path=folder, commit_message="Model trained by jepa")
        except (OSError, ValueError, RuntimeError) as error:  # those of huggingface_hub are among them
            raise UserError(
                f"repo={config.repo}: the hub refuses the upload ({first_line(error)}); log in by `hf auth login`"
            ) from error
        print(f'https://huggingface.co/{config.repo}, read by jepa.load_encoder("hf:{config.repo}")')
        return [path.name for path in files]


def write_files(folder: Path, config: DictConfig) -> None:
    """Write the repository's files. Raises UserError for a checkpoint that is none of a run."""
    from jepa.checkpoint.plain import write
    from jepa.interop import find, load
    from jepa.interop.hugging_face import RUN_FILE
    from jepa.utils.errors import UserError

    source = find(str(config.checkpoint), trusted=None if config.trust else ())
    if source.adapter.format != "run":
        raise UserError(f"checkpoint={source.name}: expected a run of this project, got {source.adapter.format}")
    content = source.file.run
    kept = {section: without_paths(content["config"][section]) for section in KEPT if section in content["config"]}
    write(folder / RUN_FILE, {**content, "config": kept, "optimizer": None, "scaler": None})
    (folder / "configuration.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(kept)))
    for name in ("tokenizer.json", "results.json"):
        found = next((each / name for each in source.path.parents[:2] if (each / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, folder / name)
    loaded = load(folder / RUN_FILE, trust=config.trust)
    (folder / "README.md").write_text(card_of(loaded, kept, config.repo, write_for_timm(loaded, folder)))


def without_paths(node: Any) -> Any:
    """Configuration without values that are files or folders: of this machine, and of no use on another."""
    from jepa.checkpoint.stored_objects import PATH, PLACE

    if isinstance(node, dict):
        return {
            name: None if isinstance(value, str) and PLACE.fullmatch(str(name)) else without_paths(value)
            for name, value in node.items()
        }
    if isinstance(node, list):
        return [without_paths(value) for value in node]
    return None if isinstance(node, str) and PATH.search(node) else node


def write_for_timm(loaded: Any, folder: Path) -> str | None:
    """Weights and configuration as timm reads them, of a Vision Transformer on pictures; gives why there are none."""
    from jepa.interop import export
    from jepa.utils.errors import UserError

    weights = folder / "model.safetensors"
    try:
        card, files = export(loaded, weights, format="timm")
    except UserError as error:
        return str(error)
    for file in files[1:]:
        file.unlink()
    call = card["export"]["create_model"]
    name = call.pop("model_name")
    data = loaded.data or {}
    height, width = card["export"]["image_size"]
    settings = {
        "architecture": name,
        "num_classes": call.pop("num_classes"),
        "num_features": loaded.model.encoder.embed_dim,
        "model_args": call,
        "pretrained_cfg": {
            "input_size": [loaded.channels, height, width],
            "fixed_input_size": True,
            "num_classes": 0,
            "interpolation": data.get("interpolation", "bicubic"),
            "crop_pct": 1.0,
            **{name: as_list(data[name], loaded.channels) for name in ("mean", "std") if name in data},
        },
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return None


def as_list(value: Any, channels: int) -> list[float]:
    """One number for each channel."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * channels if len(values) == 1 else values


def card_of(loaded: Any, config: dict[str, Any], repo: str, no_timm: str | None) -> str:
    """The repository's card, in Markdown."""
    from jepa.interop.exporting import results_of

    step = f" for {loaded.step:,} steps" if loaded.step is not None else ""
    data = str(config["data"].get("_target_", "")).rpartition(".")[2]
    lines = [
        "---\nlibrary_name: jepa\ntags: [jepa, self-supervised-learning, feature-extraction]\n---",
        f"# {repo.partition('/')[2]}",
        f"A joint-embedding predictive architecture trained on {data}{step}, without labels.",
        f'```python\nimport jepa\n\nencoder = jepa.load_encoder("hf:{repo}")\n'
        "features = encoder(inputs)  # (B, D)\n```",
    ]
    if no_timm is None:
        lines.append(
            "Without jepa, by timm; pictures are resized and normalised as `pretrained_cfg` in `config.json` says:\n\n"
            f'```python\nimport timm\n\nmodel = timm.create_model("hf-hub:{repo}", pretrained=True)\n'
            "features = model.eval()(x)  # (B, D)\n```"
        )
    if results := results_of(loaded.metrics):
        lines += ["## Results", f"```json\n{json.dumps(results, indent=2)}\n```"]
    lines += ["## Configuration", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(config))}```"]
    return "\n\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main, "push")
