"""How options, numbers and times are written."""

from __future__ import annotations

import math

from jepa.report.formatting import (
    binary_size,
    duration,
    number,
    option,
    options,
    padded,
    shape_text,
    shapes_text,
    short_names,
    si_prefix,
    with_error,
)


def test_numbers():
    assert with_error(0.97312, 0.00423) == "0.9731 ± 0.0042"
    assert [number(value) for value in (0.123456, 29456.0, 1e9, None)] == ["0.1235", "29456", "1e+09", ""]
    assert " ".join(map(padded, (0.95, 34.3, 512.0, 29456.0, math.nan))) == "0.9500 34.30 512.0 29456 nan"
    assert [duration(seconds) for seconds in (0.26, 9.97, 3 * 3600 + 125)] == ["0.3 s", "10 s", "3 h 02 min"]
    assert [binary_size(size) for size in (500, 2048, 3 * 2**30)] == ["500 B", "2.0 KiB", "3.0 GiB"]
    assert [si_prefix(12), si_prefix(1.5e9)] == ["12 ", "1.5 G"]
    assert shape_text((3, 8, 8)) == "3 x 8 x 8"
    assert shapes_text([(2, 3), (2, 3), (), ()]) == "2 of 2 x 3, 2 of scalar"


def test_options():
    assert option("0.0016051911333587634") == "0.001605"
    assert all(option(value) == value for value in ("0.0004", "vit_tiny_long_name", "123456789"))
    names = short_names(["optimizer.lr", "model.encoder.embed_dim", "model.predictor.embed_dim", "loss"])
    assert list(names.values()) == ["lr", "encoder.embed_dim", "predictor.embed_dim", "loss"]
    assert options({"optimizer.lr": "0.0016051911", "loss": "(default)", "x": "a"}, names) == "lr=0.001605 x=a"
