"""Checkpoints of this and other projects in (`load`), encoders out (`export`)."""

from jepa.interop.adapter import Loaded, Source
from jepa.interop.exporting import export
from jepa.interop.frozen_networks import network_of
from jepa.interop.loading import find, load, load_into, load_published
