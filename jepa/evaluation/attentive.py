"""The attentive probe: cross-attention pooling of frozen tokens with a learned query."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features, stratified_holdout
from jepa.utils.errors import UserError, check_at_least
from jepa.utils.random import generator

log = logging.getLogger("jepa")


class AttentiveProbe:
    """Cross-attention pooling of frozen tokens with one learned query, and a linear classifier.

    The head of V-JEPA (Bardes et al. 2024, arXiv 2404.08471, appendix on evaluation): the query attends to the tokens,
    with a residual connection, then an MLP, a layer norm and the classifier. One head is trained for each pair of
    learning rate and weight decay, 20 by default as in V-JEPA 2 (arXiv 2506.09985), all in one pass over the tokens.
    The best on a held-out part of the training samples is trained again on all of them and scored on the test samples.
    AdamW with a cosine to 0; all heads start from the same weights.

    learning_rates, weight_decays: the candidates; the first of equally good ones is taken.
    num_heads: of the cross-attention; has to divide the width of the tokens.
    mlp_ratio: hidden width of the MLP as a multiple of the tokens' width.
    epochs, batch_size: of the training. held_out_every: each n-th training sample of a class is held out (5: a fifth).

    Raises ValueError for invalid values.
    """

    needs = "tokens"

    def __init__(
        self,
        *,
        learning_rates: Sequence[float] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
        weight_decays: Sequence[float] = (0.01, 0.1, 0.4, 0.8),
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        epochs: int = 20,
        batch_size: int = 128,
        held_out_every: int = 5,
    ) -> None:
        key = "evaluation.probes.attentive"
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(f"{key}.learning_rates: got {list(learning_rates)}, expected at least one, all above 0")
        if not weight_decays or min(weight_decays) < 0:
            raise ValueError(f"{key}.weight_decays: got {list(weight_decays)}, expected at least one, none below 0")
        if mlp_ratio <= 0:
            raise ValueError(f"{key}.mlp_ratio must be above 0, got {mlp_ratio}")
        check_at_least(key, 1, num_heads=num_heads, epochs=epochs, batch_size=batch_size)
        check_at_least(key, 2, held_out_every=held_out_every)
        self.candidates = list(itertools.product(learning_rates, weight_decays))
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.epochs = epochs
        self.batch_size = batch_size
        self.held_out_every = held_out_every

    def __call__(self, train: Features, test: Features, *, classes: int, seed: int) -> float:
        """Return the accuracy of the chosen head on the test tokens (N, T, D), in [0, 1].

        Raises UserError when there are fewer than two training samples or the heads do not divide the width.
        """
        if len(train) < 2:
            raise UserError(f"the attentive probe needs at least 2 training samples, got {len(train)}")
        held_out = stratified_holdout(train.labels, self.held_out_every, seed)
        fitted, validation = (part.nonzero().flatten() for part in (~held_out, held_out))
        heads = self.fit(train, fitted, self.candidates, classes=classes, seed=seed)
        correct = self._correct(heads, train, validation)
        best = self.candidates[correct.index(max(correct))]
        log.debug("attentive probe: learning rate and weight decay %s, correct per head %s", best, correct)
        all_train, all_test = (torch.arange(len(split), device=split.x.device) for split in (train, test))
        chosen = self.fit(train, all_train, [best], classes=classes, seed=seed)
        return self._correct(chosen, test, all_test)[0] / len(test)

    def fit(
        self, train: Features, samples: Tensor, candidates: Sequence[tuple[float, float]], *, classes: int, seed: int
    ) -> ParallelHeads:
        """Return heads trained on some samples (n,) of tokens (N, T, D), one per learning rate and weight decay.

        Samples are an index, as a copy of their tokens could double the memory.
        """
        width, device = train.x.shape[2], train.x.device
        if width % self.num_heads:
            fits = [h for h in range(1, min(width, 32) + 1) if width % h == 0]
            raise UserError(
                f"evaluation.probes.attentive.num_heads={self.num_heads} does not divide the tokens' "
                f"width {width}: use one of {fits}"
            )
        rng = generator("cpu", seed, "evaluation/attentive")  # on the CPU, so that devices agree
        hidden = max(1, round(self.mlp_ratio * width))
        heads = ParallelHeads(len(candidates), width, classes, num_heads=self.num_heads, hidden=hidden, rng=rng)
        heads.to(device)
        optimizer = ParallelAdamW(
            list(heads.parameters()),
            learning_rates=torch.tensor([rate for rate, _ in candidates], device=device),
            weight_decays=torch.tensor([decay for _, decay in candidates], device=device),
        )
        total = self.epochs * math.ceil(len(samples) / self.batch_size)
        with torch.enable_grad():
            for epoch in range(self.epochs):
                order = samples[torch.randperm(len(samples), generator=rng).to(device)]
                for number, index in enumerate(order.split(self.batch_size)):
                    step = epoch * total // self.epochs + number
                    logits = heads(train.x[index].float())
                    targets = train.labels[index].repeat(len(candidates))
                    # Heads share no weights, so the sum gives each the gradient of its own mean loss.
                    loss = F.cross_entropy(logits.flatten(0, 1), targets) * len(candidates)
                    gradients = torch.autograd.grad(loss, optimizer.parameters)
                    optimizer.step(gradients, share=(1 + math.cos(math.pi * step / total)) / 2)
        return heads

    @torch.no_grad()
    def _correct(self, heads: ParallelHeads, features: Features, samples: Tensor) -> list[int]:
        """Return how many of the samples each head classifies correctly."""
        correct = 0
        for index in samples.split(self.batch_size):
            predictions = heads(features.x[index].float()).argmax(dim=2)  # (R, b)
            correct = correct + (predictions == features.labels[index]).sum(dim=1)
        return correct.tolist()


class ParallelHeads(torch.nn.Module):
    """R attentive heads with separate weights, equal at the start.

    Letters: R heads, b samples, T tokens, D width, A attention heads. The query is the same for every sample, so keys
    need not be computed: query . (W x) = (W^T query) . x. Values are projected after the attention has averaged the
    tokens. Both save the products over all tokens, most of the cost of the layer.
    """

    def __init__(
        self, count: int, width: int, classes: int, *, num_heads: int, hidden: int, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.num_heads = num_heads

        def parameter(*size: int, std: float) -> torch.nn.Parameter:
            values = torch.randn(size, generator=rng) * std
            return torch.nn.Parameter(values.expand(count, *size).clone())

        fan_in = width**-0.5
        self.query = parameter(width, std=0.02)  # small: attention starts as the mean
        self.key = parameter(width, width, std=fan_in)
        self.value = parameter(width, width, std=fan_in)
        self.out = parameter(width, width, std=fan_in)
        self.out_bias = parameter(width, std=0.0)
        self.mlp_in = parameter(width, hidden, std=fan_in)
        self.mlp_in_bias = parameter(hidden, std=0.0)
        self.mlp_out = parameter(hidden, width, std=hidden**-0.5)
        self.mlp_out_bias = parameter(width, std=0.0)
        self.classifier = parameter(width, classes, std=0.0)
        self.classifier_bias = parameter(classes, std=0.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (R, b, classes) of tokens (b, T, D)."""
        padding = (tokens == 0).all(dim=2, keepdim=True)  # as `TokenStore` pads
        pooled = self.query[:, None] + self._attend(F.layer_norm(tokens, tokens.shape[-1:]), padding)
        normed = F.layer_norm(pooled, pooled.shape[-1:])
        inner = F.gelu(torch.baddbmm(self.mlp_in_bias[:, None], normed, self.mlp_in))
        pooled = pooled + torch.baddbmm(self.mlp_out_bias[:, None], inner, self.mlp_out)
        normed = F.layer_norm(pooled, pooled.shape[-1:])
        return torch.baddbmm(self.classifier_bias[:, None], normed, self.classifier)

    def _attend(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Return the attention output (R, b, D) over tokens (b, T, D); padding (b, T, 1) bool is left out."""
        heads = (self.num_heads, tokens.shape[2] // self.num_heads)
        query, key = self.query.unflatten(1, heads), self.key.unflatten(2, heads)
        keys = torch.einsum("rah,rdah->dra", query, key).flatten(1) * heads[1] ** -0.5  # (D, R * A)
        weights = (tokens @ keys).masked_fill(padding, -1e30).softmax(dim=1)  # (b, T, R * A)
        means = (weights.transpose(1, 2) @ tokens).unflatten(1, (-1, heads[0]))  # (b, R, A, D)
        values = torch.einsum("brad,rdah->rbah", means, self.value.unflatten(2, heads)).flatten(2)
        return torch.baddbmm(self.out_bias[:, None], values, self.out)


class ParallelAdamW:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate and weight decay per entry of the parameters' first axis.

    torch.optim.AdamW has one of each per group, which would need a loop over heads. Vectors (R, D), biases and the
    query, are not decayed.
    """

    def __init__(self, parameters: list[Tensor], *, learning_rates: Tensor, weight_decays: Tensor) -> None:
        self.parameters = parameters
        self.learning_rates = learning_rates
        self.weight_decays = weight_decays
        self._means = [torch.zeros_like(p) for p in parameters]
        self._squares = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], *, share: float, betas=(0.9, 0.999), eps: float = 1e-8) -> None:
        """Update the parameters with that share of the learning rates."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in betas]
        for parameter, gradient, mean, square in zip(self.parameters, gradients, self._means, self._squares):
            mean.lerp_(gradient, 1 - betas[0])
            square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
            shape = (-1, *[1] * (parameter.ndim - 1))
            rate = share * self.learning_rates.view(shape)
            if parameter.ndim > 2:
                parameter.mul_(1 - rate * self.weight_decays.view(shape))
            parameter.sub_(rate * (mean / corrections[0]) / ((square / corrections[1]).sqrt() + eps))
