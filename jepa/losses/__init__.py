"""Losses: latents to named scalars."""

from jepa.losses.dynamics import InverseDynamics, OneStep, Smoothness
from jepa.losses.infonce import InfoNCE
from jepa.losses.invariance import Invariance
from jepa.losses.multiscale import MultiScale
from jepa.losses.objective import Objective, WeightedTerm
from jepa.losses.projector import Projector
from jepa.losses.reconstruction import Reconstruction
from jepa.losses.regression import L1, MSE, Cosine, Lp, SmoothL1
from jepa.losses.sigreg import SIGReg
from jepa.losses.vicreg import Covariance, Variance
from jepa.losses.visreg import Center, Scale, SlicedWasserstein
