"""The report of a run, in a real browser: drawn without an error or a request, at both widths, in both themes."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys

import pytest

from jepa.config.job import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FACTS = """
<script>addEventListener("load", () => setTimeout(() => console.log("FACTS " + JSON.stringify({
  width: innerWidth, needed: document.documentElement.scrollWidth,
  charts: document.querySelectorAll(".js-plotly-plot").length,
  drawn: [...document.querySelectorAll(".js-plotly-plot")].filter(chart => {
    const drawing = chart.querySelector("svg.main-svg").getBoundingClientRect();
    return drawing.width > 200 && drawing.right <= innerWidth && chart.querySelector(".trace path, .trace rect, image");
  }).length,
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector(".js-plotly-plot text")).fill,
  sections: [...document.querySelectorAll("section")].map(section => section.id),
  pictures: [...document.images].filter(image => image.naturalWidth > 0).length,
  broken: [...document.images].filter(image => image.naturalWidth == 0).length,
})), 2500))</script></body>"""


SECTIONS = ["masks", "predictions", "features", "neighbours", "map", "mistakes", "probes", "training", "configuration"]


def browse(page, folder, *, dark=False):
    """Return what a page of 1280 and one of 390 pixels show, by width, and what the console says otherwise."""
    path = folder / "checked.html"
    path.write_text(page.read_text(encoding="utf-8").replace("</body>", FACTS), encoding="utf-8")
    frames = "".join(f"<iframe width={width} height=3000 src={path.as_uri()}></iframe>" for width in (1280, 390))
    (folder / "frames.html").write_text(f"<!DOCTYPE html>{frames}", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--window-size=1800,3000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=15000"]
    found = subprocess.run([*command, (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=120)
    said = [line for line in found.stderr.splitlines() if ":CONSOLE" in line]
    facts = [json.loads(re.search(r"FACTS (\{.*\})", line)[1]) for line in said if "FACTS" in line]
    return {each["width"]: each for each in facts}, [line for line in said if "FACTS" not in line]


@pytest.fixture(scope="module")
def run(fork_server, tmp_path_factory, tiny):
    """Return a function that trains a tiny run once, with its page at the end, and returns its folder and output."""
    done = {}

    def of(name, *options):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            arguments = [option for option in tiny if not option.startswith("report=")]
            arguments += [*options, f"hydra.run.dir={folder / 'run'}", "~logger.tensorboard"]
            finished = fork_server.start(arguments, folder, {}).wait(120)
            assert finished.returncode == 0, finished.stderr
            done[name] = folder / "run", finished.stdout
        return done[name]

    return of


@pytest.fixture
def digits(run):
    """Return a run on pictures."""
    return run("digits", "trainer.validate_every_epochs=1")


def test_a_run_writes_its_page_at_its_end(digits):
    folder, output = digits
    assert f"report: {folder / 'report.html'}" in output
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 10e6
    shown = html.unescape(text)
    assert "1,437 training and 360 held-out samples of 1 x 8 x 8, 10 classes" in shown
    assert "6 of 6 steps of 32 samples" in shown
    assert "Training has" in shown, "whether training has helped"
    assert "model.encoder.embed_dim" in shown, "what differs from the defaults"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(digits, tmp_path, dark):
    facts, said = browse(digits[0] / "report.html", tmp_path, dark=dark)
    assert said == []
    assert facts.keys() == {1280, 390}
    for width, each in facts.items():
        assert each["needed"] <= width, "nothing is cut off at the right"
        assert each["charts"] == each["drawn"] > 8
        assert each["broken"] == 0
        assert each["sections"] == SECTIONS
        assert each["pictures"] > 100
        light = [sum(map(int, re.findall(r"\d+", each[name])[:3])) > 380 for name in ("background", "ink")]
        assert light == ([False, True] if dark else [True, False])


def test_without_a_page(train, tiny, tmp_path, digits, monkeypatch, capsys):
    options = ["evaluation=none", "~logger.tensorboard", "trainer.max_steps=1", f"hydra.run.dir={tmp_path / 'none'}"]
    none = train(*tiny, *options)
    assert none.returncode == 0
    assert "report:" not in none.stdout
    assert not list(tmp_path.rglob("report.html"))
    wrong = train(*tiny, *options, "report=yes")
    assert wrong.returncode == 1
    assert "report=yes: expected auto" in wrong.stderr
    monkeypatch.setitem(sys.modules, "plotly", None)
    write_report(digits[0], "cpu")
    assert capsys.readouterr().out.startswith("no report: the report of a run needs the package plotly: pip install")
    write_report(tmp_path / "nowhere", "cpu")
    assert "no report:" in capsys.readouterr().out
