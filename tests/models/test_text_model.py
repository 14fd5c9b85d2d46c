"""Text: padding changes nothing, hidden tokens leave no trace, and random tokens are drawn by step alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from jepa import load_config
from jepa.config.build import build_model
from jepa.models.encoders import TransformerEncoder
from jepa.models.encoders.text_stem import TextStem
from jepa.models.token_corruption import RandomTokens
from jepa.types import StepRandomness
from jepa.utils.tensors import masked_mean

VOCABULARY, LENGTH = 50, 12


def make_encoder(positions: str = "learned") -> TransformerEncoder:
    torch.manual_seed(0)
    stem = partial(TextStem, vocab_size=VOCABULARY)
    return TransformerEncoder(
        stem=stem, embed_dim=32, depth=2, num_heads=2, positions=positions, max_length=LENGTH
    ).eval()


def make_ids(*lengths: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randint(1, VOCABULARY, (len(lengths), LENGTH), generator=random)
    return x * (torch.arange(LENGTH) < torch.tensor(lengths)[:, None])


def make_model(*overrides: str) -> torch.nn.Module:
    config = load_config(
        [
            *(
                "model=text",
                "data=text_lines",
                "data.hints.size=toy_text",
                f"data.vocab_size={VOCABULARY}",
                f"data.max_length={LENGTH}",
            ),
            *("model.encoder.embed_dim=32", "model.encoder.depth=1", "model.predictor.embed_dim=32", *overrides),
        ]
    )
    return build_model(config, seed=0)


@pytest.mark.parametrize("positions", ["learned", "rotary", "sincos"])
def test_padding_never_changes_a_text(positions):
    encoder, x = make_encoder(positions), make_ids(12, 7, 3, 1)
    features = encoder(x)
    pooled = masked_mean(features, encoder.token_valid(x))
    for row, length in enumerate((12, 7, 3, 1)):
        alone = encoder(x[row : row + 1, :length])
        assert torch.allclose(features[row, :length], alone[0], atol=1e-5)
        assert torch.allclose(pooled[row], alone[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_hidden_tokens_never_reach_the_context(positions):
    encoder, x = make_encoder(positions), make_ids(12, 12)
    keep = torch.tensor([[0, 3, 4], [1, 2, 11]])
    other = x.clone()
    hidden = torch.ones_like(x, dtype=torch.bool).scatter_(1, keep, False)
    other[hidden] = other[hidden] % (VOCABULARY - 1) + 1
    assert torch.equal(encoder(x, keep=keep), encoder(other, keep=keep))
    tokens = encoder.stem(x).detach().requires_grad_()
    encoder.stem.forward, encoder.stem_drops = lambda ids: tokens, False
    encoder(x, keep=keep).square().sum().backward()
    assert bool((tokens.grad[hidden] == 0).all())
    assert bool((tokens.grad[~hidden] != 0).any(dim=-1).all())


def test_inputs_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"expected ids \(B, L\) int64, got \(2, 3, 8, 8\) float32"):
        make_encoder()(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at most 12 tokens"):
        make_encoder()(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="padding_id=50 is not among the ids 0 to 49"):
        TextStem(embed_dim=8, vocab_size=VOCABULARY, padding_id=50)


def test_random_tokens_do_not_depend_on_who_draws_them():
    corrupt, x = RandomTokens(vocab_size=VOCABULARY, random_token_prob=0.3), make_ids(*[12, 5, 9, 1] * 50)
    whole = corrupt(x, StepRandomness(seed=0, step=3, total=100, start=0, count=100), 2)
    halves = [
        corrupt(x[n : n + 100], StepRandomness(seed=0, step=3, total=100, start=n // 2, count=50), 2) for n in (0, 100)
    ]
    assert torch.equal(whole, torch.cat(halves))
    valid = x != 0
    assert torch.equal(whole == 0, x == 0)
    assert (whole != x)[valid].float().mean() == pytest.approx(0.3 * (1 - 1 / 49), abs=0.03)
    assert (int(whole[valid].min()), int(whole.max())) == (1, VOCABULARY - 1)
    assert not torch.equal(whole, corrupt(x, StepRandomness(seed=0, step=4, total=100, start=0, count=100), 2))
    none = RandomTokens(vocab_size=VOCABULARY)
    assert torch.equal(none(x, StepRandomness(seed=0, step=3, total=100, start=0, count=100), 2), x)
    for wrong in ({"random_token_prob": 1.5}, {"vocab_size": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RandomTokens(**{"vocab_size": VOCABULARY, **wrong})


def test_random_tokens_reach_the_context_and_not_the_targets():
    x = make_ids(12, 8, 5, 3)
    rng = StepRandomness(seed=0, step=0, total=4, start=0, count=4)
    clean, corrupted = (make_model(f"model.corruption.random_token_prob={p}").eval() for p in (0.0, 1.0))
    plain, changed = (model(model.prepare({"x": x}, rng)) for model in (clean, corrupted))
    assert torch.equal(plain.targets[0], changed.targets[0])
    assert not torch.allclose(plain.embeddings, changed.embeddings)


@pytest.mark.parametrize("overrides", [(), ("model.target.average_layers=1",), ("loss=multitask",)])
def test_losses_of_padded_texts_reach_every_part(overrides):
    model = make_model(*overrides)
    batch = model.prepare({"x": make_ids(12, 8, 2, 1)}, StepRandomness(seed=0, step=0, total=4, start=0, count=4))
    total = model.loss(model(batch))
    total = total["loss"] if isinstance(total, dict) else total
    total.backward()
    assert bool(total.isfinite())
    assert bool(model.encoder.stem.embed.weight.grad.abs().sum() > 0)
    for mask, weights in zip(batch["masks"], batch["target_weights"]):
        assert bool((weights[~mask.target_valid] == 0).all())
        seen = batch["x"].gather(1, mask.context)[mask.context_valid]
        asked = batch["x"].gather(1, mask.targets.flatten(1)).view_as(mask.targets)[mask.target_valid]
        assert bool((seen != 0).all())
        assert bool((asked != 0).all())
