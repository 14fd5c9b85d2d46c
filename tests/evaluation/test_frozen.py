import contextlib
import io
import json
from pathlib import Path

import hydra
import pytest
import torch
from rich.console import Console
from torch import nn

from jepa.evaluation import FrozenEvaluation, KNNProbe, LinearProbe, format_table
from jepa.evaluation.features import pool_input
from jepa.evaluation.results import compared
from jepa.types import DataSpec
from jepa.utils.errors import UserError

CONFIGS = str(Path(__file__).parents[2] / "conf" / "evaluation")
LABEL_FREE = ["rankme", "feature_std"]


class FakeData:
    """Noisy pictures (1, 8, 8) of which class 0 is bright on the left and class 1 on the right."""

    def __init__(self, *, train: int = 80, test: int = 40, classes: int | None = 2, test_classes: int = 2):
        generator = torch.Generator().manual_seed(0)
        self.spec = DataSpec(train, test, (1, 8, 8), classes)
        self.splits, self.asked = {}, []
        for split, size in {"train": train, "test": test}.items():
            labels = torch.arange(size) % (test_classes if split == "test" else 2)
            x = torch.randn(size, 1, 8, 8, generator=generator)
            x[..., :4] += (labels == 0)[:, None, None, None] * 2.0
            x[..., 4:] += (labels == 1)[:, None, None, None] * 2.0
            self.splits[split] = x, labels

    def evaluation_batches(self, split, *, batch_size, limit):
        self.asked.append(split)
        torch.rand(1)  # as a DataLoader does for its workers' seed
        x, labels = (tensor[:limit].split(batch_size) for tensor in self.splits[split])
        for each, label in zip(x, labels):
            if len(each):
                yield {"x": each} if self.spec.classes is None else {"x": each, "label": label}


class FakeModel(nn.Module):
    """Rows of the picture as tokens; the target network sees their halves, the context network only noise."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.frozen_part = nn.Dropout(0.9).eval()
        self.dropout = nn.Dropout(0.5)
        self.modes = []

    def encode_target(self, x):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.dropout(x[:, 0].unflatten(2, (2, 4)).mean(dim=3)) * self.scale  # (B, 8, 2)

    def encoder(self, x):
        return torch.ones(len(x), 4, 3) * self.scale


def build(**changes) -> FrozenEvaluation:
    probes = {"linear": LinearProbe(), "knn": KNNProbe(k=5)}
    return FrozenEvaluation(**{"probes": probes, "batch_size": 32, **changes})


def run(evaluation=None, model=None, data=None, random_init=None, **options):
    return (evaluation or build())(
        model or FakeModel(),
        data or FakeData(),
        random_init=random_init or FakeModel,
        device="cpu",
        **options,
    )


def test_reports_every_metric_for_the_network_and_both_baselines():
    results = run()
    assert list(results) == ["trained", "random_init", "raw_input"]
    assert all(list(metrics) == ["linear", "knn", *LABEL_FREE] for metrics in results.values())
    assert results["trained"]["linear"] == 1.0
    assert json.loads(json.dumps(results)) == results


def test_network_names_whose_features_are_measured():
    blind = run(build(network="context"))["trained"]
    assert blind["feature_std"] == 0
    assert blind["linear"] == 0.5
    assert blind["rankme"] == pytest.approx(1, abs=1e-3)


def test_pooling_reduces_the_tokens():
    data = FakeData()
    tokens = FakeModel().eval().encode_target(data.splits["test"][0])
    for pooling, expected in {"mean": tokens.mean(dim=1), "max": tokens.amax(dim=1)}.items():
        std = run(build(pooling=pooling), data=data)["trained"]["feature_std"]
        assert std == pytest.approx(float(expected.std(dim=0, correction=0).mean()), rel=1e-5)


def test_baselines_are_computed_once_for_data_and_seed():
    built = []

    def random_init():
        built.append(torch.rand(1).item())
        return FakeModel()

    evaluation, data = build(), FakeData()
    first = run(evaluation, data=data, random_init=random_init)
    first["raw_input"].clear()  # a caller's change must not reach the cache
    again = run(evaluation, model=FakeModel(scale=3.0), data=data, random_init=random_init)
    assert len(built) == 1
    assert again["raw_input"]
    assert again["random_init"] == first["random_init"]
    assert again["trained"]["feature_std"] == pytest.approx(3 * first["trained"]["feature_std"])
    run(evaluation, data=data, random_init=random_init, seed=1)
    run(evaluation, data=FakeData(), random_init=random_init, seed=1)
    assert len(built) == 3
    assert built[0] != built[1] == built[2]


def test_leaves_the_random_state_and_the_modules_modes_alone():
    torch.manual_seed(5)
    before, model = torch.get_rng_state(), FakeModel()
    run(model=model, random_init=lambda: FakeModel(scale=torch.rand(1).item()))
    assert torch.equal(torch.get_rng_state(), before)
    assert set(model.modes) == {(False, False)}
    assert (model.training, model.dropout.training, model.frozen_part.training) == (True, True, False)


def test_restores_the_mode_after_an_error():
    model = FakeModel(scale=float("nan"))
    with contextlib.suppress(UserError):
        run(model=model)
    assert model.training


def test_same_results_under_the_callers_autocast():
    data = FakeData()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(data=data)
    assert mixed == run(data=data)


def test_limits_reach_the_data():
    data = FakeData()
    limited, whole = run(build(max_test_samples=10), data=data), run(data=data)
    assert limited["raw_input"]["rankme"] <= 10 < whole["raw_input"]["rankme"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": None}, "no labels"),
        ({"test": 0}, "test split is empty"),
        ({"test_classes": 1}, "single class"),
    ],
)
def test_without_usable_labels_only_label_free_metrics_remain(options, reason, caplog):
    data, evaluation = FakeData(**options), build()
    results = run(evaluation, data=data)
    run(evaluation, data=data)
    assert all(list(metrics) == LABEL_FREE for metrics in results.values())
    assert caplog.text.count(reason) == 1
    assert ("train" in data.asked) == ("test" in options)


@pytest.mark.parametrize(
    ("test", "test_classes", "said", "metrics"),
    [
        (49, 2, "only 49 test samples, of which one is 2.0% of accuracy", ["linear", "knn", *LABEL_FREE]),
        (50, 2, None, ["linear", "knn", *LABEL_FREE]),
        (1, 1, "no rankme and feature_std, as there is only 1 test sample", []),
    ],
)
def test_few_test_samples_are_said_once(test, test_classes, said, metrics, caplog):
    results = run(data=FakeData(test=test, test_classes=test_classes))
    assert all(list(row) == metrics for row in results.values())
    assert "test sample" in caplog.text if said else "test sample" not in caplog.text
    assert said is None or caplog.text.count(said) == 1


@pytest.mark.parametrize("test", [0, 40])
def test_data_without_train_samples_is_an_error(test):
    with pytest.raises(UserError, match="no samples of the train split"):
        run(data=FakeData(train=0, test=test))


@pytest.mark.parametrize("name", ["trained", "random_init", "raw_input"])
def test_non_finite_features_name_their_network(name):
    models = {"trained": FakeModel(), "random_init": FakeModel()}
    data = FakeData()
    if name in models:
        models[name].scale = float("inf")
    else:
        data.splits["test"][0][3] = float("nan")
        for model in models.values():
            model.encode_target = lambda x: torch.ones(len(x), 2, 2)
    with pytest.raises(UserError, match=f"{name} .test split"):
        run(model=models["trained"], random_init=lambda: models["random_init"], data=data)


def test_raw_input_is_averaged_down_to_its_size():
    x = torch.arange(2 * 3 * 8 * 4.0).view(2, 3, 8, 4)
    assert pool_input(x, 32).equal(x.flatten(1))
    pooled = pool_input(x, 4)
    assert pooled.shape == (2, 3 * 4 * 4)
    assert torch.equal(pooled.view(2, 3, 4, 4), (x[:, :, ::2] + x[:, :, 1::2]) / 2)
    assert pool_input(torch.zeros(2, 1, 100), 10).shape == (2, 10)
    assert pool_input(torch.zeros(2, 3, 4, 16, 16), 8).shape == (2, 3 * 4 * 8 * 8)


def test_evaluation_applies_the_raw_input_size():
    assert run(build(raw_input_size=1))["raw_input"]["rankme"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("config", "at_end"), [("frozen", True), ("none", False)])
def test_configs_build(config, at_end):
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        evaluation = hydra.utils.instantiate(hydra.compose(config))
    assert (evaluation.at_end, evaluation.every_epochs, evaluation.every_steps) == (at_end, None, None)
    results = run(evaluation)
    assert list(results["trained"]) == ["linear", "knn", *LABEL_FREE]


def test_table_has_a_row_per_network_and_a_column_per_metric():
    console = Console(width=100, file=io.StringIO())  # not a terminal
    console.print(format_table({"trained": {"linear": 0.9724, "rankme": 41.23}, "raw_input": {"rankme": 9.5}}))
    lines = console.file.getvalue().splitlines()
    assert "\x1b" not in console.file.getvalue()
    heading = next(line for line in lines if "features" in line and "rankme" in line)
    assert heading.index("linear") < heading.index("rankme")
    trained = next(line for line in lines if "trained" in line)
    assert "0.972" in trained
    assert "41.2" in trained
    assert "-" in next(line for line in lines if "raw_input" in line)


def test_a_wide_table_has_a_row_per_metric():
    console = Console(width=80, file=io.StringIO())
    results = {name: {f"metric_{number}": 0.5 for number in range(12)} for name in ("trained", "random_init")}
    console.print(format_table(results, {"trained": {"metric_3": 0.004}}))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["frozen", "features", "of", "trained", "random_init"] in lines
    assert ["metric_3", "0.500", "±", "0.004", "0.500"] in lines
    assert ["metric_11", "0.500", "0.500"] in lines


def test_what_the_table_says_of_training():
    def said(trained, random_init, raw_input):
        rows = {"trained": trained, "random_init": random_init, "raw_input": raw_input}
        return compared({name: {"linear": a, "f/96/mse": b, "f/96/last/mse": 1.0} for name, (a, b) in rows.items()})

    assert said((0.9, 0.1), (0.8, 0.2), (0.7, 0.3)) == (
        "training has helped: better than random weights and raw input in linear, f/96/mse"
    )
    assert said((0.9, 0.1), (0.95, 0.2), (0.7, 0.0)) == (
        "training has not helped in linear (random_init 0.950, trained 0.900), "
        "f/96/mse (raw_input 0.000, trained 0.100)"
    )
    assert said((0.9, 0.1), (0.9, 0.2), (0.8, 0.3)) == (
        "training has helped: better than random weights and raw input in f/96/mse; "
        "no clear difference, within two standard errors, in linear (random_init 0.900, trained 0.900)"
    )
    assert compared({"trained": {"linear": 1.0}}) is None
    rows = {"trained": 0.9, "initial": 0.8, "random_init": 0.2, "raw_input": 0.3}
    rows = {name: {"linear": value, "mse": value} for name, value in rows.items()}
    change = "(initial 0.800, trained 0.900)"
    assert compared(rows).endswith(f"; this run has improved linear {change}; this run has harmed mse {change}")

    def by_ranks(rankme, lidar):
        return compared({"trained": {"rankme": rankme, "lidar": lidar}, "random_init": {"rankme": 5.0, "lidar": 20.0}})

    assert by_ranks(5.1, 20.0) == (
        "training has probably not helped: features spread over no more directions than those of random weights "
        "(rankme 5.1, random_init 5, lidar 20, random_init 20)"
    )
    assert by_ranks(9.0, 12.0).startswith("whether training has helped is open without labels: look at nearest")
    assert by_ranks(9.0, 30.0).startswith(
        "features spread over more directions than those of random weights, and labels"
    )


@pytest.mark.parametrize(
    ("samples", "deviation", "said"),
    [
        (None, 0.0, "training has helped"),
        (1000, 0.0, "training has helped"),  # of one accuracy 0.013 and 0.009
        (100, 0.0, "no clear difference"),  # 0.04 and 0.03
        (1000, 0.07, "no clear difference"),  # of each mean of four seeds 0.035
        (1000, 0.02, "training has helped"),
    ],
)
def test_what_is_within_noise_is_no_clear_difference(samples, deviation, said):
    values = {"trained": 0.9, "random_init": 0.81, "raw_input": 0.5}
    results = {name: {"linear": value, "dense/miou": value} for name, value in values.items()}
    std = {name: {"linear": deviation} for name in values}
    sentence = compared(results, std, seeds=4, samples=samples)
    assert "better than random weights and raw input in" in sentence  # of many places
    assert ("linear" in sentence.partition("no clear")[0]) == (said == "training has helped")
