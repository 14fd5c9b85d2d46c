"""Encoders: inputs to tokens on a grid to features."""

from jepa.models.encoders.image_encoder import ImageEncoder, timm_vision_transformer, vision_transformer
from jepa.models.encoders.transformer_encoder import TransformerEncoder

__all__ = ["ImageEncoder", "TransformerEncoder", "timm_vision_transformer", "vision_transformer"]
