"""Models: encoders, predictors, targets and the training step of each method."""

from jepa.models.base_model import JEPA
from jepa.models.encoders import ImageEncoder, TransformerEncoder, timm_vision_transformer, vision_transformer
from jepa.models.lejepa import LeJEPA
from jepa.models.masked_jepa import MaskedJEPA
from jepa.models.predictor import Predictor
from jepa.models.targets import EMATarget, SharedTarget, StopGradientTarget, TeacherTarget
