"""Probes of what stands at each place of an input, from the tokens there, and of motion.

python train.py data=segmentation_folder data.root=pictures evaluation=dense
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jepa.evaluation.features import Features
from jepa.evaluation.linear import LinearProbe
from jepa.utils.errors import UserError, check_at_least
from jepa.utils.random import generator
from jepa.utils.tensors import masked_mean

Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Inputs (b, C, *S) -> tokens (b, *grid, D) and valid (b, *grid) bool, False at padding, or None; the grid is flat for
`MotionProbe`.
"""

PENALTIES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
BLOCKS = 50  # of the rows of a regression, of which each fifth is held out

UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}


class DenseProbe:
    """A linear map of each frozen token, enlarged to the resolution of the truth: segmentation, depth, frames, steps.

    The map is fitted to the truth at the centre of each training token: `LinearProbe` for classes, ridge regression for
    numbers. Its outputs are enlarged linearly along each axis and scored at every place of the test samples, classes
    as `miou`, the mean over classes of intersection over union, all test samples together, and `accuracy`, the share
    of right places; numbers as `rmse`, in the units of the masks. Raw input is the pixels of each token's patch.

    Truth with fewer axes than the grid, such as a label for each frame of sound, is that of the last axes; tokens are
    averaged over the others.

    max_tokens: training tokens, as many of each sample, drawn at random. linear: the probe of classes; None for
    `LinearProbe()`.
    """

    needs = "truth"
    uses_seed = False

    def __init__(self, *, max_tokens: int = 50_000, linear: LinearProbe | None = None) -> None:
        check_at_least("evaluation.probes.dense", 1, max_tokens=max_tokens)
        self.max_tokens, self.linear = max_tokens, linear or LinearProbe()

    def __call__(self, encode: Encode, data: Any, *, batches: Callable[[str, str], Iterator[Any]]) -> dict[str, float]:
        """Return {"/miou": ..., "/accuracy": ...} or {"/rmse": ...}. batches: (split, what) -> `truth_batches`."""
        names = data.truth_names
        train = self._train_tokens(encode, batches("train", "truth"), max(1, self.max_tokens // data.spec.num_train))
        if names is None:
            predict = ridge_regression(train.x, train.labels.unsqueeze(1))
            squares, count = 0.0, 0
            for scores, truth in _enlarged(encode, predict, batches("test", "truth")):
                known = ~truth.isnan()
                squares += float((scores[0] - truth)[known].double().square().sum())
                count += int(known.sum())
            _check_some(count, "test")
            return {"/rmse": math.sqrt(squares / count)}
        logits = self.linear.fit(train, classes=len(names), seed=0).logits
        table = torch.zeros(len(names), len(names), dtype=torch.int64, device=train.x.device)  # [truth, prediction]
        for scores, truth in _enlarged(encode, logits, batches("test", "truth")):
            known = truth >= 0
            pairs = truth[known] * len(names) + scores.argmax(dim=0)[known]
            table += torch.bincount(pairs, minlength=table.numel()).view_as(table)
        _check_some(int(table.sum()), "test")
        return {"/miou": mean_iou(table), "/accuracy": float(table.diag().sum() / table.sum())}

    def _train_tokens(self, encode: Encode, batches: Iterator[Any], each: int) -> Features:
        """Return up to `each` tokens of every sample and the truth at their centres."""
        random = generator("cpu", 0, "evaluation/dense")
        parts = []
        for tokens, valid, truths in _tokens_and_truth(encode, batches):
            for number, truth in enumerate(truths):
                grid = tokens.shape[1:-1]
                exact = truth[None, None].double()  # of axes alone, which interpolate wants to have channels
                centres = F.interpolate(exact, size=grid, mode="nearest-exact")[0, 0].to(truth.dtype).flatten()
                known = ~centres.isnan() if truth.is_floating_point() else centres >= 0
                if valid is not None:
                    known &= valid[number].flatten()
                places = known.nonzero().flatten()
                places = places[torch.randperm(len(places), generator=random)[:each].to(places.device)]
                parts.append((tokens[number].flatten(0, -2)[places].float(), centres[places]))
        x, labels = (torch.cat(part) for part in zip(*parts))
        _check_some(len(x), "train")
        return Features(x, labels)


class MotionProbe:
    """Direction and speed of what moves, by ridge regression from the pooled tokens of clips, and of single frames.

    Of the bright digit of Moving MNIST in the middle of a clip. `direction_error`: mean angle between the predicted and
    the true direction, in degrees, 90 by chance. `speed_rmse`: pixels per frame. `single_frame/...`: the same of clips
    that show their middle frame all the time, from which no direction can be told: what a clip adds is motion. Raw
    input is the clip, as for other probes.
    """

    needs = "motion"
    uses_seed = False

    def __call__(self, encode: Encode, data: Any, *, batches: Callable[[str, str], Iterator[Any]]) -> dict[str, float]:
        """Return the errors. batches: (split, what) -> `truth_batches`."""
        moving: dict[str, tuple[Tensor, Tensor]] = {}
        still: dict[str, tuple[Tensor, Tensor]] = {}
        for split in ("train", "test"):
            parts: list[tuple[Tensor, Tensor, Tensor]] = []
            for batch in batches(split, "motion"):
                x, velocity = batch["x"], torch.stack(batch["truth"]).to(batch["x"].device)
                middle = x[:, :, x.shape[2] // 2, None].expand_as(x)
                pooled = (masked_mean(*encode(each)) for each in (x, middle))
                parts.append((*pooled, velocity))
            x, middle, velocity = (torch.cat(part) for part in zip(*parts))
            moving[split], still[split] = (x, velocity), (middle, velocity)
        return {f"/{name}": value for name, value in self._errors(moving).items()} | {
            f"/single_frame/{name}": value for name, value in self._errors(still).items()
        }

    def _errors(self, splits: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        (x, velocity), (test, truth) = splits["train"], splits["test"]
        speed = velocity.norm(dim=1, keepdim=True)
        predicted = ridge_regression(x, torch.cat([velocity / speed.clamp(min=1e-6), speed], dim=1))(test)
        cosine = F.cosine_similarity(predicted[:, :2], truth).clamp(-1, 1)
        speed_error = predicted[:, 2] - truth.norm(dim=1)
        return {
            "direction_error": float(cosine.acos().rad2deg().mean()),
            "speed_rmse": float(speed_error.square().mean().sqrt()),
        }


def ridge_regression(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the linear map of features (n, D) to targets (n, K), of standardised features and in fp64.

    Of PENALTIES, times n, it has the one of the least error on a fifth of the rows, held out in blocks, as the tokens
    of a sample follow one another; targets count by their variance. It is then fitted to all rows.
    """
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    y = y.to(exact)
    held_out = torch.arange(len(x), device=x.device) * min(len(x), BLOCKS) // len(x) % 5 == 4
    penalty = PENALTIES[0]
    if held_out.any():
        tried = _ridge(x[~held_out], y[~held_out], PENALTIES)
        scale = y.var(dim=0, correction=0).clamp(min=1e-12)
        errors = [float(((each(x[held_out]) - y[held_out]).square() / scale).mean()) for each in tried]
        penalty = PENALTIES[errors.index(min(errors))]
    return _ridge(x, y, [penalty])[0]


def _ridge(x: Tensor, y: Tensor, penalties: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
    """Return the linear map of each penalty."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)
    scaled, centre = ((x - mean) / std).to(y.dtype), y.mean(dim=0)
    gram, products = scaled.T @ scaled, scaled.T @ (y - centre)
    maps = []
    for penalty in penalties:
        diagonal = torch.full((len(gram),), penalty * len(x), dtype=y.dtype, device=x.device).diag()
        weights = torch.cholesky_solve(products, torch.linalg.cholesky(gram + diagonal)).float()
        maps.append(lambda new, weights=weights: ((new - mean) / std) @ weights + centre.float())
    return maps


def mean_iou(table: Tensor) -> float:
    """Return the mean intersection over union of the classes that occur, of counts [truth, prediction]."""
    hits, either = table.diag(), table.sum(dim=0) + table.sum(dim=1) - table.diag()
    return float((hits / either)[either > 0].double().mean())


def _tokens_and_truth(encode: Encode, batches: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor | None, list[Tensor]]]:
    """Yield tokens (b, *grid, D), valid (b, *grid) and truths, with as many axes of the grid as of the truth."""
    for batch in batches:
        tokens, valid = encode(batch["x"])
        truths = [truth.to(tokens.device) for truth in batch["truth"]]
        if (more := tokens.ndim - 2 - truths[0].ndim) < 0:
            raise UserError(
                f"evaluation.probes.dense: the truth has {truths[0].ndim} axes, the tokens have {tokens.ndim - 2}: use "
                "an encoder with a grid for each"
            )
        for _ in range(more):
            if valid is None:
                tokens = tokens.float().mean(dim=1)
            else:
                weight = valid.unsqueeze(-1).float()
                tokens = (tokens.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
                valid = valid.any(dim=1)
        yield tokens, valid, truths


def _enlarged(
    encode: Encode, predict: Callable[[Tensor], Tensor], batches: Iterator[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs (K, *s) and the truth (*s) of each sample."""
    for tokens, _, truths in _tokens_and_truth(encode, batches):
        outputs = predict(tokens.float()).movedim(-1, 1)  # (b, K, *grid)
        for output, truth in zip(outputs, truths):
            mode = UPSAMPLING[truth.ndim]
            yield F.interpolate(output[None], size=truth.shape, mode=mode, align_corners=False)[0], truth


def _check_some(count: int, split: str) -> None:
    """Raise UserError where a split has nothing to fit or score."""
    if not count:
        raise UserError(
            f"evaluation.probes.dense: masks or labels of the {split} split hold nothing but ignored values"
        )
