"""W&B, kept offline: what its files hold, resuming, and what happens without a login or a network."""

from __future__ import annotations

import json
import struct
import time

import pytest

from jepa import load_config
from jepa.config.build import to_plain
from jepa.config.check import check_config
from jepa.trainer import RunInfo, WandB
from jepa.types import RunLength
from jepa.utils.errors import UserError

wandb = pytest.importorskip("wandb")

HORIZON = RunLength(max_steps=10, steps_per_epoch=5.0)
CONFIG = {"model": {"dim": 32, "heads": [1, 2]}, "resume": None}


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch, tmp_path):
    """And nothing goes to the network or the home folder."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def records(path):
    """What a .wandb file holds: blocks of 32 KiB of pieces with checksum, length and kind (whole, first, .., last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, joined = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        joined += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


def of_kind(folder, kind):
    (path,) = folder.glob("*.wandb")
    end = time.monotonic() + 30
    while not any(r.WhichOneof("record_type") == "exit" for r in records(path)):  # written by W&B's own process
        assert time.monotonic() < end, f"{path} was not finished"
        time.sleep(0.05)
    return [getattr(r, kind) for r in records(path) if r.WhichOneof("record_type") == kind]


def history(folder):
    """The lines that were logged."""
    lines = []
    for entry in of_kind(folder, "history"):
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.item}
        lines.append({name: value for name, value in values.items() if not name.startswith("_")})
    return lines


def offline_folders(folder):
    return sorted((folder / "wandb").glob("offline-run-*"))


def run(folder, steps, *, start=0, state=None, **settings):
    """The logger of a run over some steps."""
    folder.mkdir(exist_ok=True)
    logger = WandB(**{"mode": "offline", **settings})
    if state is not None:
        logger.load_state_dict(state)
    logger.open(RunInfo(folder, start, HORIZON, CONFIG))
    for step in steps:
        logger.log({"train/loss": 1 / step, "epoch": step / 5}, step)
    logger.close()
    return logger


@pytest.mark.slow
def test_an_offline_run_and_its_continuation(tmp_path, capfd):
    folder = tmp_path / "day" / "time"
    folder.mkdir(parents=True)
    first = run(folder, range(1, 6), tags=["a"], group="sweep")
    (made,) = offline_folders(folder)
    assert first.id in made.name
    (sent,) = of_kind(made, "run")
    assert (sent.run_id, sent.project, sent.run_group) == (first.id, "jepa", "sweep")
    assert (sent.display_name, list(sent.tags)) == ("day/time", ["a"])
    config = {item.key: json.loads(item.value_json) for item in sent.config.update}
    assert config["model"] == CONFIG["model"]
    assert history(made) == [{"step": s, "train/loss": pytest.approx(1 / s), "epoch": s / 5} for s in range(1, 6)]
    updates = [item for entry in of_kind(made, "summary") for item in entry.update]
    summary = {item.key or "/".join(item.nested_key): item.value_json for item in updates}
    assert summary["train/loss"] == "0.2"
    assert ("*", "step") in [(metric.glob_name, metric.step_metric) for metric in of_kind(made, "metric")]
    out, err = capfd.readouterr()
    assert out == f"W&B: kept in {made}, upload with: wandb sync {folder / 'wandb'}\n"
    assert err == ""

    second = run(folder, range(4, 8), start=3, state=first.state_dict())  # from the checkpoint of step 3
    assert (second.id, second.group) == (first.id, "sweep")
    (again,) = set(offline_folders(folder)) - {made}
    assert [line["step"] for line in history(again)] == [4, 5, 6, 7]
    assert f"run {first.id} goes on from step 3" in capfd.readouterr().out


@pytest.mark.slow
def test_without_a_login_nothing_is_asked(tmp_path, capfd, monkeypatch):
    def ask(*_):
        raise AssertionError("a prompt")

    monkeypatch.setattr("builtins.input", ask)
    run(tmp_path / "run", [1], mode="online")
    out = capfd.readouterr().out
    assert out.startswith("W&B: nobody is logged in (wandb login), the run is kept in ")
    assert len(offline_folders(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_network_that_does_not_answer_is_not_waited_for(tmp_path, capfd, monkeypatch):
    """With a key and a refused connection, in place of `init_timeout` seconds of trying."""
    start, modes, torn_down = wandb.init, [], []

    def init(*, mode, **settings):
        modes.append((mode, settings["id"], settings["settings"].init_timeout))
        if mode == "online":
            raise wandb.errors.CommError("connection refused.\nmore")
        return start(mode=mode, **settings)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: torn_down.append(True))
    logger = run(tmp_path / "run", [1, 2], mode="online", init_timeout=3.0)
    assert modes == [("online", logger.id, 3.0), ("offline", logger.id, 3.0)]
    assert torn_down
    assert "W&B: no connection (connection refused), the run is kept in" in capfd.readouterr().out
    assert [line["step"] for line in history(offline_folders(tmp_path / "run")[0])] == [1, 2]


class FakeRun:
    """A W&B run that only listens."""

    offline, url = False, "https://wandb.ai/me/jepa/runs/1"

    def __init__(self, folder):
        self.dir, self.lines, self.code = str(folder / "wandb" / "run-1" / "files"), [], None

    def define_metric(self, *_, **__):
        pass

    def log(self, values, **others):
        assert not others  # a step that decreases would be refused
        self.lines.append(values)

    def finish(self, exit_code):
        self.code = exit_code
        raise TimeoutError


@pytest.fixture
def fake(monkeypatch, tmp_path):
    made = FakeRun(tmp_path)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda **_: made)
    return made


def test_online_it_gives_the_address_and_does_not_wait_at_the_end(tmp_path, capfd, fake):
    run(tmp_path, [1, 2, 1], mode="online", finish_timeout=7.0)
    assert [line["step"] for line in fake.lines] == [1, 2, 1]
    assert fake.code == 0
    first, last = capfd.readouterr().out.splitlines()
    assert first == f"W&B: {fake.url}"
    assert last == f"W&B: not all was uploaded in 7 s, upload the rest with: wandb sync {tmp_path}/wandb/run-1"


def test_a_run_that_fails_is_marked_so(tmp_path, fake):
    logger = WandB()
    logger.open(RunInfo(tmp_path, 0, HORIZON))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        try:
            1 / 0  # noqa: B018
        finally:
            logger.close()
    assert fake.code == 1


def test_a_key_that_is_none(tmp_path, monkeypatch):
    def login(**_):
        raise wandb.errors.AuthenticationError("API key must have 40+ characters, has 5.")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(UserError, match=r"logger.wandb: API key must have 40\+ characters, has 5: check"):
        WandB().open(RunInfo(tmp_path, 0, HORIZON))


def test_disabled_does_nothing(tmp_path, capfd):
    logger = run(tmp_path, [1, 2], mode="disabled")
    assert logger.id is None
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_settings(monkeypatch):
    with pytest.raises(ValueError, match="init_timeout=0"):
        WandB(init_timeout=0)
    config = load_config(["logger=wandb"])
    assert (config.logger.wandb.group, config.logger.wandb.mode) == (None, "online")
    check_config(to_plain(config))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert load_config(["logger=wandb"]).logger.wandb.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(UserError, match=r"logger.wandb.mode=dryrun: "):
        check_config(to_plain(load_config(["logger=wandb"])))


def test_the_jobs_of_a_sweep_share_a_group(monkeypatch):
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    for mode, group in ((RunMode.MULTIRUN, "12-00-00-sweep"), (RunMode.RUN, None)):
        state = OmegaConf.create({"mode": mode, "sweep": {"dir": "outputs/2026-01-01/12-00-00-sweep"}})
        monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda state=state: state))
        assert load_config(["logger=wandb"]).logger.wandb.group == group
