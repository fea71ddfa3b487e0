"""The table of methods that explain a network's answer about an image.

A new method needs one function and one entry in this table. The scripts, `--help`, titles, records and files
of values are made from the table. The functions import torch when they are called, so that `--help` is fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.explain.explanation import Compute, Explanation, Request
from lib.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lib.models.network import Network


class Need(NamedTuple):
    """A property that a network must have, in words, and its check, which raises a UserError."""

    phrase: str
    check: Callable[[Network], None]


@dataclass(frozen=True)
class Option:
    """A setting of a method, which is a flag of its script.

    Attributes:
        name: name of the flag, without its dashes.
        help: help text.
        kind: `int`, `float` or `str`, the type of its value, or `bool` for a switch.
        default: its value if none is given.
        minimum: smallest value; with `above`, values must be larger.
        choices: the values to choose from, if it is a `str`.
        short: a second name of one or two letters.
    """

    name: str
    help: str
    kind: type = int
    default: Any = None
    minimum: int = 1
    above: bool = False
    choices: tuple[str, ...] = ()
    short: str = ""


@dataclass(frozen=True)
class Method:
    """An entry of the table.

    Attributes:
        name: the name on the command line and in records.
        title: the name in figures.
        paper: the method's source.
        compute: the function that computes it.
        at_layers: whether it explains by the maps of layers, which `--layer` names.
        signed: whether there are negative values, which speak against the class.
        baseline: the kind of baseline that replaces parts of the image if no other is given; empty if the
            method replaces nothing.
        needs: what it needs of a network.
        options: settings of this method only.
        formula: formula of a class activation map; None for other methods.
        grainy: whether neighbouring pixels differ so much that pictures smooth its maps.
        script: the script that draws it.
    """

    name: str
    title: str
    paper: str
    compute: Compute
    at_layers: bool = False
    signed: bool = False
    baseline: str = ""
    needs: tuple[Need, ...] = ()
    options: tuple[Option, ...] = ()
    formula: Formula | None = None
    grainy: bool = False
    script: str = "run-grad-cam.py"

    def check(self, network: Network) -> None:
        """Raise a UserError that says why, if this method cannot explain `network`."""
        for need in self.needs:
            need.check(network)

    def explain(self, request: Request) -> Explanation:
        """Return the explanation that `request` asks for.

        What it leaves out has a default: each option its own, the layer is the last with a spatial map, and
        the baseline is of the kind that the method usually takes.

        Raises:
            UserError: the network, a layer or a setting does not suit the method.
            RunFailed, Stopped: the watch stopped the computation too early for a result.
        """
        from lib.explain import activations, baselines

        layers, baseline = request.layers, request.baseline
        if self.at_layers and not layers:
            layers = [activations.default_layer(request.network.module, request.example)]
        if self.baseline and baseline is None:
            baseline = baselines.baseline(self.baseline, request.images)
        settings = {option.name: option.default for option in self.options} | dict(request.settings)
        started = time.perf_counter()
        found = self.compute(replace(request, layers=layers, baseline=baseline, settings=settings))
        seconds = time.perf_counter() - started
        places = {}
        if self.at_layers and request.place == "receptive-field":
            from lib.explain import placement

            places = placement.places_of(request.network, layers, request.size)
        return replace(found, signed=self.signed, places=places, seconds=seconds)


def _check_maps(network: Network) -> None:
    from lib.explain import activations

    activations.default_layer(network.module, network.example)


def _check_rectifiers(network: Network) -> None:
    import torch

    from lib.explain.rectifiers import RectifierRule

    rule = RectifierRule("guided")
    with torch.no_grad(), rule:
        network.module(network.example)
    rule.check(type(network.module).__name__)


def _check_gradients(network: Network) -> None:
    import torch

    with torch.enable_grad():
        if not network.module(network.example.requires_grad_().clone()).requires_grad:
            raise UserError(f"{network.name} passes no gradients back to its images")


_MAPS = Need("a layer whose output is a spatial map", _check_maps)
_RECTIFIERS = Need("ReLUs, and no other activation function in their place", _check_rectifiers)
_GRADIENTS = Need("gradients with respect to the image", _check_gradients)


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


def _class_activation(formula: Formula) -> Compute:
    """Return the method that computes ReLU(`formula`) at each layer; all layers share one forward pass."""

    def compute(request: Request) -> Explanation:
        from lib.explain import gradients

        found = gradients.class_activation(
            request.network.module, request.layers, request.inputs, request.scores, formula
        )
        count = len(request.images)
        return Explanation(found.maps, found.output, count, count * len(request.targets), flat=found.flat)

    return compute


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

    inputs, count = request.inputs, len(request.images)
    found = gradients.input_gradients(request.network.module, inputs, request.scores)
    return Explanation({"": found.values * inputs}, found.output, count, count * len(request.targets))


def _rectified(rule: str) -> Compute:
    """Return the method that backpropagates to the image with this `rule` for ReLUs."""

    def compute(request: Request) -> Explanation:
        from lib.explain import gradients

        def explain(inputs: Tensor) -> Tensor:
            found = gradients.guided_backprop(request.network.module, inputs, request.scores, rule=rule)
            outputs.append(found.output)
            return found.values

        outputs: list[Tensor] = []
        values = gradients.smooth_if_asked(request.settings, explain, request.inputs)
        count = len(outputs) * len(request.images)
        # With SmoothGrad, these outputs are those of noisy images.
        output = outputs[0] if len(outputs) == 1 else request.network.logits(request.images)
        return Explanation({"": values}, output, count, count * len(request.targets))

    return compute


def _integrated_gradients(request: Request) -> Explanation:
    """Return (x − x′) ⊙ ∫₀¹ ∂y/∂x (x′ + α (x − x′)) dα."""
    from lib.explain import integrated_gradients

    return integrated_gradients.explain(request)


def _shapley_values(request: Request) -> Explanation:
    """Return the Shapley values of the parts of the image in the game v(S) = y(x with only the parts S)."""
    from lib.explain import image_shapley

    return image_shapley.explain(request)


def _cam(name: str, title: str, paper: str, formula: Formula) -> Method:
    """Return the table entry of a class activation map."""
    return Method(
        name, title, paper, _class_activation(formula), at_layers=True, needs=(_MAPS,), formula=formula
    )


_TABLE = (
    _cam("grad-cam", "Grad-CAM", "Selvaraju et al. 2017, arXiv:1610.02391", _grad_cam),
    _cam("hires-cam", "HiResCAM", "Draelos & Carin 2020, arXiv:2011.08891", _hires_cam),
    _cam("layer-cam", "LayerCAM", "Jiang et al. 2021, IEEE TIP 30", _layer_cam),
    _cam("grad-cam++", "Grad-CAM++", "Chattopadhyay et al. 2018, arXiv:1710.11063", _grad_cam_plus_plus),
    _cam("xgrad-cam", "XGrad-CAM", "Fu et al. 2020, arXiv:2008.02312", _xgrad_cam),
    Method("score-cam", "Score-CAM", "Wang et al. 2020, arXiv:1910.01279", _score_cam, True, needs=(_MAPS,)),
    Method(
        "occlusion",
        "occlusion",
        "Zeiler & Fergus 2014, arXiv:1311.2901",
        _occlusion,
        signed=True,
        baseline="grey",
        options=(
            Option(
                "occlusion-side", "side of the replaced square in pixels; default: an eighth of the image"
            ),
            Option("occlusion-stride", "pixels from one square to the next; default: half of its side"),
        ),
    ),
    Method(
        "input-x-gradient",
        "input × gradient",
        "Shrikumar et al. 2016, arXiv:1605.01713",
        _input_x_gradient,
        signed=True,
        grainy=True,
        needs=(_GRADIENTS,),
    ),
    Method(
        "guided",
        "guided backprop",
        "Springenberg et al. 2014, arXiv:1412.6806",
        _rectified("guided"),
        signed=True,
        needs=(_RECTIFIERS,),
    ),
    Method(
        "deconvnet",
        "deconvnet",
        "Zeiler & Fergus 2013, arXiv:1311.2901",
        _rectified("deconvnet"),
        signed=True,
        needs=(_RECTIFIERS,),
    ),
    Method(
        "integrated-gradients",
        "integrated gradients",
        "Sundararajan et al. 2017, arXiv:1703.01365",
        _integrated_gradients,
        signed=True,
        grainy=True,
        baseline="black",
        needs=(_GRADIENTS,),
        options=(
            Option(
                "quadrature",
                "quadrature rule of the integral",
                str,
                "midpoint",
                choices=("midpoint", "trapezoid", "gauss-legendre", "right"),
            ),
            Option("steps", "number of steps of the path, instead of --tolerance"),
            Option(
                "tolerance",
                "take more steps until the map changes by less than X, as a share, and its values add up to "
                "the difference of the scores but for X of it",
                float,
                0.01,
                minimum=0,
                above=True,
            ),
            Option(
                "batch-size",
                "points of the path per batch; default: the fastest number, measured during the run",
                short="bs",
            ),
        ),
        script="run-integrated-gradients.py",
    ),
    Method(
        "shapley",
        "Shapley values",
        "Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874",
        _shapley_values,
        signed=True,
        baseline="grey",
        options=(
            Option(
                "estimator",
                "the estimator; auto is exact if the budget allows all coalitions, and odd-gp otherwise",
                str,
                "auto",
                choices=("auto", "exact", "odd-gp", "permutation", "per-patch"),
            ),
            Option(
                "budget",
                "number of evaluations; default: 32 per player, or all coalitions of up to 16 players in "
                "images of up to 64 px",
                minimum=2,
            ),
            Option(
                "tolerance",
                "stop when all values are known to X, in units of the score, with 95%% confidence",
                float,
                minimum=0,
                above=True,
            ),
            Option(
                "max-context",
                "with --estimator per-patch: number of random coalitions in which each player is tried",
                short="m",
            ),
            Option("amp", "run forward passes in bfloat16, with the last layer in float32", bool, False),
        ),
        script="run-shapley-value.py",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def drawn_by(script: str) -> dict[str, Method]:
    """Return the methods that a script draws, by name."""
    return {name: method for name, method in METHODS.items() if method.script == script}
