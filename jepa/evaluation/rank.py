"""Label-free measures of features: do they use their dimensions, or have they collapsed?"""

from __future__ import annotations

from jepa.utils.spread import feature_std, rankme

__all__ = ["feature_std", "rankme"]
