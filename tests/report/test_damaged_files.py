"""A folder of runs of which some are damaged: files x damage, through the scripts that read them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_folders import table_of, write_run

from jepa.report.formatting import padded

pytestmark = pytest.mark.faults

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FILES = ("status.json", "results.json", "metrics.jsonl", "config.yaml", ".hydra/overrides.yaml")

LAUGHS = [f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghij", "bcdefghijk")]

DAMAGE = {
    "empty": b"",
    "cut": b'{"state": "done", "step": 1',
    "zeros": bytes(5000) + b"\n",
    "not UTF-8": b'{"state": "\xff\xfe"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "deep and whole": b'{"a": ' * 5000 + b"1" + b"}" * 5000 + b"\n",
    "a list": b"[1, 2]\n",
    "a text": b'"state"\n',
    "digits": b'{"state": "done", "step": ' + b"9" * 10_000 + b', "val/loss": ' + b"9" * 10_000 + b"}\n",
    "many digits": b'{"state": "done", "step": ' + b"9" * 400 + b', "val/loss": ' + b"9" * 400 + b"}\n",
    "types": b'{"state": 5, "overrides": "abc", "step": "x", "objective": [1], "collapse": [1], "val/loss": "x"}\n',
    "no counts": b'{"state": "running", "step": NaN, "max_steps": -1, "pid": -1, "collapse": 5, "overrides": {}}\n',
    "escapes": b'{"state": "\\u001b[2J\\u001b]0;x\\u0007", "step": "\\u202e", "overrides": "\\u009b", "a": "[/x]"}\n',
    "raw escapes": b'{"state": "\x1b[2J", "step": "x", "overrides": 5}\n',
    "tags": b'{"state": !!python/object/apply:os.system ["touch pwned"], "step": "x"}\n',
    "laughs": "\n".join(["a: &a [x, x]", *LAUGHS]).encode(),
    "sexagesimal": b"{state: 1" + b":1" * 20_000 + b"}\n",
}
NOT_SEEN = {("metrics.jsonl", "empty"), ("metrics.jsonl", "cut"), (".hydra/overrides.yaml", "empty")}
"""What a sound run leaves too, or may."""

PLACES = {
    "folder": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "nowhere": lambda path: path.symlink_to("nothing"),
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "1 GB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**30),
}


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The scripts on a folder, in this process; of a page its rows are printed."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)

    def function(script, name):
        spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return getattr(module, name)

    status, rank, page = function("status", "show"), function("leaderboard", "rank"), function("runs", "show")

    def show_page(folder):
        page(OmegaConf.create({"folder": str(folder), "output": str(tmp_path / "runs.html"), "port": 0}))
        for row in table_of(tmp_path / "runs.html")["rows"]:
            name, state, *others, reason = row["cells"]
            print(name, f"{state}: {reason}", *(padded(cell) if isinstance(cell, float) else cell for cell in others))

    options = {"metric": None, "direction": None, "limit": None, "csv": None, "html": None}
    return (
        lambda folder: status(OmegaConf.create({"folder": str(folder), "all": False})),
        lambda folder: rank(OmegaConf.create({"sweep": {"folder": str(folder)}, **options})),
        show_page,
    )


def rows(output: str) -> dict[str, str]:
    """Run -> its line in the table, where it is the first word, or the second behind its place."""
    assert all(c.isprintable() or c == "\n" for c in output), [c for c in output if not c.isprintable()]
    return {word: line for line in output.splitlines() for word in line.split()[:2] if not re.fullmatch("[0-9]+", word)}


@pytest.mark.parametrize("damage", [*DAMAGE, *PLACES])
def test_the_damaged_run_is_a_row_and_the_others_are_shown(scripts, tmp_path, capsys, damage):
    sweep = tmp_path / "sweep"
    write_run(sweep, 0, "optimizer.lr=1e-3", 0.75).rename(sweep / "sound")
    for number, name in enumerate(FILES):
        for place in (sweep / f"alone{number}", write_run(sweep, number, "optimizer.lr=1e-2", 0.25, job="7")):
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            PLACES[damage](path) if damage in PLACES else path.write_bytes(DAMAGE[damage])
        (sweep / str(number)).rename(sweep / f"beside{number}")
    for script in scripts:
        script(sweep)
        found = rows(capsys.readouterr().out)
        is_status = script is scripts[0]
        assert "done" in found["sound"]
        assert is_status or "0.7500" in found["sound"]
        for number, name in enumerate(FILES[:4]):
            if (name, damage) not in NOT_SEEN:
                alone = found[f"alone{number}"]
                assert f"{Path(name).name} is damaged" in alone or f"damaged: {Path(name).name}" in alone, alone
        for number, name in enumerate(FILES):
            own = found[f"beside{number}"]
            if name == "status.json":
                assert "damaged" in own
            elif not is_status and name in FILES[1:3] and (name, damage) not in NOT_SEEN:
                assert f"done: {name} is damaged" in own
    assert not (tmp_path / "pwned").exists()


def test_names_of_folders_and_metrics_are_printable(scripts, tmp_path, capsys):
    sweep = tmp_path / "a\x1b[2Jb"
    names = ["sound", "\x1b[2J", "a\nb", "²", os.fsdecode(b"\xff"), "[bold]", "9" * 200, "\u202e", "=1+1"]
    for number, name in enumerate(names):
        options = f"optimizer.lr={number} data.\x1b[1m[/x]={number}\x07 data.digits={'9' * 5000}{number}"
        metrics = {"[/bold]\x1b[2J": 1.0, "val/loss": [1e308, -1e308, 10**19][number % 3]}
        write_run(sweep, 0, options, number / 10, reason="\x1b]0;x\x07[/bold]", metrics=metrics).rename(sweep / name)
    for script in scripts:
        script(sweep)
        output = capsys.readouterr().out
        found = rows(output)
        assert {"sound", "\\x1b[2J", "a\\nb", "²", "\\udcff", "[bold]", "=1+1"} <= set(found)
    assert "Leaderboard of a\\x1b[2Jb" in (sweep / "leaderboard.html").read_text(encoding="utf-8")


def test_many_entries_of_one_run_do_not_hold_up_the_others(scripts, tmp_path, capsys):
    sweep, many = tmp_path / "sweep", {f"a{number}/b": 1.0 for number in range(50_000)}
    for number, (name, content) in enumerate(
        {
            "status.json": json.dumps({"state": "done", "overrides": [f"a{number}=1" for number in range(10_000)]}),
            "results.json": json.dumps(many),
            "metrics.jsonl": json.dumps(many) + "\n" * 1_000_000,
            "config.yaml": "overrides: [" + "a=1, " * 10_000 + "]",
        }.items()
    ):
        folder = write_run(sweep, number, "optimizer.lr=1e-3" if number < 3 else "", 0.5)
        (folder / name).write_text(content)
        folder.rename(sweep / f"run{number}")
    for script in scripts:
        script(sweep)
        found = rows(capsys.readouterr().out)
    assert [f"{name} is damaged" in found[f"run{number}"] for number, name in enumerate(FILES[:4])] == [True] * 4
