"""Sweeps by Optuna: what is drawn, that a study goes on, and what it refuses; the runs are closed forms."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3

import optuna
import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from jepa.config.compose import CONFIG_DIR, register_resolvers
from jepa.sweep.plugins import register_plugins
from jepa.utils.errors import UserError
from jepa.utils.run_status import Status, write_status

pytestmark = pytest.mark.slow


class Runs:
    """Launches nothing: a run is worth what a function of its options says. Dies where it is to start run `dies_at`."""

    def __init__(self, worth, dies_at=None):
        self.worth, self.dies_at = worth, dies_at
        self.options, self.batches = {}, []

    def launch(self, job_overrides, initial_job_idx):
        self.batches.append(len(job_overrides))
        returned = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            if number == self.dies_at:
                raise KeyboardInterrupt
            assert number not in self.options
            self.options[number] = dict(option.split("=", 1) for option in overrides)
            returned.append(JobReturn(status=JobStatus.COMPLETED))
            returned[-1].return_value = self.worth(self.options[number])
        return returned


def bowl(options):
    """Least, 0, at a learning rate of 1e-3; flat in all others."""
    return (math.log10(float(options["optimizer.lr"])) + 3) ** 2


@pytest.fixture
def sweep(tmp_path):
    """Sweep as `python train.py -m` with these options, in one folder; gives the runs and the study."""
    before = Singleton.get_state()
    register_resolvers()
    register_plugins()

    def run(*options, worth=bowl, dies_at=None):
        loader = ConfigLoaderImpl(create_config_search_path(str(CONFIG_DIR)))
        hydra = Hydra(task_name="train", config_loader=loader)
        own = [f"hydra.sweep.dir={tmp_path}", *options]
        config = hydra.compose_config("config", own, RunMode.MULTIRUN, with_log_configuration=False)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=print)
        runs = Runs(worth, dies_at)
        sweeper.launcher = runs
        sweeper.sweep(list(config.hydra.overrides.task))
        return runs, optuna.load_study(study_name="sweep", storage=config.hydra.sweeper.storage)

    yield run
    Singleton.set_state(before)


LOSS = "optimized_metric=val/loss"


def test_optuna_finds_the_bowl_and_random_keeps_drawing(sweep, tmp_path):
    runs, study = sweep("sweep=optuna", LOSS, "sweep.trials=30", "data=mnist")
    assert list(runs.options) == list(range(30))
    assert all(options["data"] == "mnist" for options in runs.options.values())
    assert all(1e-4 <= float(o["optimizer.lr"]) <= 1e-2 for o in runs.options.values())
    assert study.best_value == min(map(bowl, runs.options.values())) < 0.01
    later = [bowl(runs.options[number]) for number in range(20, 30)]
    assert sum(later) / 10 < 0.15 < 1 / 3  # what is drawn at random has a mean of 1/3
    results = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert results.best_value == study.best_value
    assert (tmp_path / "multirun.yaml").is_file()


@pytest.mark.parametrize("preset", ["optuna", "random", "cmaes"])
def test_an_interrupted_study_goes_on_with_the_trials_that_are_left(sweep, preset, tmp_path):
    options = (f"sweep={preset}", LOSS, "sweep.trials=6")
    with pytest.raises(KeyboardInterrupt):
        sweep(*options, dies_at=3)
    runs, study = sweep(*options)
    assert list(runs.options) == [3, 4, 5]  # 3 as it had been drawn
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 6
    drawn = [trial.params["optimizer.lr"] for trial in study.trials]
    assert len(set(drawn)) == 6
    assert float(runs.options[3]["optimizer.lr"]) == drawn[3]
    nothing, study = sweep(*options)
    assert nothing.batches == []
    more, study = sweep(*options[:-1], "sweep.trials=7")
    assert list(more.options) == [6]


def test_the_same_seed_draws_the_same(sweep, tmp_path):
    first, _ = sweep("sweep=random", LOSS, "sweep.trials=3", f"hydra.sweep.dir={tmp_path}/a")
    second, _ = sweep("sweep=random", LOSS, "sweep.trials=3", f"hydra.sweep.dir={tmp_path}/b")
    other, _ = sweep("sweep=random", LOSS, "sweep.trials=3", f"hydra.sweep.dir={tmp_path}/c", "sweep.seed=1")
    assert first.options == second.options != other.options


def test_a_grid_is_worked_off_once(sweep):
    space = ("optimizer.lr=choice(1e-4,1e-3)", "trainer.seed=range(0,3)", "optimizer.weight_decay=0.1")
    runs, _ = sweep("sweep=optuna", "hydra/sweeper/sampler=grid", LOSS, "sweep.trials=50", "sweep.parallel=4", *space)
    points = {(options["optimizer.lr"], options["trainer.seed"]) for options in runs.options.values()}
    assert len(runs.options) == len(points) == 6
    assert runs.batches == [4, 2]
    assert {options["optimizer.weight_decay"] for options in runs.options.values()} == {"0.1"}


def test_two_objectives_give_a_front(sweep, tmp_path):
    def worth(options):
        epochs = int(options["trainer.max_epochs"])
        assert epochs in range(4, 41, 4)
        return 1 - 1 / epochs, float(epochs)

    runs, study = sweep("sweep=nsga2", "sweep.trials=24", worth=worth)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    epochs = {int(options["trainer.max_epochs"]) for options in runs.options.values()}
    assert {trial.params["trainer.max_epochs"] for trial in study.best_trials} == epochs  # each is a compromise
    front = OmegaConf.to_container(OmegaConf.load(tmp_path / "optimization_results.yaml").solutions)
    assert {solution["values"][1] for solution in front} == epochs


def test_plain_syntax_is_drawn_from_as_hydra_writes_it(sweep):
    space = ("optimizer.lr=tag(log,interval(1e-5,1e-1))", "trainer.max_epochs=range(1,4)", "loss=mse,l1")
    runs, _ = sweep("sweep=random", LOSS, "sweep.trials=40", *space)
    given = runs.options.values()
    assert {options["trainer.max_epochs"] for options in given} == {"1", "2", "3"}  # a range ends before its stop
    assert {options["loss"] for options in given} == {"mse", "l1"}
    logs = [math.log10(float(options["optimizer.lr"])) for options in given]
    assert all(-5 <= value <= -1 for value in logs)
    assert -3.5 < sum(logs) / 40 < -2.5


def test_runs_that_are_not_evaluated_are_judged_by_their_loss(sweep):
    _, study = sweep("sweep=optuna", "evaluation=none", "sweep.trials=1")
    assert [direction.name for direction in study.directions] == ["MINIMIZE"]


@pytest.fixture
def worth_a_loss(tmp_path):
    """Runs that tell in their status what they are worth."""

    def worth(options):
        write_status(tmp_path / "0", Status(state="done", objective={"val/loss": 0.5}))
        return 0.5

    return worth


def test_runs_without_labels_are_noticed(sweep, worth_a_loss):
    """What a data set has is known to its runs alone."""
    with pytest.raises(UserError, match=r"the runs give val/loss, but .* set optimized_metric=\[val/loss\]"):
        sweep("sweep=optuna", "sweep.trials=2", worth=worth_a_loss)


def test_a_study_keeps_to_its_metric(sweep, worth_a_loss):
    sweep("sweep=optuna", LOSS, "sweep.trials=1", worth=worth_a_loss)
    with pytest.raises(UserError, match="is of val/loss, not of train/loss: set optimized_metric="):
        sweep("sweep=optuna", "optimized_metric=train/loss", "sweep.trials=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sweep.trials=0"], "sweep.trials=0: expected a whole number from 1"),
        (["sweep.parallel=0"], "sweep.parallel=0: expected a whole number from 1"),
        (["hydra.sweeper.max_failure_rate=0.5"], "max_failure_rate=0.5 has no effect here.* leave it out"),
        (["optimizer.lr=1e-3", "optimizer.weight_decay=0.1"], "nothing to sweep over"),
        (["hydra/sweeper/sampler=grid"], "a grid takes single values"),
        ([], "give no metric to optimise"),
    ],
)
def test_what_cannot_be_searched(sweep, options, message):
    with pytest.raises(UserError, match=message):
        sweep("sweep=optuna", LOSS, *options, worth=lambda options: None)


def test_what_a_study_refuses(sweep):
    sweep("sweep=optuna", LOSS, "sweep.trials=1", "loss=mse,l1")
    with pytest.raises(UserError, match=r"the study in sqlite.*: loss has .* another space.*another hydra\.sweep\.dir"):
        sweep("sweep=optuna", LOSS, "sweep.trials=2", "loss=mse,smooth_l1")
    with pytest.raises(UserError, match=r"MINIMIZE.* to .*MAXIMIZE.*; sweep in another hydra.sweep.dir"):
        sweep("sweep=optuna", "optimized_metric=online/knn", "sweep.trials=2")


@pytest.mark.faults
def test_a_file_that_is_no_study(sweep, tmp_path):
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(UserError, match=r"/study\.db: .*not a database"):
        sweep("sweep=optuna", LOSS)


@pytest.mark.faults
def test_a_study_that_is_damaged_is_named(sweep, tmp_path):
    path = tmp_path / "study.db"
    sweep("sweep=optuna", LOSS, "sweep.trials=1", "optimizer.lr=1e-3,1e-2")
    whole = path.read_bytes()
    for statement in (
        "update trial_user_attributes set value_json = '[[['",
        "update trial_user_attributes set value_json = '{\"a\": 1}'",
        "update trial_params set distribution_json = '[1]'",
        "update trials set state = 'ASLEEP'",
        "drop table trials",
    ):
        path.write_bytes(whole)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(statement)
            database.commit()
        with pytest.raises(UserError, match=r"the study in sqlite.*/study\.db.*sweep in another hydra\.sweep\.dir"):
            sweep("sweep=optuna", LOSS, "sweep.trials=2", "optimizer.lr=1e-3,1e-2")
    for place in (lambda: path.write_bytes(bytes(100_000)), path.mkdir, lambda: os.mkfifo(path)):
        path.unlink()
        place()
        with pytest.raises(UserError, match=r"the study in sqlite.*/study\.db"):
            sweep("sweep=optuna", LOSS, "sweep.trials=2", "optimizer.lr=1e-3,1e-2")
        if path.is_dir():
            path.rmdir()
            path.touch()
