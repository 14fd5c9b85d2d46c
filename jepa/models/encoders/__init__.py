"""Encoders: inputs to tokens on a grid, tokens to features."""

from jepa.models.encoders.image_encoder import ImageEncoder, timm_vision_transformer, vision_transformer
from jepa.models.encoders.transformer_encoder import TransformerEncoder
