"""CIFAR-10 (Krizhevsky 2009) as torchvision keeps it: pickles of 10,000 images each."""

import codecs
import io
import pickle
from contextlib import redirect_stdout
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch

from lib.data.images import Split
from lib.runtime import distributed
from lib.runtime.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
FOLDER = "cifar-10-batches-py"
FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}

# All that pickles of arrays and lists name, one of them under its old and its new address.
_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("_codecs", "encode"): codecs.encode,
}


def load(data_dir: str | Path) -> dict[str, Split]:
    """Return the splits `train` and `test`: pixels in [0, 1], (N, 3, 32, 32), and labels.

    Args:
        data_dir: torchvision's root folder; downloaded through torchvision into it where files are missing.

    Raises:
        UserError: files missing and no network, or a damaged file.
    """
    folder = Path(data_dir) / FOLDER
    with distributed.main_first():
        if not all((folder / name).is_file() for names in FILES.values() for name in names):
            _download(Path(data_dir))
    return {split: _split([folder / name for name in names]) for split, names in FILES.items()}


def _split(paths: list[Path]) -> Split:
    parts = [_read(path) for path in paths]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, SIZE, SIZE)
    labels = torch.tensor([label for _, labels in parts for label in labels], dtype=torch.long)
    return Split(torch.from_numpy(images).float().div_(255), labels)


def _read(path: Path) -> tuple[np.ndarray, list[int]]:
    """Return the images (N, 3072), uint8, and the labels of one file."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        images, labels = np.asarray(content[b"data"]), [int(label) for label in content[b"labels"]]
        sound = images.dtype == np.uint8 and images.shape == (len(labels), 3 * SIZE * SIZE)
        sound = sound and set(labels) <= set(range(len(CLASSES))) and len(labels) > 0
    except Exception:  # bytes that are no pickle make the unpickler raise nearly anything
        sound = False
    if not sound:
        raise UserError(f"{path} is no file of CIFAR-10, or is damaged")
    return images, labels


class _Unpickler(pickle.Unpickler):
    """Makes arrays and nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str):
        return _HARMLESS[module, name]


def _download(data_dir: Path) -> None:
    from torchvision.datasets import CIFAR10

    try:
        # torchvision prints what it fetches; standard output is the log's. Its progress bar stays.
        with redirect_stdout(io.StringIO()):
            CIFAR10(root=str(data_dir), download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        names = ", ".join(name for names in FILES.values() for name in names)
        raise UserError(
            f"cifar10 is not in {data_dir} and could not be downloaded ({cause}): put {names} into "
            f"{data_dir / FOLDER}, or name another --data-dir"
        ) from None
