"""The collapse monitor: statistics of latents, a verdict with evidence, and what remembers both."""

from jepa.monitor.monitor import CollapseMonitor
from jepa.monitor.statistics import Rows, statistics, take_rows
from jepa.monitor.verdict import Thresholds, Verdict, judge
