"""The views of `--eval-only`: a classifier's metrics, its mistakes, and the features of its layers.

These are pure functions of a model, of batches of its inputs (images, text or others), and of their labels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.evaluation import embed
from lib.models import layers
from lib.models.spatial_maps import Layouts, follow
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for N examples of C classes.

    Attributes:
        probabilities: (N, C) float32, on the CPU.
        labels: true classes (N,), on the CPU.
        loss: mean cross-entropy in nats.
    """

    probabilities: Tensor
    labels: Tensor
    loss: float

    @property
    def classes(self) -> Tensor:
        """The most probable class of each example (N,)."""
        return self.probabilities.argmax(dim=1)


def predict(model: nn.Module, batches: Iterable[tuple]) -> Predictions:
    """Run `model` in eval mode over `batches` of (inputs, labels (B,)) on its device.

    The model returns logits (B, C). Afterwards every module has its own mode again.

    Raises:
        UserError: there are no examples.
    """
    logits, labels = [], []
    with layers.evaluating(model), torch.no_grad():
        for inputs, batch_labels in batches:
            logits.append(model(inputs).float())
            labels.append(batch_labels)
    if not labels:
        raise UserError("there are no examples to evaluate")
    # One copy to the CPU at the end, because a copy per batch would wait for the device each time.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    loss = F.cross_entropy(all_logits.double(), all_labels).item()
    return Predictions(all_logits.softmax(dim=1), all_labels, loss)


def confusion(predictions: Predictions) -> np.ndarray:
    """Return the confusion matrix (C, C) of counts: a row per true class, a column per predicted one."""
    from sklearn.metrics import confusion_matrix

    every_class = range(predictions.probabilities.shape[1])
    return confusion_matrix(predictions.labels, predictions.classes, labels=every_class)


def per_class(predictions: Predictions, class_names: Sequence[str]) -> list[str]:
    """Return precision, recall, F1 and number of examples of each class, as aligned lines of text.

    Classes without examples show dashes, and the macro average in the last line leaves them out. A class that
    is never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    *scores, support = precision_recall_fscore_support(
        predictions.labels, predictions.classes, labels=range(len(class_names)), zero_division=0
    )
    scores = np.stack(scores, axis=1)
    present = support > 0
    rows = [
        (name, *(_score(score) if known else "-" for score in row), str(count))
        for name, row, count, known in zip(class_names, scores, support, present, strict=True)
    ]
    macro = ("macro average", *map(_score, scores[present].mean(axis=0)), str(support.sum()))
    return _aligned([("class", "precision", "recall", "F1", "examples"), *rows, macro])


def _score(value: float) -> str:
    return f"{value:.4f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return `rows` of cells as lines of text: the first column flush left, the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))]
        )
        for name, *cells in rows
    ]


def most_confident_mistakes(predictions: Predictions, count: int) -> Tensor:
    """Return the indices of at most `count` wrong predictions, in order of falling confidence."""
    confidence = predictions.probabilities.amax(dim=1)
    wrong = (predictions.classes != predictions.labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def stratified_sample(labels: Tensor, samples: int, at_least: int = 16, seed: int = 0) -> Tensor:
    """Return the sorted indices of about `samples` random examples, with the proportions of the classes.

    Every class has at least `at_least` examples, or all that it has, even if that makes more than `samples`.
    """
    classes = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(classes))
    # The random rank of an example within its class, from 0 to 1. Any threshold on it takes the same share of
    # every class. The first `at_least` of a class have rank 0, so that they are taken first.
    rank = np.empty(len(classes))
    needed = 0
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        rank[members[:at_least]] = 0
        needed += min(at_least, len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][: max(samples, needed)]
    return torch.from_numpy(np.sort(chosen))


def layer_features(
    model: nn.Module, layer_names: Iterable[str], batches: Iterable, pool: str
) -> dict[str, np.ndarray]:
    """Return the outputs of the named layers for all examples: name to features (N, D) float32.

    Args:
        model: network, run in eval mode.
        layer_names: dotted names of modules.
        batches: inputs of the model, on its device; N examples in all.
        pool: "gap", global average pooling: maps become the means (N, C) of their channels, whether these are
            the second or the last dimension, and a transformer's tokens become their mean; or "flatten".
            Outputs without a spatial map are always flattened.

    Raises:
        UserError: a layer does not exist, or the forward pass does not call it.
    """
    modules = layers.resolve(model, layer_names)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in modules}
    with layers.evaluating(model), layers.record(modules) as outputs, torch.no_grad():
        for inputs in batches:
            outputs.clear()
            # Phrases, which are tuples of tensors, have no maps.
            are_images = isinstance(inputs, Tensor) and inputs.dim() == 4
            with follow(model, inputs) if are_images else nullcontext(Layouts()) as layouts:
                model(inputs)
            for name, output in outputs.items():
                found = layouts.spatial_map(name, output, inputs) if pool == "gap" else None
                features = output.flatten(1) if found is None else found.float().mean((2, 3))
                parts[name].append(features.float().cpu().numpy())
    silent = [name for name, arrays in parts.items() if not arrays]
    if silent:
        raise UserError(f"the layer {silent[0]!r} exists, but the model does not call it")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


class Activations(NamedTuple):
    """Statistics of a convolution's outputs, over examples, channels and positions.

    Attributes:
        layer: name of the convolution.
        mean, variance: of its outputs.
        sparsity: share of zeros in the output of the next activation function; None if the next convolution
            comes before any.
        counts: histogram (bins,) of its outputs over `limits`; outputs beyond are in the outermost bins.
        limits: the ends of the histogram.
    """

    layer: str
    mean: float
    variance: float
    sparsity: float | None
    counts: np.ndarray
    limits: tuple[float, float]


_ACTIVATION_FUNCTIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)


class _Outputs:
    """Running sums over the outputs of one convolution.

    `behind` and `zeros` count the outputs, and the zeros among them, of the activation function that follows.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.behind, self.zeros = 0, 0
        self.limit, self.counts = 0.0, torch.zeros(bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        values = values.detach().float()
        if not self.count:  # the first batch sets the range of the histogram
            self.limit = max(values.abs().max().item(), 1e-12)
        self.count += values.numel()
        # Sum each row in float32 and then the rows in float64 on the CPU, because MPS has no float64.
        rows = values.flatten(0, -2)
        self.total += rows.sum(1).cpu().double().sum().item()
        self.squares += rows.square().sum(1).cpu().double().sum().item()
        # In parts: `histc` counts in float32, which is exact only up to 2**24.
        for part in values.clamp(-self.limit, self.limit).flatten().split(2**24):
            self.counts += torch.histc(part, self.bins, -self.limit, self.limit).cpu()

    def add_behind(self, values: Tensor) -> None:
        self.behind += values.numel()
        self.zeros += int((values == 0).sum())

    def statistics(self, layer: str) -> Activations:
        mean = self.total / self.count
        sparsity = self.zeros / self.behind if self.behind else None
        variance = self.squares / self.count - mean**2
        return Activations(layer, mean, variance, sparsity, self.counts.numpy(), (-self.limit, self.limit))


def activation_statistics(model: nn.Module, batches: Iterable[Tensor], bins: int = 80) -> list[Activations]:
    """Return the statistics of every convolution that `model`, in eval mode, calls, in order of execution.

    The sparsity is known only of activation functions that are modules (`nn.ReLU` and not `F.relu`).
    """
    found: dict[str, _Outputs] = {}
    latest: list[_Outputs] = []  # the last convolution, until an activation function follows it; else empty

    def convolved(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            latest[:] = [found.setdefault(name, _Outputs(bins))]
            latest[0].add(output)

        return add

    def activated(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        while latest:
            latest.pop().add_behind(output)

    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                handles.append(module.register_forward_hook(convolved(name)))
            elif isinstance(module, _ACTIVATION_FUNCTIONS):
                handles.append(module.register_forward_hook(activated))
        with layers.evaluating(model), torch.no_grad():
            for inputs in batches:
                latest.clear()
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs.statistics(name) for name, outputs in found.items()]


def activation_table(activations: Sequence[Activations]) -> list[str]:
    """Return the mean, variance and sparsity of each convolution as aligned lines of text."""
    rows = [
        (
            row.layer,
            _score(row.mean),
            _score(row.variance),
            "-" if row.sparsity is None else _score(row.sparsity),
        )
        for row in activations
    ]
    return _aligned([("convolution", "mean", "variance", "sparsity"), *rows])


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
    labels: Tensor,
    *,
    dims: int = 2,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """Project the features (N, D) of each layer, and score the points by their labels (N,).

    Options and errors are those of `embed.project`.
    """
    classes = np.asarray(labels)
    points = embed.project(features, dims=dims, perplexity=perplexity, seed=seed)
    accuracies = {
        layer: {method: embed.neighbour_accuracy(array, classes) for method, array in methods.items()}
        for layer, methods in points.items()
    }
    return Embedding(points, accuracies)
