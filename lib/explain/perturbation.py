"""Explanations by forward passes only: how the scores change if parts of the image are taken away."""

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.explain import activations, batch_size, gradients
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.explanation import Explanation, Request
from lib.explain.progress import Stopped
from lib.models.layers import evaluating
from lib.models.spatial_maps import follow


def score_cam(request: Request) -> Explanation:
    """Return Score-CAM's maps ReLU(Σ_k w_k A_k), w = softmax_k(y(x ⊙ H_k)) (Wang et al. 2020, section 3.2).

    A_k is channel k of the layer's output, and H_k is this map enlarged to the size of the image and scaled
    to [0, 1]. (The paper subtracts y(0) from the scores before the softmax, which changes nothing.) Each
    channel takes one forward pass, shared by all targets.

    Raises:
        UserError: as in `lib.explain.gradients.feature_maps`.
        Stopped: the watch stopped the computation.
    """
    model, images = request.network.module, request.inputs.detach()
    with (
        evaluating(model),
        activations.capture_activations(model, request.layers) as captured,
        follow(model, images) as layouts,
        torch.no_grad(),
    ):
        output = model(images)
    layers = gradients.feature_maps(model, request.layers, images, captured, layouts)
    request.watch.expect(sum(len(images) * features.shape[1] for features in layers.values()))
    tuner = _tuner(images)
    maps = {}
    for name, features in layers.items():
        each = [
            _score_cam_of_one(request, tuner, image, own) for image, own in zip(images, features, strict=True)
        ]
        maps[name] = torch.stack(each, dim=1)
    passes = len(images) * (1 + sum(features.shape[1] for features in layers.values()))
    return Explanation(maps, output, passes, 0)


def _score_cam_of_one(request: Request, tuner: BatchSizeTuner, image: Tensor, features: Tensor) -> Tensor:
    """Return the maps (T, h, w) of one image (C, H, W) from the layer's features (K, h, w)."""
    masks = F.interpolate(features[None], size=image.shape[1:], mode="bilinear", align_corners=True)[0]
    low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)

    def masked(first: int, end: int) -> Tensor:
        # A constant channel becomes a mask of zeros. The 1e-8 is from the authors' code.
        part = slice(first, end)
        return image * ((masks[part] - low[part]) / (high[part] - low[part] + 1e-8))[:, None]

    weights = torch.cat(list(_scored(request, tuner, len(features), masked)), dim=1).softmax(1)  # (T, K)
    return torch.einsum("tk,khw->thw", weights, features).relu()


def occlusion(request: Request) -> Explanation:
    """Return y(x) − y(x′), where x′ has the baseline in a square: per pixel, the mean over the squares on it.

    Squares at the right and lower edge may be smaller. The method is that of Zeiler & Fergus 2014, section
    4.2, who draw y(x′); the mean over overlapping squares is that of Captum.

    Raises:
        Stopped: the watch stopped the computation.
    """
    model, images = request.network.module, request.inputs.detach()
    height, width = images.shape[2:]
    side = min(request.settings.get("occlusion-side") or max(1, min(height, width) // 8), height, width)
    stride = min(request.settings.get("occlusion-stride") or max(1, side // 2), side)
    squares = [
        (row, column) for row in _starts(height, side, stride) for column in _starts(width, side, stride)
    ]
    baseline = request.network.normalise(request.start)
    request.watch.expect(len(images) * len(squares))
    with evaluating(model), torch.no_grad():
        output = model(images)
    tuner = _tuner(images)
    before = request.scores(output)  # (T, B)
    values = torch.zeros(len(before), *images[:, 0].shape, dtype=before.dtype, device=images.device)
    covered = torch.zeros_like(values[0, 0])
    for row, column in squares:
        covered[row : row + side, column : column + side] += 1
    for number, (image, blank) in enumerate(zip(images, baseline, strict=True)):

        def occluded(first: int, end: int, image: Tensor = image, blank: Tensor = blank) -> Tensor:
            shown = image.repeat(end - first, 1, 1, 1)
            for one, (row, column) in zip(shown, squares[first:end], strict=True):
                place = (slice(None), slice(row, row + side), slice(column, column + side))
                one[place] = blank[place]
            return shown

        after = torch.cat(list(_scored(request, tuner, len(squares), occluded)), dim=1)  # (T, squares)
        for (row, column), drop in zip(squares, (before[:, number, None] - after).T, strict=True):
            values[:, number, row : row + side, column : column + side] += drop[:, None, None]
    passes = len(images) * (1 + len(squares))
    return Explanation({"": values / covered}, output, passes, 0)


def _starts(length: int, side: int, stride: int) -> range:
    """Return where squares begin along an edge, such that the last square reaches the end of the edge."""
    return range(0, -(-(length - side) // stride) * stride + 1, stride)


def _tuner(images: Tensor) -> BatchSizeTuner:
    """Return a search for the batch size for inputs like `images`."""
    return BatchSizeTuner(batch_size.largest(images[0]), batch_size.first(images[0]))


def _scored(
    request: Request, tuner: BatchSizeTuner, count: int, inputs: Callable[[int, int], Tensor]
) -> Iterator[Tensor]:
    """Yield the scores (T, part) of `count` inputs batch by batch; `inputs(first, end)` makes a batch."""
    done, model = 0, request.network.module
    while done < count:
        if request.watch.is_stopped():
            raise Stopped
        end, started = min(done + tuner.size, count), time.perf_counter()
        try:
            with evaluating(model), torch.no_grad():
                scores = request.scores(model(inputs(done, end)))
        except RuntimeError as error:
            if not batch_size.is_out_of_memory(error):
                raise
            tuner.halve()
            continue
        tuner.note(end - done, time.perf_counter() - started)
        request.watch.advance(end - done)
        done = end
        yield scores
