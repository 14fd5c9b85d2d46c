"""The default job and a sweep need the core alone; what needs an extra names it, and the command that installs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from core_only import PROJECT, ROOT, core_only, names_of_extras
from packaging.requirements import Requirement

from jepa import UserError, build_trainer, load_config
from jepa.utils.lazy_import import MissingPackageError, lazy_import, require

pytestmark = pytest.mark.timeout(900)

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("core_only")


@pytest.fixture(scope="module")
def run(folder):
    """Runs a script of the repository in the environment; gives the finished process."""
    environment = core_only(folder)

    def start(*arguments: str) -> subprocess.CompletedProcess:
        script, *options = arguments
        command = [sys.executable, str(ROOT / script), *options]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return start


@pytest.fixture(scope="module")
def sweep(run, folder):
    """The folder of a sweep of two tiny runs with the evaluation and the loggers of the default job, and its output."""
    options = ("trainer.max_steps=2", "trainer.log_every=1", "trainer.device=cpu", "model.encoder.depth=1")
    process = run("train.py", "-m", *options, "trainer.seed=0,1", "hydra.sweep.dir=sweep")
    assert process.returncode == 0, process.stderr
    return folder / "sweep", process.stdout


def test_the_extras_are_known_by_their_import_names():
    names = names_of_extras()
    assert {"av", "datasets", "onnx", "onnxruntime", "pandas", "plotly", "pyarrow", "soundfile", "soxr"} <= names
    assert {"tokenizers", "transformers"} <= names
    assert not {"torch", "timm", "huggingface_hub", "scipy", "sklearn", "matplotlib", "wandb", "yaml"} & names


def test_all_is_every_extra():
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all", "dev"}


@SLOW
def test_a_sweep_of_the_default_job_trains_evaluates_and_prints_its_table(sweep):
    place, output = sweep
    for job in "01":
        assert (place / job / "results.json").is_file()
    assert "eval/trained/linear" in output
    assert "leaderboard.csv" in output
    assert "leaderboard.html is not written, as it needs plotly: pip install 'jepa[report]'" in output
    assert (place / "leaderboard.csv").is_file()
    assert not (place / "leaderboard.html").exists()


@SLOW
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("scripts/export.py", "checkpoint=sweep/0", "format=onnx", "output=encoder.onnx"),
            "format=onnx needs the package onnxruntime: pip install 'jepa[export]'",
        ),
        (
            ("scripts/extract.py", "checkpoint=sweep/0", "input=pictures", "output=features.parquet"),
            "output=features.parquet needs the package pyarrow: pip install 'jepa[export]'",
        ),
        (
            ("scripts/evaluate.py", "checkpoint=hf:model", "data=digits"),
            "checkpoint=hf:model needs the package transformers: pip install 'jepa[hub]'",
        ),
    ],
)
def test_a_script_names_the_extra(run, sweep, folder, arguments, message):
    from PIL import Image

    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text('{"model_type": "vit"}')
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(folder / "pictures" / "a.png")
    process = run(*arguments)
    assert process.returncode == 1, process.stdout
    assert "Traceback" not in process.stderr
    assert message in process.stderr


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with one small data set of each kind; the tests' working directory."""
    import numpy as np
    import soundfile

    monkeypatch.chdir(tmp_path)
    for name in ("videos", "sounds", "rows"):
        (tmp_path / name).mkdir()
    for number in range(4):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(b"not read")
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", np.zeros(22050), 22050)
    (tmp_path / "series.csv").write_text("a,b\n" + "1,2\n" * 400)
    (tmp_path / "lines.txt").write_text("a line\n" * 40)


@pytest.mark.parametrize(
    ("package", "extra", "purpose", "overrides"),
    [
        ("av", "video", "reading video", ["model=video", "data=video_folder", "data.root=videos"]),
        ("soundfile", "audio", "reading sound", ["model=audio", "data=audio_folder", "data.root=sounds"]),
        ("soxr", "audio", "resampling sound", ["model=audio", "data=audio_folder", "data.root=sounds"]),
        (
            "pandas",
            "series",
            "reading a table of time series",
            ["model=series", "data=series_csv", "data.root=series.csv"],
        ),
        ("tokenizers", "text", "splitting text into tokens", ["model=text", "data=text_lines", "data.root=lines.txt"]),
        (
            "transformers",
            "hub",
            "data.tokenizer=bert-base-uncased",
            ["model=text", "data=text_lines", "data.root=lines.txt", "data.tokenizer=bert-base-uncased"],
        ),
        (
            "datasets",
            "hub",
            "reading a data set of Hugging Face",
            ["model=text", "data=hf", "data.path=rows", "data.column=text"],
        ),
    ],
)
def test_data_names_the_extra(files, tmp_path, monkeypatch, package, extra, purpose, overrides):
    small = ["model.encoder.depth=1", "trainer.max_steps=1", "trainer.device=cpu", "logger=[jsonl]"]
    config = load_config([*overrides, *small, "evaluation=none", f"run_dir={tmp_path / 'run'}"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        build_trainer(config).fit()
    assert str(caught.value).endswith(f"{purpose} needs the package {package}: pip install 'jepa[{extra}]'")


def test_a_package_that_is_there_is_imported_once_it_is_used():
    assert require("json.decoder", extra="x", purpose="x").JSONDecoder is lazy_import("json").JSONDecoder


def test_another_package_that_is_missing_is_not_mistaken_for_the_extra(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        require("broken_package", extra="x", purpose="x")
    with pytest.raises(MissingPackageError, match=r"^a purpose needs the package nowhere: pip install 'jepa\[x\]'$"):
        require("nowhere.at.all", extra="x", purpose="a purpose")
