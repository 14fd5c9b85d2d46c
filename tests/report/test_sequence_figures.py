"""Pictures of series, video and text."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.masks.span import SpanMask
from jepa.report.figures import as_strips, id_lines, series_figure, series_mask_figure, strip_masks
from jepa.report.sample_media import Medium
from jepa.types import Mask
from jepa.utils.pixels import input_kind


def test_kinds_are_told_by_their_axes():
    assert input_kind(torch.zeros(2, 1, 5, dtype=torch.int64)) == "ids"
    assert input_kind(torch.zeros(2, 3, 1, 50)) == "series"  # three views are not three channels of a picture
    assert input_kind(torch.zeros(2, 1, 3, 8, 8)) == "images"
    assert input_kind(torch.zeros(2, 1, 3, 4, 8, 8)) == "video"
    assert input_kind(torch.zeros(2, 1, 7, 8, 8)) == "images"
    assert input_kind(torch.zeros(2, 1, 7, 4, 8, 8)) is None
    assert input_kind(None) is None


def test_trajectories_are_not_shown():
    vectors = torch.zeros(2, 3, 4)
    assert Medium(SimpleNamespace(), None, vectors).kind == "series"
    assert Medium(SimpleNamespace(action_dim=2), None, vectors).kind is None


def test_strips_keep_frames_and_tokens_in_place():
    """A token hides the same pixels of a strip as of the clip it was made of."""
    video = torch.arange(3 * 4 * 6).view(1, 1, 3, 4, 6).float()
    grid, masks = (3, 2, 3), [Mask(torch.tensor([[7]]), torch.tensor([[[17]]]))]  # frame 1, row 0, column 1; the last
    strips = as_strips(video)
    assert strips.shape == (1, 1, 4, 18)
    assert torch.equal(strips[0, 0, :, 6:12], video[0, 0, 1])
    (mask,), flat = strip_masks(masks, grid)
    assert flat == (2, 9)
    assert mask.context.tolist() == [[4]]
    assert mask.targets.tolist() == [[[17]]]


@pytest.mark.slow
def test_figures_of_series(tmp_path):
    x = torch.randn(5, 2, 3, 40)
    x[0, 0, 1, 10:20] = float("nan")
    series_figure(x, path=tmp_path / "samples.png", labels=list("abcdefghijklm"), title="series")
    masks = SpanMask(mask_ratio=0.5, mask_length=2)(5, (10,))
    series_mask_figure(x[:, 0], masks, (10,), path=tmp_path / "masks.png")
    series_mask_figure(x[:, 0], SpanMask()(5, (3, 10)), (3, 10), path=tmp_path / "bands.png")
    for name in ("samples", "masks", "bands"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_text_with_its_masks():
    ids = torch.tensor([[1, 2, 3, 0]])

    def words(row):
        return ["" if i == 0 else f"w{i}" for i in row.tolist()]

    assert id_lines(ids, words) == ["w1 w2 w3"]
    mask = Mask(torch.tensor([[0]]), torch.tensor([[[2]]]))
    assert id_lines(ids, words, [mask]) == ["w1 {w2} [w3]"]
