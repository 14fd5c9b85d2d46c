import pytest
import torch
from torch.nn import functional as F

from jepa.evaluation import AttentiveProbe, Features, LinearProbe
from jepa.evaluation.attentive import ParallelAdamW, ParallelHeads
from jepa.utils.errors import UserError


def needles(size: int, seed: int, tokens: int = 12, width: int = 16) -> Features:
    """Tokens of noise, of which one at a random place is marked and holds the class; the others hold wrong ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (size,), generator=generator)
    x = torch.randn(size, tokens, width, generator=generator)
    wrong = torch.randint(4, (size, tokens), generator=generator)
    x[..., :4] += 4 * F.one_hot(wrong, 4)
    place = torch.randint(tokens, (size,), generator=generator)
    rows = torch.arange(size)
    x[rows, place, :4] = 4.0 * F.one_hot(labels, 4)
    x[rows, place, 4] = 8.0  # the mark
    return Features(x.half(), labels)


def test_finds_the_token_that_the_mean_hides():
    train, test = needles(240, seed=0, tokens=6, width=12), needles(200, seed=1, tokens=6, width=12)
    probe = AttentiveProbe(learning_rates=(2e-2,), weight_decays=(0.01,), epochs=15, batch_size=32)
    attentive = probe(train, test, classes=4, seed=0)
    pooled = [Features(split.x.float().mean(dim=1), split.labels) for split in (train, test)]
    assert LinearProbe()(*pooled, classes=4, seed=0) < 0.5
    assert attentive > 0.8


def test_heads_in_parallel_equal_each_head_alone():
    train, samples = needles(96, seed=0), torch.arange(96)
    probe = AttentiveProbe(epochs=2, batch_size=32)
    assert len(probe.candidates) == 20
    together = probe.fit(train, samples, probe.candidates, classes=4, seed=3)
    for number in (0, 7, 19):
        alone = probe.fit(train, samples, [probe.candidates[number]], classes=4, seed=3)
        expected, got = alone(train.x.float())[0], together(train.x.float())[number]
        assert torch.allclose(got, expected, atol=2e-4)
    assert not torch.allclose(together(train.x.float())[0], together(train.x.float())[19], atol=1e-2)


def test_attention_is_that_of_torch():
    """Absorbing the keys into the query and projecting values after the mean changes nothing."""
    random = torch.Generator().manual_seed(0)
    num_heads = ParallelHeads(1, 12, 3, num_heads=3, hidden=8, rng=random)
    with torch.no_grad():
        num_heads.query.normal_(generator=random)
        num_heads.out_bias.normal_(generator=random)
    tokens = torch.randn(5, 7, 12, generator=random)
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        # Its projections are (out, in) and stacked; those here are (in, out).
        reference.in_proj_weight.copy_(torch.cat([torch.eye(12), num_heads.key[0].T, num_heads.value[0].T]))
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(num_heads.out[0].T)
        reference.out_proj.bias.copy_(num_heads.out_bias[0])
    padding = torch.zeros(5, 7, 1, dtype=torch.bool)
    expected, _ = reference(num_heads.query[0].expand(5, 1, 12), tokens, tokens)
    assert torch.allclose(num_heads._attend(tokens, padding)[0], expected[:, 0], atol=1e-5)


def test_optimizer_is_torchs_adamw_for_every_head():
    random = torch.Generator().manual_seed(0)
    matrix, vector = torch.randn(2, 3, 4, generator=random), torch.randn(2, 4, generator=random)
    rates, decays = (0.1, 0.02), (0.5, 0.0)
    ours = [matrix.clone(), vector.clone()]
    optimizer = ParallelAdamW(ours, learning_rates=torch.tensor(rates), weight_decays=torch.tensor(decays))
    theirs = [[matrix[r].clone().requires_grad_(), vector[r].clone().requires_grad_()] for r in range(2)]
    groups = [
        {"params": [parameter], "lr": rates[r], "weight_decay": decays[r] if parameter.ndim > 1 else 0.0}
        for r in range(2)
        for parameter in theirs[r]
    ]
    reference = torch.optim.AdamW(groups)
    for _ in range(4):
        gradients = [torch.randn(2, 3, 4, generator=random), torch.randn(2, 4, generator=random)]
        for r in range(2):
            for parameter, gradient in zip(theirs[r], gradients):
                parameter.grad = gradient[r]
        reference.step()
        optimizer.step(gradients, share=1.0)
    for r in range(2):
        for mine, other in zip(ours, theirs[r]):
            assert torch.allclose(mine[r], other, atol=1e-6)


def test_the_choice_never_sees_the_test_split(monkeypatch):
    train, test = needles(60, seed=0), needles(30, seed=1)
    chosen = []
    original = AttentiveProbe.fit

    def fit(self, train, samples, candidates, **options):
        chosen.append((len(samples), list(candidates)))
        return original(self, train, samples, candidates, **options)

    monkeypatch.setattr(AttentiveProbe, "fit", fit)
    probe = AttentiveProbe(learning_rates=(1e-3, 1e-4), weight_decays=(0.1,), epochs=1)
    probe(train, test, classes=4, seed=0)
    probe(train, Features(100 * test.x, 3 - test.labels), classes=4, seed=0)
    assert chosen[:2] == chosen[2:]
    assert chosen[0][0] < chosen[1][0] == 60
    assert len(chosen[1][1]) == 1


def test_heads_that_do_not_divide_the_width_are_told_which_do():
    train = needles(20, seed=0)
    with pytest.raises(UserError, match=r"width 16: use one of \[1, 2, 4, 8, 16\]"):
        AttentiveProbe(num_heads=3)(train, train, classes=4, seed=0)
    with pytest.raises(UserError, match="at least 2"):
        AttentiveProbe()(train[torch.tensor([0])], train, classes=4, seed=0)
