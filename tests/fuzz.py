#!/usr/bin/env python3
"""Damage small files at random and read them: each is read, or refused in one line, in a few seconds.

fuzz.py --count 10000 --door images exif

The tests try a few of each door (`test_weights.py`, `test_image_damage.py`, `test_text_files.py`, …); this
script tries as many as are wanted, and prints what was tried.
"""

import argparse
import io
import json
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lib.data import boxes, idx, mask_files, photographs, text_files  # noqa: E402
from lib.runtime import checkpoint  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402

PATIENCE = 10  # seconds for one input


class Damage:
    """A source of damage: bytes cut, flipped, repeated, dropped or replaced; the same for the same seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def of(self, whole: bytes, first: int = 0, last: int | None = None) -> bytes:
        """Return `whole` with damage between the positions `first` and `last`."""
        draw, data = self.random, bytearray(whole)
        end = len(data) if last is None else last
        kind = draw.choice(("flip", "flip", "flip", "cut", "drop", "repeat", "replace", "number"))
        at = draw.randrange(first, max(first + 1, end))
        length = draw.choice((1, 2, 4, 16, 100))
        if kind == "flip":
            for _ in range(draw.choice((1, 1, 3, 20))):
                data[draw.randrange(first, max(first + 1, end)) % len(data)] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[at:end]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw.choice((1, 2, 50))
        elif kind == "replace":
            data[at : at + length] = draw.randbytes(length)
        else:  # a length or an offset that reaches far beyond the file, or is negative
            data[at : at + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")
            )
        return bytes(data)


def attempt(read: Callable[[], object], ended: Counter, what: str) -> None:
    """Call `read`; anything but an answer or a one-line `UserError`, within `PATIENCE`, is a failure."""
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
        said = ""
    except UserError as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert "\n" not in said, f"{what}: {said}"
    ended["refused" if said else "read"] += 1
    seconds = time.monotonic() - started
    assert seconds < PATIENCE, f"{what}: {seconds:.1f} s"


def _small() -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110], exif[0x011A] = 6, "Maker", "Model X", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    return exif


def _images() -> dict[str, bytes]:
    image = _small()
    kinds = {
        "JPEG": {},
        "PNG": {},
        "GIF": {},
        "BMP": {},
        "PPM": {},
        "TIFF": {"compression": "tiff_lzw"},
    }
    found = {kind: _saved(image, kind, **options) for kind, options in kinds.items()}
    found["progressive"] = _saved(image, "JPEG", progressive=True)
    found["grey TIFF"] = _saved(
        Image.fromarray(np.linspace(0, 2, 64, dtype=np.float32).reshape(8, 8)), "TIFF"
    )
    found["deep PNG"] = _saved(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900), "PNG")
    found["palette"] = _saved(image.quantize(16), "PNG", transparency=3)
    found["animated"] = _saved(image, "GIF", save_all=True, append_images=[image.rotate(90)])
    for kind, feature in (("WEBP", "webp"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000")):
        if features.check(feature):
            found[kind] = _saved(image, kind)
    return found


def images_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged files of every format of images, read as photographs and as label images."""
    whole, ended = _images(), Counter()
    path = folder / "image"
    for number in range(count):
        kind = damage.random.choice(list(whole))
        path.write_bytes(damage.of(whole[kind]))
        attempt(lambda: photographs.read(path), ended, f"image {number}, {kind}")
        if number % 4 == 0:
            attempt(lambda: photographs.read_labels(path), ended, f"labels {number}, {kind}")
    return ended


def exif_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Sound photographs whose EXIF data are damaged: they are all read."""
    exif, ended, path = _exif().tobytes(), Counter(), folder / "image"
    image = _small()
    kinds = ["JPEG", "PNG", *(["WEBP"] if features.check("webp") else [])]
    for number in range(count):
        kind = damage.random.choice(kinds)
        path.write_bytes(_saved(image, kind, exif=damage.of(exif, first=6)))
        attempt(lambda: photographs.read(path), ended, f"EXIF {number}, {kind}")
        assert not ended["refused"], f"EXIF {number}, {kind}"
    return ended


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Sound PNG files with further chunks of any content: they are all read."""
    whole, ended, path = _saved(_small(), "PNG"), Counter(), folder / "image.png"
    names = (
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"iCCP",
        b"eXIf",
        b"pHYs",
        b"gAMA",
        b"cHRM",
        b"tIME",
        b"acTL",
        b"sRGB",
    )
    samples = (
        b"key\0text",
        b"key\0\0" + zlib.compress(b"x" * 3_000_000),
        b"key\0\1\0de\0k\0" + zlib.compress(b"y" * 2000),
        b"",
        b"\xff" * 9,
        _exif().tobytes(),
        struct.pack(">II", 2**31, 0) + b"\1",
    )
    for number in range(count):
        added = b"".join(
            _chunk(damage.random.choice(names), damage.of(damage.random.choice(samples) or b"\0"))
            for _ in range(damage.random.choice((1, 1, 3)))
        )
        end = damage.random.choice((33, len(whole) - 12))  # behind IHDR, or before IEND
        path.write_bytes(whole[:end] + added + whole[end:])
        attempt(lambda: photographs.read(path), ended, f"PNG {number}")
        assert not ended["refused"], f"PNG {number}: {added[:80]!r}"
    return ended


def _texts() -> dict[str, bytes]:
    import bz2
    import gzip
    import lzma

    rows = [("a gorgeous film", 1), ('bleak, "dull"', 0), ("café", 1)]
    lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
    tsv = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    csv = 'sentence,label\n"a gorgeous film",1\n"bleak, ""dull""",0\n'
    array = json.dumps([json.loads(line) for line in lines], indent=1)
    return {
        "a.tsv": tsv.encode(),
        "a.csv": csv.encode(),
        "b.csv": csv.encode("utf-16"),
        "a.jsonl": "\n".join(lines).encode("utf-8-sig"),
        "a.json": array.encode(),
        "a.txt": tsv.encode("utf-32"),
        "a.tsv.gz": gzip.compress(tsv.encode()),
        "a.json.bz2": bz2.compress(array.encode()),
        "a.csv.xz": lzma.compress(csv.encode()),
    }


def text_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged files of texts."""
    whole, ended = _texts(), Counter()
    for number in range(count):
        name = damage.random.choice(list(whole))
        (folder / name).write_bytes(damage.of(whole[name]))
        attempt(lambda name=name: list(text_files.read_file(folder / name)), ended, f"text {number}, {name}")
    return ended


def idx_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged files of MNIST's format."""
    import gzip

    plain = struct.pack(">IIII", 0x803, 5, 4, 3) + bytes(range(60))
    ended = Counter()
    for number in range(count):
        packed = number % 2
        path = folder / ("a.gz" if packed else "a")
        path.write_bytes(damage.of(gzip.compress(plain) if packed else plain))
        attempt(lambda path=path: idx.read_idx(path, 3), ended, f"idx {number}")
    return ended


def weights_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged files of weights."""
    from safetensors.torch import save

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    whole, ended, path = {"safetensors": save(state)}, Counter(), folder / "a.pth"
    for kind, content in (
        ("plain", state),
        ("nested", {"state_dict": {f"model.{k}": v for k, v in state.items()}}),
    ):
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            whole[f"{kind}, {'zip' if new else 'legacy'}"] = stream.getvalue()

    def restore() -> None:
        checkpoint.restore_weights(model, checkpoint.load(path)["state_dict"], path)

    for number in range(count):
        kind = damage.random.choice(list(whole))
        path.write_bytes(damage.of(whole[kind]))
        attempt(restore, ended, f"weights {number}, {kind}")
    return ended


def boxes_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged files of boxes."""
    whole = json.dumps({"cat": [0, 10, 20.5, 1e3], "Hündchen": [1, 2, 3, 4]}, ensure_ascii=False).encode()
    ended, path = Counter(), folder / "a.json"
    for number in range(count):
        path.write_bytes(damage.of(whole))
        attempt(lambda: boxes.read_boxes(path), ended, f"boxes {number}")
    return ended


def _masks() -> dict[str, bytes]:
    labels = np.random.default_rng(0).integers(0, 4, (24, 32), dtype=np.uint8)
    palette = Image.fromarray(labels).convert("P")
    return {
        "grey": _saved(Image.fromarray(labels), "PNG"),
        "palette": _saved(palette, "PNG"),
        "two values": _saved(Image.fromarray(labels > 1), "PNG"),
        "deep": _saved(Image.fromarray(labels.astype(np.uint16)), "PNG"),
        "TIFF": _saved(Image.fromarray(labels), "TIFF"),
        "GIF": _saved(palette, "GIF"),
        "colours": _saved(_small(), "PNG"),
        "other size": _saved(Image.fromarray(labels[1:]), "PNG"),
    }


def masks_door(folder: Path, damage: Damage, count: int) -> Counter:
    """Damaged masks of a sound image, as they are and made smaller."""
    whole, ended = _masks(), Counter()
    image, mask = folder / "image.png", folder / "mask.png"
    image.write_bytes(_saved(_small(), "PNG"))
    files = mask_files.Files(str(image), str(mask))
    for number in range(count):
        kind = damage.random.choice(list(whole))
        mask.write_bytes(damage.of(whole[kind]))
        size = damage.random.choice((None, 16))
        attempt(lambda size=size: mask_files.read_pair(files, size), ended, f"mask {number}, {kind}")
    return ended


DOORS = {
    "images": images_door,
    "exif": exif_door,
    "png": png_door,
    "text": text_door,
    "idx": idx_door,
    "weights": weights_door,
    "boxes": boxes_door,
    "masks": masks_door,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="inputs of each door")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--door", nargs="+", choices=DOORS, default=list(DOORS))
    options = parser.parse_args()
    for name in options.door:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ended = DOORS[name](Path(folder), Damage(options.seed), options.count)
        seconds = round(time.monotonic() - started)
        print(f"{name}: {options.count} inputs, {dict(ended)}, {seconds} s")


if __name__ == "__main__":
    main()
