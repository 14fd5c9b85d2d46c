"""Runs of train.py on pairs of modalities."""

from __future__ import annotations

import json

import pytest

SMALL = (
    "data=paired",
    "model=crossmodal",
    "data.batch_size=8",
    "model.encoders.written.embed_dim=32",
    "model.encoders.written.depth=1",
    "model.encoders.spoken.embed_dim=32",
    "model.encoders.spoken.depth=1",
    "model.predictor.embed_dim=16",
    "loss.projector.hidden=[32]",
    "trainer.max_steps=3",
    "trainer.log_every=1",
    "trainer.save_every_epochs=null",
    "trainer.device=cpu",
    "~logger.tensorboard",
)


def roots(shared_dir) -> list[str]:
    data = shared_dir / "data"
    return [f"data.mnist_root={data / 'mnist'}", f"data.fsdd_root={data / 'fsdd.tar.xz'}"]


@pytest.mark.slow
def test_digits_train_with_missing_modalities_and_are_evaluated(train, tmp_path, shared_dir):
    done = train(
        *SMALL,
        *roots(shared_dir),
        "data.missing={spoken: 0.3, written: 0.3}",
        "model.shared_trunk=true",
        "evaluation.max_train_samples=200",
        "evaluation.max_test_samples=100",
        "hydra.run.dir=run",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for row in ("trained", "random_init", "raw_input"):
        for modality in ("written", "spoken"):
            assert {f"{modality}/linear", f"{modality}/knn"} <= results[row].keys()
    for direction in ("written_to_spoken", "spoken_to_written"):
        chance = results["trained"][f"retrieval/{direction}/recall_at_1_chance"]
        assert 0.05 < chance < 0.15
        assert 0 <= results["trained"][f"retrieval/{direction}/recall_at_1"] <= 1
    assert not any(name.startswith("retrieval") for name in results["raw_input"])


@pytest.mark.slow
def test_pairs_are_previewed_resumed_and_split_into_micro_batches(train, tmp_path, shared_dir):
    options = [*SMALL, *roots(shared_dir), "evaluation=none", "hydra.run.dir=run"]
    done = train(*options, "trainer.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "x.written" in done.stdout
    micro = ["trainer.micro_batch_size=4", "trainer.allow_microbatch_statistics=true", "hydra.run.dir=micro"]
    done = train(*options[:-1], *micro)
    assert done.returncode == 0, done.stderr
    done = train(*options[:-1], *micro[:2], "resume=micro", "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr


def test_data_that_are_no_pairs_are_refused(train, tmp_path, shared_dir):
    done = train("data=paired", "model=vit", *roots(shared_dir), "trainer.device=cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
