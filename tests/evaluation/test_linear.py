import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from jepa.evaluation import Features, FewShotProbe, LinearProbe, logistic
from jepa.evaluation.features import stratified_holdout, stratified_subset
from jepa.utils.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    x, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, labels = x[order].float(), labels[order]
    return Features(x[:1437], labels[:1437]), Features(x[1437:], labels[1437:])


def blobs(size: int, classes: int = 3, spread: float = 0.1) -> Features:
    generator = torch.Generator().manual_seed(size)
    labels = torch.arange(size) % classes
    return Features(torch.eye(classes)[labels] + spread * torch.randn(size, classes, generator=generator), labels)


def problem(size: int = 300, width: int = 8, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, width, generator=generator) @ torch.randn(width, width, generator=generator)
    labels = (x[:, :classes] + 2 * torch.randn(size, classes, generator=generator)).argmax(dim=1)
    return torch.cat([x, torch.ones(size, 1)], dim=1).double(), labels


def test_solver_reaches_the_optimum_of_every_penalty():
    design, labels = problem()
    penalties = torch.tensor([1.0, 1e-2, 1e-5], dtype=torch.float64)
    found = logistic.fit_logistic(design, labels, classes=4, penalties=penalties, tolerance=1e-12)
    for r, penalty in enumerate(penalties.tolist()):
        exact = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=10_000)
        exact.fit(design[:, :-1].numpy(), labels.numpy())
        assert torch.allclose(found[:-1, r], torch.from_numpy(exact.coef_.T), atol=1e-3, rtol=1e-3)


def test_gradient_matches_autograd_whatever_the_chunks(monkeypatch):
    design, labels = problem()
    penalties = torch.tensor([0.3, 0.01], dtype=torch.float64)
    coefficients = torch.randn(9, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    coefficients.requires_grad_()
    logits = torch.einsum("nd,drc->rnc", design, coefficients)
    expected = torch.stack([torch.nn.functional.cross_entropy(each, labels) for each in logits])
    expected = expected + penalties / 2 * coefficients[:-1].pow(2).sum(dim=(0, 2))
    expected.sum().backward()
    monkeypatch.setattr(logistic, "_CHUNK_ENTRIES", 7 * 2 * 4)
    loss, gradient = logistic._loss_and_gradient(design, labels, coefficients.detach(), penalties)
    assert torch.allclose(loss, expected.detach())
    assert torch.allclose(gradient, coefficients.grad)


def test_accuracy_agrees_with_scikit_learn_at_the_same_penalty(digits):
    train, test = digits
    classifier = LinearProbe().fit(train, classes=10, seed=0)
    scale = [(split.x - classifier.mean) / classifier.std for split in digits]
    exact = LogisticRegression(C=1 / (classifier.penalty * len(train)), tol=1e-6, max_iter=5000)
    expected = exact.fit(scale[0].numpy(), train.labels.numpy()).score(scale[1].numpy(), test.labels.numpy())
    assert LinearProbe()(train, test, classes=10, seed=0) == pytest.approx(expected, abs=0.003)
    assert expected > 0.95


def test_the_penalty_is_the_best_on_held_out_training_samples():
    # Few samples in many dimensions: hardly any penalty overfits, far too much of it ignores the data.
    train = blobs(60, spread=1.0)
    noise = torch.randn(60, 100, generator=torch.Generator().manual_seed(0))
    train = Features(torch.cat([train.x, noise], dim=1), train.labels)
    held_out = stratified_holdout(train.labels, 5, 0)
    kept, rest = (Features(train.x[part], train.labels[part]) for part in (~held_out, held_out))
    candidates = (10.0, 1.0, 0.1, 1e-5)
    scores = [LinearProbe(penalties=(p,))(kept, rest, classes=3, seed=0) for p in candidates]
    chosen = LinearProbe(penalties=candidates).fit(train, classes=3, seed=0).penalty
    assert scores[candidates.index(chosen)] == pytest.approx(max(scores), abs=1 / len(rest) + 1e-9)
    assert max(scores) > min(scores)


def test_held_out_samples_are_a_stratified_fifth():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 5)
    held_out = stratified_holdout(labels, 5, seed=3)
    assert [int(held_out[labels == c].sum()) for c in range(3)] == [20, 10, 1]
    assert torch.equal(held_out, stratified_holdout(labels, 5, seed=3))
    assert not torch.equal(held_out, stratified_holdout(labels, 5, seed=4))


def test_separable_classes_are_told_apart():
    assert LinearProbe()(blobs(90), blobs(300), classes=3, seed=0) == 1.0


def test_permuted_labels_give_chance(digits):
    train, test = digits
    shuffled = train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(1))]
    assert LinearProbe()(Features(train.x, shuffled), test, classes=10, seed=0) < 0.2


def test_fit_and_choice_never_see_the_test_split(digits, monkeypatch):
    train, test = digits
    fitted = []
    original = LinearProbe.fit
    monkeypatch.setattr(LinearProbe, "fit", lambda *a, **k: fitted.append(original(*a, **k)) or fitted[-1])
    LinearProbe()(train, test, classes=10, seed=0)
    LinearProbe()(train, Features(1000 + 50 * test.x, 9 - test.labels), classes=10, seed=0)
    first, second = fitted
    assert first.penalty == second.penalty
    assert torch.equal(first.coefficients, second.coefficients)
    assert torch.equal(first.mean, train.x.mean(dim=0))


def test_scale_and_constant_features_do_not_matter(digits):
    train, test = digits
    plain = LinearProbe()(train, test, classes=10, seed=0)
    constant = [torch.full((len(split), 1), 12345.678) for split in digits]
    changed = [Features(torch.cat([1e4 * s.x - 7, c], dim=1), s.labels) for s, c in zip(digits, constant)]
    classifier = LinearProbe().fit(changed[0], classes=10, seed=0)
    assert classifier.coefficients.isfinite().all()
    assert LinearProbe()(*changed, classes=10, seed=0) == pytest.approx(plain, abs=0.003)


def test_one_training_sample_is_too_few():
    with pytest.raises(UserError, match="at least 2"):
        LinearProbe().fit(Features(torch.ones(1, 3), torch.tensor([0])), classes=2, seed=0)
    single = Features(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match="larger shares"):
        FewShotProbe(shares=(0.01,))(single, single, classes=1, seed=0)


# Few labels.


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


def test_eigenvalues_where_torch_does_not_find_them(monkeypatch):
    """Its divide and conquer fails for bags of words of which most never occur, with some numbers of threads."""

    def fails(matrix):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    x = torch.randn(40, 12)
    matrix = x.T @ x
    values, basis = logistic._eigh(matrix)
    assert values.dtype == basis.dtype == torch.float32
    torch.testing.assert_close(basis @ values.diag() @ basis.T, matrix, rtol=1e-4, atol=1e-3)
