"""The training loop, its files and its words."""

from jepa.trainer.callbacks import Callback, EarlyStopping
from jepa.trainer.console import Console
from jepa.trainer.loggers import JSONLines, Logger, RunInfo, TensorBoard
from jepa.trainer.trainer import Trainer
from jepa.trainer.wandb_logger import WandB

__all__ = ["Callback", "Console", "EarlyStopping", "JSONLines", "Logger", "RunInfo", "TensorBoard", "Trainer", "WandB"]
