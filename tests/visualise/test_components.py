"""Principal components of features, their alignment over steps, and colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa.visualise import aligned, as_colours, principal_components


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4)])
def test_components_find_the_axes_of_the_variance(grid):
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4, *grid, 3, generator=random)
    values -= values.flatten(0, -2).mean(dim=0)
    values = torch.linalg.svd(values.flatten(0, -2), full_matrices=False).U.view(4, *grid, 3)  # uncorrelated
    axes = torch.linalg.qr(torch.randn(6, 3, generator=random)).Q  # (D, 3)
    spread = torch.tensor([9.0, 3.0, 1.0])
    features = values * spread @ axes.T + 5.0
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as a run in bf16 calls it
        found, basis = principal_components(features, 8)
    signs = (basis[:, :3] * axes).sum(dim=0)
    assert torch.allclose(signs.abs(), torch.ones(3), atol=1e-4)
    assert torch.allclose(found[..., :3], values * spread * signs, atol=1e-4)
    assert found.shape == (4, *grid, 8)
    assert torch.allclose(found[..., 3:], torch.zeros(()), atol=1e-4)
    assert torch.all(basis[:, :3].gather(0, basis[:, :3].abs().argmax(dim=0, keepdim=True)) > 0)


def test_padding_takes_no_part():
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([features, torch.full((3, 2, 4), float("nan"))], dim=1)
    padded[0, 6] = float("inf")
    found = principal_components(padded, 3)[0]
    assert torch.allclose(found[:, :5], principal_components(features, 3)[0], atol=1e-5)
    assert found[:, 5:].isnan().all()
    assert principal_components(padded[:, 5:], 3)[0].isnan().all()


def test_alignment_undoes_a_rotation():
    random = torch.Generator().manual_seed(1)
    values = torch.randn(2, 4, 6, 8, generator=random)
    turned = values.clone()
    turned[..., :3] = values[..., :3] @ torch.linalg.qr(torch.randn(3, 3, generator=random)).Q
    turned[0, 0, 0] = float("nan")
    back = aligned(turned.numpy(), values)
    assert torch.allclose(back[1], values[1, ..., :3], atol=1e-5)
    assert back[0, 0, 0].isnan().all()
    with pytest.raises(ValueError, match=r"\(2, 3, 6, 3\) and \(2, 4, 6, 3\): of different tokens"):
        aligned(values[:, 1:], values)


def test_colours_are_clipped_at_percentiles():
    values = np.stack([np.linspace(0, 100, 101), np.full(101, 3.0), np.linspace(1, -1, 101)], axis=-1)
    values = np.concatenate([values, [[np.nan] * 3]]).astype(np.float16)
    colours = as_colours(values)
    assert colours.dtype == np.uint8
    assert colours[[0, 2, 50, 98, 100], 0].tolist() == [0, 0, 128, 255, 255]
    assert set(colours[:, 1]) == {128}
    assert colours[[0, 50, 100], 2].tolist() == [255, 128, 0]
    assert colours[-1].tolist() == [128] * 3
    assert as_colours(np.full((2, 3), np.nan)).tolist() == [[128] * 3] * 2
