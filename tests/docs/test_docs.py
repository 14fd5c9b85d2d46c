"""What README and docs/ say is true: links, commands, keys, options, paths, and examples that run."""

from __future__ import annotations

import functools
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
import yaml
from documents import (
    CODE,
    CONF,
    FENCE,
    PAGES,
    ROOT,
    Command,
    anchors,
    commands,
    examples,
    is_group,
    mentions,
    prose,
    variants,
    write_own_configs,
)
from hydra.utils import get_object
from omegaconf import OmegaConf

from jepa import load_config
from jepa.config.build import ANY_FOUND, ANY_HINTS, filled, to_plain
from jepa.config.check import check_config
from jepa.config.compose import dotted_keys
from jepa.config.stored import addable
from jepa.utils.errors import UserError
from scripts.reproduce import table_lines
from scripts.reproduce_predictor import COLUMNS as PREDICTOR_COLUMNS
from scripts.reproduce_predictor import page as predictor_page
from scripts.reproduce_table import COLUMNS
from scripts.reproduce_table import page as table_page
from scripts.reproduce_world import COLUMNS as WORLD_COLUMNS
from scripts.reproduce_world import baseline_page
from scripts.reproduce_world import page as world_page

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

WITHOUT_CONFIG = {"reproduce", "reproduce_engine", "benchmark", "benchmark_linear"}
"""Scripts that take no overrides."""

CONTEXTS = (
    "",
    "loss=sigreg",
    "experiment=digits loss=vicreg callbacks=early_stopping logger=[console,wandb] evaluation=full_and_fine_tuning",
    "loss=lp model/target=teacher",
    "loss=multitask model/mask=random",
    "scheduler=wsd",
    "data=image_folder model/encoder=timm",
    "model=video data=video_folder",
    "model=video_dense data=video_folder",
    "model=levjepa data=moving_mnist evaluation=motion",
    "data=segmentation_folder evaluation=online",
    "model=text data=text_csv",
    "model=text data=hf",
    "model=audio data=packed",
    "model=series data=series_csv model/mask=time_span",
    "model=series data=ucr",
    "experiment=series_etth1",
    "experiment=audio_fsdd",
    "model=audio data=audio_folder",
    "experiment=crossmodal_digits",
    "experiment=multitask_digits_heartbeats",
    "experiment=clips_and_pictures",
    "data=mix +data@data.parts.a=mnist",
    "experiment=lewm_two_rooms model/predictor=causal data.history=3 evaluation=planning",
    "model=world data=trajectories model/encoder=frozen",
)
"""Runs of which at least one must have a key that a page names."""

PROMISES = {
    "MyTrainer": lambda folder: "loss/prediction" in (folder / "metrics.jsonl").read_text(),
    "StopAtLoss": lambda folder: "below 100" in json.loads((folder / "results.json").read_text())["stopped"],
    "SmallNorm": lambda folder: "train/loss/small_norm" in (folder / "metrics.jsonl").read_text(),
}
"""Class -> whether a run has done what the page says of it; of the others the stored configuration must name them."""

GROUPS = sorted(
    str(path.relative_to(CONF))
    for path in CONF.rglob("*")
    if list(path.glob("*.yaml")) and path.name not in ("wandb", "auto_for")
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the yaml files that the pages show."""
    folder = tmp_path_factory.mktemp("own")
    write_own_configs(folder)
    return folder / "my_conf"


def compose(overrides: list[str], own: Path | None = None):
    """The configuration of train.py, checked, with something where data has no root or finds out a size by itself."""
    config = load_config(overrides, config_dir=own)
    for key in OmegaConf.missing_keys(config.data):
        OmegaConf.update(config, key if key.startswith("data.") else f"data.{key}", "/nowhere")
    return filled(config, ANY_FOUND | ANY_HINTS)


@functools.cache
def keys_of(context: str) -> frozenset[str]:
    """Every key that a run takes: of its configuration, and of the constructors that it names."""
    config = OmegaConf.to_container(load_config(context.split()))
    return frozenset([*dotted_keys(config), *constructor_keys(config, "")])


def constructor_keys(node: object, path: str) -> Iterator[str]:
    """The arguments of every constructor below a node, as dotted keys."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("_target_"), str):
        yield from (f"{path}{name}" for name in inspect.signature(get_object(node["_target_"])).parameters)
    for key, value in node.items():
        yield from constructor_keys(value, f"{path}{key}.")


def has_hydra_key(key: str) -> bool:
    """Whether Hydra, or the SLURM launcher, has a key."""
    try:
        load_config(["hydra/launcher=slurm", f"{key}=null"])
    except UserError as error:
        return "Could not override" not in str(error)  # there are types that take no null
    return True


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w+\.md)", (ROOT / "docs" / "index.md").read_text()))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


@pages
def test_paths_and_names_exist(page):
    for code in CODE.findall(prose(page.read_text())):
        if re.match(r"(jepa|conf|tests|scripts|docs)/", code) and not code.startswith("conf/local"):
            assert (ROOT / code.split()[0].partition("::")[0]).exists(), code
        elif re.match(r"jepa\.\w", code):
            pkgutil.resolve_name(re.match(r"[\w.]+", code)[0])


@pytest.mark.parametrize("command", [c for page in PAGES for c in commands(page)], ids=str)
def test_commands_compose(command: Command, own: Path, monkeypatch: pytest.MonkeyPatch):
    script = Path(command.script)
    assert (ROOT / script).is_file()
    if script.stem in WITHOUT_CONFIG:
        for word in command.arguments:
            assert word == "placeholder" or word.strip("-").partition("=")[0] in (ROOT / script).read_text(), word
        return
    monkeypatch.syspath_prepend(own.parent)
    for overrides in variants(command):
        if command.script == "train.py":
            check_names(compose(overrides, own if command.config_dir else None))
            continue
        if script.stem == "leaderboard":
            overrides = [re.sub(r"^sweep=", "sweep.folder=", override) for override in overrides]
        load_config(addable(overrides), config_name=script.stem)


def check_names(config) -> None:
    """Check every value of a run against its constructor, but those of the pages' own classes."""
    plain = to_plain(config)
    if "mine." not in str(plain):
        check_config(plain)


@pages
def test_keys_and_options_exist(page):
    for word in mentions(page.read_text()):
        key, _, value = word.lstrip("+~").partition("=")
        if is_group(key) and value != "...":
            options = value.strip("[]").split(",")
            assert all((CONF / key / f"{option}.yaml").is_file() or option == "basic" for option in options), word
        elif key.split(".")[0] == "hydra" or is_group(key):
            assert is_group(key) or has_hydra_key(key), word
        else:
            assert any(key in keys_of(context) for context in CONTEXTS), word


@pytest.mark.parametrize("group", GROUPS)
def test_a_table_names_every_option(group):
    text = (ROOT / "docs" / ("results.md" if group == "experiment" else "start.md")).read_text()
    if group == "experiment":
        rows = re.findall(r"^\| (`[^|]+) \| [^|]+ \| [^|]*\|$", text.partition("`experiment=`")[2], re.MULTILINE)
    else:
        rows = re.findall(rf"^\| `{group}` \| ([^|]+) \|", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    there = {path.stem for path in (CONF / group).glob("*.yaml")}
    assert there <= named, (
        f"name {there - named} in the table of docs/{'results' if group == 'experiment' else 'start'}.md"
    )
    assert named - there <= ({"basic"} if group == "hydra/launcher" else set())


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_run_by_their_command(train, tiny, tmp_path, example):
    (tmp_path / "mine.py").write_text(example.code)
    write_own_configs(tmp_path)
    # So high that a healthy run is below it.
    options = [option.replace("lowest=0.05", "lowest=100") for option in example.arguments]
    probed = "evaluation=online" in options
    options += [*tiny, "~logger.tensorboard", "evaluation.at_end=false" if probed else "evaluation=none"]
    options.append("hydra.run.dir=run")
    process = train(*options, PYTHONPATH=str(tmp_path))
    assert process.returncode == 0, process.stderr
    promise = PROMISES.get(example.name, lambda folder: f"mine.{example.name}" in (folder / "config.yaml").read_text())
    assert promise(tmp_path / "run")


def test_every_example_is_found():
    names = [example.name for example in examples()]
    assert names == ["stripes", "TorchViT", "SmallNorm", "HalfMask", "MyTrainer", "StopAtLoss", "Lion", "Spread"]
    assert sum(page.read_text().count("# mine.py") for page in PAGES) == len(names)


@pytest.mark.slow
def test_the_python_of_the_front_page_runs(tmp_path):
    blocks = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    code = "\n".join([*blocks, "print(features.shape, grid.shape)"])
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("torch.Size([2, 128]) torch.Size([2, 4, 4, 128])\n")


def test_the_nearest_neighbours_are_found_by_the_code_shown(tmp_path):
    section = (ROOT / "docs" / "features.md").read_text().partition("\n## Nearest neighbours\n")[2]
    features = [[x + 0.1 * y, y] for x, y in ((0, 0), (1, 0), (0, 9), (1, 9))]
    paths = [f"{name}.jpg" for name in "abcd"]
    pandas.DataFrame({"path": paths, "features": features}).to_parquet(tmp_path / "photos.parquet")
    code = FENCE.search(section)[2]
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert [line.split()[:2] for line in process.stdout.splitlines()] == [
        ["a.jpg", "b.jpg"],
        ["b.jpg", "a.jpg"],
        ["c.jpg", "d.jpg"],
        ["d.jpg", "c.jpg"],
    ]


def test_the_table_of_results_is_what_was_measured():
    rows = json.loads((ROOT / "scripts/results/table.json").read_text())
    lines = (ROOT / "docs/results.md").read_text().splitlines()
    shown = table_lines(COLUMNS, table_page(rows))
    start = lines.index(shown[0])
    assert lines[start : start + len(shown)] == shown


def test_the_table_of_predictors_is_what_was_measured():
    rows = json.loads((ROOT / "scripts/results/predictor.json").read_text())
    shown = table_lines(PREDICTOR_COLUMNS, predictor_page(rows))
    assert "\n".join(shown) in (ROOT / "docs/speed.md").read_text()


WORLD = ROOT / "scripts/results/world.json"


@pytest.mark.skipif(not WORLD.exists(), reason="no figures yet: python scripts/reproduce.py world")
def test_the_tables_of_worlds_are_what_was_measured():
    rows = json.loads(WORLD.read_text())
    lines = (ROOT / "docs/worlds.md").read_text().splitlines()
    for shown in (table_lines(WORLD_COLUMNS, world_page(rows)), table_lines(*baseline_page(rows))):
        start = lines.index(shown[0])
        assert lines[start : start + len(shown)] == shown


def test_the_committed_picture_is_small():
    assert (ROOT / "docs" / "pictures" / "report.png").stat().st_size < 200_000


def test_the_citation_has_what_is_required():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_a_table_names_every_extra():
    section = (
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    extras = re.findall(r"^(\w+) = ", section, re.MULTILINE)
    table = (ROOT / "docs" / "start.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == extras


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_targets_exist():
    named = {
        target for page in PAGES for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def test_the_table_of_faults_names_tests_that_exist_and_are_run_as_such():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert rows
    for row in rows:
        names = [code.partition("::") for code in CODE.findall(row.split(" | ")[-1])]
        assert names, row
        for path, _, name in names:
            text = (ROOT / path).read_text()
            found = [block for block in text.split("\n\n\n") if re.search(rf"^def {name}\(", block, re.MULTILINE)]
            assert found, f"no {path}::{name}"
            module = re.findall(r"^pytestmark = .*", text, re.MULTILINE)
            assert any("mark.faults" in part for part in found + module), f"{path}::{name} is not marked"
