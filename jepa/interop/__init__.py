"""Checkpoints of other projects in."""

from jepa.interop.published import load_pretrained, load_published

__all__ = ["load_pretrained", "load_published"]
