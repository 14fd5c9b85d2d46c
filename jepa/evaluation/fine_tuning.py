"""The fine-tuning probe: the accuracy when the encoder itself is trained on the labels."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.utils.errors import UserError
from jepa.utils.random import derive_seed, seeded
from jepa.utils.tensors import token_valid

log = logging.getLogger("jepa")


class FineTuning:
    """Accuracy of the encoder and a linear head on its pooled features, both trained on the labels for some epochs.

    AdamW with a linear warm-up and a cosine to 0, on the training stream: augmented, shuffled, `data.batch_size`
    samples a step, each view being a sample. Only the last layer is pooled, whatever `evaluation.layers` is, and all
    labels are used, whatever `evaluation.max_train_samples` is. The row of random weights is training from scratch.

    epochs: passes over the training split. learning_rate, weight_decay: of AdamW; biases and norms are not decayed.
    warmup_share: share of the steps in which the rate rises from 0. clip_norm: maximum norm of the gradients.

    Raises ValueError for values outside these.
    """

    needs = "encoder"

    def __init__(
        self,
        *,
        epochs: float = 5,
        learning_rate: float = 5e-4,
        weight_decay: float = 0.05,
        warmup_share: float = 0.1,
        clip_norm: float = 1.0,
    ) -> None:
        key = "evaluation.probes.fine_tuning"
        for name, value in {"epochs": epochs, "learning_rate": learning_rate, "clip_norm": clip_norm}.items():
            if value <= 0:
                raise ValueError(f"{key}.{name} must be above 0, got {value}")
        if weight_decay < 0:
            raise ValueError(f"{key}.weight_decay must not be below 0, got {weight_decay}")
        if not 0 <= warmup_share < 1:
            raise ValueError(f"{key}.warmup_share must be in [0, 1), got {warmup_share}")
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_share = warmup_share
        self.clip_norm = clip_norm

    def __call__(
        self,
        encoder: nn.Module,
        data: Any,
        *,
        pool: Callable[[Tensor, Tensor | None], Tensor],
        classes: int,
        device: torch.device,
        seed: int,
        batch_size: int = 256,
        limit: int | None = None,
    ) -> float:
        """Return the accuracy on the test split, in [0, 1].

        encoder: (b, C, *S) -> (b, T, D), trained in place. pool: tokens and valid (b, T) -> (b, D).
        batch_size, limit: of the test samples.
        Raises UserError when the data has no training stream or the loss becomes NaN or infinite.
        """
        data = getattr(data, "evaluated", data)  # of a mix, the part whose labels these are
        if not hasattr(data, "train_batches"):
            raise UserError(
                f"evaluation.probes.fine_tuning: {type(data).__name__} has no train_batches to train on: "
                "remove the probe with evaluation.probes.fine_tuning=null"
            )
        with seeded(seed, "evaluation/fine_tuning"):  # for dropout
            head = nn.Linear(encoder.embed_dim, classes).to(device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

            def logits(x: Tensor) -> Tensor:
                return head(pool(encoder(x), token_valid(encoder, x)))

            steps = max(1, round(self.epochs * data.spec.num_train / data.batch_size))
            batches = data.train_batches(
                seed=derive_seed(seed, "evaluation/fine_tuning"), start_step=0, stop_step=steps
            )
            encoder.requires_grad_(True).train()
            with torch.enable_grad(), contextlib.closing(batches):
                self._train(nn.ModuleList([encoder, head]), logits, batches, steps, device)
        encoder.eval()
        correct = total = 0
        with torch.no_grad():
            for batch in data.evaluation_batches("test", batch_size=batch_size, limit=limit):
                predictions = logits(batch["x"].to(device)).argmax(dim=1)
                correct += int((predictions == batch["label"].to(device)).sum())
                total += len(predictions)
        return correct / total

    def _train(
        self,
        network: nn.Module,
        logits: Callable[[Tensor], Tensor],
        batches: Iterator[dict[str, Any]],
        steps: int,
        device: torch.device,
    ) -> None:
        parameters = list(network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * self._share(step, steps)
            x, labels = batch.get("views", batch.get("x")).to(device), batch["label"].to(device)
            if "views" in batch:  # (b, V, C, *S), each view being a sample
                x, labels = x.flatten(0, 1), labels.repeat_interleave(x.shape[1])
            loss = F.cross_entropy(logits(x), labels)
            if not loss.isfinite():
                raise UserError(
                    f"evaluation.probes.fine_tuning: the loss is {float(loss.detach())} at step {step}: lower "
                    f"evaluation.probes.fine_tuning.learning_rate={self.learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()
        log.debug("fine-tuning: %d steps, last loss %.4f", steps, float(loss.detach()))

    def _share(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        warmup = round(self.warmup_share * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
