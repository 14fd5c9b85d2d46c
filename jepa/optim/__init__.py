"""Parameter groups and schedules; the optimizers are torch's own."""

from jepa.optim.groups import parameter_groups
from jepa.optim.schedules import Constant, Cosine, Linear, WarmupCosine

__all__ = ["Constant", "Cosine", "Linear", "WarmupCosine", "parameter_groups"]
