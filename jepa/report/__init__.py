"""Pictures and words about a run: what would run (`preview`), and figures of what was found."""

from jepa.report.figures import learning_rate_figure, mask_figure, sample_figure
from jepa.report.preview import preview

__all__ = ["learning_rate_figure", "mask_figure", "preview", "sample_figure"]
