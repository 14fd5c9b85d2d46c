"""What runs mean: the objective, sizes, masks and schedule of every experiment and option, as golden.json has them.

A change of meaning shows in the difference of that file: python tests/config/test_golden.py writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_compose import CONF, compose, fitting

from jepa.config.build import to_plain

GOLDEN = Path(__file__).with_name("golden.json")

COMMANDS = [
    "",
    "model=vit data=imagenet optimizer.lr=1e-3",
    "data=image_folder",
    "data=image_folder model/encoder=vit_tiny",
    "model=lejepa",
    "model=lejepa loss=vicreg_views",
    "model=lejepa loss=infonce_views",
    "model=lejepa model/mask=sparse model/target=average",
    "model=levjepa data=moving_mnist",
    "model/target=shared loss=sigreg",
    "model/mask=random model.mask.context_share=0.75",
    "model.mask.compat=published data=imagenet",
    "optimizer=muon scheduler=wsd callbacks=early_stopping",
    "experiment=digits data=image_folder",
    "experiment=ijepa_vith14 data=image_folder",
    "experiment=digits trainer=debug",
    "trainer=ddp",
    "trainer=fsdp",
    *(f"experiment={path.stem}" for path in sorted((CONF / "experiment").glob("*.yaml"))),
    *(f"loss={path.stem}" for path in sorted((CONF / "loss").glob("*.yaml"))),
    *(f"scheduler={path.stem}" for path in sorted((CONF / "scheduler").glob("*.yaml"))),
    *(" ".join(fitting(f"data={path.stem}")) for path in sorted((CONF / "data").glob("*.yaml"))),
]


def meaning(command: str) -> dict[str, Any]:
    """What a command trains: the method, its sizes and how long, as plain values."""
    config = to_plain(compose(*command.split(), hints={}))
    terms = config["loss"]["terms"]
    trainer = config["trainer"]
    return {
        "objective": {name: term for name, term in terms.items() if term is not None},
        "projector": config["loss"].get("projector"),
        "model": config["model"],
        "views": config["data"].get("views"),
        "batch_size": config["data"]["batch_size"],
        "augment": config["data"].get("augment"),
        "optimizer": config["optimizer"],
        "scheduler": config["scheduler"],
        "length": {key: trainer[key] for key in ("max_epochs", "max_steps", "max_samples") if key in trainer},
        "precision": trainer["precision"],
    }


def test_the_file_has_every_command():
    missing = set(COMMANDS) ^ set(json.loads(GOLDEN.read_text()))
    assert not missing, f"run python tests/config/test_golden.py, and look at what it changes: {sorted(missing)}"


@pytest.mark.parametrize("command", sorted(set(COMMANDS)), ids=lambda command: command or "default")
def test_runs_mean_what_they_did(command):
    assert meaning(command) == json.loads(GOLDEN.read_text()).get(command)


if __name__ == "__main__":
    lines = [f"{json.dumps(command)}: {json.dumps(meaning(command))}" for command in sorted(set(COMMANDS))]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {GOLDEN.name}")
