"""W&B sweeps: what `wandb agent` makes of the definitions in conf/wandb starts runs that the sweep can see."""

from __future__ import annotations

import json
import math
import numbers
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from test_wandb import CONFIG, HORIZON, history, of_kind

from jepa import load_config
from jepa.config.build import build, to_plain
from jepa.config.check import check_config
from jepa.config.compose import CONFIG_DIR, register_resolvers
from jepa.trainer import RunInfo, WandB
from jepa.trainer.stopping import DAY
from jepa.utils.metric_direction import DEFAULT_METRICS

wandb = pytest.importorskip("wandb")
from wandb import wandb_agent  # noqa: E402
from wandb.sdk.launch.sweeps.utils import load_sweep_config  # noqa: E402

DEFINITIONS = sorted((Path(__file__).resolve().parents[2] / "conf" / "wandb").glob("*.yaml"))

TOP = {"program", "project", "name", "method", "metric", "parameters", "command", "early_terminate", "run_cap"}
NEEDS = {"values": set(), "value": set(), "min": {"max", "distribution"}}
DISTRIBUTIONS = {"uniform", "int_uniform", "log_uniform_values"}
"""What of W&B's definitions is used here (https://docs.wandb.ai/models/sweeps/sweep-config-keys)."""

VARIABLES = ("SWEEP_ID", "RUN_ID", "PROJECT", "ENTITY", "DIR", "SWEEP_PARAM_PATH", "MODE", "CONFIG_DIR", "CACHE_DIR")


@pytest.fixture(autouse=True)
def _agent(monkeypatch, tmp_path):
    """The variables of an agent at work on sweep s1, which are as before afterwards; nobody is logged in."""
    values = {"SWEEP_ID": "s1", "PROJECT": "digits", "ENTITY": "me", "DIR": str(tmp_path), "MODE": "offline"}
    values |= {"CONFIG_DIR": str(tmp_path / "config"), "CACHE_DIR": str(tmp_path / "cache")}
    for name in VARIABLES:
        monkeypatch.setenv(f"WANDB_{name}", values.get(name, ""))
        if name not in values:  # the agent sets it, which is undone only for what was set here before
            monkeypatch.delenv(f"WANDB_{name}")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()  # W&B keeps what it has read from the environment


@pytest.fixture
def start_by_agent(monkeypatch):
    """What W&B's own agent starts for a definition and values of its parameters: command and environment."""
    started = []

    class Process:
        def __init__(self, *, command, env, forward_signals):
            started.append((command, env))

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)

    def start(definition, values, run_id="r1"):
        agent = wandb_agent.Agent(None, None, sweep_id="s1")
        agent._sweep_command = definition["command"]
        arguments = {name: {"value": value} for name, value in values.items()}
        message = {"type": "run", "run_id": run_id, "program": definition["program"], "args": arguments}
        response = agent._process_command(message)
        assert "exception" not in response, response
        return started.pop()

    return start


def sampled(definition, share):
    """Values of the parameters: at a share of their range, or that one in the list."""
    values = {}
    for name, node in definition["parameters"].items():
        if "min" in node:
            value = node["min"] + share * (node["max"] - node["min"])
            values[name] = round(value) if node["distribution"] == "int_uniform" else value
        else:
            choices = node["values"] if "values" in node else [node["value"]]
            values[name] = choices[round(share * (len(choices) - 1))]
    return values


def test_there_are_three():
    assert [(path.stem, load_sweep_config(str(path))["method"]) for path in DEFINITIONS] == [
        (name, name) for name in ("bayes", "grid", "random")
    ]


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_definitions_are_as_the_server_takes_them(path):
    definition = load_sweep_config(str(path))
    assert set(definition) <= TOP
    assert definition["metric"] == {"name": DEFAULT_METRICS[0], "goal": "maximize"}
    assert "run_cap" in definition or definition["method"] == "grid"  # the others never end by themselves
    if "early_terminate" in definition:
        assert set(definition["early_terminate"]) == {"type", "min_iter", "eta"}
        assert any("evaluation.every_epochs=" in part for part in definition["command"])  # it counts measurements
    for name, node in definition["parameters"].items():
        (kind,) = NEEDS.keys() & node.keys()
        assert set(node) == {kind, *NEEDS[kind]}, name
        assert definition["method"] != "grid" or kind != "min"
        assert node.get("distribution", "uniform") in DISTRIBUTIONS
        for value in (node["min"], node["max"]) if kind == "min" else node.get("values", ()):
            assert isinstance(value, numbers.Number) or not _is_number(value), f"{name}: {value!r} is a word in YAML"


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_the_agents_command_composes(start_by_agent, path, share):
    definition = load_sweep_config(str(path))
    values = sampled(definition, share)
    command, _ = start_by_agent(definition, values)
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    config = load_config(command[3:])
    check_config(to_plain(config))
    for name, value in values.items():
        chosen = OmegaConf.select(config, name)
        if isinstance(chosen, DictConfig):  # a group
            assert chosen == load_config([f"{name}={value}"])[name]
        elif name == "experiment":
            assert f"experiment={value}" in command
        else:
            assert chosen == value
    build(config, "optimizer"), build(config, "scheduler")
    assert list(config.logger) == ["console", "jsonl", "wandb"]
    assert (config.default_run_dir, config.resume) == ("outputs/wandb/s1/r1", "auto")


@pytest.mark.parametrize("value", [True, 0.5, 1e-5, "null", [1, 2], ["a", "b"], "word", -3])
def test_values_arrive_as_they_were(start_by_agent, value):
    """Also those which Python writes in another way than YAML."""
    definition = {**load_sweep_config(str(DEFINITIONS[0])), "command": ["${args_no_hyphens}"]}
    command, _ = start_by_agent(definition, {"trainer.profile": value})
    assert load_config(command).trainer.profile == (None if value == "null" else value)


def test_without_an_agent_the_folder_is_one_of_the_day(monkeypatch):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = Path(load_config(["sweep=wandb"]).default_run_dir)
    assert folder.parts[:2] == ("outputs", "wandb")
    assert DAY.fullmatch(folder.parent.name)  # whose runs are not compared with one another


@pytest.mark.parametrize(
    ("others", "folder"),
    [
        ([], "outputs/wandb/s1/r1"),
        (["resume=auto"], "outputs/wandb/s1/r1"),
        (["hydra.run.dir=mine"], "mine"),
        (["resume=outputs/old"], "outputs/old"),
    ],
)
def test_where_a_run_goes(monkeypatch, tmp_path, others, folder):
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    (tmp_path / "outputs" / "old").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("config", ["sweep=wandb", *others], return_hydra_config=True)
    assert config.hydra.run.dir == folder


class FakeRun:
    """A W&B run of sweep s1."""

    offline, url, id, project, entity = False, "https://wandb.ai/me/digits/runs/r1", "r1", "digits", "me"

    def __init__(self, folder):
        self.dir = str(folder / "wandb" / "run-1" / "files")

    def define_metric(self, *_, **__):
        pass

    def finish(self, exit_code):
        pass


def test_the_agent_decides_id_and_project_and_a_resume_remembers_them(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or FakeRun(tmp_path))

    def opened(state=None):
        logger = WandB(project="mine", entity="other")
        if state:
            logger.load_state_dict(state)
        logger.open(RunInfo(tmp_path, 0, HORIZON, CONFIG))
        logger.close()
        return logger, [asked[-1][name] for name in ("project", "entity", "id")]

    first, place = opened()
    assert place == [None, None, None]  # W&B would warn of any other, and take its own
    assert first.id == "r1"
    again, place = opened(first.state_dict())
    assert (again.id, place) == ("r1", [None, None, None])
    monkeypatch.delenv("WANDB_SWEEP_ID")
    alone, place = opened(again.state_dict())
    assert (alone.id, place) == ("r1", ["digits", "me", "r1"])
    single, place = opened()
    assert place == ["mine", "other", single.id]
    older = {"id": "r2", "group": None}  # a checkpoint from before there were sweeps
    assert opened(older)[1] == ["mine", "other", "r2"]


@pytest.mark.slow
def test_a_run_of_an_agent(train, start_by_agent, tiny, tmp_path):
    definition = load_sweep_config(str(next(path for path in DEFINITIONS if path.stem == "grid")))
    command, environment = start_by_agent(definition, {"optimizer.lr": 3e-4, "loss": "mse"})
    environment = {name: value for name, value in environment.items() if name.startswith(("WANDB_", "NETRC"))}
    quick = [*tiny, "evaluation.probes.lidar=null", "monitor=none"]
    process = train(*command[3:], *quick, **environment)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / "outputs" / "wandb" / "s1" / "r1"
    results = json.loads((folder / "results.json").read_text())
    (made,) = (folder / "wandb").glob("offline-run-*-r1")
    (sent,) = of_kind(made, "run")
    assert (sent.run_id, sent.sweep_id, sent.project, sent.entity) == ("r1", "s1", "digits", "me")
    lines = history(made)
    assert [line["eval/trained/linear"] for line in lines if "eval/trained/linear" in line] == [
        results["trained"]["linear"]
    ]
    config = {item.key: json.loads(item.value_json) for item in sent.config.update}
    assert (config["optimizer.lr"], config["loss"], config["optimizer"]["lr"]) == (3e-4, "mse", 3e-4)
    assert "Ignoring" not in process.stdout + process.stderr
    # As the agent does with a run that was preempted.
    process = train(*command[3:], *quick, "trainer.max_steps=8", **environment)
    assert process.returncode == 0, process.stderr
    assert f"resumed from {folder}/checkpoints/last.pt at step 6 of 8" in process.stdout.replace("\n", "")
    assert "(run r1 goes on from step 6" in process.stdout
