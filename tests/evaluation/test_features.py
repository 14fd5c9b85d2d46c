import json
import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from jepa.evaluation import AttentiveProbe, FeatureCache, FrozenEvaluation, KNNProbe, LinearProbe
from jepa.evaluation.feature_source import Extraction, FeatureSource
from jepa.evaluation.features import TokenStore
from jepa.utils.errors import UserError

CPU = torch.device("cpu")


def attentive() -> AttentiveProbe:
    return AttentiveProbe(learning_rates=(1e-3,), weight_decays=(0.01,), epochs=1, batch_size=32)


def build(**changes) -> FrozenEvaluation:
    probes = {"linear": LinearProbe(penalties=(0.1, 0.01)), "attentive": attentive()}
    return FrozenEvaluation(**{"probes": probes, "batch_size": 32, **changes})


def evaluate(evaluation, model, data, make, **options):
    return evaluation(model, data, random_init=lambda: make(seed=1), device="cpu", **options)


@pytest.mark.parametrize("network", ["target", "context"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_last_four_layers_lie_side_by_side_each_pooled(bars, row_model, network, pooling):
    extraction = Extraction(network=network, pooling=pooling, layers="last_four", batch_size=20)
    got = FeatureSource("trained", row_model, bars, extraction, device=CPU).split("test").pooled.x
    encoder = row_model.target.encoder if network == "target" else row_model.encoder
    layers = encoder(bars.splits["test"][0], layers=[1, 2, 3, 4])
    expected = [layer.mean(dim=1) if pooling == "mean" else layer.amax(dim=1) for layer in layers]
    assert torch.allclose(got, torch.cat(expected, dim=1), atol=1e-6)
    last = FeatureSource("trained", row_model, bars, Extraction(network=network, pooling=pooling), device=CPU)
    assert torch.allclose(last.split("test").pooled.x, expected[-1], atol=1e-6)


def test_layers_that_the_network_cannot_give(bars, row_model, make_row_model):
    extraction = Extraction(layers="last_four")
    with pytest.raises(UserError, match="has 3 blocks, expected at least 4"):
        FeatureSource("trained", make_row_model(depth=3), bars, extraction, device=CPU).split("test")
    row_model.encode_target = lambda x: row_model.encoder(x)
    with pytest.raises(UserError, match=r"last layer only.*use evaluation.layers=last"):
        FeatureSource("trained", row_model, bars, extraction, device=CPU).split("test")
    FeatureSource("trained", row_model, bars, Extraction(), device=CPU).split("test")


def test_tokens_are_kept_in_half_precision_beside_the_pooled_features(bars, row_model):
    split = FeatureSource("trained", row_model, bars, Extraction(batch_size=20), device=CPU, tokens=True).split("test")
    expected = row_model.encode_target(bars.splits["test"][0])
    assert split.tokens.x.dtype == torch.float16
    assert torch.allclose(split.tokens.x.float(), expected, atol=2e-3)
    assert torch.allclose(split.pooled.x, expected.mean(dim=1), atol=1e-6)
    assert torch.equal(split.tokens.labels, bars.splits["test"][1])


def test_tokens_beyond_the_memory_are_a_random_part_and_say_so(bars, row_model, caplog):
    gib = 30 * 8 * 8 * 2 / 2**30  # 30 samples of 8 tokens of width 8, 2 bytes each
    extraction = Extraction(batch_size=20, token_memory_gib=gib)
    split = FeatureSource("trained", row_model, bars, extraction, device=CPU, tokens=True).split("train")
    assert (len(split.pooled), split.tokens.x.shape) == (96, (30, 8, 8))
    assert "tokens of 30 of 96 samples" in caplog.text
    everything = row_model.encode_target(bars.splits["train"][0]).half()
    places = [(everything == tokens).flatten(1).all(dim=1).nonzero().item() for tokens in split.tokens.x]
    assert places == sorted(set(places))
    assert places != list(range(30))
    assert torch.equal(split.tokens.labels, bars.splits["train"][1][places])


def test_fewer_samples_than_announced_leave_no_blank_tokens():
    store = TokenStore(samples=10, limit_bytes=1e9, name="x")
    store.add(torch.ones(4, 2, 3), torch.arange(4))
    assert store.features().x.shape == (4, 2, 3)


def test_tokens_too_large_for_half_precision_are_an_error(bars, row_model):
    row_model.encode_target = lambda x: 1e6 * row_model.encoder(x)
    with pytest.raises(UserError, match="half precision"):
        FeatureSource("trained", row_model, bars, Extraction(), device=CPU, tokens=True).split("test")


def test_only_networks_have_tokens(bars, row_model, make_row_model):
    results = evaluate(build(), row_model, bars, make_row_model)
    assert all(0 <= results[row]["attentive"] <= 1 for row in ("trained", "random_init"))
    assert "attentive" not in results["raw_input"]


def test_a_hit_gives_what_a_miss_gave_without_the_network(bars, row_model, make_row_model, tmp_path):
    without = evaluate(build(), row_model, bars, make_row_model)
    missed = evaluate(build(), row_model, bars, make_row_model, cache=FeatureCache(tmp_path, "key"))
    calls = row_model.target.encoder.calls
    hit = evaluate(build(), row_model, bars, make_row_model, cache=FeatureCache(tmp_path, "key"))
    assert without == missed == hit
    assert row_model.target.encoder.calls == calls
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    "change",
    [{"pooling": "max"}, {"layers": "last_four"}, {"network": "context"}, {"max_train_samples": 50}, {"key": "other"}],
)
def test_another_key_or_setting_is_a_miss(bars, row_model, tmp_path, change):
    def fill(key="key", **changes):
        subject = FeatureSource(
            "trained", row_model, bars, Extraction(**changes), device=CPU, cache=FeatureCache(tmp_path, key)
        )
        return subject.split("train")

    fill()
    fill(**change)
    assert len(list(tmp_path.iterdir())) == 2


def archive(path, save=np.savez, **arrays):
    save(path, **{name.replace("_", "."): value for name, value in arrays.items()})


def claiming(path):
    """A header that claims more than there is."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pooled.x.npy", npy_header(b"(1099511627776, 1048576)"))


def nested(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pooled.x.npy", npy_header(b"(" * 5000))


def npy_header(shape):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b"}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


FOREIGN = {
    "compressed": lambda path: archive(path, np.savez_compressed, pooled_x=np.zeros((9, 9), np.float32)),
    "of whole numbers": lambda path: archive(path, pooled_x=np.zeros((9, 9), np.int64)),
    "of texts": lambda path: archive(path, pooled_x=np.array(["a"])),
    "of objects": lambda path: archive(path, pooled_x=np.array([{}], dtype=object)),
    "of other axes": lambda path: archive(path, pooled_x=np.zeros(9, np.float32)),
    "without labels for all": lambda path: archive(
        path, pooled_x=np.zeros((9, 9), np.float32), pooled_labels=np.zeros(3)
    ),
    "without features": lambda path: archive(path, tokens_x=np.zeros((9, 9), np.float32)),
    "claiming": claiming,
    "nested": nested,
}


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", *FOREIGN])
@pytest.mark.faults
def test_a_damaged_file_is_computed_again_and_named(bars, row_model, tmp_path, caplog, damage):
    def read():
        cache = FeatureCache(tmp_path, "key")
        return FeatureSource("trained", row_model, bars, Extraction(), device=CPU, cache=cache).split("train")

    expected = read()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        values = expected.pooled.x.numpy().tobytes()
        content[bytes(content).index(values) + 5] ^= 0xFF
    if damage in FOREIGN:
        FOREIGN[damage](path)
    elif damage == "foreign":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_bytes({"cut": content[:900], "flipped": content, "empty": b""}[damage])
    again = read()
    assert torch.equal(again.pooled.x, expected.pooled.x)
    assert str(path) in caplog.text
    caplog.clear()
    assert torch.equal(read().pooled.x, expected.pooled.x)  # written anew
    assert not caplog.text


@pytest.mark.faults
def test_features_that_cannot_be_written_are_still_used(bars, row_model, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file", "key")
    assert FeatureSource("trained", row_model, bars, Extraction(), device=CPU, cache=cache).split("test") is not None
    assert "not kept" in caplog.text
    assert os.listdir(tmp_path) == ["file"]


def test_quick_is_knn_and_rank_of_the_network_on_few_samples(bars, row_model):
    evaluation = build(probes={"knn": KNNProbe(k=3)}, online_train_samples=40, online_test_samples=12)
    scores = evaluation.quick(row_model, bars, device="cpu", seed=0)
    limited = build(probes={"knn": KNNProbe(k=3)}, max_train_samples=40, max_test_samples=12)
    whole = limited(row_model, bars, random_init=lambda: row_model, device="cpu")["trained"]
    assert scores == {name: whole[name] for name in ("knn", "rankme")}
    assert json.loads(json.dumps(scores)) == scores
    assert row_model.training


def test_quick_without_labels_is_the_rank(bars, row_model):
    object.__setattr__(bars.spec, "classes", None)
    assert list(build().quick(row_model, bars, device="cpu")) == ["rankme"]
