"""Few examples, always the same ones, so that these tests take under a minute on one core."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "few",
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    # Examples share a folder, in which each writes files of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("few")
