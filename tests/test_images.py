"""Images in memory: files are read exactly or refused in one line; subsets stay the same for every seed."""

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_idx, write_mnist

from lib.data import idx, images
from lib.data.preprocessing import Preprocessing
from lib.runtime.errors import UserError

REAL = ROOT.parent / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (REAL / "MNIST" / "raw").exists(), reason="the real MNIST is not in ../shared/data"
)
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def own_folder(tmp_path, mnist_folder) -> Path:
    """A copy of the small MNIST that a test may damage."""
    return Path(shutil.copytree(mnist_folder, tmp_path / "own"))


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as refused:
        images.load(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# The idx format


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 2)])
def test_an_idx_file_is_read_as_it_was_written(tmp_path, shape, zipped):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "some-idx"
    write_idx(path, array)
    if zipped:
        plain, path = path, tmp_path / "some-idx.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    read = idx.read_idx(path, len(shape))
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


def test_a_file_cut_short_is_refused_by_its_name_and_lengths(own_folder):
    path = own_folder / "MNIST" / "raw" / IMAGES
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    message = refusal("mnist", own_folder)
    assert str(path) in message
    assert f"cut short: {len(whole) - 1} bytes, its header promises {len(whole)}" in message
    path.write_bytes(whole[:9])
    assert "cut short: 9 bytes are less than its header" in refusal("mnist", own_folder)
    path.write_bytes(b"")
    assert "cut short" in refusal("mnist", own_folder)
    path.write_bytes(whole + b"\0")
    assert "too long" in refusal("mnist", own_folder)


def test_a_header_that_promises_more_than_any_memory_holds_is_refused(own_folder):
    path = own_folder / "MNIST" / "raw" / IMAGES
    path.write_bytes(struct.pack(">4I", 0x803, *[2**32 - 1] * 3) + bytes(100))
    assert "cut short" in refusal("mnist", own_folder)


def test_a_file_of_another_kind_is_refused_by_both_magic_numbers(own_folder):
    raw = own_folder / "MNIST" / "raw"
    (raw / IMAGES).write_bytes((raw / LABELS).read_bytes())
    message = refusal("mnist", own_folder)
    assert str(raw / IMAGES) in message
    assert "magic 0x801, not 0x803" in message


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[:5], lambda b: b"no gzip" + b, lambda b: b[:40] + b"x" * 60]
)
def test_a_damaged_gz_file_is_refused_by_its_name(own_folder, damage):
    raw = own_folder / "MNIST" / "raw"
    whole = gzip.compress((raw / IMAGES).read_bytes())
    (raw / IMAGES).unlink()
    (raw / f"{IMAGES}.gz").write_bytes(whole)
    assert len(images.load("mnist", own_folder).train.labels) == 300
    (raw / f"{IMAGES}.gz").write_bytes(damage(whole))
    assert f"{raw / IMAGES}.gz " in refusal("mnist", own_folder)


def test_images_and_labels_of_different_numbers_are_refused(own_folder):
    write_idx(own_folder / "MNIST" / "raw" / LABELS, np.zeros(299))
    assert "holds 300 images but" in refusal("mnist", own_folder)
    assert "299 labels" in refusal("mnist", own_folder)


def test_labels_that_no_class_has_are_refused(own_folder):
    write_idx(own_folder / "MNIST" / "raw" / LABELS, np.full(300, 10))
    assert "does not hold labels 0 to 9" in refusal("mnist", own_folder)


def test_an_empty_data_set_is_refused(own_folder):
    write_idx(own_folder / "MNIST" / "raw" / LABELS, np.zeros(0))
    write_idx(own_folder / "MNIST" / "raw" / IMAGES, np.zeros((0, 28, 28)))
    assert LABELS in refusal("mnist", own_folder)


# Missing files


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("dataset", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_missing_files_without_a_network_say_what_to_put_where_and_leave_nothing(
    tmp_path, capfd, dataset, folder
):
    message = refusal(dataset, tmp_path / "data")
    for name in (IMAGES, LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        assert name in message
    assert str(tmp_path / "data" / folder / "raw") in message
    assert "--dataset digits" in message
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_leaves_what_was_there(own_folder):
    (own_folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    refusal("mnist", own_folder)
    assert len(list((own_folder / "MNIST" / "raw").iterdir())) == 3


def test_missing_files_are_downloaded_where_they_belong(tmp_path, monkeypatch):
    """Torchvision is asked with the root; it fills MNIST/raw below it."""

    def download(root, download):
        assert download
        write_mnist(Path(root))

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    data = images.load("mnist", tmp_path / "data")
    assert len(data.train.labels) == 300
    assert (tmp_path / "data" / "MNIST" / "raw" / IMAGES).exists()


# Pixels


def test_pixels_are_from_0_to_1_and_labels_are_whole_numbers(mnist_folder):
    data = images.load("mnist", mnist_folder)
    assert data.train.images.shape == (300, 1, 28, 28)
    assert data.train.images.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    raw = idx.read_idx(mnist_folder / "MNIST" / "raw" / IMAGES, 3)
    assert torch.equal((data.train.images * 255).round().to(torch.uint8).squeeze(1), raw)
    assert data.train.images.max() <= 1
    assert len(data.valid.labels) == 100
    assert data.test is None


def test_prepared_pixels_are_shifted_and_scaled_and_come_back(mnist_folder):
    data = images.load("mnist", mnist_folder, holdout=50)
    prepared = data.prepared((0.25,), (0.5,), torch.device("cpu"))
    for mine, its in zip(_splits(prepared), _splits(data), strict=True):
        assert torch.allclose(mine.images, (its.images - 0.25) / 0.5)
        assert torch.allclose(prepared.pixels(mine.images), its.images, atol=1e-6)
    assert prepared.preprocessing == Preprocessing(28, 1, mean=(0.25,), std=(0.5,))


def _splits(data: images.ImageData) -> list[images.Split]:
    return [data.train, data.valid, data.test]


def test_images_resized_keep_their_mean_and_a_constant_stays_one():
    noise = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for size in (14, 32, 56):
        assert images.resize(noise, size).shape == (3, 1, size, size)
        assert images.resize(noise, size).mean().item() == pytest.approx(noise.mean().item(), abs=0.01)
        assert torch.allclose(images.resize(torch.full((1, 1, 28, 28), 0.3), size), torch.tensor(0.3))
    assert images.resize(noise, 28) is noise


# Subsets


def counts(split: images.Split) -> np.ndarray:
    return np.bincount(split.labels, minlength=10)


def test_the_digits_are_split_once_and_for_all_1437_to_360_in_equal_proportions():
    data = images.load("digits", "nowhere")
    assert (len(data.train.labels), len(data.valid.labels)) == (1437, 360)
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.train.images.min() >= 0
    assert data.train.images.max() <= 1
    assert np.abs(counts(data.train) / 1437 - counts(data.valid) / 360).max() < 0.005
    torch.manual_seed(7)
    np.random.seed(7)
    again = images.load("digits", "nowhere")
    assert torch.equal(again.valid.images, data.valid.images)
    # Another split would change every figure that was ever reported for the digits.
    assert data.valid.labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]


def test_no_digit_is_in_both_splits():
    data = images.load("digits", "nowhere")
    rows = torch.cat([data.train.images, data.valid.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797


@pytest.mark.parametrize("limit", [10, 50, 290])
def test_a_limit_is_a_stratified_subset_that_stays_the_same(mnist_folder, limit):
    data, whole = images.load("mnist", mnist_folder, limit=limit), images.load("mnist", mnist_folder)
    assert len(data.train.labels) == limit
    assert np.abs(counts(data.train) - counts(whole.train) * limit / 300).max() <= 1
    torch.manual_seed(5)
    assert torch.equal(images.load("mnist", mnist_folder, limit=limit).train.images, data.train.images)
    assert torch.equal(data.valid.images, whole.valid.images)


def test_held_out_examples_are_training_examples_that_are_not_trained_on(mnist_folder):
    whole, data = images.load("mnist", mnist_folder), images.load("mnist", mnist_folder, holdout=60)
    assert (len(data.train.labels), len(data.valid.labels)) == (240, 60)
    assert torch.equal(data.test.images, whole.valid.images)
    together = torch.cat([data.train.images, data.valid.images]).flatten(1)
    assert torch.equal(
        together[np.lexsort(together.numpy().T)],
        whole.train.images.flatten(1)[np.lexsort(whole.train.images.flatten(1).numpy().T)],
    )
    assert np.abs(counts(data.valid) - counts(whole.train) / 5).max() <= 1


def test_a_limit_is_taken_from_what_the_hold_out_leaves(mnist_folder):
    data = images.load("mnist", mnist_folder, limit=240, holdout=60)
    assert (len(data.train.labels), len(data.valid.labels)) == (240, 60)
    assert torch.equal(data.valid.images, images.load("mnist", mnist_folder, holdout=60).valid.images)


def test_a_limit_of_all_that_the_hold_out_leaves_is_all_of_it_though_it_be_one_a_class():
    assert len(images.load("digits", "", holdout=1427, limit=10).train.labels) == 10


def test_a_batch_of_large_images_is_of_fewer_images():
    labels = torch.zeros(40, dtype=torch.long)
    sizes = {
        size: len(next(iter(images.Split(torch.zeros(40, 3, size, size), labels).in_order()))[1])
        for size in (8, 160, 300)
    }
    assert sizes == {8: 40, 160: 250 * 32**2 // 160**2 + 6, 300: 16}


def test_a_limit_of_all_examples_is_all_examples(mnist_folder):
    data = images.load("mnist", mnist_folder, limit=300)
    assert torch.equal(data.train.images, images.load("mnist", mnist_folder).train.images)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"limit": 9}, "--limit 9"), ({"limit": 301}, "--limit 301"), ({"holdout": 300}, "--holdout 300")],
)
def test_a_subset_that_cannot_be_taken_is_refused_with_what_can(mnist_folder, options, flag):
    assert f"{flag} cannot be taken from 300 training examples" in refusal("mnist", mnist_folder, **options)
    assert "it may be 10 to 290" in refusal("mnist", mnist_folder, **options)


def test_a_class_with_a_single_example_cannot_be_split(own_folder):
    labels = np.arange(300) % 9
    labels[0] = 9
    write_idx(own_folder / "MNIST" / "raw" / LABELS, labels)
    assert "--limit 100" in refusal("mnist", own_folder, limit=100)


@needs_mnist
def test_the_real_mnist_is_what_it_is_known_to_be():
    data = images.load("mnist", REAL)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.valid.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.train.images.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert data.train.images.std().item() == pytest.approx(0.3081, abs=1e-4)
