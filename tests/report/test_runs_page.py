"""The page over runs: what it says of them, its server, and that it filters, sorts and draws in a real browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading

import pytest
from run_folders import METRIC, table_of, write_run

from jepa.report import run_files
from jepa.report.run_files import last_values, reading_for
from jepa.report.runs_page import RunsServer, read_table, write_runs_page
from jepa.utils.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
BESIDE = {f"eval/{row}/{probe}": 0.8 for row in ("random_init", "raw_input") for probe in ("linear", "knn", "rankme")}
BESIDE |= {"eval/trained/knn": 0.7, "eval/trained/rankme": 5.0}
EVIL = "<img/src=x/onerror=alert(1)>"


@pytest.fixture
def runs(tmp_path):
    """Three runs of which the newest is first, one with a report, one with a name that would script a page."""
    folder = tmp_path / "outputs"
    write_run(folder, 2, "optimizer.lr=1e-2 data=digits loss=mse", 0.7)
    write_run(folder, 10, "optimizer.lr=1e-3 data=digits", 0.9, metrics={EVIL: 1.0, "val/loss": 0.5, **BESIDE})
    write_run(folder, 3, f"optimizer.lr=1e-2 data=digits loss={EVIL}</script>", None, state="failed", reason=EVIL)
    (folder / "3").rename(folder / "<b>3&")
    (folder / "10" / "report.html").write_text("<p>report")
    return folder


def column(table, name):
    place = [key for key, *_ in table["columns"]].index(name)
    return [row["cells"][place] for row in table["rows"]]


def test_what_it_says(runs, tmp_path):
    assert write_runs_page(runs, tmp_path / "pages" / "runs.html", None) == 3
    table = table_of(tmp_path / "pages" / "runs.html")
    assert column(table, "run") == ["10", "<b>3&", "2"]
    assert column(table, METRIC) == [0.9, "", 0.7]
    assert column(table, "optimizer.lr") == ["1e-3", "1e-2", "1e-2"]
    assert table["shared"] == "data=digits"
    assert column(table, "helped") == ["in 1 of 2", "", ""]
    assert [row["kind"] for row in table["rows"]] == ["", "bad", ""]
    assert [row["address"] for row in table["rows"]] == [f"../outputs/{name}" for name in ("10", "%3Cb%3E3%26", "2")]
    assert [row["report"] for row in table["rows"]] == [True, False, False]
    assert table["metrics"][:3] == ["val/loss", "train/loss", METRIC]
    assert EVIL in table["metrics"]
    assert table["rows"][2]["curves"][:2] == [[], [[1, 1.0], [50, 0.02], [100, 0.01]]]


def test_only_what_has_changed_is_read_again(runs, monkeypatch):
    first, _ = read_table(runs, None, 60)
    monkeypatch.setattr(run_files, "read_lines", lambda path: pytest.fail(f"{path} is read again"))
    assert read_table(runs, None, 60)[0] == first
    monkeypatch.undo()
    with (runs / "2" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "val/loss": 0.25}\n')
    assert column(read_table(runs, None, 60)[0], "val/loss") == [0.5, "", 0.25]


def test_what_there_is_no_time_for_is_read_the_next_time(runs):
    late, _ = read_table(runs, None, -1)
    assert column(late, "run") == ["10", "<b>3&", "2"]
    assert late["postponed"] > 0
    whole, _ = read_table(runs, None, 60)
    assert (whole["postponed"], column(whole, "val/loss")) == (0, [0.5, "", ""])
    with reading_for(-1) as reading:
        assert last_values(runs / "10", [])["val/loss"] == 0.5
    assert reading["postponed"] == 0


@pytest.fixture
def server(runs):
    with RunsServer(folder=runs, port=0, ask_queue=lambda: {"7": "PENDING"}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": f"{host}:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Security-Policy"], answer.read().decode()


def test_the_server_follows_the_runs(server, runs):
    write_run(runs, 4, "optimizer.lr=1", None, state="running", step=1, job="7", host="elsewhere")
    assert column(json.loads(ask(server, "/table")[2]), "state") == ["done", "running", "failed", "done"]
    states = column(json.loads(ask(server, "/table")[2]), "state")
    assert states == ["done", "preempted", "failed", "done"], "what the scheduler said meanwhile"
    assert json.loads(ask(server, "/2/curve?metric=train/loss")[2]) == [[1, 1.0], [50, 0.02], [100, 0.01]]
    code, policy, report = ask(server, "/10/report.html")
    assert (code, report) == (200, "<p>report")
    assert policy.startswith("sandbox allow-scripts")
    shutil.rmtree(runs)
    assert "does not exist" in json.loads(ask(server, "/table")[2])["error"]


@pytest.mark.faults
def test_what_the_server_refuses(server, runs):
    ask(server, "/table")
    secret = runs.parent / "report.html"
    secret.write_text("secret")
    for path in (
        "/2/report.html",
        "/10/metrics.jsonl",
        "/../report.html",
        "/10/../../report.html",
        "/%2e%2e/report.html",
    ):
        code, _, text = ask(server, path)
        assert code in (404, 500), path
        assert "secret" not in text
    os.mkfifo(runs / "2" / "report.html")
    assert ask(server, "/2/report.html")[0] == 500
    assert ask(server, "/table", host="rebound.example")[0] == 403
    with pytest.raises(UserError, match=f"port={server.server_port} cannot be used"):
        RunsServer(folder=runs, port=server.server_port, ask_queue=dict)
    with socket.create_connection(("127.0.0.1", server.server_port)) as gone:
        gone.send(b"GET /table HTTP/1.0\r\n")
    assert ask(server, "/")[0] == 200


FACTS = """
<script>
const texts = place => [...document.querySelectorAll("tbody tr")].map(row => row.cells[place].textContent);
const click = name => [...document.querySelectorAll("th")].find(head => head.title === name).click();
const filter = text => { at("filter").value = text; at("filter").oninput(); };
const found = {};
found.tinted = [...document.querySelectorAll(".tint")].map(cell => cell.textContent);
found.order = texts(1);
click("run"); found.up = texts(1); click("run"); found.down = texts(1);
filter("lr=0.01 mse"); found.filtered = texts(1); filter("linear>0.8"); found.above = texts(1); filter("");
at("none").onclick(); document.querySelectorAll("tbody input")[0].click();
found.links = [...document.querySelectorAll("tbody a")].map(link => link.getAttribute("href"));
at("metric").value = "train/loss"; at("metric").onchange();
setTimeout(() => console.log("FACTS " + JSON.stringify({...found,
  width: innerWidth, needed: document.documentElement.scrollWidth, images: document.images.length,
  lines: document.querySelectorAll("#chart .trace path.js-line").length,
  background: getComputedStyle(document.body).backgroundColor})), 2000);
</script></body>"""


def browse(address, folder, *options):
    """Return the page as it is drawn, and what the console says."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *options]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--window-size=1800,1200"]
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@browser
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(runs, tmp_path, dark):
    write_runs_page(runs, tmp_path / "runs.html", None)
    page = tmp_path / "checked.html"
    page.write_text((tmp_path / "runs.html").read_text(encoding="utf-8").replace("</body>", FACTS), encoding="utf-8")
    frames = "".join(f"<iframe width={width} height=1200 src={page.as_uri()}></iframe>" for width in (1280, 390))
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html>{frames}")
    options = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=8000"]
    _, said = browse((tmp_path / "frames.html").as_uri(), tmp_path, *options)
    facts = [json.loads(re.search(r"FACTS (\{.*\})\"", line)[1]) for line in said if "FACTS" in line]
    assert [line for line in said if "FACTS" not in line] == []
    assert {each["width"] for each in facts} == {1280, 390}
    for each in facts:
        assert each["needed"] <= each["width"], "nothing is cut off at the right"
        assert each["order"] == ["10", "<b>3&", "2"]
        assert each["up"] == ["<b>3&", "2", "10"]
        assert each["down"] == ["10", "2", "<b>3&"]
        assert (each["filtered"], each["above"]) == (["2"], ["10"])
        assert each["tinted"] == ["1e-3", "(default)", f"{EVIL}</script>", "mse"], "what differs"
        assert each["links"] == ["outputs/10/report.html"]
        assert (each["lines"], each["images"]) == (1, 0)
        assert (sum(map(int, re.findall(r"\d+", each["background"])[:3])) < 380) == dark


@browser
@pytest.mark.slow
def test_the_served_page_in_a_browser(server, tmp_path):
    address = f"http://127.0.0.1:{server.server_port}/"
    shown, said = browse(address, tmp_path, "--virtual-time-budget=5000")
    assert said == []
    assert re.search(r'id="counts">3 runs: 2 done, 1 failed; 3 shown<', shown)
    assert "js-line" in shown
