"""Models: encoder, predictor, target and masker, from a batch to latents."""

from jepa.models.encoders import ImageEncoder, timm_vision_transformer, vision_transformer
from jepa.models.masked import MaskedJEPA
from jepa.models.predictor import Predictor
from jepa.models.targets import EMATarget, StopGradientTarget

__all__ = [
    "EMATarget",
    "ImageEncoder",
    "MaskedJEPA",
    "Predictor",
    "StopGradientTarget",
    "timm_vision_transformer",
    "vision_transformer",
]
