"""Text, as a user types it: train, resume, evaluate on other texts, and the mistakes."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

pytestmark = pytest.mark.slow

WORDS = ["red", "green", "blue", "card", "bank", "money", "train", "paper", "stone", "river", "cloud", "light"]
TINY = (
    *("model=text", "data.vocab_size=320", "data.max_length=8", "data.batch_size=16"),
    *("model.encoder.embed_dim=32", "model.encoder.depth=1", "model.predictor.embed_dim=32", "trainer.max_steps=4"),
    *("trainer.log_every=1", "trainer.device=cpu", "~logger.tensorboard"),
    *("evaluation=none", "hydra.run.dir=out"),
)


def write_texts(folder):
    """Two tables, of which the label is the first word, and lines of other words."""
    folder.mkdir()
    for name, shift in (("train", 0), ("test", 5)):
        rows = [f"{WORDS[n % 2]} {WORDS[(n + shift) % 12]} {WORDS[n * 7 % 12]},{'ab'[n % 2]}" for n in range(60)]
        (folder / f"{name}.csv").write_text("\n".join(["text,kind", *rows]))
    (folder / "corpus.txt").write_text("\n".join(f"{WORDS[n % 5]} {WORDS[n * 3 % 12]} other words" for n in range(90)))
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_trained_on_lines_and_evaluated_on_tables(train, fork_server, tmp_path, refused):
    texts = write_texts(tmp_path / "texts")
    lines = [*TINY, "data=text_lines", f"data.root={texts / 'corpus.txt'}", "trainer.save_every_steps=2"]
    process = train(*lines)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "out"
    tokenizer = (run / "tokenizer.json").read_text()
    losses = [line["train/loss"] for line in metrics(run) if "train/loss" in line]
    assert len(losses) == 4

    (texts / "corpus.txt").write_text("changed entirely\n" * 90)  # the tokenizer of the run stays
    process = train("resume=out", "trainer.max_steps=5")
    assert process.returncode == 0, process.stderr
    assert (run / "tokenizer.json").read_text() == tokenizer

    table = ("data=text_csv", f"data.root={texts}", "data.label_column=kind", "trainer.device=cpu")
    table = (*table, "evaluation=frozen", "~evaluation.probes.lidar", "evaluation.probes.linear.penalties=[0.01]")
    moved = shutil.move(run, tmp_path / "moved")
    arguments = [f"checkpoint={moved}", *table, "output=scores.json", "hydra.run.dir=scored"]
    process = fork_server.start(arguments, tmp_path, {}, script="scripts/evaluate.py").wait()
    assert process.returncode == 0, process.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["data"]["tokenizer"] == str(tmp_path / "moved" / "tokenizer.json")
    assert (scores["data"]["vocab_size"], scores["data"]["max_length"]) == (320, 8)
    assert {row: {"linear", "knn"} <= scores[row].keys() for row in ("trained", "random_init", "raw_input")} == {
        "trained": True,
        "random_init": True,
        "raw_input": True,
    }
    assert not (tmp_path / "scored" / "tokenizer.json").exists()

    (tmp_path / "moved" / "tokenizer.json").unlink()
    process = fork_server.start(arguments, tmp_path, {}, script="scripts/evaluate.py").wait()
    assert "its tokenizer.json is not in the run folder" in refused(process)


def test_mistakes(train, tmp_path, refused):
    texts = write_texts(tmp_path / "texts")
    table = ["data=text_csv", f"data.root={texts}"]
    assert "data.label_column=label: " in refused(train(*TINY, *table))
    assert "they go with model=text: python train.py" in refused(train(*table, "hydra.run.dir=out2"))
    process = train(*TINY, *table, "data.label_column=kind", "data.tokenizer=nowhere/tokenizer.json")
    assert "data.tokenizer=nowhere/tokenizer.json: there is no such file" in refused(process)


def test_json_lines_by_the_command_that_is_advised(train, tmp_path, refused):
    rows = [
        {"id": n, "text": "" if n % 9 == 0 else f"{WORDS[n % 5]} ทั้งหมด {WORDS[n * 3 % 12]} " * 4} for n in range(90)
    ]
    (tmp_path / "x y.jsonl").write_text("\n".join(map(json.dumps, rows)))
    advice = re.search("as in (data=text_lines .*)", refused(train(*TINY, "data=text_lines", "data.root=x y.jsonl")))[1]
    for number, command in enumerate((shlex.split(advice), ["data=hf", "data.path=x y.jsonl", "data.column=text"])):
        process = train(*TINY, *command, f"hydra.run.dir=out{number}")
        assert process.returncode == 0, process.stderr
        assert "\n10 empty texts left out\n" in process.stdout
        assert "100% of the texts are longer than data.max_length=8 tokens" in process.stdout


def test_the_dry_run_of_text(train, tmp_path):
    texts = write_texts(tmp_path / "texts")
    process = train(*TINY, "data=text_csv", f"data.root={texts}", "data.label_column=kind", "trainer.dry_run=true")
    assert process.returncode == 0, process.stderr
    assert "60 training and 60 test samples of 8, 2 classes (a, b)" in process.stdout
