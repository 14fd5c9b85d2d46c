"""Views of images: what is drawn, and that files and tensors are treated alike."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from jepa.data.augment import NUMBERS, Augment, Views, centre_box
from jepa.data.image_operations import change, crop_and_resize
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
        {"crop_scale": [0.05, 0.3], "rotation": 10, "color_jitter": 0.5, "blur": 0.5},
    ],
)
def test_files_and_tensors_give_the_same_views(settings, channels):
    """One by one, and as a batch, of which each has numbers of its own."""
    image = torch.randint(0, 256, (3, channels, 30, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image[0], size = picture(30, 40, channels)[0], (24, 20)
    apply, numbers = transform(Augment(**settings), size, channels, "bicubic"), uniform(18).view(3, 6, NUMBERS)
    batch = apply.augmented(image, numbers)
    assert batch.shape == (3, 6, channels, *size)
    for each, drawn, views in zip(image, numbers, batch):
        for form in (as_file(each[None]), each):
            difference = (apply.augmented(form, drawn[None])[0] - views).abs()
            # By one level of 256, as files are rounded twice; turning and jitter make more of it.
            assert difference.max() < (8 if settings.get("color_jitter") else 1.6) / 255
            assert difference.mean() < 0.5 / 255
    alone = apply.augmented(image[1:2], numbers[1:2])
    torch.testing.assert_close(alone[0], batch[1], rtol=0, atol=1e-6)


def test_batches_are_changed_as_torchvision_changes_a_picture():
    F, count = v2.functional, 6
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 20, 24), generator=random, dtype=torch.uint8)
    images[0] = images[0, :1]  # grey, which has no hue
    boxes = Augment(crop_scale=(0.1, 1.0)).boxes(uniform(count)[0], height=20, width=24, size=(16, 32))
    for mode in ("bilinear", "bicubic"):
        for image, (left, top, w, h), found in zip(
            images, boxes.tolist(), crop_and_resize(images, boxes, (16, 32), mode)
        ):
            wanted = F.resized_crop(image, top, left, h, w, [16, 32], v2.InterpolationMode(mode), antialias=True)
            assert (found.int() - wanted.int()).abs().max() <= 1
    pixels, nothing = images / 255.0, dict.fromkeys(("flip", "angle", "shift", "jitter", "blur", "solarize"))
    angle, shift = torch.linspace(-40, 50, count), torch.rand(count, 2, generator=random) - 0.5
    factors = torch.rand(count, 4, generator=random) * torch.tensor([2, 2, 2, 1.0]) - torch.tensor([0, 0, 0, 0.5])
    sigma = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.7, 2.0])
    flip = torch.tensor([True, False] * 3)

    def moved(i):
        move = (shift[i] * torch.tensor([24, 20])).tolist()
        return F.affine(pixels[i], angle[i].item(), move, 1.0, [0, 0], v2.InterpolationMode.BILINEAR)

    def jittered(i):
        brightness, contrast, saturation, hue = factors[i].tolist()
        view = F.adjust_contrast(F.adjust_brightness(pixels[i], brightness), contrast)
        return F.adjust_hue(F.adjust_saturation(view, saturation), hue)

    operations = {
        "mirrored": ({"flip": flip}, lambda i: F.horizontal_flip(pixels[i]) if flip[i] else pixels[i]),
        "moved": ({"angle": angle, "shift": shift}, moved),
        "jittered": ({"jitter": factors}, jittered),
        "solarized": ({"solarize": flip}, lambda i: F.solarize(pixels[i], 0.5) if flip[i] else pixels[i]),
        "blurred": ({"blur": sigma}, lambda i: F.gaussian_blur(pixels[i], 3, sigma[i].item()) if i else pixels[i]),
    }
    for name, (settings, one) in operations.items():
        found = change(pixels, Views(**{**nothing, **settings}), "bilinear")
        torch.testing.assert_close(found, torch.stack([one(i) for i in range(count)]), rtol=0, atol=1e-4, msg=name)


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


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30), (8, 8)])
def test_crops_are_distributed_as_torchvisions(shape):
    scale, ratio, count = (0.3, 1.0), (0.75, 1.3333), 3000
    augment = Augment(crop_scale=scale, crop_ratio=ratio)
    found = augment.boxes(uniform(count)[0], height=shape[0], width=shape[1], size=(8, 8))
    whole = torch.tensor([shape[1], shape[0]])
    assert (found >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= whole).all()

    reference = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(1, *shape)
    drawn = [reference.make_params([image]) for _ in range(count)]
    expected = torch.tensor([[p["left"], p["top"], p["width"], p["height"]] for p in drawn])
    for each in (torch.mean, torch.std):
        box, wanted = (each(boxes / whole.repeat(2), dim=0) for boxes in (found, expected))
        torch.testing.assert_close(box, wanted, atol=0.02, rtol=0)
    corners = [boxes[:, 0].bincount(minlength=5)[:5] / count for boxes in (found, expected)]
    torch.testing.assert_close(*corners, atol=0.03, rtol=0, msg="the edges are as likely as there")


def test_a_setting_leaves_the_choices_of_the_others():
    numbers = uniform(5)[0]
    alone = Augment(**CROP, rotation=10)
    together = Augment(**CROP, rotation=10, translate=0.1, blur=0.5, horizontal_flip=0.5)
    assert torch.equal(alone.views(numbers).angle, together.views(numbers).angle)
    assert torch.equal(*(each.boxes(numbers, height=16, width=16, size=(16, 16)) for each in (alone, together)))


def test_views_of_a_sample_differ():
    views = transform(Augment(**CROP, rotation=10, translate=0.1)).augmented(picture(), uniform(4))[0]
    distances = torch.cdist(views.flatten(1), views.flatten(1))
    assert (distances + torch.eye(4) > 0.01).all()


def test_ranges_are_kept():
    settings = {
        "rotation": 10,
        "translate": 0.1,
        "color_jitter": 0.5,
        "blur": 0.3,
        "horizontal_flip": 0.25,
        "solarize": 0.2,
    }
    views = Augment(**settings).views(uniform(4000)[0])
    assert views.angle.abs().max() <= 10
    assert views.angle.abs().mean() == pytest.approx(5, abs=0.2)
    assert views.shift.abs().max() <= 0.1
    assert (views.jitter[:, :3] - 1).abs().max() <= 0.4
    assert views.jitter[:, 3].abs().max() <= 0.1
    assert (views.blur > 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert views.flip.float().mean() == pytest.approx(0.25, abs=0.03)
    assert views.solarize.float().mean() == pytest.approx(0.2, abs=0.03)


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
    assert centre_box(30, 60, (10, 5)) == [22, 0, 15, 30]


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
