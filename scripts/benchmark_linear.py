"""Measure the linear probe beside scikit-learn: python scripts/benchmark_linear.py [--root DIR]

Seconds of the probe on 60,000 x 384 features of 10 classes, and of scikit-learn's LogisticRegression (its default
tolerance, as many threads) that does the same on the same standardised features: 7 penalties on 80 % of the samples, a
choice on the others, the best again on all. `one_fit` is the last of its 8 fits alone, at the penalty that the probe
chose. The features are synthetic, correlated like those of a network; with --root they are random ReLU features of the
Fashion-MNIST in that folder. It takes minutes, and prints JSON: compare ratios, not runs.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from sklearn.linear_model import LogisticRegression

from jepa.data.sources import fashion_mnist
from jepa.evaluation import Features, LinearProbe
from jepa.evaluation.features import stratified_holdout


def compared(root: str | None) -> dict[str, object]:
    """Seconds, penalties and accuracies of both."""
    train, test = correlated_features() if root is None else pictures_as_features(root)
    labels, rest = train.labels.numpy(), stratified_holdout(train.labels, 5, 0).numpy()
    probe, scores = LinearProbe(), {}
    begun = time.perf_counter()
    classifier = probe.fit(train, classes=10, seed=0)
    seconds = {"probe": time.perf_counter() - begun}
    x, y = (((split.x - classifier.mean) / classifier.std).numpy() for split in (train, test))

    begun = time.perf_counter()
    for penalty in probe.penalties:
        fitted = LogisticRegression(C=1 / (penalty * (~rest).sum()), max_iter=10_000).fit(x[~rest], labels[~rest])
        scores[penalty] = fitted.score(x[rest], labels[rest])
    exact = LogisticRegression(C=1 / (classifier.penalty * len(x)), max_iter=10_000)
    middle = time.perf_counter()
    exact.fit(x, labels)
    ended = time.perf_counter()
    seconds |= {"scikit_learn": ended - begun, "scikit_learn_one_fit": ended - middle}
    return {
        "size": list(train.x.shape),
        "threads": torch.get_num_threads(),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "ratio": seconds["probe"] / seconds["scikit_learn"],
        "ratio_one_fit": seconds["probe"] / seconds["scikit_learn_one_fit"],
        "penalty": classifier.penalty,
        "penalty_scikit_learn": max(scores, key=scores.get),
        "accuracy_probe": float((classifier.predict(test.x) == test.labels).double().mean()),
        "accuracy_scikit_learn": float(exact.score(y, test.labels.numpy())),
    }


def correlated_features(width: int = 384) -> tuple[Features, Features]:
    """60,000 training and 10,000 test features whose variances fall as 1 / k along random directions."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    scale = torch.arange(1, width + 1).float().rsqrt()
    labels = torch.randint(10, (70_000,), generator=generator)
    centres = 1.2 * torch.randn(10, width, generator=generator) * scale
    x = (torch.randn(len(labels), width, generator=generator) * scale + 0.1 * centres[labels]) @ rotation
    return Features(x[:60_000], labels[:60_000]), Features(x[60_000:], labels[60_000:])


def pictures_as_features(root: str, width: int = 384) -> tuple[Features, Features]:
    """Fashion-MNIST through one random layer of ReLUs."""
    splits = fashion_mnist(root=root, download=False)
    weights = torch.randn(28 * 28, width, generator=torch.Generator().manual_seed(0)) / 28
    return tuple(
        Features((split.images.flatten(1).float() / 255 @ weights).relu(), torch.as_tensor(split.labels))
        for split in (splits.train, splits.test)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the folder of Fashion-MNIST")
    print(json.dumps(compared(parser.parse_args().root), indent=2))
