"""Models: encoder, predictor, target and masker, from a batch to latents."""

from jepa.models.base_model import JEPA
from jepa.models.encoders import ImageEncoder, TransformerEncoder, timm_vision_transformer, vision_transformer
from jepa.models.masked import MaskedJEPA
from jepa.models.predictor import Predictor
from jepa.models.targets import EMATarget, SharedTarget, StopGradientTarget
from jepa.models.views import LeJEPA

__all__ = [
    "JEPA",
    "EMATarget",
    "ImageEncoder",
    "LeJEPA",
    "MaskedJEPA",
    "Predictor",
    "SharedTarget",
    "StopGradientTarget",
    "TransformerEncoder",
    "timm_vision_transformer",
    "vision_transformer",
]
