"""Views of images: what is drawn, and that files and tensors are treated alike."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from jepa.data.augment import NUMBERS, Augment, centre_box
from jepa.data.image_transform import ImageTransform

PLAIN = {"crop_scale": None}
CROP = {"crop_scale": (0.3, 1.0)}


def transform(augment: Augment | None, size=(16, 16), channels=1, interpolation="bilinear") -> ImageTransform:
    return ImageTransform(
        size=size, channels=channels, mean=[0.0], std=[1.0], interpolation=interpolation, augment=augment
    )


def picture(height: int = 16, width: int = 16, channels: int = 1) -> torch.Tensor:
    """A smooth image, uint8 (1, C, H, W), so that different resampling filters agree on it."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(x * (i + 1) + y + i) for i in range(channels)]
    return (torch.stack(waves) * 255).round().to(torch.uint8)[None]


def as_file(image: torch.Tensor) -> Image.Image:
    return v2.functional.to_pil_image(image[0])


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, count, NUMBERS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        dict(PLAIN, horizontal_flip=0.5),
        dict(PLAIN, rotation=30),
        dict(PLAIN, translate=0.2),
        dict(PLAIN, rotation=20, translate=0.1, horizontal_flip=0.5),
        dict(PLAIN, color_jitter=0.8),
        dict(PLAIN, blur=1.0),
        {"crop_scale": [0.3, 1.0], "horizontal_flip": 0.5},
    ],
)
def test_files_and_tensors_give_the_same_views(settings, channels):
    # A large picture, as the crop of a file is rounded to pixels and that of a tensor is not.
    image = picture(96, 96, channels)
    apply = transform(Augment(**settings), (96, 96), channels)
    numbers = uniform(6)
    from_file, from_tensor = apply.augmented(as_file(image), numbers), apply.augmented(image, numbers)
    assert from_file.shape == from_tensor.shape == (1, 6, channels, 96, 96)
    outside = (from_file == 0) | (from_tensor == 0)  # the edges of what came in are blended differently
    assert outside.float().mean() < 0.4
    assert (from_file - from_tensor)[~outside].abs().median() < 0.01
    assert (from_file - from_tensor)[~outside].abs().quantile(0.95) < 0.06


def test_warps_in_closed_form():
    """A shift by whole pixels, a quarter turn and a mirror image only move pixels."""
    image = picture(8, 8)
    numbers = torch.full((1, 1, NUMBERS), 0.5)  # the middle of every range: no rotation, no shift
    pixels = image / 255.0

    def view(column: int | None, value: float, **settings) -> torch.Tensor:
        chosen = numbers.clone()
        if column is not None:
            chosen[..., column] = value
        return transform(Augment(**PLAIN, **settings), (8, 8)).augmented(image, chosen)[0]

    angle, right, down = 23, 24, 25  # columns of the uniform numbers
    shifted = view(right, 1.0, translate=0.25)
    torch.testing.assert_close(shifted[..., 2:], pixels[..., :-2])
    assert not shifted[..., :2].any(), "what comes in from outside is black"
    torch.testing.assert_close(view(down, 1.0, translate=0.25)[..., 2:, :], pixels[..., :-2, :])
    clockwise = torch.rot90(pixels, -1, dims=(-2, -1))
    torch.testing.assert_close(view(angle, 1.0, rotation=90.0), clockwise, atol=1e-5, rtol=0)
    torch.testing.assert_close(view(None, 0, horizontal_flip=1.0), pixels.flip(-1))
    torch.testing.assert_close(view(None, 0), pixels)


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30)])
def test_crops_are_distributed_as_torchvisions(shape):
    scale, ratio, count = (0.3, 1.0), (0.75, 1.3333), 3000
    augment = Augment(crop_scale=scale, crop_ratio=ratio)
    box = augment.views(uniform(count)[0], height=shape[0], width=shape[1], size=(8, 8)).box
    assert (box >= 0).all()
    assert (box[:, :2] + box[:, 2:] <= 1 + 1e-6).all()

    reference = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(1, *shape)
    drawn = [reference.make_params([image]) for _ in range(count)]
    places = torch.tensor([[p["left"], p["top"], p["width"], p["height"]] for p in drawn])
    expected = places / torch.tensor([shape[1], shape[0], shape[1], shape[0]])
    torch.testing.assert_close(box.mean(dim=0), expected.mean(dim=0), atol=0.015, rtol=0)
    torch.testing.assert_close(box.std(dim=0), expected.std(dim=0), atol=0.015, rtol=0)


def test_a_setting_leaves_the_choices_of_the_others():
    numbers = uniform(5)[0]
    size = {"height": 16, "width": 16, "size": (16, 16)}
    alone = Augment(**CROP, rotation=10).views(numbers, **size)
    together = Augment(**CROP, rotation=10, translate=0.1, blur=0.5, horizontal_flip=0.5).views(numbers, **size)
    assert torch.equal(alone.angle, together.angle)
    assert torch.equal(alone.box, together.box)


def test_views_of_a_sample_differ():
    views = transform(Augment(**CROP, rotation=10, translate=0.1)).augmented(picture(), uniform(4))[0]
    distances = torch.cdist(views.flatten(1), views.flatten(1))
    assert (distances + torch.eye(4) > 0.01).all()


def test_ranges_are_kept():
    settings = {"rotation": 10, "translate": 0.1, "color_jitter": 0.5, "blur": 0.3, "horizontal_flip": 0.25}
    views = Augment(**settings).views(uniform(4000)[0], height=9, width=9, size=(9, 9))
    assert views.angle.abs().max() <= 10
    assert views.angle.abs().mean() == pytest.approx(5, abs=0.2)
    assert views.shift.abs().max() <= 0.1
    assert (views.jitter[:, :3] - 1).abs().max() <= 0.4
    assert views.jitter[:, 3].abs().max() <= 0.1
    assert (views.blur > 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert views.flip.float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_plain_resizes_the_short_side_and_crops_the_centre(kind):
    image = picture(30, 50, 3)
    image[..., :10], image[..., 40:] = 255, 255  # what the centre crop leaves out
    apply = transform(None, (15, 15), 3)
    result = apply.plain(as_file(image) if kind == "file" else image)
    expected = v2.functional.resize(image[..., 10:40], [15, 15], antialias=True) / 255
    torch.testing.assert_close(result, expected, atol=0.02, rtol=0)


def test_an_image_of_the_right_size_is_only_normalised():
    image = picture()
    apply = ImageTransform(size=(16, 16), channels=1, mean=[0.5], std=[0.25], interpolation="bicubic", augment=None)
    expected = (image / 255.0 - 0.5) / 0.25
    torch.testing.assert_close(apply.plain(image), expected)
    torch.testing.assert_close(apply.plain(as_file(image)), expected)


def test_the_centre_box_has_the_aspect_of_the_input():
    left, top, width, height = centre_box(30, 60, (10, 5)).tolist()
    assert (width * 60) / (height * 30) == pytest.approx(0.5)
    assert (left, top, height) == pytest.approx(((1 - width) / 2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_take_the_channels_asked_for(channels):
    grey, colour = picture(channels=1), picture(channels=3)
    assert transform(None, channels=channels).plain(grey).shape == (1, channels, 16, 16)
    assert transform(None, channels=channels).plain(colour).shape == (1, channels, 16, 16)


def test_shrinking_tensors_is_antialiased():
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    view = transform(Augment(**PLAIN, translate=0.01), (8, 8)).augmented(stripes, uniform(1))
    assert (view[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": [0.0, 1.0]}, "augment.crop_scale"),
        ({"crop_scale": [0.5, 1.5]}, "0 < low <= high <= 1"),
        ({"crop_scale": [0.5]}, "augment.crop_scale"),
        ({"crop_ratio": [2.0, 1.0]}, "augment.crop_ratio"),
        ({"horizontal_flip": 1.5}, "augment.horizontal_flip=1.5"),
        ({"rotation": -1}, "augment.rotation=-1"),
        ({"translate": 2.0}, "augment.translate=2.0"),
        ({"blur": math.nan}, "augment.blur=nan"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augment(**settings)
