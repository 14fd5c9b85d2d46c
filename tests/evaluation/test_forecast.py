"""Forecasts from frozen features: ridge by closed form, the usual errors, and simple forecasts beside them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from jepa.data.series_data import SeriesData
from jepa.data.sources.series_tables import SeriesSplits, Timeline, ett
from jepa.evaluation import FrozenEvaluation
from jepa.evaluation.forecast import Forecast, _repeated, _Ridge, _SplitFeatures
from jepa.evaluation.probe import named_scores
from jepa.utils.errors import UserError

CPU = torch.device("cpu")


def wave(steps=900, *, period=12, noise=0.1, gap=None):
    """Data of two noisy waves of that period, split into 500, 200 and 200 steps."""
    random = torch.Generator().manual_seed(0)
    time = torch.arange(steps) * 2 * torch.pi / period
    values = torch.stack([time.sin(), 3 + 2 * time.cos()]) + noise * torch.randn(2, steps, generator=random)
    if gap is not None:
        values[:, gap] = float("nan")
    timeline = Timeline(values, (500, 700, 900), period, ("a", "b"))
    return functools.partial(
        SeriesData, source=lambda root: SeriesSplits(timelines=[timeline]), root="", window_size=24
    )


def probe(**settings):
    return Forecast(**{"horizons": [6, 30], "max_train_windows": None, "max_validation_windows": None, **settings})


def test_it_forecasts_a_wave_and_reports_simple_forecasts_beside():
    scores = probe()(None, wave()(), device=CPU, batch_size=64)
    assert list(scores) == [
        f"/{horizon}/{rival}{kind}"
        for horizon in (6, 30)
        for rival in ("", "last_value/", "seasonal_naive/")
        for kind in ("mse", "mae")
    ]
    noise = 0.1**2 / 0.5  # of the first wave, whose variance is a half; the second's is 2
    for horizon in (6, 30):
        mse = scores[f"/{horizon}/mse"]
        assert 0.5 * noise < mse < 2 * noise < scores[f"/{horizon}/last_value/mse"]
        assert mse < scores[f"/{horizon}/seasonal_naive/mse"] < 6 * noise
        assert 0 < scores[f"/{horizon}/mae"] < mse**0.5


def test_the_head_is_ridge_regression():
    data = wave()()
    windows = data.windows("train", horizon=6)
    part = _SplitFeatures(None, windows, 100, pooling="flatten", device=CPU, batch_size=32)
    x, future, *_ = windows[part.index]
    assert len(part.index) <= 100
    assert torch.equal(part.x, x.flatten(1))
    (head,) = _Ridge(part).fit(windows, [0.1])
    features, target = part.x.double(), future.flatten(1).double()
    scaled = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    # The penalty as further samples: sqrt(penalty n) times the unit vectors, of target 0.
    centred = target - target.mean(dim=0)
    rows = torch.cat([scaled, (0.1 * len(scaled)) ** 0.5 * torch.eye(scaled.shape[1], dtype=torch.float64)])
    weights = torch.linalg.lstsq(
        rows, torch.cat([centred, centred.new_zeros(scaled.shape[1], centred.shape[1])])
    ).solution
    expected = scaled @ weights + target.mean(dim=0)
    torch.testing.assert_close(part.x @ head[:-1] + head[-1], expected.float(), atol=1e-4, rtol=1e-4)


def test_horizons_share_their_products(caplog):
    data = wave(gap=slice(100, 103))()
    part = _SplitFeatures(None, data.windows("train", horizon=6), None, pooling="flatten", device=CPU, batch_size=32)
    shared = _Ridge(part)
    together = {h: shared.fit(data.windows("train", horizon=h), [0.01])[0] for h in (30, 6)}
    for horizon, head in together.items():
        torch.testing.assert_close(
            head, _Ridge(part).fit(data.windows("train", horizon=horizon), [0.01])[0], atol=1e-5, rtol=1e-4
        )
    scores = probe()(None, data, device=CPU, batch_size=64)
    assert all(np.isfinite(value) for value in scores.values())
    missing = wave(gap=slice(700, 900))()
    assert probe()(None, missing, device=CPU, batch_size=64) == {}
    assert "no forecasts of 30 steps: the future holds nothing but missing values" in caplog.text
    scores = probe()(None, wave(gap=slice(0, 500, 20))(), device=CPU, batch_size=64)
    assert not [name for name in scores if name.startswith("/30")]
    assert "no forecasts of 30 steps: every training window has missing values in its future: use " in caplog.text
    caplog.clear()
    few, few_data = probe(), wave(gap=slice(10, 500, 33))()
    for _ in range(2):
        few(None, few_data, device=CPU, batch_size=64)
    assert caplog.text.count("of the training windows") == 1
    assert "forecasts of 30 steps are fitted to 8.7 % of the training windows" in caplog.text
    assert probe(horizons=[500])(None, data, device=CPU, batch_size=64) == {}
    assert "no forecasts of 500 steps: the " in caplog.text


@pytest.mark.parametrize("normalise", ["none", "last", "window"])
def test_errors_are_of_z_scored_values_whatever_the_window_is_normalised_by(normalise):
    scores = probe(penalties=[1e-6])(None, wave(noise=0.0)(normalise=normalise), device=CPU, batch_size=64)
    assert scores["/30/mse"] < 1e-4
    if normalise == "none":
        last = scores
    else:
        last = probe()(None, wave(noise=0.0)(normalise="none"), device=CPU, batch_size=64)
    assert scores["/30/last_value/mse"] == pytest.approx(last["/30/last_value/mse"], rel=1e-5)


def test_one_column_is_forecast_from_all_and_its_errors_have_its_unit():
    data = wave()()
    scores = probe(column="b", horizons=[6], penalties=[1e-4])(None, data, device=CPU, batch_size=64)
    assert scores["/6/rmse"] == pytest.approx(scores["/6/mse"] ** 0.5 * float(data.scale[1]))
    assert 0.09 < scores["/6/rmse_last_step"] < 0.13  # the noise
    windows = data.windows("test", horizon=6)
    x, future, *_ = windows[torch.arange(len(windows))]
    expected = (x[:, 1, -1] - future[:, 1, -1]).square().mean().sqrt() * data.scale[1]
    assert scores["/6/last_value/rmse_last_step"] == pytest.approx(float(expected))
    for wrong, options in (("c", {}), ("a", {"split_channels": True})):
        with pytest.raises(UserError, match="evaluation.probes.forecast.column=" + wrong):
            probe(column=wrong)(None, wave()(**options), device=CPU, batch_size=64)


def test_the_penalty_is_chosen_without_the_test_part():
    data = wave()()
    chosen = probe(penalties=[1e3, 1e-3])(None, data, device=CPU, batch_size=64)
    assert chosen["/6/mse"] == pytest.approx(probe(penalties=[1e-3])(None, data, device=CPU, batch_size=64)["/6/mse"])
    data.timelines[0].values[:, 700:] = torch.randn(2, 200)  # of which nothing is learnt
    (one, other) = (probe(penalties=p)(None, data, device=CPU, batch_size=64)["/6/mse"] for p in ([1e3, 1e-3], [1e-3]))
    assert one == pytest.approx(other)


def test_repeating_the_last_steps():
    window = torch.tensor([[[1.0, 2.0, float("nan"), 4.0, float("nan")]]])
    assert _repeated(window, 1, 3).flatten().tolist() == [4, 4, 4]
    assert _repeated(window, 3, 5).flatten().tolist() == [2, 4, 4, 2, 4]
    assert _repeated(torch.full((1, 1, 2), float("nan")), 1, 2).flatten().tolist() == [0, 0]


class Tokens(nn.Module):
    """A network whose tokens are steps of the window; the target knows the first half alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Identity()
        self.encoder.token_valid = lambda x: ~x.isnan().all(dim=1)

    def encode_target(self, x):
        return x.transpose(1, 2)[:, -12:].nan_to_num(0.0).tanh()


def test_it_is_part_of_the_frozen_evaluation_without_labels():
    evaluation = FrozenEvaluation(probes={"forecast": probe()})

    class Encoder(nn.Module):
        def token_valid(self, x):
            return ~x[..., -12:].isnan().all(dim=1)

    model = Tokens()
    model.encoder = Encoder()
    results = evaluation(model, wave()(), random_init=lambda: model, device=CPU)
    assert list(results) == ["trained", "random_init", "raw_input"]
    assert results["trained"]["forecast/6/mse"] == results["random_init"]["forecast/6/mse"]
    assert results["trained"]["forecast/6/mse"] > results["raw_input"]["forecast/6/mse"]
    assert "forecast/6/last_value/mse" in results["raw_input"]
    assert "forecast/6/last_value/mse" not in results["trained"]
    assert "linear" not in results["raw_input"]
    assert "rankme" in results["raw_input"]


@pytest.mark.parametrize("warned", [False, True])
def test_data_without_a_timeline_has_no_forecast(bars, make_row_model, caplog, warned):
    if warned:  # a series that ends with its window, where pictures have none
        bars.windows = lambda split, horizon: None
    evaluation = FrozenEvaluation(probes={"forecast": probe()})
    results = evaluation(make_row_model(), bars, random_init=make_row_model, device=CPU)
    assert not any(name.startswith("forecast") for row in results.values() for name in row)
    assert ("no forecast" in caplog.text) == warned


def test_names():
    assert named_scores("forecast", {"/96/mse": 1.0}) == {"forecast/96/mse": 1.0}
    assert named_scores("fewshot", {"1": 1.0}) == {"fewshot_1": 1.0}


def test_etth1_simple_forecasts_are_the_known_ones(shared_dir):
    root = str(shared_dir / "data" / "ett" / "ETTh1.csv")
    data = SeriesData(source=ett, root=root, window_size=336, split_channels=True, normalise="last")
    scores = Forecast(horizons=[96], max_train_windows=500)(None, data, device=CPU, batch_size=256)
    # 1.294 and 0.713: the Repeat-C row of DLinear (Zeng et al. 2022, arXiv 2205.13504, table 2), from memory.
    assert scores["/96/last_value/mse"] == pytest.approx(1.2944, abs=1e-3)
    assert scores["/96/last_value/mae"] == pytest.approx(0.7132, abs=1e-3)
    assert scores["/96/mse"] < 0.4
