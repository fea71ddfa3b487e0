"""CIFAR-10 in torchvision's own format, on files that the tests write."""

import io
import os
import pickle
import random
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from lib.data import cifar
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError
from lib.tasks import image_data


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the archive was made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


FOLDER = cifar._DATASETS["cifar10"].folder
FILES = cifar._DATASETS["cifar10"].splits


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def write_cifar10(root, images: int = 20):
    """Write batches of so many random images each, as the archive holds them."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (name for names in FILES.values() for name in names):
        content = {
            b"batch_label": name.encode(),
            b"labels": (np.arange(images) % 10).tolist(),
            b"data": generator.integers(0, 256, (images, 3072), dtype=np.uint8),
            b"filenames": [b"x.png"] * images,
        }
        (folder / name).write_bytes(pickled(content))
    (folder / "batches.meta").write_bytes(
        pickled({b"label_names": [name.encode() for name in cifar.CLASSES]})
    )
    return root


def test_images_and_labels_are_those_that_torchvision_reads(tmp_path, monkeypatch):
    splits = cifar.load(write_cifar10(tmp_path))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for name, split in splits.items():
        theirs = CIFAR10(str(tmp_path), train=name == "train")
        pixels = torch.from_numpy(theirs.data).permute(0, 3, 1, 2)
        assert torch.equal((split.images * 255).round().to(torch.uint8), pixels)
        assert split.labels.tolist() == theirs.targets
        assert tuple(theirs.classes) == cifar.CLASSES
    assert [len(split.labels) for split in splits.values()] == [100, 20]


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        random.Random(0).randbytes(50),
        pickle.dumps({b"labels": [1]}),
        pickle.dumps({b"labels": [11], b"data": np.zeros((1, 3072), np.uint8)}),
        pickle.dumps({b"labels": [1, 2], b"data": np.zeros((1, 3072), np.uint8)}),
        pickle.dumps({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}),
        pickle.dumps({b"labels": [1], b"data": Code()}),
    ],
)
def test_a_damaged_file_is_one_line_and_never_runs_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (write_cifar10(tmp_path) / FOLDER / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=r"data_batch_3 is no file of CIFAR-10, or is damaged$"):
        cifar.load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_without_files_and_network_the_line_says_what_goes_where(tmp_path, monkeypatch):
    from urllib.error import URLError

    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"could not be downloaded .*data_batch_1, .*test_batch into"):
        cifar.load(tmp_path / "data")


def test_cifar10_for_a_network_that_takes_large_images_is_made_large_in_batches(tmp_path):
    write_cifar10(tmp_path, images=40)
    how = Preprocessing(96, 3, (0.5,) * 3, (0.25,) * 3, 96)
    flags = {"dataset": "cifar10", "data_dir": tmp_path, "limit": 30, "model": "lenet5", "size": 96}
    others = {"classes": (), "valid_fraction": None, "skip_bad": False, "workers": 0, "input": None}
    data = image_data._load_in_memory(image_data.DataSettings.of(flags | others), how)
    assert data.train.images.shape == (30, 3, 32, 32)
    pixels, _ = next(iter(data.train.in_order()))
    data = data.prepared(how.mean, how.std, torch.device("cpu"))
    (inputs, _), (rest, _) = data.train.in_order()
    assert (inputs.shape, rest.shape) == ((27, 3, 96, 96), (3, 3, 96, 96))
    torch.testing.assert_close(inputs, (pixels - 0.5) / 0.25)
    seen = []
    doubled = lambda _names: lambda images: seen.append(images) or 2 * images  # noqa: E731
    batch, _ = next(data.train.shuffled((), doubled, batch_size=10, seed=0).epoch(0))
    assert batch.shape == (10, 3, 96, 96)
    assert torch.equal(batch, 2 * seen[0])
