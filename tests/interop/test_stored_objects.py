"""What the configuration in a file may have built: payloads x entry points, and the table that allows the rest."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from jepa import load_encoder
from jepa.checkpoint.moved import upgrade
from jepa.checkpoint.stored_objects import DATA_TABLE, MODEL_TABLE, check_stored
from jepa.config.compose import CONFIG_DIR
from jepa.config.teacher import FROZEN
from jepa.interop import load
from jepa.interop.ours import TEACHER
from jepa.utils.errors import CheckpointError, DataError
from jepa.utils.nested import find_targets


class Pickled:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def payloads(folder: Path) -> dict[str, dict]:
    """Nodes that make `folder/PWNED_<name>` where Hydra builds them as they stand."""
    path = {"_target_": "pathlib.Path", "_args_": [f"{folder}/PWNED_write"]}
    torch.save(Pickled(folder / "PWNED_load"), folder / "payload.bin")
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(f"import os\nos.mkdir('{folder}/PWNED_hub')\ndef x(): return 1\n")
    return {
        "write": {"_target_": "jepa.utils.files.write_text", "path": path, "text": "any content, any place"},
        "load": {
            "_target_": "torch.nn.modules.module.torch.load",
            "f": f"{folder}/payload.bin",
            "weights_only": False,
        },
        "hub": {
            "_target_": "torch.nn.modules.module.torch.hub.load",
            "repo_or_dir": f"{folder}/hub",
            "model": "x",
            "source": "local",
        },
        "mkdir": {"_target_": "os.mkdir", "path": f"{folder}/PWNED_mkdir"},
        "walk": {"_target_": "jepa.utils.files.os.mkdir", "path": f"{folder}/PWNED_walk"},
    }


SECTIONS = {
    "mask": ("model", "mask"),
    "encoder": ("model", "encoder", "stem"),
    "loss": ("loss", "terms", "extra"),
    "data": ("data", "source"),
    "evaluation": ("evaluation", "probes", "extra"),
    "seed": ("trainer", "seed"),
}


@pytest.fixture
def poisoned(run_folder, tmp_path):
    """Write a checkpoint of a run in which a node of the configuration is another one; gives its path."""
    base = torch.load(run_folder.parent / "bare.pt", weights_only=True)

    def write(section: str, node: object) -> Path:
        content = copy.deepcopy(base)
        *parents, last = SECTIONS[section]
        place = content["config"]
        for name in parents:
            place = place[name]
        place[last] = node
        path = tmp_path / "poisoned.pt"
        torch.save(content, path)
        return path

    return write


def nested(levels: int) -> list:
    node: list = []
    for _ in range(levels):
        node = [node]
    return node


@pytest.mark.parametrize("name", ["write", "load", "hub", "mkdir", "walk"])
@pytest.mark.faults
def test_no_payload_runs(name, poisoned, evaluate, export, extract, tmp_path):
    folder = tmp_path / "live"
    folder.mkdir()
    node = payloads(folder)[name]
    with contextlib.suppress(InstantiationException):  # of what it returns; the harm is done by then
        instantiate(node)  # shows that the payload is one
    made = folder / f"PWNED_{name}"
    assert made.exists()
    made.rmdir() if made.is_dir() else made.unlink()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").touch()
    for section in SECTIONS:
        path = poisoned(section, node)
        calls = {
            "load": lambda path=path: load(path),
            "evaluate": lambda path=path: evaluate(f"checkpoint={path}"),
            "export": lambda path=path: export(f"checkpoint={path}", f"output={tmp_path}/x.safetensors"),
            "extract": lambda path=path: extract(f"checkpoint={path}", f"input={pictures}", f"output={tmp_path}/x.npz"),
        }
        builds = {"model": list(calls), "loss": list(calls), "trainer": ["evaluate", "export", "extract"]}
        builds = builds.get(SECTIONS[section][0], ["evaluate", "extract"])
        for name, call in calls.items():
            if name in builds:
                with pytest.raises(CheckpointError, match=r"poisoned.pt would build .* not among jepa's own parts"):
                    call()
            else:
                with contextlib.suppress(DataError):  # the picture is no picture
                    call()
    assert not list(folder.glob("PWNED*"))


@pytest.mark.parametrize(
    ("section", "node", "message"),
    [
        ("mask", "${oc.env:HOME}", "model.mask=.* is a path, an address or an interpolation"),
        ("encoder", "/etc/passwd", "model.encoder.stem='/etc/passwd' is a path"),
        ("encoder", "https://example.org/x", "is a path, an address"),
        ("encoder", "hf-hub:org/model", "is a path, an address"),
        ("data", "${oc.env:HOME}", "data.source=.* is a path, an address or an interpolation"),
        ("mask", {"_target_": "jepa.masks.RandomMask", "_args_": [1]}, "model.mask has one of Hydra's own keys"),
        ("mask", {"_target_": "${x}"}, r"would build '\$\{x\}' as model.mask"),
        ("mask", {"_target_": "jepa.masks.RandomMask", "ratio": 2}, "jepa.masks.RandomMask refuses what the file says"),
        ("mask", {"_target_": ["os.system"]}, "damaged|would build"),
        ("loss", 5, "refuses what the file says"),
        ("data", nested(70), "its configuration is damaged .nested too deep"),
        ("mask", nested(200), "its configuration is damaged .nested too deep"),
        ("mask", {1, 2}, "its configuration is damaged .*values that are not plain"),
    ],
)
@pytest.mark.faults
def test_what_else_a_file_may_not_say(section, node, message, poisoned):
    with pytest.raises(CheckpointError, match=message):
        load(poisoned(section, node))


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("evaluation", "evaluation.probes={knn: {_target_: jepa.evaluation.KNNProbe}}"),
        ("data", "++data.source={}"),
    ],
)
@pytest.mark.faults
def test_a_given_dict_replaces_what_is_stored(section, given, poisoned, evaluate, tmp_path):
    """Joined with it, the stored name would be built unchecked."""
    evaluate(f"checkpoint={poisoned(section, payloads(tmp_path)['mkdir'])}", given, "evaluation.probes.attentive=null")
    assert not list(tmp_path.glob("PWNED*"))


@pytest.mark.parametrize("node", [{"_target_": "this.s"}, "${oc.env:HOME}"])
@pytest.mark.faults
def test_nothing_stored_is_imported_or_resolved_unchecked(node, poisoned, evaluate, export, tmp_path):
    refused = r"would build 'this.s'|is a path, an address"
    for section in ("seed", "evaluation"):
        path = poisoned(section, node)
        with pytest.raises(CheckpointError, match=refused):
            evaluate(f"checkpoint={path}")
        with pytest.raises(CheckpointError, match=refused):
            load_encoder(path)
    with pytest.raises(CheckpointError, match=refused):
        export(f"checkpoint={poisoned('seed', node)}", f"output={tmp_path}/x.safetensors")
    assert "this" not in sys.modules


@pytest.mark.faults
def test_only_what_the_command_line_names_is_trusted(poisoned):
    """Not what the defaults name, as they name torch's optimizers."""
    path = poisoned("mask", {"_target_": "torch.optim.AdamW", "lr": 1.0})
    with pytest.raises(CheckpointError, match=r"would build 'torch.optim.AdamW' as model.mask"):
        load_encoder(path)


@pytest.mark.faults
def test_the_config_file_beside_a_lone_file_is_not_its_own(poisoned, evaluate, run_folder, tmp_path):
    path = poisoned("data", {"_target_": "jepa.data.sources.mnist", "_partial_": True, "root": "photos"})
    shutil.copy(run_folder / "config.yaml", path.parent)
    with pytest.raises(CheckpointError, match=r"data.source.root='photos' is a path"):
        evaluate(f"checkpoint={path}")


@pytest.mark.faults
def test_a_lone_file_brings_no_path(poisoned, evaluate, export, shared_dir, tmp_path):
    """Its other facts serve; a path of its data is given on the command line."""
    root = str(shared_dir / "data" / "mnist")
    for key, place in (("root", "photos"), ("root", "."), ("tokenizer_folder", "written"), ("csv", "list")):
        with pytest.raises(CheckpointError, match=rf"data\[0\].{key}='{place}' is a path"):
            check_stored([{key: place}], "data", "a file")
    path = poisoned("data", {"_target_": "jepa.data.sources.mnist", "_partial_": True, "root": "photos"})
    with pytest.raises(CheckpointError, match=r"data.source.root='photos' is a path"):
        evaluate(f"checkpoint={path}")
    path = poisoned("data", {"_target_": "jepa.data.sources.mnist", "_partial_": True, "root": root})
    with pytest.raises(CheckpointError, match=r"data.source.root=.* is a path, .* give the value on the command line"):
        evaluate(f"checkpoint={path}")
    export(f"checkpoint={path}", f"output={tmp_path}/x.safetensors")
    evaluate(f"checkpoint={path}", f"data.source.root={root}", "evaluation.probes.knn=null")


@pytest.mark.faults
def test_a_class_of_ones_own_is_built_when_trusted_or_named(poisoned, evaluate, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from jepa.masks import RandomMask\n\n\nclass Mine(RandomMask):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = poisoned("mask", {"_target_": "mine.Mine", "context_share": 0.4})
    with pytest.raises(CheckpointError, match=r"would build 'mine.Mine' as model.mask, .* trust=true, or name it"):
        load(path)
    for trust in ("trust=true", "model.mask._target_=mine.Mine"):
        evaluate(f"checkpoint={path}", trust, "evaluation.probes.knn=null")
    assert "built with code from outside this repository: mine.Mine" in load(path, trust=True).lines


def test_the_table_has_every_part_of_the_configs_and_of_earlier_runs(old_runs):
    models = [target for group in ("model", "loss") for target in targets_below(CONFIG_DIR / group)]
    data = [target for group in ("data", "evaluation") for target in targets_below(CONFIG_DIR / group)]
    assert len(models) > 60
    assert len(data) > 40
    assert set(models) <= MODEL_TABLE | {TEACHER, FROZEN}  # which are replaced before anything is built
    assert set(data) <= DATA_TABLE
    earlier = (old_runs / "targets.txt").read_text().split()
    kept = ("jepa.models", "jepa.losses", "jepa.masks", "jepa.data", "jepa.evaluation")
    for target in (target for target in earlier if target.startswith(kept)):
        check_stored(upgrade({"_target_": target}), "x", "y", names=MODEL_TABLE | DATA_TABLE)
    for name in MODEL_TABLE | DATA_TABLE:
        assert callable(get_object(name)), name


def targets_below(folder: Path) -> list[str]:
    return [t for path in folder.rglob("*.yaml") for t in find_targets(OmegaConf.to_container(OmegaConf.load(path)))]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "encoder", "depth"), 10**9),
        (("model", "encoder", "embed_dim"), 10**6),
        (("model", "encoder", "patch_size"), [10**4, 10**4]),
        (("model", "predictor", "embed_dim"), 10**6),
        (("model", "encoder", "num_heads"), 10**9),
    ],
)
def test_sizes_are_bounded_before_memory_is_taken(place, value, run_folder, tmp_path):
    """A configuration cannot claim more than there are weights for."""
    content = torch.load(run_folder.parent / "bare.pt", weights_only=True)
    node = content["config"]
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    torch.save(content, tmp_path / "large.pt")
    with pytest.raises(CheckpointError, match=rf"its configuration claims .* by {'.'.join(place)}$"):
        load(tmp_path / "large.pt")
