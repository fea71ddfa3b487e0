"""What `--eval-only` shows of a classifier: its numbers, its mistakes, and the features of its layers.

Pure functions of a model, of batches that it takes (images, text, anything), and of their labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.evaluation import embed
from lib.models import layers
from lib.models.spatial_maps import spatial_map
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N examples of C classes.

    `probabilities` (N, C) float32 and the true `labels` (N,) are on the CPU; `loss` is the mean
    cross-entropy in nats.
    """

    probabilities: Tensor
    labels: Tensor
    loss: float

    @property
    def classes(self) -> Tensor:
        """The most probable class of each example, (N,)."""
        return self.probabilities.argmax(dim=1)


def predict(model: nn.Module, batches: Iterable[tuple]) -> Predictions:
    """Run `model` in eval mode over `batches` of (inputs, labels (B,)), which lie on its device.

    The model returns logits (B, C). Its modes are afterwards as they were.

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
    # Brought to the CPU once, at the end: a copy per batch would wait for the device each time.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    loss = F.cross_entropy(all_logits.double(), all_labels).item()
    return Predictions(all_logits.softmax(dim=1), all_labels, loss)


def confusion(predictions: Predictions) -> np.ndarray:
    """Return the confusion matrix (C, C) of counts: rows are true classes, columns predicted ones."""
    from sklearn.metrics import confusion_matrix

    every_class = range(predictions.probabilities.shape[1])
    return confusion_matrix(predictions.labels, predictions.classes, labels=every_class)


def per_class(predictions: Predictions, class_names: Sequence[str]) -> list[str]:
    """Return precision, recall, F1 and number of examples of each class, as aligned lines of text.

    The last line averages over the classes that have examples (macro); the others show dashes. A class
    that is never predicted has precision 0.
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
    """Return `rows` of cells as lines, the first column flush left, the others flush right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))]
        )
        for name, *cells in rows
    ]


def most_confident_mistakes(predictions: Predictions, count: int) -> Tensor:
    """Return the indices of at most `count` wrongly classified examples, the most probable mistake first."""
    confidence = predictions.probabilities.amax(dim=1)
    wrong = (predictions.classes != predictions.labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def stratified_sample(labels: Tensor, samples: int, at_least: int = 16, seed: int = 0) -> Tensor:
    """Return the sorted indices of about `samples` examples, the classes in proportion.

    Every class has `at_least` so many, or all it has, also where that makes more than `samples`.
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    # Taking every example whose rank within its class is below a fraction of the class keeps the
    # proportions, whatever the fraction; a class's first few go before all others.
    rank = np.empty(len(labels))
    needed = 0
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
        rank[members[:at_least]] = 0
        needed += min(at_least, len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][: max(samples, needed)]
    return torch.from_numpy(np.sort(chosen))


def layer_features(
    model: nn.Module, layer_names: Iterable[str], batches: Iterable, pool: str
) -> dict[str, np.ndarray]:
    """Return what the named layers put out for all examples: name to features (N, D) float32.

    Args:
        batches: inputs that the model takes, on its device; N examples in all.
        pool: "gap", global average pooling, by which maps become the means (N, C) of their channels, also
            where these come last, and a transformer's tokens likewise; or "flatten", as everything else is.

    Raises:
        UserError: a layer does not exist, or the forward pass does not call it.
    """
    modules = layers.resolve(model, layer_names)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in modules}
    with layers.evaluating(model), layers.record(modules) as outputs, torch.no_grad():
        for inputs in batches:
            outputs.clear()
            model(inputs)
            for name, output in outputs.items():
                parts[name].append(_pooled(model, output, inputs, pool).float().cpu().numpy())
    silent = [name for name, arrays in parts.items() if not arrays]
    if silent:
        raise UserError(f"the layer {silent[0]!r} exists, but the model does not call it")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _pooled(model: nn.Module, output: Tensor, inputs: Any, how: str) -> Tensor:
    if how == "gap" and isinstance(inputs, Tensor) and inputs.dim() == 4:
        channels_last = [output.movedim(3, 1)] if output.dim() == 4 else []
        for each in (output, *channels_last):
            found = spatial_map(model, each, inputs)
            if found is not None:
                return found.float().mean((2, 3))
    return output.flatten(1)


class Activations(NamedTuple):
    """What a convolution put out, over examples, channels and places.

    Attributes:
        layer: its name.
        mean, variance: of its outputs.
        sparsity: share of zeros behind the next activation function; None where there is none before the
            next convolution.
        counts: (bins,) of its outputs, a histogram over `limits`; what is beyond is in the outermost bins.
        limits: where the histogram begins and ends.
    """

    layer: str
    mean: float
    variance: float
    sparsity: float | None
    counts: np.ndarray
    limits: tuple[float, float]


_ACTIVATION_FUNCTIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)


class _Outputs:
    """Sums over what one convolution put out."""

    def __init__(self, bins: int):
        self.bins = bins
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.behind, self.zeros = 0, 0
        self.limit, self.counts = 0.0, torch.zeros(bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        values = values.detach().float()
        if not self.count:
            self.limit = max(values.abs().max().item(), 1e-12)
        self.count += values.numel()
        # Sums of each row in float32, and of all rows in float64, which not every device has.
        rows = values.flatten(0, -2)
        self.total += rows.sum(1).cpu().double().sum().item()
        self.squares += rows.square().sum(1).cpu().double().sum().item()
        # Part by part, for it counts in float32, which knows no 16,777,217.
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

    Activation functions count where they are modules, as a network of `nn.ReLU`s has them.
    """
    found: dict[str, _Outputs] = {}
    latest: list[_Outputs] = []  # the convolution that no activation function has come behind yet

    def convolved(name: str):
        def add(_module, _inputs, output: Tensor) -> None:
            latest[:] = [found.setdefault(name, _Outputs(bins))]
            latest[0].add(output)

        return add

    def activated(_module, _inputs, output: Tensor) -> None:
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
    """Layers as points: `points[layer][method]` is (N, dims), method "pca" or "tsne".

    `accuracies[layer][method]` is the leave-one-out accuracy of the 5 nearest neighbours among them.
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

    The options are those of `embed.project`, which also says what it raises.
    """
    labels = np.asarray(labels)
    points = embed.project(features, dims=dims, perplexity=perplexity, seed=seed)
    accuracies = {
        layer: {method: embed.neighbour_accuracy(array, labels) for method, array in methods.items()}
        for layer, methods in points.items()
    }
    return Embedding(points, accuracies)
