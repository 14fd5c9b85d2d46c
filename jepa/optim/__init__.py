"""Parameter groups, schedules and their scaling with the batch size; the optimizers are those of torch and timm."""

from jepa.optim.groups import parameter_groups
from jepa.optim.scaling import Scaled, half_life, plan, scale_scheduler
from jepa.optim.schedules import (
    AveragingMomentum,
    Constant,
    Cosine,
    Duration,
    Linear,
    NextStep,
    Ramp,
    Step,
    Warmup,
    WarmupCosine,
    WarmupStableDecay,
)
