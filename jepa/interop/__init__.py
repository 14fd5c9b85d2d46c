"""Checkpoints of this and other projects in, encoders out."""

from jepa.interop.networks import FrozenNetworks, network_of, networks_of
from jepa.interop.opened import Opened
from jepa.interop.opening import Source, find_source
from jepa.interop.published import load_pretrained, load_published

__all__ = [
    "FrozenNetworks",
    "Opened",
    "Source",
    "find_source",
    "load_pretrained",
    "load_published",
    "network_of",
    "networks_of",
]
