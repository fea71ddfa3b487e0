import numpy as np
import pytest
import torch
from PIL import Image

from lib.data import photographs
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError

GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_floats_from_zero_to_one_are_as_bright_as_they_say(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "float.tiff")
    found = np.asarray(photographs.read(tmp_path / "float.tiff"))
    np.testing.assert_allclose(found[..., 0] / 255, values, atol=1 / 255)
    Image.fromarray(values * 200).save(tmp_path / "float.tiff")
    found = np.asarray(photographs.read(tmp_path / "float.tiff"))
    np.testing.assert_allclose(found[..., 0], values * 200, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_images_of_every_mode_are_read_as_the_colours_they_show(tmp_path, mode):
    white = Image.new("RGB", (8, 6), "white").convert(mode)
    image = photographs.read(saved(tmp_path, white))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.asarray(image).min() == 255


def test_cmyk_is_read_as_colours(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = photographs.read(saved(tmp_path, red, "red.tif")).getpixel((0, 0))
    assert pixel == (255, 0, 0)


def test_sixteen_bits_keep_their_gradient(tmp_path):
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    read = np.asarray(photographs.read(saved(tmp_path, deep)))
    np.testing.assert_allclose(read[..., 0], GRADIENT, atol=1)


def test_a_photograph_on_its_side_is_turned_upright(tmp_path):
    image = Image.fromarray(GRADIENT)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    read = photographs.read(saved(tmp_path, image, "turned.jpg", exif=exif))
    assert read.size == (image.height, image.width)
    column = np.asarray(read)[:, 0, 0].astype(int)
    assert column[0] < 20
    assert column[-1] > 230


def test_transparency_shows_white_paper(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert photographs.read(saved(tmp_path, image)).getpixel((0, 0)) == (255, 255, 255)


def test_a_damaged_file_is_one_clear_complaint(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, "noise.png").read_bytes()
    for name, content in {
        "half.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.jpg": b"not an image",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name):
            photographs.read(path)


def test_a_gigantic_image_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (100, 100)))
    for limit in (6000, 1000):  # Pillow warns above the limit, and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match="scale it down"):
            photographs.read(path)


def test_squares_keep_the_shape_of_what_they_frame(tmp_path):
    tall = Image.new("L", (10, 40), 255)
    square = Preprocessing(28, 1, (0.0,), (1.0,)).read(saved(tmp_path, tall))
    assert square.shape == (1, 28, 28)
    torch.testing.assert_close(square, torch.ones(1, 28, 28))
    colour = Preprocessing(32, 3, (0.0,) * 3, (1.0,) * 3).read(saved(tmp_path, tall))
    assert colour.shape == (3, 32, 32)
