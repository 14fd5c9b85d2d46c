"""The training loop, its files and its words."""

from jepa.trainer.console import Console
from jepa.trainer.loggers import JSONLines, Logger, TensorBoard
from jepa.trainer.trainer import Trainer

__all__ = ["Console", "JSONLines", "Logger", "TensorBoard", "Trainer"]
