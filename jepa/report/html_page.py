"""HTML pages that need no network, from the templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def render(template: str, **values: Any) -> str:
    """Return the page of a template; texts among its values are escaped."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **values)


def blank_figure(height: int, **layout: Any) -> go.Figure:
    """Return an empty figure without a background."""
    clear = "rgba(0,0,0,0)"
    return go.Figure().update_layout(height=height, paper_bgcolor=clear, plot_bgcolor=clear, **layout)
