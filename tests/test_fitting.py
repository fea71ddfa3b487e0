"""Inputs made of photographs: which part a network sees, and that its box says where that part lies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.data import image_inputs
from lib.data.fitting import SHOWN_SIDE, Fit, fitted, original
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError

IMAGENET = Preprocessing(64, 3, (0.4, 0.5, 0.6), (0.2,) * 3, resize=72)
DRAWINGS = Preprocessing(28, 1, (0.2,), (0.3,))


def planted(size: tuple[int, int], square: tuple[int, int, int]) -> Image.Image:
    """A black photograph with a white square, given by its left, top and side."""
    left, top, side = square
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels)


def centre(weights: torch.Tensor) -> tuple[float, float]:
    """The column and the row of the middle of some weights (H, W)."""
    columns, rows = torch.arange(weights.shape[1]), torch.arange(weights.shape[0])
    total = weights.sum()
    return float((weights.sum(0) * columns).sum() / total), float((weights.sum(1) * rows).sum() / total)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["crop", "pad", "stretch", "native"]),
    width=st.integers(80, 400),
    height=st.integers(80, 400),
    x=st.floats(0.45, 0.55),
    y=st.floats(0.45, 0.55),
)
def test_the_box_maps_the_pixels_of_an_input_back_to_those_of_its_photograph(kind, width, height, x, y):
    side = min(width, height) // 6
    left, top = round(x * width) - side // 2, round(y * height) - side // 2
    found = fitted(planted((width, height), (left, top, side)), IMAGENET, Fit(kind), "photograph")
    rows, columns = found.pixels.shape[1:]
    white = (found.pixels.amin(0) - IMAGENET.mean[2]).clamp(min=0)
    column, row = centre(white)
    box = found.box
    back = (
        box.left + (column + 0.5) * (box.right - box.left) / columns - 0.5,
        box.top + (row + 0.5) * (box.bottom - box.top) / rows - 0.5,
    )
    a_pixel = max(box.right - box.left, box.bottom - box.top) / min(rows, columns)
    assert back == pytest.approx((left + (side - 1) / 2, top + (side - 1) / 2), abs=0.6 * a_pixel + 0.6)


def test_each_fit_has_the_size_and_the_part_that_it_promises():
    wide = planted((300, 100), (0, 0, 100))
    crop, pad, stretch, native = (
        fitted(wide, IMAGENET, Fit(kind), "wide") for kind in ("crop", "pad", "stretch", "native")
    )
    assert [tuple(each.pixels.shape) for each in (crop, pad, stretch)] == [(3, 64, 64)] * 3
    assert native.pixels.shape == (3, 21, 64)
    assert fitted(wide, IMAGENET, Fit("native", 150), "wide").pixels.shape == (3, 50, 150)
    assert not crop.pixels.any()  # the square is at the left edge, which the crop does not show
    assert crop.box.left == pytest.approx(300 / 2 - 100 / 72 * 32, abs=0.6)
    assert tuple(stretch.box) == tuple(native.box) == (0, 0, 300, 100)
    assert pad.box.left == 0
    assert pad.box.top < -90
    # The padding is zero once it is normalised.
    corner = (pad.pixels[:, 0, 0] - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    assert corner.abs().max() < 0.5 / 255 / 0.2 + 1e-6


def test_without_a_fit_photographs_are_cropped_and_drawings_are_padded(tmp_path):
    path = tmp_path / "wide.png"
    planted((300, 100), (0, 0, 100)).save(path)
    for how, kind in ((IMAGENET, "crop"), (DRAWINGS, "pad")):
        (usual,), (named,) = (image_inputs.read([str(path)], how, fit=fit) for fit in (Fit(), Fit(kind)))
        assert torch.equal(usual.pixels, named.pixels)
        assert torch.equal(usual.pixels, how.read(path))
        assert usual.original.box == named.original.box
    assert usual.original.pixels.shape == (100, 300, 3)


def test_a_large_photograph_is_shown_at_a_thousand_pixels_and_a_small_one_as_finely_as_its_input():
    for size, shown in (((3000, 1500), (500, 1000)), ((32, 32), (72, 72)), ((600, 400), (400, 600))):
        image = planted(size, (0, 0, 10))
        found = original(image, fitted(image, IMAGENET, Fit("crop"), "image"))
        assert found.pixels.shape[:2] == pytest.approx(shown, abs=1)
        assert max(found.pixels.shape[:2]) <= SHOWN_SIDE
        assert found.shown_box.right - found.shown_box.left >= 0.9 * min(64, SHOWN_SIDE)


def test_folders_and_patterns_stand_for_their_images_in_order(tmp_path):
    for name in ("b.png", "a.png", "below/c.png", "below/a.png", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        planted((20, 20), (0, 0, 10)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    folder = [str(tmp_path / name) for name in ("a.png", "b.png", "below/a.png", "below/c.png")]
    assert image_inputs.expanded([str(tmp_path), "digits:7"]) == [*folder, "digits:7"]
    assert image_inputs.expanded([f"{tmp_path}/**/a.*"]) == [folder[0], folder[2]]
    assert image_inputs.names([*folder, "digits:7", "digits:7"]) == [
        *("a", "b", "a-2", "c", "digits-7", "digits-7-2")
    ]


def test_a_name_that_would_be_taken_twice_is_counted_on():
    assert image_inputs.names(["a/x.png", "b/x.png", "x-2.png", "c/x.png"]) == ["x", "x-2", "x-2-2", "x-3"]


@pytest.mark.parametrize("given_", ["empty", "empty/*.png"])
def test_a_folder_without_images_and_a_pattern_without_a_match_are_refused(tmp_path, monkeypatch, given_):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="empty"):
        image_inputs.expanded([given_])
