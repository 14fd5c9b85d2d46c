import pytest
import torch
from sklearn.datasets import load_digits

from jepa.evaluation import Features, FewShotProbe, LinearProbe
from jepa.evaluation.stratified import stratified_subset
from jepa.utils.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    x, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, labels = x[order].float(), labels[order]
    return Features(x[:1437], labels[:1437]), Features(x[1437:], labels[1437:])


def test_every_class_gives_its_share_and_at_least_one_sample():
    labels = torch.tensor([0] * 200 + [1] * 100 + [2] * 3)[torch.randperm(303)]
    counts = [
        [int((labels[stratified_subset(labels, share, 0)] == c).sum()) for c in range(3)] for share in (0.01, 0.1, 1)
    ]
    assert counts == [[2, 1, 1], [20, 10, 1], [200, 100, 3]]


def test_draws_depend_on_seed_and_repeat_alone():
    labels = torch.arange(100) % 5
    first = stratified_subset(labels, 0.2, seed=1, repeat=0)
    assert torch.equal(first, stratified_subset(labels, 0.2, seed=1, repeat=0))
    assert not torch.equal(first, stratified_subset(labels, 0.2, seed=1, repeat=1))
    assert not torch.equal(first, stratified_subset(labels, 0.2, seed=2, repeat=0))


def test_more_labels_help_and_all_of_them_are_the_linear_probe(digits):
    linear = LinearProbe(penalties=(0.1, 0.01))
    scores = FewShotProbe(shares=(0.01, 0.1, 1.0), repeats=1, linear=linear)(*digits, classes=10, seed=0)
    assert list(scores) == ["1", "10", "100"]
    assert 0.2 < scores["1"] < scores["10"] < scores["100"] == linear(*digits, classes=10, seed=0)


def test_repeats_are_averaged(digits):
    train, test = digits
    probe = FewShotProbe(shares=(0.05,), repeats=2, linear=LinearProbe(penalties=(0.01,)))
    each = [
        probe.linear(train[stratified_subset(train.labels, 0.05, 3, repeat)], test, classes=10, seed=3 + repeat)
        for repeat in range(2)
    ]
    assert each[0] != each[1]
    assert probe(train, test, classes=10, seed=3)["5"] == pytest.approx(sum(each) / 2)


def test_refuses_impossible_settings():
    for wrong in ((), (0.0,), (1.5,)):
        with pytest.raises(ValueError, match="shares"):
            FewShotProbe(shares=wrong)
    with pytest.raises(ValueError, match="repeats"):
        FewShotProbe(repeats=0)
    single = Features(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match="larger shares"):
        FewShotProbe(shares=(0.01,))(single, single, classes=1, seed=0)
