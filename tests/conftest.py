"""What many tests share: scripts run here or in a process of their own, small data, a trained network."""

import contextlib
import importlib.util
import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from lib import cli, models
from lib.runtime import checkpoint, runlog

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "run-mnist-classification.py"
SENTIMENT_SCRIPT = "run-sst2-classification.py"
VAE_SCRIPT = "run-vae.py"
SMALL_VAE = (
    *("--dataset", "digits", "--hidden", "64", "--latent", "4", "--depth", "2"),
    *("--max-epoch", "3", "--log-interval", "20"),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Scripts that run in this process choose their threads by it.
os.environ |= ONE_THREAD
torch.set_num_threads(1)


class Ended(NamedTuple):
    """How a script ended, and what it wrote."""

    status: int
    stdout: str
    stderr: str

    def run(self) -> runlog.Run:
        """The newest run of the log on standard output."""
        parsed = runlog.parse(self.stdout.splitlines(keepends=True))
        assert parsed.skipped == 0
        return parsed.runs[-1]

    def is_one_line_error(self) -> bool:
        """Whether the one line on stderr, besides the log's where answers have stdout, is an error's."""
        lines = [line for line in self.stderr.splitlines() if " - INFO - [" not in line]
        return len(lines) == 1 and lines[0].startswith("error: ")


def table(tsv: str) -> list[dict[str, str]]:
    """The rows of tab-separated values, by the names in their first line."""
    header, *rows = (line.split("\t") for line in tsv.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def command(script: str, *flags) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, flags)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | ONE_THREAD | more


def module_of(script: str) -> ModuleType:
    """Return a script, e.g. `run-grad-cam.py`, as an imported module."""
    spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", script), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(script: str, *flags, folder: Path) -> Ended:
    """Run a script in this process, with `folder` as the current one: spares the import of torch."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status, argv = 0, sys.argv
    with contextlib.chdir(folder), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        sys.argv = [script, *map(str, flags)]
        try:
            cli.run(module_of(script).main)
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.argv = argv
    return Ended(status, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def classify(tmp_path) -> Callable[..., Ended]:
    """Call run-mnist-classification.py with some flags in this process, in a folder of its own."""
    return lambda *flags, folder=tmp_path: call(SCRIPT, *flags, folder=folder)


@pytest.fixture
def sentiment(tmp_path) -> Callable[..., Ended]:
    """Call run-sst2-classification.py with some flags in this process, in a folder of its own."""
    return lambda *flags, folder=tmp_path: call(SENTIMENT_SCRIPT, *flags, folder=folder)


@pytest.fixture
def process(tmp_path) -> Callable[..., Ended]:
    """Run a script with some flags in a process of its own, in a folder of its own."""

    def run(script: str, *flags, folder: Path = tmp_path, timeout: float = 90, **more: str) -> Ended:
        done = subprocess.run(
            command(script, *flags),
            cwd=folder,
            env=environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def quiet_log() -> runlog.RunLog:
    """A log that writes to `quiet_log.lines()`."""
    stream = io.StringIO()
    log = runlog.RunLog("test", stream=stream)
    log.lines = lambda: stream.getvalue().splitlines(keepends=True)
    return log


class Trained(NamedTuple):
    """A finished run on the digits: its folder, its flags and how it ended."""

    folder: Path
    flags: tuple[str, ...]
    ended: Ended

    @property
    def checkpoints(self) -> Path:
        return self.folder / "ckpts" / "mnist-classifier-digits"

    @property
    def best(self) -> Path:
        return self.checkpoints / "checkpoint_best.pt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """A short run on the digits. Tests may read its folder, but not write to it."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--dataset", "digits", "--max-epoch", "4", "--log-interval", "10")
    ended = call(SCRIPT, *flags, folder=folder)
    assert ended.status == 0, ended.stderr
    return Trained(folder, flags, ended)


@pytest.fixture(scope="session")
def sentiment_run(tmp_path_factory) -> tuple[Path, Ended]:
    """A run on the tiny sentiment data: its best checkpoint, and how it ended. Not to be written to."""
    folder = tmp_path_factory.mktemp("sentiment")
    ended = call(SENTIMENT_SCRIPT, "--dataset", "tiny", "--max-epoch", "15", folder=folder)
    assert ended.status == 0, ended.stderr
    return folder / "ckpts" / "lstm-tiny" / checkpoint.BEST, ended


@pytest.fixture
def sentiment_best(sentiment_run) -> Path:
    return sentiment_run[0]


@pytest.fixture(scope="session")
def trained_vae(tmp_path_factory) -> tuple[Path, Ended]:
    """A short run on the digits. Tests may read its folder, but not write to it."""
    folder = tmp_path_factory.mktemp("vae")
    ended = call(VAE_SCRIPT, *SMALL_VAE, folder=folder)
    assert ended.status == 0, ended.stderr
    return folder / "ckpts" / "vae-digits" / "checkpoint_best.pt", ended


@pytest.fixture(scope="session")
def faces_folder(tmp_path_factory) -> Path:
    """Grey faces of four people, one of them with one image; as the archive of LFW, below one folder."""
    root = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for person, count in (("ann", 5), ("bob", 5), ("cid", 5), ("dan", 1)):
        (root / "lfw" / person).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (20, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "lfw" / person / f"{person}_{number:04d}.png")
    return root


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes in the idx format."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, train: int = 300, test: int = 100) -> Path:
    """Write scikit-learn's digits, 28 px large, in the layout of MNIST below `root`, and return `root`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.pad(np.kron(digits.images, np.ones((3, 3))) * 15, ((0, 0), (2, 2), (2, 2)))
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, rows in (("train", slice(train)), ("t10k", slice(train, train + test))):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[rows])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", digits.target[rows])
    return root


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory) -> Path:
    """A `--data-dir` with 300 training and 100 test images in MNIST's layout. Not to be written to."""
    return write_mnist(tmp_path_factory.mktemp("data"))


def write_checkpoint(path: Path, network: str = "lenet5", **entries) -> Path:
    """Write a checkpoint of an untrained classifier of digits, with some other `entries`; return `path`."""
    torch.manual_seed(0)
    config = {"classes": 10, "channels": 1, "size": 28}
    content = {
        "task": "image-classification",
        "model": {"name": network, "config": config},
        "state_dict": models.build(network, **config).state_dict(),
        "classes": list("0123456789"),
        "preprocessing": {"size": 28, "channels": 1, "mean": [0.25], "std": [0.5]},
        "flags": {},
        "epoch": 0,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, content | entries)
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Torchvision finds no server."""
    from urllib.error import URLError

    def fail(url, *_, **__):
        print("Downloading", url)
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fail)


def assert_same(a, b, where: str = "it") -> None:
    """Assert that two nested structures of plain values and tensors are equal bit for bit."""
    assert type(a) is type(b), f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"


@pytest.fixture(scope="session")
def subject_folder(tmp_path_factory) -> Path:
    """What the scripts that explain are tried on: networks, images and no image. Not to be written to.

    `own.pt`, `epoch_3.pt` and `epoch_12.pt` are checkpoints of an untrained network after 1, 3, 12 epochs.
    """
    folder = tmp_path_factory.mktemp("subjects")
    for name, epoch in (("own", 0), ("epoch_3", 2), ("epoch_12", 11)):
        write_checkpoint(folder / f"{name}.pt", epoch=epoch)
    random = np.random.default_rng(0)
    for name, shape in (("photo", (60, 80, 3)), ("square", (28, 28))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    Image.fromarray((np.indices((28, 28)).sum(0) // 12).astype(np.uint8)).save(folder / "labels.png")
    (folder / "text.png").write_text("no image")
    return folder


def explaining(script: str) -> Callable:
    """Return a fixture that calls a script in a folder of its own.

    On the checkpoint and one example of `subject_folder`, or, with `own=False`, on what the flags say.
    """

    @pytest.fixture
    def explain(tmp_path, subject_folder) -> Callable[..., Ended]:
        def run(*flags, own: bool = True) -> Ended:
            usual = ("--restore-file", subject_folder / "own.pt", "--input", "digits:7") if own else ()
            return call(script, *usual, *flags, folder=tmp_path)

        return run

    return explain


def panels_of(done: Ended, *, may_be_zero: bool = False) -> list[dict]:
    """The numbers of each panel that a script drew without a complaint, but of zeros if they may be."""
    complaints = done.stderr.splitlines()
    if may_be_zero:
        complaints = [line for line in complaints if " is zero everywhere: " not in line]
    assert (done.status, complaints) == (0, [])
    return done.run().events["PANEL"]


@pytest.fixture
def impatient_loaders(monkeypatch):
    """PyTorch's loaders look for dead workers every 0.2 s while they wait for a result, not every 5 s."""
    from torch.utils.data import _utils
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.fixture
def without(monkeypatch):
    """Make packages look to the benchmarks as if they were not installed."""
    from benchmarks import common

    def hide(*packages: str) -> None:
        common.is_installed.cache_clear()
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    yield hide
    common.is_installed.cache_clear()
