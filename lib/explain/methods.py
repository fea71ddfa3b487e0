"""The table of methods that explain a network's answer about an image.

A new method needs one function and one entry in this table. The scripts, `--help`, titles, records and files
of values are made from the table. The functions import torch when they are called, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.explain.progress import UNWATCHED, Watch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lib.explain.targets import Scores


@dataclass(frozen=True)
class Request:
    """The arguments of a method.

    Attributes:
        model: network from normalised images (B, C, H, W) to logits (B, classes).
        images: normalised, (B, C, H, W), on the model's device.
        scores: y, a function from logits (B, classes) to (T, B): T numbers per image, one for each target.
        layers: dotted names of modules, for methods that explain by the maps of layers.
        baseline: replaces the parts of the images that are taken away, in the shape of `images`; None for
            zeros.
        settings: values of the method's own options, by name.
        watch: follows a long computation, and may stop it.
    """

    model: nn.Module
    images: Tensor
    scores: Scores
    layers: Sequence[str] = ()
    baseline: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = UNWATCHED


class Explanation(NamedTuple):
    """The result of a method.

    Attributes:
        values: for each layer, maps (T, B, h, w) at the layer's resolution; or, under the name "", values of
            pixels (T, B, H, W) or of elements of the input (T, B, C, H, W).
        output: the network's output (B, classes).
        forward_passes, backward_passes: number of images that passed the network, forwards and backwards.
    """

    values: dict[str, Tensor]
    output: Tensor
    forward_passes: int
    backward_passes: int


class Option(NamedTuple):
    """A setting of one method: name of the flag, smallest value, help text. Its default is None."""

    name: str
    minimum: int
    help: str


@dataclass(frozen=True)
class Method:
    """An entry of the table.

    Attributes:
        name: the name on the command line and in records.
        title: the name in figures.
        paper: the method's source.
        explain: the function that computes it.
        at_layers: whether it explains by the maps of layers, which `--layer` names.
        signed: whether there are negative values, which speak against the class.
        needs_baseline: whether it replaces parts of the image by a baseline.
        options: settings of this method only.
        formula: formula of a class activation map; None for other methods.
    """

    name: str
    title: str
    paper: str
    explain: Callable[[Request], Explanation]
    at_layers: bool = False
    signed: bool = False
    needs_baseline: bool = False
    options: tuple[Option, ...] = ()
    formula: Formula | None = None


# Function from a layer's output A and G = ∂y/∂A, both (B, K, h, w), to a map (B, h, w), to which ReLU is
# applied.
Formula = Callable[["Tensor", "Tensor"], "Tensor"]


def _grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Σ_k mean(G_k) A_k, with the mean over space."""
    import torch

    return torch.einsum("bk,bkhw->bhw", gradient.mean((2, 3)), features)


def _hires_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Σ_k G_k ⊙ A_k."""
    return (gradient * features).sum(1)


def _layer_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Σ_k ReLU(G_k) ⊙ A_k."""
    return (gradient.relu() * features).sum(1)


def _grad_cam_plus_plus(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Σ_k w_k A_k, w_k = Σ ReLU(G_k) ⊙ α_k, α_k = 1 / (2 + G_k Σ ReLU(A_k)); sums over space.

    In the paper, A is the output of a ReLU. The ReLU here keeps α finite for the output of any other layer.
    """
    import torch

    # The paper has α = G² / (2 G² + G³ Σ A). Here G² is cancelled, because it may underflow. The paper's y is
    # exp(score), which multiplies G by a factor that is the same for the whole map, and is left out. Only
    # positive G count in w, so α is not needed for the others.
    alpha = 1 / (2 + gradient.relu() * features.relu().sum((2, 3), keepdim=True))
    weights = (gradient.relu() * alpha).sum((2, 3))
    return torch.einsum("bk,bkhw->bhw", weights, features)


def _xgrad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Σ_k w_k A_k, w_k = Σ (G_k ⊙ A_k) / Σ A_k; sums over space, channels with Σ A_k = 0 left out."""
    sums = features.sum((2, 3), keepdim=True)
    weights = (gradient * features).sum((2, 3), keepdim=True) / sums
    return (weights.where(sums != 0, 0.0) * features).sum(1)


def _class_activation(formula: Formula) -> Callable[[Request], Explanation]:
    """Return the method that computes ReLU(`formula`) at each layer; all layers share one forward pass."""

    def explain(request: Request) -> Explanation:
        from lib.explain import gradients

        found = gradients.class_activation(
            request.model, request.layers, request.images, request.scores, formula
        )
        targets = next(iter(found.maps.values())).shape[0]
        count = len(request.images)
        return Explanation(found.maps, found.output, count, count * targets)

    return explain


def _score_cam(request: Request) -> Explanation:
    """Return ReLU(Σ_k w_k A_k), w = softmax_k(y(x ⊙ H_k)); H_k is A_k, enlarged and scaled to [0, 1]."""
    from lib.explain import perturbation

    return perturbation.score_cam(request)


def _occlusion(request: Request) -> Explanation:
    """Return y(x) − y(x with a square replaced by the baseline), averaged over the squares on each pixel."""
    from lib.explain import perturbation

    return perturbation.occlusion(request)


def _input_x_gradient(request: Request) -> Explanation:
    """Return x ⊙ ∂y/∂x."""
    from lib.explain import gradients

    found = gradients.input_gradients(request.model, request.images, request.scores)
    return _of_input(found.values * request.images, found.output)


def _rectified(rule: str) -> Callable[[Request], Explanation]:
    """Return the method that backpropagates to the image with this `rule` for ReLUs."""

    def explain(request: Request) -> Explanation:
        from lib.explain import gradients

        found = gradients.guided_backprop(request.model, request.images, request.scores, rule=rule)
        return _of_input(found.values, found.output)

    return explain


def _of_input(values: Tensor, output: Tensor) -> Explanation:
    targets, count = values.shape[:2]
    return Explanation({"": values}, output, count, count * targets)


def _cam(name: str, title: str, paper: str, formula: Formula) -> Method:
    """Return the table entry of a class activation map."""
    return Method(name, title, paper, _class_activation(formula), at_layers=True, formula=formula)


_TABLE = (
    _cam("grad-cam", "Grad-CAM", "Selvaraju et al. 2017, arXiv:1610.02391", _grad_cam),
    _cam("hires-cam", "HiResCAM", "Draelos & Carin 2020, arXiv:2011.08891", _hires_cam),
    _cam("layer-cam", "LayerCAM", "Jiang et al. 2021, IEEE TIP 30", _layer_cam),
    _cam("grad-cam++", "Grad-CAM++", "Chattopadhyay et al. 2018, arXiv:1710.11063", _grad_cam_plus_plus),
    _cam("xgrad-cam", "XGrad-CAM", "Fu et al. 2020, arXiv:2008.02312", _xgrad_cam),
    Method("score-cam", "Score-CAM", "Wang et al. 2020, arXiv:1910.01279", _score_cam, at_layers=True),
    Method(
        "occlusion",
        "occlusion",
        "Zeiler & Fergus 2014, arXiv:1311.2901",
        _occlusion,
        signed=True,
        needs_baseline=True,
        options=(
            Option(
                "occlusion-side", 1, "side of the replaced square in pixels; default: an eighth of the image"
            ),
            Option("occlusion-stride", 1, "pixels from one square to the next; default: half of its side"),
        ),
    ),
    Method(
        "input-x-gradient",
        "input × gradient",
        "Shrikumar et al. 2016, arXiv:1605.01713",
        _input_x_gradient,
        signed=True,
    ),
    Method(
        "guided",
        "guided backprop",
        "Springenberg et al. 2014, arXiv:1412.6806",
        _rectified("guided"),
        signed=True,
    ),
    Method(
        "deconvnet",
        "deconvnet",
        "Zeiler & Fergus 2013, arXiv:1311.2901",
        _rectified("deconvnet"),
        signed=True,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
