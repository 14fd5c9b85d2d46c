"""What scripts/evaluate.py makes of a checkpoint, in this process; tests/runs/test_evaluate.py runs the script."""

from __future__ import annotations

import json

import pytest
import torch

from jepa.evaluation import FrozenEvaluation
from jepa.evaluation.feature_source import FeatureSource
from jepa.interop.ours import collapse_of
from jepa.utils.errors import UserError
from jepa.utils.files import check_output


def test_the_keys_are_those_of_results_json(evaluate, run_folder):
    scores = evaluate(f"checkpoint={run_folder}")
    results = json.loads((run_folder / "results.json").read_text())
    assert results.pop("initial")  # before the run, which its checkpoint knows nothing of
    assert scores.keys() == results.keys() | {"checkpoint", "data"}
    for key, value in results.items():
        assert scores[key] == (pytest.approx(value) if key == "trained" else value), key
    assert scores["collapse"]["verdict"] == "unknown"
    assert "measurements" in scores["collapse"]["evidence"]


def test_a_run_that_collapsed_or_was_not_watched(evaluate, run_folder, tmp_path):
    content = torch.load(run_folder / "checkpoints" / "last.pt", weights_only=True)
    content["monitor"]["verdict"] = ["complete collapse", "the spread fell", None]
    content |= {"rollbacks": [{"from": 2, "to": 1, "reason": "x"}], "ended": "x: y"}
    torch.save(content, tmp_path / "x.pt")
    scores = evaluate(f"checkpoint={tmp_path / 'x.pt'}", "evaluation.probes.knn=null")
    assert scores["collapse"] == {
        "verdict": "complete collapse",
        "evidence": "the spread fell",
        "rollbacks": content["rollbacks"],
    }
    assert scores["stopped"] == "x: y"
    assert list(scores["trained"]) == ["rankme", "feature_std"]
    unwatched = collapse_of(content | {"monitor": None})
    assert unwatched == {"verdict": "unknown", "evidence": "its run had no monitor, so no monitor has watched it"}


def test_a_second_evaluation_encodes_nothing(evaluate, run_folder, tmp_path, monkeypatch):
    kept = [f"checkpoint={run_folder}", f"cache_dir={tmp_path / 'features'}"]
    first = evaluate(*kept)
    assert len(list((tmp_path / "features").iterdir())) == 6
    monkeypatch.setattr(FeatureSource, "_extract", lambda self, split: pytest.fail(f"{self.name} {split} was encoded"))
    assert evaluate(*kept, "evaluation.probes.knn.k=20") == first


def test_other_data(evaluate, run_folder, shared_dir, capsys):
    data = ["data=mnist", f"data.root={shared_dir / 'data' / 'mnist'}", "data.image_size=8", "evaluation.seeds=2"]
    data += ["data.mean=0.5", "data.std=auto", "data.score_on=validation"]
    scores = evaluate(f"checkpoint={run_folder}", *data)
    assert scores["data"]["source"]["_target_"] == "jepa.data.sources.mnist"
    assert scores["trained"].keys() == scores["raw_input"].keys() == {"knn", "rankme", "feature_std"}
    assert scores["spread"].keys() == {"random_init"}
    assert scores["scored_on"] == "validation"
    assert "val/loss" not in scores
    said = capsys.readouterr().out
    assert "inputs are normalised with data.mean=[0.5], in training [" in said
    assert "inputs are normalised with data.std=auto, in training [" in said


def test_a_published_file(evaluate, published):
    file = f"checkpoint={published}"
    data = ["data=digits", "data.image_size=32", "data.channels=3"]
    scores = evaluate(file, "model.encoder.num_heads=4", *data, "evaluation.max_train_samples=40")
    assert scores["trained"] != scores["random_init"]
    assert scores["collapse"]["verdict"] == "unknown"
    with pytest.raises(UserError, match=r"give model.encoder.num_heads=<number>"):
        evaluate(file, *data)
    with pytest.raises(UserError, match="data is not set"):
        evaluate(file, "model.encoder.num_heads=4")


def test_random_weights_have_no_trained_row(evaluate, tiny, monkeypatch):
    rows, original = [], FrozenEvaluation._row

    def row(self, name, *arguments, **options):
        rows.append(name)
        return original(self, name, *arguments, **options)

    monkeypatch.setattr(FrozenEvaluation, "_row", row)
    scores = evaluate("checkpoint=random", *[override for override in tiny if override.startswith("model.")])
    assert scores.keys() == {"random_init", "raw_input", "collapse", "checkpoint", "data"}
    assert rows == ["random_init", "raw_input"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.encoder.depth=5"], "model.encoder.depth=5, but the model of"),
        (["loss=vicreg"], "loss: .* brings its own"),
        (["data.image_size=7"], "model.encoder.patch_size=2 does not divide data.image_size=7"),
        (["data=image_folder"], "^data.root is not set: give it on the command line, data.root=..."),
        (["data.channels=3"], "add data.channels=1"),
        (["evaluation.probes.kn=null"], "evaluation.probes.kn: there is no such probe; did you mean knn"),
        (["evaluation.probes.knnn.k=3"], "evaluation.probes.knnn: there is no such probe"),
    ],
)
def test_mistakes(evaluate, run_folder, arguments, words):
    with pytest.raises(UserError, match=words):
        evaluate(f"checkpoint={run_folder}", *arguments)


def test_outputs_that_would_replace_something(run_folder, tmp_path):
    last = run_folder / "checkpoints" / "last.pt"
    for path in (last, run_folder / "results.json", run_folder / "checkpoints" / "evaluation.json"):
        with pytest.raises(UserError, match="is a run's own file"):
            check_output(path, str(run_folder))
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        check_output(run_folder, str(run_folder))
    (tmp_path / "bare.pth").touch()
    with pytest.raises(UserError, match="is the checkpoint itself"):
        check_output(tmp_path / "bare.pth", str(tmp_path / "bare.pth"))
    check_output(run_folder / "evaluation.json", str(run_folder))
