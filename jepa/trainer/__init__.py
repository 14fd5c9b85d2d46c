"""The training loop, its files and its words."""

from jepa.trainer.batch_size import BatchSizeFinding, find_batch_size
from jepa.trainer.callbacks import Callback, EarlyStopping
from jepa.trainer.console import Console
from jepa.trainer.finders import LearningRateFinding, find_learning_rate
from jepa.trainer.loggers import JSONLines, Logger, RunInfo, TensorBoard
from jepa.trainer.stopping import MedianStopping, SuccessiveHalving
from jepa.trainer.trainer import Trainer
from jepa.trainer.wandb_logger import WandB

__all__ = [
    "BatchSizeFinding",
    "Callback",
    "Console",
    "EarlyStopping",
    "JSONLines",
    "LearningRateFinding",
    "Logger",
    "MedianStopping",
    "RunInfo",
    "SuccessiveHalving",
    "TensorBoard",
    "Trainer",
    "WandB",
    "find_batch_size",
    "find_learning_rate",
]
