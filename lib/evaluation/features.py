"""Features: the outputs of a network's layers for a sample of examples."""

from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from lib.models import layers
from lib.models.spatial_maps import Layouts, follow
from lib.runtime.errors import UserError


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
