"""What FrozenEvaluation makes of several seeds, of views, and of probes that train the network."""

import copy
import io
from types import SimpleNamespace

import hydra
import pytest
import torch
from rich.console import Console

from jepa.evaluation import (
    AttentiveProbe,
    CrossModalRetrieval,
    FewShotProbe,
    FineTuning,
    FrozenEvaluation,
    KNNProbe,
    LiDAR,
    LinearProbe,
    Retrieval,
    lidar,
)
from jepa.evaluation.feature_source import Extraction, FeatureSource
from jepa.evaluation.forecast import Forecast
from jepa.utils.errors import UserError


def build(**changes) -> FrozenEvaluation:
    probes = {"linear": LinearProbe(penalties=(1.0, 0.01)), "knn": KNNProbe(k=5)}
    return FrozenEvaluation(**{"probes": probes, "batch_size": 32, **changes})


def test_results_are_means_over_seeds_and_the_spread_is_their_deviation(bars, row_model, make_row_model):
    def one(seed):
        return build()(row_model, bars, random_init=make_row_model, device="cpu", seed=seed)

    evaluation = build(seeds=3)
    results = evaluation(row_model, bars, random_init=make_row_model, device="cpu", seed=5)
    single = [one(seed) for seed in (5, 6, 7)]
    assert set(results) == {"trained", "random_init", "raw_input"}
    for row, metrics in results.items():
        for metric, value in metrics.items():
            values = torch.tensor([each[row][metric] for each in single], dtype=torch.float64)
            assert value == pytest.approx(float(values.mean()))
            if metric in evaluation.std[row]:
                assert evaluation.std[row][metric] == pytest.approx(float(values.std()), abs=1e-9)
    # Trained weights and raw input stay, so what is not random about them has no spread; random weights vary.
    assert list(evaluation.std["trained"]) == list(evaluation.std["raw_input"]) == ["linear"]
    assert evaluation.std["random_init"]["rankme"] > 0


def test_one_seed_has_no_spread_and_baselines_keep_theirs(bars, row_model, make_row_model):
    evaluation = build()
    evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    assert evaluation.std == {}
    evaluation = build(seeds=2)
    evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    first = copy.deepcopy(evaluation.std)
    evaluation(row_model, bars, random_init=lambda: 1 / 0, device="cpu")  # known baselines
    assert evaluation.std == first


def test_the_table_shows_the_spread():
    evaluation = build(seeds=2)
    evaluation.std = {"trained": {"linear": 0.0041}}
    console = Console(width=100, file=io.StringIO())
    console.print(evaluation.table({"trained": {"linear": 0.8123, "rankme": 30.0}}))
    assert "0.812 ± 0.004" in console.file.getvalue()
    assert "30.0 ±" not in console.file.getvalue()


def test_probes_with_several_numbers_are_named_by_suffix(bars, row_model, make_row_model):
    evaluation = build(probes={"recall": Retrieval(at=(1, 5)), "gone": None})
    results = evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    assert list(results["trained"]) == ["recall_at_1", "recall_at_5", "rankme", "feature_std"]


def test_lidar_is_of_all_views_and_masks_of_each_sample(bars, row_model, make_row_model):
    subject = FeatureSource("trained", row_model, bars, Extraction(batch_size=32), device=torch.device("cpu"))
    embeddings = subject.embeddings(samples=40, views=3, seed=0)
    assert embeddings.shape == (40, 6, 8)  # 3 views of 2 masks
    assert torch.equal(embeddings, subject.embeddings(samples=40, views=3, seed=0))
    assert not torch.equal(embeddings, subject.embeddings(samples=40, views=3, seed=1))
    bars.noise = 0.0  # now row i holds the two halves of sample i
    halves = row_model.encoder(bars.splits["train"][0][:40]).unflatten(1, (2, 4)).mean(dim=2)
    views = subject.embeddings(samples=40, views=3, seed=0)
    assert torch.allclose(views.unflatten(1, (2, 3)), halves[:, :, None].expand(-1, -1, 3, -1), atol=1e-6)
    evaluation = build(probes={"lidar": LiDAR(samples=40, views=3)})
    results = evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    assert results["trained"]["lidar"] == pytest.approx(lidar(views), rel=1e-5)
    # The raw input has no masks, and without noise its views are all the same.
    assert 1 < results["raw_input"]["lidar"] <= 39.1


def test_lidar_needs_no_labels_and_is_left_out_where_there_are_no_views(bars, row_model, make_row_model, caplog):
    probes = {"linear": LinearProbe(), "lidar": LiDAR(samples=20, views=2)}
    object.__setattr__(bars.spec, "classes", None)
    results = build(probes=probes)(row_model, bars, random_init=make_row_model, device="cpu")
    assert all(list(metrics) == ["lidar", "rankme", "feature_std"] for metrics in results.values())
    plain = SimpleNamespace(spec=bars.spec, evaluation_batches=bars.evaluation_batches)
    evaluation = build(probes=probes)
    results = evaluation(row_model, plain, random_init=make_row_model, device="cpu")
    assert all(list(metrics) == ["rankme", "feature_std"] for metrics in results.values())
    assert caplog.text.count("no lidar") == 1


@pytest.mark.parametrize("network", ["target", "context"])
def test_fine_tuning_learns_and_leaves_the_network_as_it_was(bars, row_model, make_row_model, network):
    before = copy.deepcopy(row_model.state_dict())
    probe = FineTuning(epochs=12, learning_rate=1e-2)
    evaluation = build(probes={"fine_tuning": probe}, network=network)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    results = evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    assert results["trained"]["fine_tuning"] > 0.9
    assert results["random_init"]["fine_tuning"] > 0.9
    assert "fine_tuning" not in results["raw_input"]
    assert all(torch.equal(before[name], tensor) for name, tensor in row_model.state_dict().items())
    assert row_model.training
    assert all(p.grad is None for p in row_model.parameters())
    assert not any(p.requires_grad for p in row_model.target.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_fine_tuning_trains_all_of_the_encoder_on_the_part_of_a_mix_with_labels(bars, row_model):
    encoder = copy.deepcopy(row_model.encoder)
    before = copy.deepcopy(encoder.state_dict())
    options = {"pool": lambda tokens, valid: tokens.mean(dim=1), "classes": 2, "device": torch.device("cpu"), "seed": 0}
    FineTuning(epochs=1)(encoder, SimpleNamespace(evaluated=bars), **options)
    assert all(not torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_fine_tuning_says_what_it_lacks(bars, row_model, make_row_model):
    evaluation = build(probes={"fine_tuning": FineTuning(epochs=1, learning_rate=1e30, clip_norm=1e30)})
    with pytest.raises(UserError, match=r"lower evaluation\.probes\.fine_tuning\.learning_rate"):
        evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    with pytest.raises(UserError, match="no train_batches"):
        FineTuning()(None, object(), pool=None, classes=2, device=torch.device("cpu"), seed=0)
    del row_model.target.encoder, row_model.encoder
    row_model.encoder = lambda x: x[:, 0]
    row_model.encode_target = row_model.encoder
    with pytest.raises(UserError, match="not a module"):
        evaluation(row_model, bars, random_init=make_row_model, device="cpu")


PROBE = {"probes": {"knn": KNNProbe()}}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((AttentiveProbe, {name: ()}) for name in ("learning_rates", "weight_decays")),
        *((AttentiveProbe, {name: 0}) for name in ("num_heads", "mlp_ratio", "epochs", "batch_size")),
        (AttentiveProbe, {"weight_decays": (-0.1,)}),
        *((each, {"held_out_every": 1}) for each in (AttentiveProbe, LinearProbe)),
        *((each, {"at": wrong}) for each in (Retrieval, CrossModalRetrieval) for wrong in ((), (0, 5))),
        *((FewShotProbe, wrong) for wrong in ({"shares": ()}, {"shares": (0.0,)}, {"shares": (1.5,)}, {"repeats": 0})),
        *((FineTuning, {name: 0}) for name in ("epochs", "learning_rate", "clip_norm")),
        *((FineTuning, wrong) for wrong in ({"weight_decay": -1.0}, {"warmup_share": 1.0})),
        *((Forecast, wrong) for wrong in ({"horizons": []}, {"penalties": [0.0]}, {"pooling": "max"})),
        (Forecast, {"max_train_windows": 0}),
        *((KNNProbe, {name: 0}) for name in ("k", "temperature")),
        *((LiDAR, wrong) for wrong in ({"samples": 1}, {"views": 1}, {"delta": 0.0})),
        *((LinearProbe, {"penalties": wrong}) for wrong in ((), (0.0, 1.0))),
        *((FrozenEvaluation, {**PROBE, name: "teacher"}) for name in ("network", "pooling", "layers")),
        *((FrozenEvaluation, {**PROBE, name: 0}) for name in ("batch_size", "raw_input_size", "every_epochs", "seeds")),
        *((FrozenEvaluation, {**PROBE, name: 0}) for name in ("online_every_steps", "online_train_samples")),
        *((FrozenEvaluation, {**PROBE, f"{name}_epochs": 1, f"{name}_steps": 1}) for name in ("every", "online_every")),
        (FrozenEvaluation, {**PROBE, "token_memory_gib": 0.0}),
        (FrozenEvaluation, {"probes": {"rankme": KNNProbe()}}),
    ],
)
def test_refuses_impossible_settings(kind, wrong):
    with pytest.raises(ValueError, match=rf"evaluation.*{list(wrong)[-1]}"):
        kind(**wrong)


def test_every_probe_runs_from_its_config(bars, row_model, make_row_model, request):
    folder = str(request.config.rootpath / "conf" / "evaluation")
    quick = ["seeds=1", "probes.attentive.epochs=1", "probes.fine_tuning.epochs=1", "probes.knn=null"]
    with hydra.initialize_config_dir(folder, version_base="1.3"):
        evaluation = hydra.utils.instantiate(hydra.compose("full_and_fine_tuning", overrides=quick))
    results = evaluation(row_model, bars, random_init=make_row_model, device="cpu")
    shares, depths = [f"fewshot_{share}" for share in (1, 5, 10)], [f"recall_at_{k}" for k in (1, 5, 10)]
    expected = ["linear", "lidar", "attentive", *shares, *depths, "fine_tuning", "rankme", "feature_std"]
    assert sorted(results["trained"]) == sorted(results["random_init"]) == sorted(expected)
    assert sorted(results["raw_input"]) == sorted(set(expected) - {"attentive", "fine_tuning"})
