"""Image files as cameras, editors and broken disks leave them: shown if the picture is whole."""

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import explaining, write_checkpoint
from fuzz import Damage, exif_door, images_door, png_door
from PIL import Image, PngImagePlugin

from lib.data import image_decoding, photographs
from lib.runtime.errors import UserError

explain = explaining("run-grad-cam.py")


@pytest.fixture(autouse=True)
def warned_of_nothing():
    image_decoding.warn_once.cache_clear()


def photograph(width: int = 96, height: int = 96) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def bytes_of(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x0112], found[0x010F], found[0x011A] = 6, "Maker", 72.0
    return found


# Remarks beside the picture


@pytest.mark.parametrize(("tag", "kind"), [(0x010F, 3), (0x011A, 1), (0x011A, 2), (0x010F, 99)])
def test_a_damaged_tag_neither_loses_the_photograph_nor_its_orientation(tmp_path, tag, kind):
    whole = bytearray(bytes_of(photograph(96, 64), "JPEG", exif=exif().tobytes()))
    at = whole.index(b"Exif\0\0") + 6
    place = next(at + o for o in range(10, 46, 12) if whole[at + o : at + o + 2] == tag.to_bytes(2, "big"))
    whole[place + 3] = kind
    (tmp_path / "a.jpg").write_bytes(whole)
    assert photographs.read(tmp_path / "a.jpg").size == (64, 96)


def test_texts_and_profiles_of_any_length_do_not_matter(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * 70_000_000, zip=True)
    image = photograph()
    for name, options in {
        "text.png": {"pnginfo": info},
        "profile.png": {"icc_profile": bytes(3_000_000)},
        "both.png": {"pnginfo": info, "icc_profile": bytes(3_000_000), "exif": exif().tobytes()},
    }.items():
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(
            np.asarray(photographs.read(tmp_path / name)),
            np.asarray(image.rotate(-90) if "exif" in options else image),
        )


def test_sound_photographs_with_damaged_remarks_are_all_read(tmp_path):
    exif_door(tmp_path, Damage(2), 150)
    png_door(tmp_path, Damage(3), 150)


def test_damaged_images_are_shown_or_one_line(tmp_path):
    images_door(tmp_path, Damage(4), 400)


# Which files


def test_formats_that_are_not_meant_are_not_opened(tmp_path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF")
    photograph().save(tmp_path / "a.dds")
    for name in ("a.eps", "a.dds"):
        with pytest.raises(UserError, match="not an image in a known format"):
            photographs.read(tmp_path / name)


def test_pipes_devices_and_sockets_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        for read in (photographs.read, photographs.read_labels):
            with pytest.raises(UserError, match="a pipe or a device, not a file"):
                read(path)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [photographs.read, photographs.read_labels])
@pytest.mark.parametrize(
    "size", [(12_000, 8_000), (60_000, 60_000)]
)  # Pillow warns of one, and refuses the other
def test_a_bomb_is_refused_by_every_reader_in_any_thread(tmp_path, read, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    refused = []

    def attempt(_):
        with pytest.raises(UserError, match="scale it down"):
            read(path)
        refused.append(threading.get_ident())

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("error")
        list(pool.map(attempt, range(16)))
    assert len(refused) == 16


# JPEG files with an end


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}], ids=str
)
@pytest.mark.parametrize("size", [(96, 96), (97, 61), (9, 200)])
def test_a_photograph_that_ends_early_with_an_end_marker_is_shown_with_a_warning(
    tmp_path, capsys, options, size
):
    whole = bytes_of(photograph(*size), "JPEG", **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    photographs.read(path)
    assert capsys.readouterr().err == ""
    scan = whole.index(b"\xff\xda") + 14
    path.write_bytes(whole[: scan + (len(whole) - scan) // 3].rstrip(b"\xff") + b"\xff\xd9")
    if options.get("progressive"):  # it may lack no more than details, or end within a table
        with contextlib.suppress(UserError):
            photographs.read(path)
        return
    photographs.read(path)
    assert "a.jpg ends early: its lower" in capsys.readouterr().err
    photographs.read(path)
    assert capsys.readouterr().err == ""  # once


def test_whole_photographs_with_a_flat_border_are_not_said_to_end_early(tmp_path, capsys):
    for number, (size, ground) in enumerate(
        [((80, 80), "white"), ((50, 33), "black"), ((64, 128), (9, 200, 30))]
    ):
        for options in ({}, {"progressive": True}, {"quality": 5}, {"subsampling": 2, "optimize": True}):
            page = Image.new("RGB", size, ground)
            page.paste(photograph(20, 20), (3, 3))
            page.save(tmp_path / f"{number}.jpg", **options)
            with (tmp_path / f"{number}.jpg").open("ab") as file:
                file.write(b"behind the end\xff\xd8\xff")
            photographs.read(tmp_path / f"{number}.jpg")
    assert capsys.readouterr().err == ""


# Grey values of more than eight bits


def shown(tmp_path, values: np.ndarray) -> np.ndarray:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    return np.asarray(photographs.read(tmp_path / "a.tiff"))[..., 0]


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize("top", [1.3, 4000.0, 1e6, 3e38])
def test_floats_of_any_range_are_shown_from_black_to_white_with_a_word(tmp_path, capsys, top):
    np.testing.assert_allclose(shown(tmp_path, (RAMP * top).astype(np.float32)), RAMP * 255, atol=1)
    assert "shown from black to white" in capsys.readouterr().err


@pytest.mark.parametrize("low", [-1.0, -500.0])
def test_negative_floats_are_shown_too(tmp_path, low):
    np.testing.assert_allclose(shown(tmp_path, (low + RAMP * 2).astype(np.float32)), RAMP * 255, atol=1)


def test_a_pixel_that_is_no_number_does_not_blacken_the_others(tmp_path, capsys):
    values = RAMP.astype(np.float32)
    values[0, 1], values[3, 3] = np.nan, np.inf
    found = shown(tmp_path, values)
    sound = np.isfinite(values)
    np.testing.assert_allclose(found[sound], RAMP[sound] * 255, atol=1)
    assert (found[~sound] == 0).all()
    assert "2 of 64 pixels are no finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (0, 255), (-4000, 4000), (0, 2**31 - 1)])
def test_whole_numbers_of_32_bits_are_shown(tmp_path, low, high):
    values = (low + RAMP * (high - low)).round().astype(np.int32)
    np.testing.assert_allclose(shown(tmp_path, values), RAMP * 255, atol=1)


# Names and negatives


def test_a_name_that_is_not_utf_8_is_read_and_drawn(explain, tmp_path):
    names = [b"caf\xe9.jpg", b"two\nlines.jpg", b"red\x1b[31m.jpg", "猫.jpg".encode()]
    for name in names:
        photograph().save(tmp_path / os.fsdecode(name))
    write_checkpoint(
        tmp_path / "own.pt",
        preprocessing={"size": 28, "channels": 1, "mean": [0], "std": [1], "light_on_dark": False},
    )
    for name in names:
        done = explain("--restore-file", "own.pt", "--input", os.fsdecode(name), own=False)
        assert done.status == 0, done.stderr


def drawing(folder, ground: int, ink: int):
    page = Image.new("L", (60, 80), ground)
    page.paste(ink, (25, 15, 32, 65))
    page.save(folder / "drawing.png")


@pytest.mark.parametrize(
    ("ground", "ink", "flags", "said"),
    [
        (230, 20, (), "give --invert"),
        (120, 20, (), "give --invert"),
        (230, 20, ("--invert",), ""),
        (5, 250, (), ""),
        (5, 250, ("--invert",), "leave out --invert"),
    ],
)
def test_a_drawing_of_dark_on_light_is_noticed_where_the_network_knows_the_contrary(
    classify, explain, tmp_path, ground, ink, flags, said
):
    drawing(tmp_path, ground, ink)
    write_checkpoint(tmp_path / "own.pt")
    asked = ("--restore-file", "own.pt", "--input", "drawing.png", *flags)
    for done in (classify("--predict-only", *asked), explain(*asked, own=False)):
        assert done.status == 0, done.stderr
        assert ("drawing.png looks dark on light" in done.stderr) == bool(said)
        assert said in done.stderr
