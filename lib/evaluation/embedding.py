"""Embeddings of features: PCA, t-SNE, and the accuracy of nearest neighbours.

Nothing here imports torch, so that the worker processes of t-SNE, which import this module, start quickly.
"""

import contextlib
import io
import math
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from lib.runtime.errors import UserError, warn

if TYPE_CHECKING:
    from torch import Tensor

# The largest number of principal components that t-SNE gets (van der Maaten & Hinton, 2008, use 30, the
# authors' later code 50). Distances hardly change, and the noise of the other components is gone.
TSNE_COMPONENTS = 50
# With fewer layers × examples, t-SNE takes about two seconds, as long as worker processes take to start.
WORTH_WORKERS = 1000
# Iterations of t-SNE (scikit-learn's default), and after how many of them it prints a line.
MOST_ITERATIONS, STEPS_A_TICK = 1000, 50


def project(
    features: Mapping[str, np.ndarray],
    *,
    dims: int = 2,
    perplexity: float = 30.0,
    seed: int = 0,
    workers: int | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Project each layer's features to 2 or 3 dimensions, by PCA and by t-SNE.

    The layers are distributed over processes; the points do not depend on the number of processes. Features
    that are not finite are replaced by zero. If a layer's output is the same for every example, all its
    points are at the origin. Both cases are reported as warnings.

    Args:
        features: layer name to features (N, D); N is the same for all layers, D may differ.
        dims: 2 or 3.
        perplexity: t-SNE's effective number of neighbours, below N.
        seed: seed of PCA's iteration and of t-SNE.
        workers: number of processes; by default one per core, or one if there is little to do.

    Returns:
        Layer name to {"pca": (N, dims), "tsne": (N, dims)}, both float64.

    Raises:
        UserError: the perplexity is not below N.

    PCA and t-SNE are scikit-learn's; t-SNE: van der Maaten & Hinton, "Visualizing data using t-SNE",
    JMLR 9, 2008, initialised by PCA (Kobak & Berens, Nature Communications 10, 2019).
    """
    examples = max((len(array) for array in features.values()), default=0)
    if features and perplexity >= examples:
        raise UserError(f"a perplexity of {perplexity:g} needs more than the {examples} examples there are")
    clean = {name: _finite(name, array) for name, array in features.items()}
    processes = _processes(workers, len(clean), examples)
    with tempfile.TemporaryDirectory() as folder, _progress_bar(Path(folder), len(clean)):
        settings = {"dims": dims, "perplexity": perplexity, "seed": seed, "ticks": folder}
        return dict(zip(clean, _map(_embed, list(clean.values()), settings, processes), strict=True))


@contextlib.contextmanager
def _progress_bar(ticks: Path, layers: int) -> Iterator[None]:
    """Show the progress of all layers' t-SNE, read from the sizes of the files that `_Ticks` writes.

    Files are needed because scikit-learn's t-SNE has no callback and may run in other processes.
    """
    total = layers * MOST_ITERATIONS
    with tqdm(total=total, desc="t-SNE", unit=" steps", leave=False, disable=None) as bar:
        if bar.disable:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.2):
                done = sum(file.stat().st_size for file in ticks.iterdir()) * STEPS_A_TICK
                bar.update(min(done, total) - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


class _Ticks(io.TextIOBase):
    """Stream that replaces stdout for t-SNE: it writes one byte to a file for each line about iterations.

    Args:
        folder: where the file is made; None to discard the lines.
    """

    def __init__(self, folder: str | None):
        super().__init__()
        self._file = None if folder is None else Path(folder) / secrets.token_hex(8)

    def write(self, text: str) -> int:
        if self._file is not None:
            with contextlib.suppress(OSError), self._file.open("ab") as file:
                file.write(b"." * text.count("] Iteration "))
        return len(text)

    def finish(self) -> None:
        """Count all iterations as done, also those that t-SNE did not need."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write_bytes(b"." * (MOST_ITERATIONS // STEPS_A_TICK))


def _finite(layer: str, features: np.ndarray) -> np.ndarray:
    """Return `features` (N, D) with zeros for NaN and infinity; warn of these and of constant features."""
    finite = np.isfinite(features)
    broken = len(features) - int(finite.all(axis=1).sum())
    if broken:
        warn(f"layer {layer}: {broken} of {len(features)} examples are not finite: zeros are taken instead")
        features = np.where(finite, features, 0)
    if (features == features[:1]).all():
        warn(f"layer {layer} puts out the same for every example: there is nothing to project")
    return features


def _processes(workers: int | None, layers: int, examples: int) -> int:
    if workers is None and layers * examples < WORTH_WORKERS:
        return 1
    return max(1, min(workers or cpu_count(), layers))


def _map(function: Callable, arrays: Sequence[np.ndarray], settings: dict, processes: int) -> Iterator:
    """Yield `function(array, **settings)` for each of `arrays`, in order, computed by worker processes.

    The workers are loky's. They start by exec and not by fork, so that torch's threads in this process do no
    harm, and they do not run the main script again. An exception here (Ctrl-C) kills them.
    """
    watched = {"initializer": _watch_parent, "initargs": (os.getpid(),)}
    # One thread per worker, because the rounding of sums depends on the number of threads, and t-SNE
    # magnifies the difference.
    with threadpool_limits(1), parallel_config("loky", inner_max_num_threads=1, **watched):
        parallel = Parallel(n_jobs=processes, return_as="generator")
        yield from parallel(delayed(function)(array, **settings) for array in arrays)


def _watch_parent(parent: int) -> None:
    """End this worker process soon after its `parent` process has ended.

    loky lets the parent end its workers. A parent that is killed by a signal cannot, and without this thread
    its workers would stay for ever.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _embed(
    features: np.ndarray, dims: int, perplexity: float, seed: int, ticks: str | None = None
) -> dict[str, np.ndarray]:
    """Return {"pca": (N, dims), "tsne": (N, dims)} of features (N, D); `ticks` is the folder of `_Ticks`."""
    components = _principal_components(features, TSNE_COMPONENTS, seed)
    missing = max(0, dims - components.shape[1])
    components = np.pad(components, ((0, 0), (0, missing)))
    progress = _Ticks(ticks)
    with contextlib.redirect_stdout(progress):
        points = _tsne(components, dims, perplexity, seed)
    progress.finish()
    return {"pca": components[:, :dims], "tsne": points}


def _principal_components(features: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return the scores (N, min(most, N, D)) of features (N, D) on their first principal components."""
    from sklearn.decomposition import PCA

    features = np.asarray(features, dtype=np.float64)
    rank = min(features.shape)
    if (features == features[:1]).all():
        return np.zeros((len(features), min(most, rank)))
    # Both solvers are exact. scikit-learn's default is a randomised one, whose error is as large as the
    # signal if the spectrum is flat. ARPACK is the faster of the two, but cannot return all components.
    solver = "arpack" if most < rank else "full"
    scores = PCA(min(most, rank), svd_solver=solver, random_state=seed).fit_transform(features)
    spread = scores.std(axis=0)
    # Components beyond the rank of the features are rounding errors, which a plot would show as a cloud.
    return np.where(spread > 1e-9 * spread[0], scores, 0)


def _tsne(components: np.ndarray, dims: int, perplexity: float, seed: int) -> np.ndarray:
    """Return the t-SNE points (N, dims) of principal components (N, D ≥ dims)."""
    from sklearn.manifold import TSNE

    spread = components.std(axis=0).max()
    if spread == 0:
        return np.zeros((len(components), dims))
    # t-SNE does not depend on the scale, but scikit-learn squares distances in float32, which can overflow.
    components = components / spread
    # init="pca" starts with the first components. If one of them is zero everywhere, it would stay zero.
    start = "pca" if min(components.std(axis=0)[:dims]) > 0 and len(components) >= dims else "random"
    tsne = TSNE(
        dims,
        perplexity=perplexity,
        init=start,
        learning_rate="auto",
        random_state=seed,
        max_iter=MOST_ITERATIONS,
        verbose=2,  # a line every 50 iterations, for `_Ticks`
    )
    return tsne.fit_transform(components).astype(np.float64)


def neighbour_accuracy(points: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Return the share of `points` (N, D) whose label is the majority label of their `k` nearest neighbours.

    This is the leave-one-out accuracy of the k-nearest-neighbour classifier with `labels` (N,). A tie between
    labels goes to the smallest, k is at most N − 1, and the result is NaN if N is 1.
    """
    from scipy.stats import mode
    from sklearn.neighbors import NearestNeighbors

    points, labels = np.asarray(points), np.asarray(labels)
    k = min(k, len(points) - 1)
    if k < 1:
        return math.nan
    # Without an argument, `kneighbors` leaves every point out of its own neighbours.
    neighbours = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    return float(np.mean(mode(labels[neighbours], axis=1).mode == labels))


class Embedding(NamedTuple):
    """Embeddings of layers; method is "pca" or "tsne".

    Attributes:
        points: `points[layer][method]` is (N, dims).
        accuracies: `accuracies[layer][method]` is the leave-one-out accuracy of 5 nearest neighbours on them.
    """

    points: dict[str, dict[str, np.ndarray]]
    accuracies: dict[str, dict[str, float]]


def embed_layers(
    features: Mapping[str, np.ndarray],
    labels: "Tensor",
    *,
    dims: int = 2,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """Project the features (N, D) of each layer, and score the points by their labels (N,).

    Options and errors are those of `project`.
    """
    classes = np.asarray(labels)
    points = project(features, dims=dims, perplexity=perplexity, seed=seed)
    accuracies = {
        layer: {method: neighbour_accuracy(array, classes) for method, array in methods.items()}
        for layer, methods in points.items()
    }
    return Embedding(points, accuracies)
