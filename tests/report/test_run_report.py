"""The report of a run, in a real browser: drawn without an error or a request, at both widths, in both themes."""

from __future__ import annotations

import base64
import functools
import html
import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from jepa import load_config
from jepa.config.decode_run import decode_run
from jepa.config.job import write_report
from jepa.config.report_run import masks_of, report_runs
from jepa.report import token_decoder
from jepa.report.report_pictures import Classified, Embedded, neighbour_pictures, shares_of_same_label
from jepa.report.report_plots import confusion
from jepa.report.run_record import Record, sentences
from jepa.report.token_decoder import explained, fit_decoder, place
from jepa.utils.errors import UserError
from jepa.utils.run_status import Status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FACTS = """
<script>
function similar() {  // what is drawn when the pointer is on a token of the first sample
  const stack = document.querySelector("[data-tokens]"), box = stack.getBoundingClientRect();
  (stack.querySelector("span") ?? stack).dispatchEvent(
    new MouseEvent("mousemove", {bubbles: true, clientX: box.left + 3, clientY: box.top + 3}));
  const canvas = stack.querySelector("canvas");
  if (!canvas) return new Set([...stack.querySelectorAll("span")].map(span => span.style.background)).size;
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(Array.from({length: pixels.length / 4}, (_, n) => pixels.slice(4 * n, 4 * n + 4).join())).size;
}
function hover() {  // puts the pointer on a point of the map
  const chart = document.querySelector("#map .js-plotly-plot");
  chart.scrollIntoView();
  const box = chart.querySelector(".points path").getBoundingClientRect();
  for (const kind of ["mouseover", "mousemove"])
    chart.querySelector(".nsewdrag").dispatchEvent(new MouseEvent(
      kind, {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}));
}
addEventListener("load", () => setTimeout(hover, 1500));
addEventListener("load", () => setTimeout(() => console.log("FACTS " + JSON.stringify({
  similar: similar(), sample: document.querySelector(".tip").innerHTML.length,
  width: innerWidth, needed: document.documentElement.scrollWidth,
  charts: document.querySelectorAll(".js-plotly-plot").length,
  drawn: [...document.querySelectorAll(".js-plotly-plot")].filter(chart => {
    const drawing = chart.querySelector("svg.main-svg").getBoundingClientRect();
    const room = chart.parentElement.getBoundingClientRect();
    const fits = drawing.width <= room.width + 1 && drawing.right <= innerWidth;
    return drawing.width > 200 && fits && chart.querySelector(".trace path, .trace rect, image");
  }).length,
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector(".js-plotly-plot text")).fill,
  sections: [...document.querySelectorAll("section")].map(section => section.id),
  pictures: [...document.images].filter(image => image.naturalWidth > 0).length,
  cut: [...document.querySelectorAll("figure")].filter(each => each.getBoundingClientRect().right > innerWidth).length,
  broken: [...document.images].filter(image => image.naturalWidth == 0).length,
})), 2500))</script></body>"""


def folder_options(folder):
    """Return the options that a run was started with."""
    return (folder / ".hydra" / "overrides.yaml").read_text().splitlines()


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

    def of(name, *options, without=""):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            arguments = [option for option in tiny if not option.startswith(f"{without}=")]
            arguments += [*options, f"hydra.run.dir={folder / 'run'}", "~logger.tensorboard"]
            finished = fork_server.start(arguments, folder, {"REPORT": "yes"}).wait(120)
            assert finished.returncode == 0, finished.stderr
            done[name] = folder / "run", finished.stdout
        return done[name]

    return of


@pytest.fixture
def digits(run):
    """Return a run on pictures."""
    return run("digits", "trainer.validate_every_epochs=1", "trainer.precision=bf16")


def test_a_run_writes_its_page_at_its_end(digits):
    folder, output = digits
    assert f"report: {folder / 'report.html'}" in output
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 10e6
    shown = html.unescape(text)
    assert "1,437 training and 360 held-out samples of 1 x 8 x 8 (channels x height x width), 10 classes" in shown
    assert re.search("<h1>MaskedJEPA on digits</h1>.*python train.py .*data.batch_size=32", shown, re.DOTALL)
    assert "6 of 6 steps of 32 samples" in shown
    assert re.search("<li>(Training has|No clear difference)", shown), "whether training has helped"
    differing = shown.split("What differs from the defaults")[1].split("</table>")[0]
    assert differing.count("<tr>") <= 2 + len(folder_options(folder)), "what was typed, and no more"
    assert "Green: of the same class" in shown
    assert "Drawn: all 360 held-out and a random 640 of 1,437 training samples." in shown
    assert re.search(r"<figcaption>0\.\d\d\s\d\s", shown), "a neighbour with its similarity and class"
    assert re.search(r"nearest one \(k=1\) has the same label: \d+% \(trained\), \d+% \(random weights\), \d+%", shown)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(digits, tmp_path, dark):
    facts, said = browse(digits[0] / "report.html", tmp_path, dark=dark)
    assert said == []
    assert facts.keys() == {1280, 390}
    for width, each in facts.items():
        assert each["needed"] <= width, "nothing is cut off at the right"
        assert each["charts"] == each["drawn"] > 8
        assert each["broken"] == each["cut"] == 0
        assert each["sections"] == SECTIONS
        assert each["similar"] > 5
        assert each["sample"] > 100
        assert each["pictures"] > 100
        light = [sum(map(int, re.findall(r"\d+", each[name])[:3])) > 380 for name in ("background", "ink")]
        assert light == ([False, True] if dark else [True, False])


def write_samples(kind, folder):
    """Write a few samples of a kind, of two classes where it has any."""
    random = np.random.default_rng(0)
    folder.mkdir()
    if kind == "series":
        rows = [f"2020-01-{day:02}T{hour:02}:00,{hour},{day * hour}" for day in range(1, 25) for hour in range(24)]
        (folder / "table.csv").write_text("\n".join(["time,load,heat", *rows]))
    elif kind == "text":
        rows = [f"some words number {number} here,{'ab'[number % 2]}" for number in range(40)]
        (folder / "table.csv").write_text("\n".join(["text,label", *rows]))
    for number in range(24 if kind in ("sound", "video") else 0):
        path = folder / "ab"[number % 2] / f"{number}"
        path.parent.mkdir(exist_ok=True)
        if kind == "sound":
            wavfile.write(path.with_suffix(".wav"), 8000, random.integers(-9000, 9000, 4000, np.int16))
            continue
        path.mkdir()
        for frame, pixels in enumerate(random.integers(0, 256, (4, 16, 16, 3), np.uint8)):
            Image.fromarray(pixels).save(path / f"{frame}.png")


MODALITIES = {
    "series": (
        "data=series_csv model=series data.window_size=24",
        "table.csv",
        ("svg class=", "load", "24 steps of 1 h", "2020-01-02 05:00", "Colours are the time", "overlap the sample"),
    ),
    "text": (
        "data=text_csv model=text data.max_length=8",
        "table.csv",
        ('class="words"', "some words", "table.csv, row 3"),
    ),
    "sound": (
        "data=audio_folder model=audio data.seconds=1 data.sample_rate=8000",
        "",
        ("<audio", "0 to 0.50 s", "width:200.00%", "a/2.wav, training"),
    ),
    "video": (
        "data=video_folder model=video data.num_frames=4 data.image_size=16",
        "",
        ("stack video", "a/2, training"),
    ),
}
"""Kind -> options, file of the samples, and what the page shows of them."""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("kind", MODALITIES)
def test_every_modality(run, tmp_path, kind):
    options, name, shown = MODALITIES[kind]
    write_samples(kind, tmp_path / "own")
    root = tmp_path / "own" / name if name else tmp_path / "own"
    given = [*options.split(), f"data.root={root}", "data.batch_size=8", "data.num_workers=0"]
    page = run(kind, *given, without="data.image_size")[0] / "report.html"
    facts, said = browse(page, tmp_path)
    assert said == []
    for width, each in facts.items():
        assert each["needed"] <= width
        assert each["charts"] == each["drawn"]
        assert each["broken"] == each["cut"] == 0
        assert {"masks", "features", "neighbours", "map"} <= set(each["sections"])
        assert each["similar"] > 1
        assert each["sample"] > 20
        assert ("predictions" in each["sections"]) == (kind != "text")
        assert ("mistakes" in each["sections"]) == (kind != "series")
    text = page.read_text(encoding="utf-8")
    images = [base64.b64decode(data) for data in re.findall(r"image/webp;base64,([^\"]+)", text)]
    assert any(b"ANIM" in image for image in images) == (kind == "video")
    for sign in shown:
        assert sign in text
    assert ("Green: of the same class" in text) == (kind != "series")


def test_neighbours():
    """Samples that share a part of the query are left out, and others come with name, similarity and class."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    overlap = torch.zeros(4, 4, dtype=torch.bool)
    overlap[0, 1] = overlap[1, 0] = True
    embedded = Embedded(
        features={"trained": features},
        thumbnails=["<i/>"] * 4,
        labels=torch.tensor([0, 0, 1, 0]),
        names=["a", "b"],
        places=[f"folder/{number}.png" for number in range(4)],
        said="all",
        held_out=1,
        overlap=overlap,
    )
    text = neighbour_pictures(embedded, [0], "images")
    found = re.findall(r'figure class="(\w*)" title="(.*?)">.*?<figcaption>(.*?)</figcaption>', text, re.DOTALL)
    assert found == [
        ("", "folder/0.png, held out", "a\n0.png"),
        ("other", "folder/2.png, training", "0.98\nb\n2.png"),
        ("same", "folder/3.png, training", "0.00\na\n3.png"),
    ]


def test_several_runs(digits, old_runs, tmp_path):
    path = report_runs([digits[0], old_runs / "plain"], output=tmp_path / "both.html", device="cpu")
    text = html.unescape(path.read_text(encoding="utf-8")).replace("\\u002f", "/")
    assert "run: train/loss" in text
    assert "plain: train/loss" in text
    assert re.search(r"<td>data.batch_size</td><td>32</td><td>64</td>", text)
    assert re.search(r"<td>eval/trained/linear</td><td>[\d.]+</td><td>0.58</td>", text)
    with pytest.raises(UserError, match="holds no run: give a run folder"):
        report_runs([tmp_path])


def test_a_run_without_its_checkpoint(old_runs, tmp_path):
    folder = tmp_path / "<b>run"
    shutil.copytree(old_runs / "plain", folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/loss"\nnothing\n')
    results = json.loads((folder / "results.json").read_text())
    results["trained"] |= {"knn": None, "odd": "<b>run"}  # not finite, and edited by hand
    (folder / "results.json").write_text(json.dumps(results))
    text = report_runs([folder], device="cpu").read_text(encoding="utf-8")
    assert "<b>run" not in text
    assert "Without pictures of samples and features" in text
    assert "Not all files could be read: metrics.jsonl" in text


def test_a_run_that_ended_before_its_last_evaluation(tmp_path):
    rows = {name: {"lidar": 3.0} for name in ("initial", "random_init", "raw_input")}
    record = Record("a", tmp_path, Status("stopped"), {}, [], rows | {"scored_on": "validation"}, {}, [])
    assert "samples kept aside from training" in sentences(record, None, None)[-1]


def test_a_model_that_draws_no_masks_has_none():
    model = SimpleNamespace(mask_sampler=None, prepare=lambda batch, rng: batch)  # as LeJEPA without model/mask
    assert masks_of(SimpleNamespace(trained=model, seed=0, step=0), torch.zeros(2, 1, 8, 8)) == []


def test_shares_of_same_label():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.9, 0.1]])
    features = {"trained": x, "raw_input": x.flip(0)}

    def said(labels):
        return shares_of_same_label(Embedded(features, [], labels, ["a", "b"], [], "all 4", 4))

    assert "label: 67% (trained), 33% (raw input)." in said(torch.tensor([0, 0, 1, -1]))
    assert said(torch.tensor([0, -1, -1, -1])) == said(None) == ""


def test_classes_whose_names_begin_alike():
    labels, names = torch.tensor([0, 1, 1]), [f"{'a' * 30} {end}" for end in ('"b"', "c")]
    embedded = Embedded(features={}, thumbnails=[], labels=labels, names=names, places=["x"] * 3, said="", held_out=3)
    _, note, drawn = confusion(embedded, Classified(torch.eye(2)[labels], 3))
    assert "100.0% of 3 held-out samples are right" in note
    assert '"tickvals":[0,1]' in drawn


def test_the_decoder():
    """What it decodes is explained as far as features hold it, and goes to the right places."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 8, generator=random)
    values = features[:, :4] @ torch.randn(4, 6, generator=random)
    decoder = fit_decoder(features, values)
    assert explained(values, decoder(features)) > 0.95
    assert explained(values, fit_decoder(features.bfloat16(), values)(features)) > 0.9, "as networks give them in bf16"
    assert explained(values, decoder(features.roll(1, 0))) == 0
    index = torch.tensor([[1, 3], [2, 0]])
    placed = place(torch.tensor([[[1.0, 2.0], [3.0, 9.0]]]), index, torch.tensor([[[0.0, 0.0, 5.0]]]))
    assert placed.tolist() == [[[1.0, 3.0, 2.0]]]
    channels = torch.tensor([[[0.0, 1.0], [5.0, 7.0]]])  # each has a range of its own
    placed = place(torch.tensor([[[6.0, 6.0, 6.0, 8.0]]]), torch.tensor([[1, 2, 3, 4]]), channels)
    assert placed.tolist() == [[[1.0, 1.0], [6.0, 7.0]]]


def test_the_picture_of_a_run(digits, tmp_path, monkeypatch):
    """A row for each sample: the input, what is seen of it, what is predicted, and what its features hold."""
    monkeypatch.setattr(token_decoder, "fit_decoder", functools.partial(fit_decoder, steps=2))
    given = [f"checkpoint={digits[0]}", f"output={tmp_path / 'x.png'}"]
    assert decode_run(load_config(given, config_name="decode")) == [tmp_path / "x.png"]
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] == 4 * 238 + 6
    head, step = len(pixels) - 8 * 251, 251  # each 232 high, below 13 of text and above 6 of nothing
    rows = [pixels[head + 13 + n * step :][:232].reshape(8, 29, -1, 3)[:, 14] for n in range(8)]
    for row in rows:
        whole, seen, predicted, _ = (row[:, 6 + 238 * n :][:, :232].reshape(8, 8, 29, 3)[:, :, 14] for n in range(4))
        hidden = (seen == (70, 78, 86)).all(axis=-1)
        assert 0 < hidden.sum() < 64
        assert (whole == seen)[~hidden].all()
        assert (predicted == seen)[~hidden].all()
        assert not (predicted == seen)[hidden].all()
    for wrong, said in (("timm:resnet", "which predicts nothing"), (str(tmp_path), "holds no checkpoint")):
        with pytest.raises(UserError, match=said):
            decode_run(load_config([f"checkpoint={wrong}", "output=x.png"], config_name="decode"))


def test_without_a_page(train, tiny, tmp_path, digits, monkeypatch, capsys):
    options = ["evaluation=none", "~logger.tensorboard", "trainer.max_steps=1", f"hydra.run.dir={tmp_path / 'none'}"]
    none = train(*tiny, *options, "report=none", REPORT="yes")
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
