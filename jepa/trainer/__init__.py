"""The training loop, its loggers and callbacks."""

from jepa.trainer.callbacks import Callback, EarlyStopping
from jepa.trainer.console import Console
from jepa.trainer.loggers import JSONLines, Logger, RunInfo, TensorBoard
from jepa.trainer.stopping import MedianStopping, SuccessiveHalving
from jepa.trainer.trainer import Trainer
from jepa.trainer.wandb_logger import WandB
