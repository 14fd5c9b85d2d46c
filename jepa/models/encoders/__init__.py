"""Encoders: inputs to tokens on a grid to features."""

from jepa.models.encoders.image import ImageEncoder, timm_vision_transformer, vision_transformer

__all__ = ["ImageEncoder", "timm_vision_transformer", "vision_transformer"]
