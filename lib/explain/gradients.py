"""Explanations by one backward pass: class activation maps of a layer, saliency of the input.

A network's images are (B, C, H, W), normalised as it takes them. Scores (see `lib.explain.scores`) make T
numbers an image of its output. All targets and all layers share one forward pass; the network's modes,
weights and `.grad` are afterwards as they were.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.explain import activations
from lib.explain.methods import METHODS, Formula
from lib.explain.progress import Stopped
from lib.explain.rectifiers import RectifierRule
from lib.explain.scores import Scores
from lib.models.spatial_maps import spatial_map
from lib.runtime.errors import UserError


class Cam(NamedTuple):
    """Class activation maps.

    Attributes:
        maps: of each layer, (T, B, h, w) at the layer's own resolution, nowhere negative.
        output: of the network, (B, classes).
    """

    maps: dict[str, Tensor]
    output: Tensor


class Saliency(NamedTuple):
    """What the scores' gradients, or a rule's imitations of them, say of each number of the images.

    Attributes:
        values: (T, B, C, H, W).
        output: of the network, (B, classes).
    """

    values: Tensor
    output: Tensor


def grad_cam(
    model: nn.Module, layers: Sequence[str], images: Tensor, scores: Scores, *, method: str = "grad-cam"
) -> Cam:
    """Return the class activation maps that an entry of `lib.explain.methods` draws by a formula.

    Raises:
        UserError: no such method; and as `class_activation` does.
    """
    known = {name: each.formula for name, each in METHODS.items() if each.formula}
    if method not in known:
        raise UserError(f"there is no method {method!r}; choose from {', '.join(known)}")
    return class_activation(model, layers, images, scores, known[method])


def class_activation(
    model: nn.Module, layers: Sequence[str], images: Tensor, scores: Scores, formula: Formula
) -> Cam:
    """Return ReLU(formula(A, G)) at `layers`, from A, what a layer puts out, and G = ∂y/∂A.

    Args:
        layers: dotted names of modules; a transformer's tokens are taken as the grid that they are.
        scores: y, (B, classes) -> (T, B); of −y, the map is of what speaks against the class.
        formula: see `lib.explain.methods`.

    Raises:
        UserError: no such layer, a layer without a spatial map, one that does not bear on the scores.
    """
    images = images.detach()
    with activations.explaining(model), activations.tap(model, layers) as tapped:
        output = model(images)
        check_maps(model, layers, images, tapped)
        sources = [tapped[name] for name in layers]
        found = _gradients(scores(output), sources)
    maps = {}
    for name, source, gradients in zip(layers, sources, zip(*found, strict=True), strict=True):
        if gradients[0] is None:
            raise UserError(f"the scores do not depend on layer {name!r}")
        features = spatial_map(model, source.detach(), images)
        each = [formula(features, spatial_map(model, g, images)) for g in gradients]
        maps[name] = torch.stack(each).relu()
    return Cam(maps, output.detach())


def check_maps(model: nn.Module, layers: Sequence[str], images: Tensor, tapped: dict[str, Tensor]) -> None:
    """Raise a UserError if one of `layers` has put out no spatial map; `tapped` holds what they put out."""
    for name in layers:
        if spatial_map(model, tapped.get(name), images) is None:
            size = "×".join(map(str, tapped[name].shape[1:])) if name in tapped else "no tensor"
            better = activations.default_layer(model, images[:1])
            raise UserError(f"layer {name!r} has no spatial map, it puts out {size}; {better!r} has one")


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
    """Return maps (…, h, w) at `size` (H, W), bilinearly; not rescaled, and where zero, still zero."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return large.view(*maps.shape[:-2], *large.shape[-2:])


def input_gradients(model: nn.Module, images: Tensor, scores: Scores) -> Saliency:
    """Return the gradient of each score with respect to the images (Simonyan et al. 2013, arXiv:1312.6034).

    Raises:
        UserError: the scores do not depend on the images.
    """
    return _saliency(model, images, scores, nullcontext())


def guided_backprop(model: nn.Module, images: Tensor, scores: Scores, *, rule: str = "guided") -> Saliency:
    """Return gradients with respect to the images in which no ReLU passes back what is negative.

    Args:
        rule: `guided`, a ReLU passes back ReLU(g) where its input was positive (Springenberg et al. 2014,
            arXiv:1412.6806); or `deconvnet`, ReLU(g) wherever (Zeiler & Fergus 2013, arXiv:1311.2901).

    Raises:
        UserError: no such rule; the network calls no ReLU, or also activations to which no rule applies.
    """
    rectifiers = RectifierRule(rule)
    found = _saliency(model, images, scores, rectifiers)
    rectifiers.check(type(model).__name__)
    return found


def _saliency(model: nn.Module, images: Tensor, scores: Scores, mode) -> Saliency:
    source = images.detach().requires_grad_()
    with activations.explaining(model):
        with mode:
            # A clone, because the network may begin with something in place.
            output = model(source.clone())
        found = [gradient for (gradient,) in _gradients(scores(output), [source])]
    if found[0] is None:
        raise UserError("the scores do not depend on the images")
    return Saliency(torch.stack(found), output.detach())


def guided_grad_cam(cam_maps: Tensor, saliency_values: Tensor) -> Tensor:
    """Return maps (T, B, h, w), upsampled, times values (T, B, C, H, W) (Selvaraju et al. 2017, § 3.2)."""
    return upsample(cam_maps, tuple(saliency_values.shape[-2:])).unsqueeze(2) * saliency_values


def smooth(
    explain: Callable[[Tensor], Tensor], images: Tensor, *, samples: int, noise: float, seed: int
) -> Tensor:
    """Return the mean of `explain` over noisy images (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825).

    Args:
        explain: images (B, C, H, W) to a tensor of any shape. Results are added up as they come. If it raises
            `Stopped`, the mean is over the images before.
        samples: how many.
        noise: standard deviation of the noise, as a share of each image's range (maximum − minimum).
        seed: of the noise, which is the same on every device.

    Raises:
        UserError: no samples.
        Stopped: from the first of them.
    """
    if samples < 1:
        raise UserError(f"cannot average {samples} samples")
    generator = torch.Generator().manual_seed(seed)
    scale = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total: Tensor | float = 0.0
    for done in range(samples):
        drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        try:
            total = total + explain(images + scale * drawn)
        except Stopped:
            if not done:
                raise
            return total / done
    return total / samples


@contextmanager
def randomised(model: nn.Module, top_layers: int, seed: int) -> Iterator[list[str]]:
    """Within the context, the last layers' weights are re-drawn (Adebayo et al. 2018, arXiv:1810.03292).

    Each weight is drawn from a normal distribution with its tensor's root mean square, such that activations
    keep their scale, whatever the network was initialised as. What is drawn for a layer depends on the seed
    and its name alone: more layers add to what fewer did.

    Args:
        top_layers: how many, counted from the output, of the modules with weights of their own, in the order
            in which the network registers them.

    Yields:
        The names of these modules, last first.

    Raises:
        UserError: there are not so many.

    The weights are back when the context ends, also after an error.
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
