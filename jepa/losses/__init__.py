"""Losses: latents to named scalars."""

from jepa.losses.invariance import Invariance
from jepa.losses.objective import Objective, WeightedTerm
from jepa.losses.projector import Projector
from jepa.losses.regression import L1, MSE, SmoothL1
from jepa.losses.sigreg import SIGReg

__all__ = ["L1", "MSE", "Invariance", "Objective", "Projector", "SIGReg", "SmoothL1", "WeightedTerm"]
