"""How options, numbers and times are written."""

from __future__ import annotations

import math

from jepa.report.formatting import duration, number, option, options, padded, short_names, with_error


def test_wording():
    assert with_error(0.97312, 0.00423) == "0.9731 ± 0.0042"
    assert (duration(0.26), duration(9.97), duration(3 * 3600 + 125)) == ("0.3 s", "10 s", "3 h 02 min")
    assert [number(value) for value in (0.123456, 29456.0, 1e9, None)] == ["0.1235", "29456", "1e+09", ""]
    assert [padded(value) for value in (0.95, 34.3, 512.0, 29456.0, math.nan)] == [
        "0.9500",
        "34.30",
        "512.0",
        "29456",
        "nan",
    ]
    assert option("0.0016051911333587634") == "0.001605"
    assert (option("0.0004"), option("vit_tiny_long_name"), option("123456789")) == (
        "0.0004",
        "vit_tiny_long_name",
        "123456789",
    )
    names = short_names(["optimizer.lr", "model.encoder.embed_dim", "model.predictor.embed_dim", "loss"])
    assert list(names.values()) == ["lr", "encoder.embed_dim", "predictor.embed_dim", "loss"]
    assert options({"optimizer.lr": "0.0016051911", "loss": "(default)", "x": "a"}, names) == "lr=0.001605 x=a"
