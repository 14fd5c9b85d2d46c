"""Draw what a run on small pictures has learned: python scripts/picture.py <run folder> [--output file.png]

Left: test pictures, the tokens that the encoder sees, and at the hidden tokens the training patches whose target
features are nearest to what the predictor predicts there. Right: frozen features of the test split in two dimensions
(t-SNE, van der Maaten and Hinton 2008), of random weights and of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from hydra.utils import instantiate
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.config.build import build_data, build_model
from jepa.types import Masker
from jepa.utils.read_data import read_mapping

SHOWN = 7
"""Test pictures that are drawn."""


def main() -> None:
    """Read a run, compute, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a masked model on pictures, such as experiment=digits")
    parser.add_argument("--output", type=Path, help="the picture; picture.png in the run folder without it")
    parser.add_argument("--seed", type=int, default=0, help="of masks and t-SNE")
    arguments = parser.parse_args()
    config = OmegaConf.create(read_mapping(arguments.run / "config.yaml", verbatim=True))
    data = build_data(config)
    untrained, model = build_model(config), build_model(config)
    model.load_state_dict(torch.load(arguments.run / "checkpoints" / "last.pt", weights_only=True)["model"])
    train, _ = read_split(data, "train")
    test, labels = read_split(data, "test")
    with torch.no_grad():
        rows = completions(model.eval(), instantiate(config.model.mask), train, test, labels, arguments.seed)
        points = {
            "random weights": project(untrained.eval(), test, arguments.seed),
            "trained, without labels": project(model, test, arguments.seed),
        }
    output = arguments.output or arguments.run / "picture.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, points, labels, output)


def read_split(data: Any, split: str) -> tuple[Tensor, Tensor]:
    """Return all inputs (n, C, H, W) and labels (n,) of a split, without augmentation."""
    batches = list(data.evaluation_batches(split, batch_size=256, limit=None))
    return torch.cat([b["x"] for b in batches]), torch.cat([b["label"] for b in batches])


def completions(
    model: nn.Module, masker: Masker, train: Tensor, test: Tensor, labels: Tensor, seed: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (picture, seen, completed), each (H, W), of the first test picture of each label."""
    x = torch.stack([test[labels == label][0] for label in labels.unique()])
    grid = model.encoder.grid(x)
    (mask,) = masker(len(x), grid, generator=torch.Generator().manual_seed(seed))
    latents = model.latents(x, [mask])
    bank = F.layer_norm(model.encode_target(train), (model.encoder.embed_dim,))  # (n, N, D)
    patches = model.encoder.token_inputs(train)[..., : patch_area(train, grid)]  # (n, N, P), first channel
    own = model.encoder.token_inputs(x)[..., : patch_area(x, grid)]
    blank = torch.full_like(own, float("nan"))
    rows = []
    for sample in range(len(x)):
        seen, completed = blank[sample].clone(), blank[sample].clone()
        seen[mask.context[sample]] = completed[mask.context[sample]] = own[sample, mask.context[sample]]
        predicted: dict[int, list[Tensor]] = {}
        for places, block in zip(mask.targets[sample], latents.predictions[0][sample]):
            for place, prediction in zip(places.tolist(), block):
                predicted.setdefault(place, []).append(prediction)
        for place, predictions in predicted.items():
            distance = (bank[:, place] - torch.stack(predictions).mean(dim=0)).square().sum(dim=-1)
            completed[place] = patches[distance.argmin(), place]
        rows.append(tuple(assemble(tokens, grid) for tokens in (own[sample], seen, completed)))
    return rows


def patch_area(x: Tensor, grid: tuple[int, ...]) -> int:
    """Return the pixels of a patch."""
    return x.shape[-2] // grid[0] * (x.shape[-1] // grid[1])


def assemble(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Put square patches (N, P) in their places: (H, W)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.view(*grid, side, side).permute(0, 2, 1, 3).reshape(grid[0] * side, grid[1] * side)


def project(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Return frozen features, the mean over tokens, in two dimensions: (n, 2)."""
    features = model.encode_target(x).mean(dim=1).double()
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-6)
    return torch.from_numpy(TSNE(perplexity=30, init="pca", random_state=seed).fit_transform(features.numpy()))


def draw(rows: list[tuple[Tensor, ...]], points: dict[str, Tensor], labels: Tensor, path: Path) -> None:
    """Write the figure: seven of the rows as columns of three tiles, and a scatter plot for each entry of points."""
    figure = plt.figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1.0])
    rows = rows[:SHOWN]
    grey = matplotlib.colormaps["gray_r"].with_extremes(bad="#9ecae1")
    limits = {"vmin": float(rows[0][0].min()), "vmax": float(rows[0][0].max())}
    axes = left.subplots(3, len(rows))
    for column, tiles in enumerate(rows):
        for axis, tile, name in zip(axes[:, column], tiles, ("picture", "seen", "predicted")):
            axis.imshow(tile.numpy(), cmap=grey, interpolation="nearest", **limits)
            axis.set_ylabel(name if column == 0 else "")
    scatter = right.subplots(1, 2)
    for axis, (name, places) in zip(scatter, points.items()):
        for label in labels.unique().tolist():
            these = places[labels == label]
            axis.scatter(*these.T.numpy(), s=6, color=matplotlib.colormaps["tab10"](label), label=str(label))
        axis.set_title(name, fontsize=10)
    for axis in [*axes.flat, *scatter]:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#cccccc")
    handles = scatter[0].get_legend_handles_labels()
    style = {"ncols": 10, "frameon": False, "markerscale": 2, "columnspacing": 0.6, "handletextpad": 0.0}
    right.legend(*handles, loc="outside lower center", **style)
    figure.savefig(path, dpi=100)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
