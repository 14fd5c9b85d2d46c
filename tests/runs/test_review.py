"""Whole runs that once went wrong."""

from __future__ import annotations

import torch

from jepa import build_trainer, load_config


def test_a_failing_evaluation_does_not_cost_the_training(tiny, tmp_path):
    trainer = build_trainer(load_config([*tiny, f"run_dir={tmp_path}"]))

    def fail(*args, **kwargs):
        raise RuntimeError("a probe failed")

    trainer.evaluation.__class__ = type("Failing", (type(trainer.evaluation),), {"__call__": fail})
    try:
        trainer.fit()
    except RuntimeError:
        assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == 6
    else:
        raise AssertionError("the probe was not run")


def test_optimizer_options_given_at_resume_win(tiny, tmp_path):
    first = build_trainer(load_config([*tiny, f"run_dir={tmp_path}/a", "evaluation=none"]))
    first.fit()
    changed = [*tiny, f"run_dir={tmp_path}/b", "evaluation=none", "optimizer.betas=[0.5,0.6]"]
    second = build_trainer(load_config(changed))
    second.load_checkpoint(tmp_path / "a")
    assert {group["betas"] for group in second.optimizer.param_groups} == {(0.5, 0.6)}
    assert second.step == 6
