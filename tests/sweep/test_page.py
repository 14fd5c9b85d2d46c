"""The page of a leaderboard: that it needs no network, and what its figures show."""

from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest
from runs import write_run

from jepa.sweep import figures
from jepa.sweep.axes import axis_of
from jepa.sweep.colours import GREY
from jepa.sweep.leaderboard import leaderboard
from jepa.sweep.page import page
from jepa.sweep.reading import curve


def asked_of_the_network(page):
    """What a page loads from elsewhere."""
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag in ("link", "iframe", "img") or {"src", "href"} & dict(attributes).keys():
                found.append((tag, attributes))

    Tags().feed(page)
    return found


def test_the_page(grid):
    write_run(grid, 9, "optimizer.lr=1e-2 trainer.seed=3 data=<i>&x", 0.92)
    leaderboard(grid).write_page(grid / "page.html")
    text = (grid / "page.html").read_text()
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert asked_of_the_network('<script src="https://example.org/plotly.js"></script>')
    assert not asked_of_the_network(text)
    num_heads = ["Settings over their seeds", "Options and metric", "What the metric depends on", "On the way", "Runs"]
    assert re.findall(r"<h2>(.*?)</h2>", body) == num_heads
    settings, runs = body.split("<table>")[1:]
    assert (settings.count("<tr class="), runs.count("<tr class="), runs.count('<tr class="bad"')) == (3, 10, 2)
    assert "&lt;i&gt;&amp;x" in runs
    assert "<i>&x" not in text
    assert all(f"<li>{html.escape(line)}</li>" in body for line in leaderboard(grid).conclusions())


def test_a_line_for_each_run_in_the_parallel_coordinates(grid):
    board = leaderboard(grid)
    lines = [trace for trace in figures.parallel(board).data if trace.name is not None]
    assert sorted(trace.name for trace in lines) == ["0", "1", "2", "3", "4", "5", "6", "7"]  # 8 has no value
    best = lines[-1]
    assert (best.name, best.line.width, best.y[2]) == ("4", 4, 1.0)
    by_name = {trace.name: trace for trace in lines}
    assert all(by_name[name].line.dash == "dot" and by_name[name].line.color == GREY for name in ("6", "7"))
    assert by_name["6"].y[2] == by_name["0"].y[2] == 0.0  # no lower than the worst that counts
    assert by_name["0"].y[:2] == (0.0, 0.0)


def test_figures_that_would_show_nothing(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1e-3", 0.5)
    board = leaderboard(tmp_path)
    for draw in (figures.parallel, figures.importance, figures.settings, figures.pareto):
        assert draw(board) is None
    assert "<h2>Runs</h2>" in page(board)


def test_curves_of_long_runs_are_thinned(tmp_path):
    folder = write_run(tmp_path, 0, "optimizer.lr=1e-3", 0.5)
    lines = [json.dumps({"step": step, "val/loss": 1.0 if step != 7 else None}) + "\n" for step in range(10_000)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    points = curve(folder, "val/loss", most=100)
    assert len(points) == 101
    assert (points[0], points[-1]) == ((0, 1.0), (9999, 1.0))
    assert all(math.isfinite(value) for _, value in points)


def test_axes():
    rates = axis_of("lr", ["1e-4", "0.001", "1e-1"])
    assert (rates.is_log, rates.positions) == (True, pytest.approx([0, 1 / 3, 1]))
    assert rates.ticks == [(0.0, "0.0001"), (pytest.approx(1 / 3), "0.001"), (1.0, "0.1")]
    seeds = axis_of("seed", [str(seed) for seed in range(300)])
    assert [text for _, text in seeds.ticks] == ["0", "50", "100", "150", "200", "250", "299"]
    words = axis_of("depth", ["null", "10", "2"])
    assert words.ticks == [(0.0, "2"), (0.5, "10"), (1.0, "null")]
    assert axis_of("x", ["3", "3"]).positions == [0.5, 0.5]
