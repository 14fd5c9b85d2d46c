"""The page of a leaderboard: that it needs no network, and what its figures show."""

from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest
from run_folders import write_run

from jepa.report import leaderboard_page as plots
from jepa.report.leaderboard import read_leaderboard
from jepa.report.leaderboard_page import page, write_page
from jepa.report.leaderboard_summary import summary
from jepa.report.run_files import curve


def asked_of_the_network(page):
    """What a page loads from elsewhere."""
    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            addresses = [value for name, value in attributes if name in ("src", "href")]
            if tag in ("iframe", "img") or any(not value.startswith("data:") for value in addresses):
                found.append((tag, attributes))

    Tags().feed(page)
    return found


def test_the_page(grid):
    write_run(grid, 9, "optimizer.lr=1e-2 trainer.seed=3 data=<i>&x", 0.92)
    write_page(read_leaderboard(grid), grid / "page.html")
    text = (grid / "page.html").read_text()
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert asked_of_the_network('<script src="https://example.org/plotly.js"></script>')
    assert not asked_of_the_network(text)
    num_heads = ["Settings over their seeds", "Options and metric", "What the metric depends on", "Curves", "Runs"]
    assert re.findall(r"<h2>(.*?)</h2>", body) == num_heads
    settings, runs = body.split("<table>")[1:]
    assert (settings.count("<tr class="), runs.count("<tr class="), runs.count('<tr class="bad"')) == (3, 10, 2)
    assert "&lt;i&gt;&amp;x" in runs
    assert "<i>&x" not in text
    assert all(f"<li>{html.escape(line)}</li>" in body for line in summary(read_leaderboard(grid)))


def test_a_line_for_each_run_in_the_parallel_coordinates(grid):
    (trace,) = plots.parallel_coordinates(read_leaderboard(grid)).data
    run, rate, seed, metric = trace.dimensions
    assert list(run.ticktext) == ["4", "5", "3", "1", "2", "0", "7", "6"]  # 8 has no value
    assert (rate.label, seed.label, metric.label) == ("lr (log)", "seed", "eval/trained/linear")
    assert list(rate.values) == pytest.approx([-2] * 3 + [-3] * 3 + [0] * 2)
    assert list(rate.ticktext) == ["0.001", "0.01", "1"]
    assert list(metric.values) == [0.93, 0.91, 0.90, 0.82, 0.81, 0.80, 0.80, 0.80]  # none below the worst that counts
    assert list(metric.range) == [0.80, 0.93]
    shares = list(trace.line.color)
    assert (shares[0], shares[5], shares[6:]) == (1, 0, [-1, -1])  # those that do not count are grey


def test_figures_that_would_show_nothing(tmp_path):
    write_run(tmp_path, 0, "optimizer.lr=1e-3", 0.5)
    board = read_leaderboard(tmp_path)
    for draw in (plots.parallel_coordinates, plots.importance, plots.settings, plots.pareto):
        assert draw(board) is None
    assert "<h2>Runs</h2>" in page(board)


def test_curves_of_long_runs_are_thinned(tmp_path):
    folder = write_run(tmp_path, 0, "optimizer.lr=1e-3", 0.5)
    lines = [json.dumps({"step": step, "val/loss": 1.0 if step != 7 else None}) + "\n" for step in range(10_000)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    points = curve(folder, "val/loss", max_points=100)
    assert len(points) == 101
    assert (points[0], points[-1]) == ((0, 1.0), (9999, 1.0))
    assert all(math.isfinite(value) for _, value in points)


def test_axes(tmp_path):
    for index in range(30):
        write_run(tmp_path, index, f"a={10**index} b={index} c={['null', '10', '2'][index % 3]}", index / 100)
    _, powers, numbers, words, metric = (
        plots.parallel_coordinates(read_leaderboard(tmp_path, direction="minimize")).data[0].dimensions
    )
    assert (powers.label, list(powers.tickvals)) == ("a (log)", pytest.approx([0, 7.25, 14.5, 21.75, 29]))
    assert (numbers.label, list(numbers.ticktext)) == ("b", ["0", "7.25", "14.5", "21.75", "29"])
    assert list(words.ticktext) == ["2", "10", "null"]
    assert list(metric.range) == [0.29, 0.0]  # the best on top
