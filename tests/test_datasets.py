"""The table of data sets: read as torchvision reads them, known to every script, refused in one line."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, write_idx
from PIL import Image
from test_folders import write_folder

from lib.data import datasets
from lib.runtime.errors import UserError

MNIST_SCRIPT, IMAGE_SCRIPT, CAM_SCRIPT = (
    f"run-{name}.py" for name in ("mnist-classification", "image-classification", "grad-cam")
)


def write_emnist(root: Path, split: str = "letters", count: int = 130) -> np.ndarray:
    """Write random images in EMNIST's layout, one file compressed; return the test images upright."""
    raw = root / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    first = 1 if split == "letters" else 0
    classes = {"letters": 26, "balanced": 47}[split]
    for part in ("train", "test"):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 20:, :] = 0  # as they lie in the file: the right-hand side is empty
        write_idx(raw / f"emnist-{split}-{part}-images-idx3-ubyte", images)
        write_idx(raw / f"emnist-{split}-{part}-labels-idx1-ubyte", first + np.arange(count) % classes)
    file = raw / f"emnist-{split}-train-images-idx3-ubyte"
    (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return images.transpose(0, 2, 1)


def write_cifar100(root: Path, count: int = 200) -> np.ndarray:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    fine = [f"fine{number}" for number in range(100)]
    coarse = [f"group{number}" for number in range(20)]
    meta = {
        b"fine_label_names": [n.encode() for n in fine],
        b"coarse_label_names": [n.encode() for n in coarse],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta))
    for part in ("train", "test"):
        labels = list(np.arange(count) % 100)
        content = {
            b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"fine_labels": [int(label) for label in labels],
            b"coarse_labels": [int(label) // 5 for label in labels],
        }
        (folder / part).write_bytes(pickle.dumps(content))
    return content[b"data"].reshape(-1, 3, 32, 32)


def read(name: str, root: Path, **options) -> datasets.Labelled:
    entry = datasets.find(name)
    return entry.read(root, entry.options(options))


@pytest.mark.parametrize(("split", "classes", "first"), [("letters", 26, "a"), ("balanced", 47, "0")])
def test_emnist_is_upright_and_its_letters_begin_at_a(tmp_path, split, classes, first):
    upright = write_emnist(tmp_path, split)
    found = read("emnist", tmp_path, split=split)
    assert len(found.classes) == classes
    assert (found.classes[0], int(found.splits["test"].labels[0])) == (first, 0)
    assert torch.equal(
        (found.splits["test"].images[:, 0] * 255).round().byte(), torch.from_numpy(upright.copy())
    )


@pytest.mark.parametrize(("labels", "first"), [("fine", "fine7"), ("coarse", "group1")])
def test_cifar100_has_two_levels_of_labels(tmp_path, labels, first):
    pixels = write_cifar100(tmp_path)
    found = read("cifar100", tmp_path, labels=labels)
    test = found.splits["test"]
    assert found.classes[test.labels[7]] == first
    assert torch.equal((test.images * 255).round().byte(), torch.from_numpy(pixels))


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "write", "flags"),
    [
        (MNIST_SCRIPT, write_emnist, ("--dataset", "emnist", "--model", "lenet5")),
        (IMAGE_SCRIPT, write_cifar100, ("--dataset", "cifar100", "--labels", "coarse", "--model", "lenet5")),
    ],
)
def test_a_network_trains_on_them_is_restored_and_explained(tmp_path, script, write, flags):
    write(tmp_path / "data")
    done = call(script, *flags, "--max-epoch", 1, "--checkpoint-dir", "run", folder=tmp_path)
    assert done.status == 0, done.stderr
    best = "run/checkpoint_best.pt"
    again = call(script, "--eval-only", "--restore-file", best, "--samples", 60, folder=tmp_path)
    assert again.status == 0, again.stderr
    assert again.run().events["EVAL"] == done.run().events["EVAL"]
    name = flags[1]
    drawn = call(CAM_SCRIPT, "--restore-file", best, "--input", f"{name}:3", "-k", 1, folder=tmp_path)
    assert drawn.status == 0, drawn.stderr
    assert drawn.run().events["PANEL"][0]["image"] == f"{name}-3"


def test_a_folder_of_images_is_a_data_set_of_the_script_for_digits_too(tmp_path):
    write_folder(tmp_path / "photos", images=16)
    flags = ("--dataset", "folder", "--data-dir", "photos", "--model", "lenet5", "--max-epoch", 1)
    done = call(MNIST_SCRIPT, *flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    best = "ckpts/lenet5-folder/checkpoint_best.pt"
    predicted = call(MNIST_SCRIPT, "--predict-only", "--restore-file", best, folder=tmp_path)
    assert predicted.status == 0, predicted.stderr
    drawn = call(CAM_SCRIPT, "--restore-file", best, "--input", "folder:photos:5", "-k", 1, folder=tmp_path)
    (panel,) = drawn.run().events["PANEL"]
    assert panel["image"] == "photos-5"


def test_an_example_of_a_folder_is_the_image_of_that_number_in_its_unseen_split(tmp_path):
    for split in ("train", "valid"):
        for name, colour in (("dark", 10), ("light", 240)):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (32, 32), (colour + number,) * 3).save(folder / f"{number}.png")
    from lib.data.image_inputs import read
    from lib.models.network import load_pretrained

    how = load_pretrained("squeezenet1_1", "random").preprocessing
    shown, last = read([f"folder:{tmp_path / 'photos'}:0", f"folder:{tmp_path / 'photos'}:3"], how)
    assert (shown.label, last.label) == ("dark", "light")
    assert float(last.pixels.mean() * 255) == pytest.approx(241, abs=0.5)
    with pytest.raises(UserError, match="0 to 3"):
        read([f"folder:{tmp_path / 'photos'}:4"], how)


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        (
            MNIST_SCRIPT,
            ("--dataset", "digits", "--split", "letters"),
            "--split does not go with --dataset digits",
        ),
        (MNIST_SCRIPT, ("--dataset", "emnist", "--split", "greek"), "invalid choice: 'greek'"),
        (MNIST_SCRIPT, ("--dataset", "folder", "--data-dir", ".", "--holdout", "9"), "give --valid-fraction"),
        (MNIST_SCRIPT, ("--dataset", "digits", "--valid-fraction", "0.1"), "give --holdout"),
        (
            MNIST_SCRIPT,
            ("--dataset", "digits", "--classes", "1,2"),
            "--classes goes with --dataset folder alone",
        ),
        (IMAGE_SCRIPT, ("--labels", "coarse"), "--labels does not go with --dataset cifar10"),
        (CAM_SCRIPT, ("--input", "cifar:3", "--ptm", "resnet18"), "did you mean cifar10"),
        (CAM_SCRIPT, ("--input", "folder:nowhere:3", "--ptm", "resnet18"), "there is no folder nowhere"),
    ],
)
def test_what_does_not_fit_a_data_set_is_said_in_one_line(tmp_path, script, flags, said):
    done = call(script, *flags, folder=tmp_path)
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert said in done.stderr


@pytest.mark.parametrize("damage", [b"", b"noise", pickle.dumps({b"data": 1}), pickle.dumps([1])])
@pytest.mark.parametrize("file", ["meta", "train"])
def test_damaged_files_of_cifar100_are_one_line(tmp_path, damage, file):
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / file).write_bytes(damage)
    with pytest.raises(UserError, match="damaged"):
        read("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("name", "first"), [("emnist", "emnist-letters-train"), ("cifar100", "train, test, meta")]
)
@pytest.mark.usefixtures("no_network")
def test_without_a_network_it_is_said_what_to_put_where(tmp_path, name, first):
    with pytest.raises(UserError, match=f"could not be downloaded .* put {first}"):
        read(name, tmp_path)
