"""Explanations by one backward pass: class activation maps of a layer, saliency of the input.

Images are (B, C, H, W), normalised for the network. Scores (see `lib.explain.targets`) map the network's
output to T numbers per image, one for each target; a class's number stands for its logit. All targets and all
layers share one forward pass. Afterwards the network's modes, weights and `.grad` are as they were before.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.explain import activations
from lib.explain.methods import METHODS, Formula
from lib.explain.progress import Stopped
from lib.explain.rectifiers import RectifierRule
from lib.explain.targets import Classes, Scores, scores_for
from lib.models.layers import Layers, names_of
from lib.models.spatial_maps import Layouts, follow
from lib.runtime.errors import UserError


class Cam(NamedTuple):
    """Class activation maps.

    Attributes:
        maps: for each layer, (T, B, h, w) at the layer's own resolution, nowhere negative.
        output: the network's output (B, classes).
        flat: for each layer, whether the gradient of a score is zero all over it, (T, B) bool.
    """

    maps: dict[str, Tensor]
    output: Tensor
    flat: dict[str, Tensor]


class Saliency(NamedTuple):
    """Gradients of the scores with respect to the images, or modified gradients of a backpropagation rule.

    Attributes:
        values: (T, B, C, H, W).
        output: the network's output (B, classes).
    """

    values: Tensor
    output: Tensor


def grad_cam(
    model: nn.Module, layers: Layers, images: Tensor, scores: Classes | Scores, *, method: str = "grad-cam"
) -> Cam:
    """Return the class activation maps of the method that `lib.explain.methods` lists under this name.

    `grad_cam(resnet, "layer4", images, 3).maps["layer4"]` are the maps of class 3, (1, B, 7, 7) at 224 px.

    Args:
        model: network.
        layers: one layer or several, each by its dotted name or as a module of the network.
        images: (B, C, H, W), normalised.
        scores: the number of a class, several, or scores; see `lib.explain.targets.scores_for`.
        method: name of the method.

    Raises:
        UserError: no such method, or an error of `class_activation`.
    """
    known = {name: each.formula for name, each in METHODS.items() if each.formula}
    if method not in known:
        raise UserError(f"there is no method {method!r}; choose from {', '.join(known)}")
    return class_activation(model, layers, images, scores, known[method])


def class_activation(
    model: nn.Module, layers: Layers, images: Tensor, scores: Classes | Scores, formula: Formula
) -> Cam:
    """Return ReLU(formula(A, G)) at `layers`, where A is a layer's output and G = ∂y/∂A.

    Args:
        model: network.
        layers: as for `grad_cam`; the tokens of a transformer are arranged as their grid.
        scores: y, as for `grad_cam`. With −y, the map shows what speaks against the class.
        images: (B, C, H, W), normalised.
        formula: see `lib.explain.methods`.

    Raises:
        UserError: no such layer, a layer without a spatial map, or one that the scores do not depend on.
    """
    images, layers, scores = images.detach(), names_of(model, layers), scores_for(scores)
    with activations.explaining(model), activations.capture_activations(model, layers) as captured:
        with follow(model, images) as layouts:
            output = model(images)
        features = feature_maps(model, layers, images, captured, layouts)
        found = _gradients(scores(output), [captured[name] for name in layers])
    maps, flat = {}, {}
    for name, gradients in zip(layers, zip(*found, strict=True), strict=True):
        # A gradient has the shape of the output, so it has a spatial map, too, unless it is None.
        grids = [grid for each in gradients if (grid := layouts.spatial_map(name, each, images)) is not None]
        if len(grids) < len(gradients):
            raise UserError(f"the scores do not depend on layer {name!r}")
        maps[name] = torch.stack([formula(features[name], grid) for grid in grids]).relu()
        flat[name] = torch.stack([~grid.flatten(1).any(1) for grid in grids])
    return Cam(maps, output.detach(), flat)


def feature_maps(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    captured: dict[str, Tensor],
    layouts: Layouts,
) -> dict[str, Tensor]:
    """Return the outputs of `layers` as spatial maps (B, K, h, w), detached.

    Args:
        model: network.
        layers: names of its modules.
        images: (B, C, H, W), the inputs of the forward pass.
        captured: outputs of that pass, from `lib.explain.activations.capture_activations`.
        layouts: their layouts, from `lib.models.spatial_maps.follow`.

    Raises:
        UserError: a layer's output is not a spatial map, or it is not known where its channels are.
    """
    maps = {}
    for name in layers:
        output = captured.get(name)
        found = layouts.spatial_map(name, output, images)
        if found is None:
            size = "no tensor" if output is None else "×".join(map(str, output.shape[1:]))
            better = activations.default_layer(model, images[:1])
            if layouts.is_unknown(name, output):
                raise UserError(
                    f"layer {name!r} puts out {size}, and nothing says which of these are its channels: name "
                    f"a layer before or after it, such as {better!r}"
                )
            raise UserError(f"layer {name!r} has no spatial map, it puts out {size}; {better!r} has one")
        maps[name] = found.detach()
    return maps


def _gradients(values: Tensor, sources: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
    """Return, for each target of values (T, B), the gradient of its scores with respect to each source."""
    if not values.requires_grad:
        return [(None,) * len(sources)] * len(values)
    last = len(values) - 1
    return [
        torch.autograd.grad(value.sum(), sources, retain_graph=index < last, allow_unused=True)
        for index, value in enumerate(values)
    ]


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return maps (…, h, w) enlarged bilinearly to `size` (H, W); the values are not rescaled."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return large.view(*maps.shape[:-2], *large.shape[-2:])


def input_gradients(model: nn.Module, images: Tensor, scores: Classes | Scores) -> Saliency:
    """Return the gradient of each score with respect to the images (Simonyan et al. 2013, arXiv:1312.6034).

    Raises:
        UserError: the scores do not depend on the images.
    """
    return _saliency(model, images, scores, nullcontext())


def guided_backprop(
    model: nn.Module, images: Tensor, scores: Classes | Scores, *, rule: str = "guided"
) -> Saliency:
    """Return gradients with respect to the images, computed so that ReLUs pass back no negative values.

    Args:
        model: network.
        images: (B, C, H, W), normalised.
        scores: as for `grad_cam`.
        rule: what a ReLU makes of the gradient g at its output. `guided`: ReLU(g) where its input was
            positive, else 0 (Springenberg et al. 2014, arXiv:1412.6806). `deconvnet`: ReLU(g) everywhere
            (Zeiler & Fergus 2013, arXiv:1311.2901).

    Raises:
        UserError: no such rule; the network calls no ReLU, or it also calls other activation functions.
    """
    rectifiers = RectifierRule(rule)
    found = _saliency(model, images, scores, rectifiers)
    rectifiers.check(type(model).__name__)
    return found


def _saliency(
    model: nn.Module, images: Tensor, scores: Classes | Scores, mode: AbstractContextManager[Any]
) -> Saliency:
    """Return the gradients of the scores with respect to the images; the forward pass runs under `mode`."""
    source, scores = images.detach().requires_grad_(), scores_for(scores)
    with activations.explaining(model):
        with mode:
            # A clone, because the network may begin with an in-place operation.
            output = model(source.clone())
        found = _gradients(scores(output), [source])
    gradients = [gradient for (gradient,) in found if gradient is not None]
    if len(gradients) < len(found):
        raise UserError("the scores do not depend on the images")
    return Saliency(torch.stack(gradients), output.detach())


def guided_grad_cam(cam_maps: Tensor, saliency_values: Tensor) -> Tensor:
    """Return maps (T, B, H, W) at the size of the image times values (T, B, C, H, W).

    This is guided Grad-CAM (Selvaraju et al. 2017, section 3.2).
    """
    return cam_maps.unsqueeze(2) * saliency_values


def smooth(
    explain: Callable[[Tensor], Tensor], images: Tensor, *, samples: int, noise: float, seed: int
) -> Tensor:
    """Return the mean of `explain` over noisy images (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825).

    Args:
        explain: function from images (B, C, H, W) to a tensor of any shape. If it raises `Stopped`, the mean
            is over the samples before.
        images: (B, C, H, W).
        samples: number of samples. Only the sum of their results is kept in memory.
        noise: standard deviation of the noise, as a share of each image's range (maximum − minimum).
        seed: seed of the noise, which is the same on every device.

    Raises:
        UserError: `samples` is less than 1.
        Stopped: `explain` raised it for the first sample.
    """
    if samples < 1:
        raise UserError(f"cannot average {samples} samples")
    generator = torch.Generator().manual_seed(seed)
    scale = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros(())
    for done in range(samples):
        drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        try:
            total = total + explain(images + scale * drawn)
        except Stopped:
            if not done:
                raise
            return total / done
    return total / samples


def smooth_if_asked(
    settings: Mapping[str, Any], explain: Callable[[Tensor], Tensor], images: Tensor
) -> Tensor:
    """Return `explain(images)`, or its mean over as many noisy images as the setting `smoothgrad` says.

    The settings `noise` and `seed` are those of `smooth`.
    """
    if not settings.get("smoothgrad"):
        return explain(images)
    samples, noise, seed = settings["smoothgrad"], settings.get("noise", 0.15), settings.get("seed", 42)
    return smooth(explain, images, samples=samples, noise=noise, seed=seed)


@contextmanager
def randomised(model: nn.Module, top_layers: int, seed: int) -> Iterator[list[str]]:
    """Within the context, the weights of the last layers are random (Adebayo et al. 2018, arXiv:1810.03292).

    Weights are drawn from a normal distribution with the root mean square of their tensor, so that
    activations keep their scale, however the network was initialised. The random weights of a layer depend
    only on the seed and the layer's name: with more `top_layers`, the layers randomised before stay the same.

    Args:
        model: network.
        top_layers: number of layers, counted from the output. Layers are the modules with weights of their
            own, in the order in which the network registers them.
        seed: seed of the random weights.

    Yields:
        The names of these modules, last first.

    Raises:
        UserError: the network has fewer layers.

    The weights are restored when the context ends, also after an error.
    """
    holders = [(name, list(module.parameters(recurse=False))) for name, module in model.named_modules()]
    holders = [(name, weights) for name, weights in holders if weights][::-1]
    if not 0 <= top_layers <= len(holders):
        raise UserError(f"cannot re-draw the last {top_layers} layers: the network has {len(holders)}")
    chosen = holders[:top_layers]
    before = [(weight, weight.detach().clone()) for _, weights in chosen for weight in weights]
    try:
        for name, weights in chosen:
            _redraw(weights, zlib.crc32(f"{seed} {name}".encode()))
        yield [name for name, _ in chosen]
    finally:
        with torch.no_grad():
            for weight, values in before:
                weight.copy_(values)


@torch.no_grad()
def _redraw(weights: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        root_mean_square = weight.square().mean().sqrt()
        weight.copy_(torch.randn(weight.shape, generator=generator)).mul_(root_mean_square)
