"""jepa: train joint-embedding predictive architectures.

    from jepa import build_trainer, load_config

    trainer = build_trainer(load_config(["data=digits", "trainer.max_epochs=1"]))
    trainer.fit()

Names are imported when first used, so that `import jepa` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "JEPATrainer": "jepa.config.from_python",
    "Trainer": "jepa.trainer",
    "UserError": "jepa.utils.errors",
    "build_model": "jepa.config.build",
    "build_trainer": "jepa.config.build",
    "find_batch_size": "jepa.tools",
    "find_learning_rate": "jepa.tools",
    "find_optimal_batch_size": "jepa.config.from_python",
    "learning_rate_range_test": "jepa.tools",
    "load_config": "jepa.config.command",
    "load_encoder": "jepa.config.load_encoder",
    "preview": "jepa.report.dry_run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jepa' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
