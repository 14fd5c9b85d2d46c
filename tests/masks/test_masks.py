from __future__ import annotations

import json
import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from jepa.config.compose import CONFIG_DIR
from jepa.masks import MultiBlockMask, PublishedMultiBlockMask, RandomMask, multiblock_mask
from jepa.types import Mask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def membership(index: torch.Tensor, tokens: int) -> torch.Tensor:
    """(B, ...) indices to (B, N) counts."""
    flat = index.flatten(1)
    return torch.zeros(len(flat), tokens, dtype=torch.long).scatter_add_(1, flat, torch.ones_like(flat))


def check(mask: Mask, grid: tuple[int, ...], blocks: int) -> None:
    """Bounds, dtype, no token twice in a context or a block, context and targets disjoint."""
    tokens = torch.Size(grid).numel()
    assert mask.context.dtype == mask.targets.dtype == torch.int64
    assert mask.targets.shape[1] == blocks
    for index in (mask.context, mask.targets):
        assert index.min() >= 0
        assert index.max() < tokens
    context = membership(mask.context, tokens)
    assert context.max() == 1
    assert membership(mask.targets.flatten(0, 1), tokens).max() == 1
    assert not (context.bool() & membership(mask.targets, tokens).bool()).any()


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (7, 7), (8, 12), (20, 5), (64,), (4, 10, 10)])
def test_multiblock_on_any_grid(grid):
    [mask] = MultiBlockMask(min_context=1)(64, grid, generator=seeded())
    check(mask, grid, blocks=4)


@pytest.mark.parametrize("grid", [(14, 14), (3, 3), (50,), (4, 8, 8)])
def test_random_on_any_grid(grid):
    masks = RandomMask(context_share=0.3, target_share=0.5, num_masks=2)(32, grid, generator=seeded())
    assert len(masks) == 2
    tokens = torch.Size(grid).numel()
    for mask in masks:
        check(mask, grid, blocks=1)
        assert mask.context.shape[1] == round(0.3 * tokens)
        assert mask.targets.shape[2] == round(0.5 * tokens)
    assert not torch.equal(masks[0].context, masks[1].context)


def test_random_masks_cover_the_grid_evenly():
    [mask] = RandomMask(context_share=0.25)(8000, (4, 4), generator=seeded())
    share = membership(mask.context, 16).float().mean(0)
    assert torch.allclose(share, torch.full((16,), 0.25), atol=0.02)


def test_the_same_generator_state_gives_the_same_masks():
    for masker in (MultiBlockMask(), PublishedMultiBlockMask(), RandomMask()):
        [a], [b] = masker(8, (14, 14), generator=seeded(3)), masker(8, (14, 14), generator=seeded(3))
        [c] = masker(8, (14, 14), generator=seeded(4))
        assert torch.equal(a.context, b.context)
        assert torch.equal(a.targets, b.targets)
        assert a.targets.shape != c.targets.shape or not torch.equal(a.targets, c.targets)


def test_context_does_not_shrink_as_the_batch_grows():
    """The published collator cuts every sample to the shortest of the batch."""
    fixed, published = MultiBlockMask(), PublishedMultiBlockMask()
    kept = {size: fixed(size, (14, 14), generator=seeded())[0].context.shape[1] for size in (2, 64, 512)}
    assert len(set(kept.values())) == 1

    def published_mean(size: int) -> float:
        draws = [published(size, (14, 14), generator=seeded(s))[0].context.shape[1] for s in range(10)]
        return sum(draws) / len(draws)

    assert published_mean(128) < 0.75 * published_mean(2)


def shares(masker, grid: tuple[int, int], batch: int, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the context's tokens per row and per column."""
    rows, columns = torch.zeros(grid[0]), torch.zeros(grid[1])
    for seed in range(draws):
        [mask] = masker(batch, grid, generator=seeded(seed))
        rows += torch.bincount(mask.context.flatten() // grid[1], minlength=grid[0])
        columns += torch.bincount(mask.context.flatten() % grid[1], minlength=grid[1])
    return rows / rows.sum(), columns / columns.sum()


def test_the_published_defect_and_its_cure():
    """Published: the last row and column are never seen and the top is favoured. Fixed: the grid is symmetric."""
    rows, columns = shares(PublishedMultiBlockMask(), (14, 14), batch=8, draws=40)
    assert rows[-1] == columns[-1] == 0
    assert rows[0] > 2 * rows[6]
    rows, columns = shares(MultiBlockMask(), (14, 14), batch=2000, draws=4)
    for share in (rows, columns):
        assert share.min() > 0.5 / 14
        assert torch.allclose(share, share.flip(0), atol=0.004)


def test_targets_reach_every_row_and_column():
    [mask] = MultiBlockMask()(4000, (14, 14), generator=seeded())
    rows = torch.bincount((mask.targets // 14).flatten(), minlength=14).float()
    assert rows.min() > 0
    assert torch.allclose(rows / rows.sum(), rows.flip(0) / rows.sum(), atol=0.004)
    [published] = PublishedMultiBlockMask()(200, (14, 14), generator=seeded())
    assert (published.targets // 14).max() == 12


def test_published_statistics(shared_dir):
    for wanted in json.loads((shared_dir / "fixtures" / "ijepa_mask_statistics.json").read_text()):
        side, batch = wanted["img"] // wanted["patch"], wanted["batch"]
        context, target, rows = [], [], torch.zeros(side)
        for seed in range(640 // batch):
            [mask] = multiblock_mask(compat="published")(batch, (side, side), generator=seeded(seed))
            context.append(mask.context.shape[1] / side**2)
            target.append(mask.targets.shape[2] / side**2)
            rows += torch.bincount(mask.context.flatten() // side, minlength=side)
        assert sum(context) / len(context) == pytest.approx(wanted["context_fraction_mean"], abs=0.025)
        assert sum(target) / len(target) == pytest.approx(wanted["target_fraction_mean"], abs=0.006)
        assert torch.allclose(rows / rows.sum(), torch.tensor(wanted["context_row_share"]), atol=0.012)


def test_scale_and_aspect_ratio_are_independent():
    """Widest and tallest blocks occur at every scale; in the published collator one number sets both."""
    from jepa.masks.multiblock import draw_blocks

    blocks = draw_blocks((20000,), (40, 40), (0.1, 0.3), (0.5, 2.0), seeded())
    height, width = blocks[1].float().unbind(-1)
    area, ratio = height * width, height / width
    correlation = torch.corrcoef(torch.stack([area, ratio]))[0, 1]
    assert correlation.abs() < 0.03
    assert area.min() / 1600 == pytest.approx(0.1, abs=0.01)
    assert area.max() / 1600 == pytest.approx(0.3, abs=0.02)
    assert ratio.mean() == pytest.approx(1.25, abs=0.02)  # uniform on (0.5, 2)


def test_every_context_is_full_length_and_samples_differ():
    [mask] = MultiBlockMask()(512, (14, 14), generator=seeded())
    assert len(torch.unique(mask.context.sort(1).values, dim=0)) == 512
    blocks = {tuple(block.tolist()) for block in mask.targets.flatten(0, 1).sort(1).values[:200]}
    assert len(blocks) > 60


def bounding_boxes(mask: Mask, grid: tuple[int, ...]) -> torch.Tensor:
    """Sides (B, M, axes) of the smallest boxes around the target blocks."""
    cells = torch.stack(torch.unravel_index(mask.targets, grid), dim=-1)  # (B, M, P, axes)
    return cells.amax(2) - cells.amin(2) + 1


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (7, 7), (28, 28), (8, 12), (64,), (4, 14, 14)])
def test_every_target_block_is_a_rectangle(grid):
    """Of one area per batch, among at most four, and each with sides of its own, within the aspect range."""
    masker, seen = MultiBlockMask(min_context=1), {}
    for seed in range(40):
        [mask] = masker(32, grid, generator=seeded(seed))
        boxes = bounding_boxes(mask, grid)
        area, context = mask.targets.shape[-1], mask.context.shape[-1]
        assert (boxes.prod(-1) == area).all()
        assert seen.setdefault(area, context) == context  # K depends on P alone
        assert int(0.15 * math.prod(grid)) <= area <= math.ceil(0.2 * math.prod(grid))
        if grid in ((14, 14), (16, 16), (28, 28)):
            ratio = boxes[..., -2] / boxes[..., -1]
            assert ((ratio >= 0.75) & (ratio <= 1.5)).all()
    assert 1 <= len(seen) <= 4
    if grid == (14, 14):
        assert sorted(seen) == [30, 35, 36]


def test_shapes_of_an_area_are_as_likely_as_rounding_makes_them():
    """5 x 6 and 6 x 5 on 14 x 14 tokens, for ratios uniform on (0.75, 1.5)."""
    masker = MultiBlockMask()
    draws = (masker(4000, (14, 14), generator=seeded(seed))[0] for seed in range(12))
    mask = next(mask for mask in draws if mask.targets.shape[-1] == 30)
    tall = (bounding_boxes(mask, (14, 14))[..., 0] == 6).float().mean()
    assert tall == pytest.approx(0.593, abs=0.02)


def test_masks_of_earlier_runs_stay_what_they_were():
    """Drawn by the code of before `rectangles`."""
    for grid, expected in (((14, 14), (15514, 40810, 91, 93, 94)), ((7, 9), (1698, 4110, 31, 32, 33))):
        [mask] = multiblock_mask(min_context=4, compat="fixed")(3, grid, generator=seeded(5))
        assert (mask.context.sum().item(), mask.targets.sum().item(), *mask.targets[2, 1, :3].tolist()) == expected


def test_overlap_when_asked_for():
    [mask] = MultiBlockMask(allow_overlap=True)(64, (14, 14), generator=seeded())
    both = membership(mask.context, 196).bool() & membership(mask.targets, 196).bool()
    assert both.any(dim=1).all()


@pytest.mark.parametrize("masker", [MultiBlockMask(min_context=1), RandomMask()])
def test_padding_is_marked(masker):
    valid = torch.ones(16, 64, dtype=torch.bool)
    valid[8:, 40:] = False
    [mask] = masker(16, (64,), valid=valid, generator=seeded())
    assert valid.gather(1, mask.context)[mask.context_valid].all()
    assert valid.gather(1, mask.targets.flatten(1)).view_as(mask.targets)[mask.target_valid].all()
    assert mask.context_valid[:8].all()
    assert mask.target_valid[:8].all()


def test_random_shares_are_those_of_what_is_no_padding():
    lengths = torch.tensor([0, 1, 2, 3, 20, 64])
    valid = torch.arange(64) < lengths[:, None]
    [mask] = RandomMask(context_share=0.4)(6, (64,), valid=valid, generator=seeded())
    assert mask.context_valid.sum(dim=1).tolist() == [0, 1, 1, 1, 8, 26]
    assert mask.target_valid.sum(dim=(1, 2)).tolist() == [0, 0, 1, 2, 12, 38]
    [full] = RandomMask(context_share=0.4)(6, (64,), generator=seeded())
    assert torch.equal(mask.context[5], full.context[5])
    assert torch.equal(mask.targets[5], full.targets[5])


def test_slicing_a_mask():
    [mask] = MultiBlockMask()(8, (14, 14), generator=seeded())
    assert torch.equal(mask[2:5].context, mask.context[2:5])
    assert torch.equal(mask[2:5].targets, mask.targets[2:5])
    assert mask[2:5].context_valid is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiBlockMask()(4, (4, 4)), r"do not fit a grid of 4 x 4 tokens.*model.mask.min_context=10.*patches"),
        (lambda: MultiBlockMask(target_scale=(0.5, 0.2)), r"target_scale: got \[0.5, 0.2\], expected \[low, high\]"),
        (lambda: MultiBlockMask(context_scale=(0.5, 1.5)), "context_scale"),
        (lambda: MultiBlockMask(num_targets=0), "num_targets must be at least 1"),
        (lambda: PublishedMultiBlockMask()(2, (4, 4)), "does not hold more than model.mask.min_context=10"),
        (lambda: PublishedMultiBlockMask()(2, (4, 8, 8)), "serves 2-D grids"),
        (lambda: RandomMask(context_share=0.7, target_share=0.5), "add up to at most 1"),
        (lambda: RandomMask(num_masks=0), "num_masks must be at least 1"),
        (lambda: RandomMask()(2, (1, 1)), "do not fit a grid"),
        (lambda: multiblock_mask(compat="old"), "got 'old', expected one of rectangles, published, fixed"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("compat", "kind"),
    [("rectangles", MultiBlockMask), ("fixed", MultiBlockMask), ("published", PublishedMultiBlockMask)],
)
def test_the_config_gives_a_masker(compat, kind):
    config = OmegaConf.load(CONFIG_DIR / "model" / "mask" / "multiblock.yaml")
    masker = instantiate(config, compat=compat)
    assert isinstance(masker, kind)
    check(masker(2, (14, 14), generator=seeded())[0], (14, 14), blocks=4)
