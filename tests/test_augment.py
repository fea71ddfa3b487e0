"""Augmentation: what each one may do to an image, and what it leaves alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from lib.data import augment

NAMES = ("shift", "rotate", "scale", "affine", "crop", "flip", "color", "erase")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def photos(batch: int = 150, channels: int = 1, size: int = 12) -> torch.Tensor:
    return torch.rand(batch, channels, size, size) + 0.1


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """An image (C, H, W) moved by whole pixels, black coming in."""
    out = image.roll((down, right), (1, 2))
    out[:, range(*((0, down) if down > 0 else (down, 0)))] = 0
    out[:, :, range(*((0, right) if right > 0 else (right, 0)))] = 0
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_moves_by_at_most_two_whole_pixels_either_way(channels):
    images = photos(channels=channels)
    seen = set()
    for image, out in zip(images, augment.shift(images), strict=True):
        matching = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if torch.equal(moved(image, down, right), out)
        ]
        assert len(matching) == 1
        seen.add(matching[0])
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


@pytest.mark.parametrize("pixels", [1, 3])
def test_shift_goes_as_far_as_it_is_told(pixels):
    images = torch.zeros(300, 1, 9, 9)
    images[:, :, 4, 4] = 1
    spots = augment.augmentation(("shift",), shift_pixels=pixels)(images).nonzero()[:, 2:] - 4
    assert len(spots) == 300
    assert spots.min(0)[0].tolist() == [-pixels] * 2
    assert spots.max(0)[0].tolist() == [pixels] * 2


def test_shift_loses_nothing_of_an_image_with_a_margin():
    images = F.pad(photos(size=8), [2] * 4)
    assert torch.allclose(augment.shift(images).sum((1, 2, 3)), images.sum((1, 2, 3)))


def warped_most(monkeypatch, images: torch.Tensor, degrees: float = 0.0, share: float = 0.0) -> torch.Tensor:
    """Images turned by `degrees` and stretched by `share`: as far as each may go."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.ones(*shape, **options))
    return augment.warp(images, rotate=degrees, scale=share)


def test_a_rotation_by_nothing_changes_nothing(monkeypatch):
    images = photos(5)
    assert torch.allclose(warped_most(monkeypatch, images), images, atol=1e-5)


def test_a_rotation_by_a_quarter_or_half_turn_is_exact(monkeypatch):
    images = photos(5)
    quarter = warped_most(monkeypatch, images, degrees=90)
    assert torch.allclose(quarter, images.rot90(1, (2, 3)), atol=1e-4) or torch.allclose(
        quarter, images.rot90(-1, (2, 3)), atol=1e-4
    )
    assert torch.allclose(warped_most(monkeypatch, images, degrees=180), images.flip(2, 3), atol=1e-4)


def test_the_picture_of_a_rotation_is_neither_sheared_nor_stretched(monkeypatch):
    """Two spots at right angles about the centre stay so, at their distance."""
    images = torch.zeros(2, 1, 41, 41)
    images[0, 0, 20, 32] = images[1, 0, 8, 20] = 1
    (x0, x1), (y0, y1) = centres(warped_most(monkeypatch, images, degrees=30))
    assert math.hypot(x0, y0) == pytest.approx(12, abs=0.2)
    assert math.hypot(x1, y1) == pytest.approx(12, abs=0.2)
    assert x0 * x1 + y0 * y1 == pytest.approx(0, abs=2)


def test_a_stretch_moves_what_it_shows_from_the_centre_by_its_share(monkeypatch):
    images = torch.zeros(1, 1, 41, 41)
    images[0, 0, 20, 32] = 1
    (x,), (y,) = centres(warped_most(monkeypatch, images, share=0.2))
    assert x == pytest.approx(12 / 1.2, abs=0.1)
    assert y == pytest.approx(0, abs=0.1)


def centres(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """The centres of mass of images (B, 1, S, S), right of and below the middle, in pixels."""
    grid = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images.sum((1, 2, 3))
    right = (images.squeeze(1) * grid).sum((1, 2)) / mass
    down = (images.squeeze(1) * grid[:, None]).sum((1, 2)) / mass
    return right.tolist(), down.tolist()


def test_rotations_stay_within_10_degrees_either_way():
    """Measured on a spot to the right of the centre: its new direction is the angle."""
    images = torch.zeros(400, 1, 41, 41)
    images[:, :, 20, 35] = 1
    right, down = map(torch.tensor, centres(augment.augmentation(("rotate",))(images)))
    angles = torch.atan2(down, right) * 180 / math.pi
    assert angles.abs().max() < 10.5
    assert angles.min() < -9
    assert angles.max() > 9
    assert torch.allclose(torch.hypot(right, down), torch.tensor(15.0), atol=0.2)


def test_stretches_stay_within_a_tenth_along_each_axis_alone():
    images = torch.zeros(400, 1, 41, 41)
    images[:, :, 35, 35] = 1
    right, down = map(torch.tensor, centres(augment.augmentation(("scale",))(images)))
    for axis in (right, down):
        assert axis.min() > 15 / 1.1 - 0.2
        assert axis.max() < 15 / 0.9 + 0.2
        assert axis.max() - axis.min() > 2.5
    assert torch.corrcoef(torch.stack([right, down]))[0, 1].abs() < 0.2


def test_a_shift_that_joins_a_rotation_stays_within_its_pixels():
    images = torch.zeros(400, 1, 41, 41)
    images[:, :, 17:24, 17:24] = 1  # about the centre, which no rotation moves
    for reach in (1, 3):
        right, down = map(torch.tensor, centres(augment.warp(images, shift=reach, rotate=10)))
        distance = torch.hypot(right, down)  # the shift is turned, too
        assert distance.max() < reach * math.sqrt(2) + 0.02
        assert distance.max() > reach * 1.2
        assert distance.min() < reach * 0.2


def test_flip_mirrors_about_half_of_the_images_left_to_right():
    images = photos(400)
    out = augment.flip(images)
    mirrored = (out == images.flip(3)).all(3).all(2).all(1)
    same = (out == images).all(3).all(2).all(1)
    assert (mirrored | same).all()
    assert 150 < mirrored.sum() < 250


def test_erase_blackens_one_square_of_a_quarter_to_half_the_side_in_about_half_of_the_images():
    images = photos(400, channels=3, size=24)
    out = augment.erase(images)
    erased = (out == 0).all(1)
    assert torch.equal(out[:, 0] == 0, erased)  # all channels alike
    assert torch.equal(out.masked_fill(erased[:, None], 0), images.masked_fill(erased[:, None], 0))
    touched = erased.any(2).any(1)
    assert 150 < touched.sum() < 250
    sides = set()
    for mask in erased[touched]:
        height, width = mask.any(1).sum().item(), mask.any(0).sum().item()
        assert mask.sum() == height * width
        assert abs(height - width) <= 1
        sides |= {height, width}
    assert min(sides) in (5, 6)
    assert max(sides) in (12, 13)


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES])
@pytest.mark.parametrize("background", [-0.4242, 0.7])
def test_what_comes_in_from_outside_is_the_background(names, background):
    black = torch.full((50, 1, 10, 10), background)
    assert torch.allclose(augment.augmentation(names, mean=(-background,))(black), black, atol=1e-6)


def test_a_background_is_as_if_the_images_were_augmented_before_they_were_prepared():
    images, mean, std = photos(20), 0.13, 0.3
    torch.manual_seed(3)
    before = (augment.augmentation(NAMES)(images) - mean) / std
    torch.manual_seed(3)
    after = augment.augmentation(NAMES, mean=(mean,), std=(std,))((images - mean) / std)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_window_is_some_pixels_of_the_image_and_takes_the_place_of_a_shift():
    images = torch.arange(100.0).view(1, 1, 10, 10).expand(400, 2, 10, 10)
    out = augment.augmentation(("shift",), window=8)(images)
    assert out.shape == (400, 2, 8, 8)
    corners = out[:, 0, 0, 0]
    assert sorted(set(corners.tolist())) == [10.0 * down + right for down in range(3) for right in range(3)]
    offsets = out[0, 0, 0, 0] + images[0, 0, :8, :8]
    assert torch.equal(out[0, 1], offsets)


def test_nothing_asked_for_is_nothing_done():
    assert augment.augmentation(()) is None


def test_the_images_given_are_not_changed_and_shape_and_type_stay():
    images = photos(10, channels=3)
    before = images.clone()
    out = augment.augmentation(NAMES, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(images)
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.dtype == images.dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_same_random_numbers_make_the_same_images(name):
    images = photos(10)
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(augment.augmentation((name,))(images))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_a_crop_shows_a_window_of_the_image_enlarged():
    """On a ramp from left to right and one from top to bottom, a window is where its values are."""
    ramp = torch.linspace(-1, 1, 32)
    images = torch.stack([ramp.expand(32, 32), ramp.view(-1, 1).expand(32, 32)]).repeat(400, 1, 1, 1)
    out = augment.crop(images)
    across, down = (
        (out[:, 0, 16, -2] - out[:, 0, 16, 1]) / 2 * 32 / 29,
        (out[:, 1, -2, 16] - out[:, 1, 1, 16]) / 2 * 32 / 29,
    )
    area, aspect = across * down, across / down
    low, high = augment.CROP_AREA
    assert low * 0.85 < area.min() < low * 1.3
    assert 0.85 * high < area.max() < high * 1.15
    assert 0.6 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.6
    assert out.min() >= -1
    assert out.max() <= 1


def test_color_changes_brightness_contrast_and_saturation_alone():
    grey = torch.full((400, 3, 4, 4), 0.5)
    brightness = augment.color(grey)[:, 0, 0, 0]
    assert 0.3 <= brightness.min() < 0.32
    assert 0.68 < brightness.max() <= 0.7
    out = augment.color(photos(200, channels=3))
    assert out.min() >= 0
    assert out.max() <= 1
    reds = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).expand(400, 3, 4, 4)
    red, green, blue = augment.color(reds)[:, :, 0, 0].unbind(1)
    assert torch.equal(green, blue)
    assert (red > green).all()
    saturation = (red - green) / red
    assert saturation.max() - saturation.min() > 0.1


def test_affine_slants_and_shifts_besides_turning():
    images = torch.zeros(400, 1, 41, 41)
    images[:, :, 17:24, 17:24] = 1
    right, down = map(torch.tensor, centres(augment.augmentation(("affine",))(images)))
    assert 3.5 < torch.hypot(right, down).max() < 4.1 * math.sqrt(2) * 1.3
    slanted = augment.warp(images[:100], shear=0.3)
    right, down = map(torch.tensor, centres(slanted))
    assert torch.allclose(right, torch.zeros(100), atol=0.05)
    top = slanted[:, 0, 18].argmax(1) - slanted[:, 0, 22].argmax(1)
    assert top.min() < 0 < top.max()
