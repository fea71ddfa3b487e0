"""The question that a method of explanation is asked, and the explanation that it returns.

Nothing here imports torch when it is imported, because `--help` reads the table of methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.explain.progress import UNWATCHED, Watch

if TYPE_CHECKING:
    from torch import Tensor

    from lib.explain.placement import Place
    from lib.explain.targets import Scores, Target
    from lib.models.network import Network


@dataclass(frozen=True)
class Request:
    """The arguments of a method.

    Attributes:
        network: the network.
        images: pixels (B, C, H, W) in [0, 1], on the network's device.
        targets: the T scalars of the output that are explained, in one pass.
        layers: dotted names of modules, for methods that explain by the maps of layers.
        baseline: pixels that replace the parts of the images that are taken away, in the shape of `images`.
        settings: values of the method's own options, by name.
        place: where maps of layers are drawn: `receptive-field`, each cell where it looks, or `grid`, as if
            the cells divided the image evenly.
        watch: follows a long computation, and may stop it.

    Where `Method.explain` says so, what is left out has a default.
    """

    network: Network
    images: Tensor
    targets: Sequence[Target]
    layers: Sequence[str] = ()
    baseline: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    place: str = "receptive-field"
    watch: Watch = UNWATCHED

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def example(self) -> Tensor:
        """A grey image in the size of the images, normalised."""
        return self.network.example_of(self.size)

    @property
    def inputs(self) -> Tensor:
        """The images, normalised for the network."""
        return self.network.normalise(self.images)

    @property
    def start(self) -> Tensor:
        """The baseline in pixels; black if there is none."""
        return self.images.new_zeros(self.images.shape) if self.baseline is None else self.baseline

    @cached_property
    def scores(self) -> Scores:
        """Function from the network's output to the scores of the targets (T, B)."""
        from lib.explain.targets import scores_of

        return scores_of(self.targets)


class Additivity(NamedTuple):
    """How exactly values add up to F(x) − F(x′): the completeness or efficiency that a method promises.

    Attributes:
        full, empty: F(x) of the image and F(x′) of the baseline, (T, B) float64.
        difference: F(x) − F(x′), (T, B); of noisy images, the mean.
        gap: the sum of the values less the difference, (T, B).
    """

    full: Tensor
    empty: Tensor
    difference: Tensor
    gap: Tensor

    @property
    def gap_share(self) -> Tensor:
        """The gap as a share of the difference, (T, B); infinite if only the difference is 0."""
        infinite = (self.gap.abs() / 0).where(self.gap != 0, 0.0)
        return (self.gap / self.difference).abs().where(self.difference != 0, infinite)


@dataclass(frozen=True)
class Explanation:
    """The result of a method: values of T targets of B images, how well they hold, and what they cost.

    Attributes:
        values: for each layer, maps (T, B, h, w) at the layer's resolution; or, under the name "", values of
            pixels (T, B, H, W), of elements of the input (T, B, C, H, W), or of n parts (T, B, n).
        output: the network's output (B, …).
        forward_passes, backward_passes: number of images that passed the network, forwards and backwards.
        signed: whether negative values speak against the target.
        places: where the cells of layers' maps look; a layer that is not named is drawn on the grid.
        flat: for each layer, whether the gradient of a target is zero all over it, (T, B) bool.
        parts: for values of parts, the part of each pixel (H, W).
        standard_errors: of estimated values of parts, (T, B, n).
        additivity: how exactly the values add up, if the method promises that they do.
        numbers: further numbers for records, in order: a tensor (T, B) has one for each target and image,
            other values are the same for all.
        details: the method's own results for each image, for figures that only this method has.
        seconds: duration; `Method.explain` measures it.
    """

    values: dict[str, Tensor]
    output: Tensor
    forward_passes: int
    backward_passes: int
    signed: bool = False
    places: Mapping[str, Place] = field(default_factory=dict)
    flat: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Tensor | None = None
    standard_errors: Tensor | None = None
    additivity: Additivity | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    details: Sequence[Any] = ()
    seconds: float = 0.0

    def record(self, target: int, image: int = 0) -> dict[str, Any]:
        """Return the numbers and the costs of one target of one image as plain values, for a record."""
        found = {
            name: value[target, image].item() if hasattr(value, "item") else value
            for name, value in self.numbers.items()
        }
        # With parts, `numbers` counts evaluations of coalitions instead.
        passes = {"forward_passes": self.forward_passes, "backward_passes": self.backward_passes}
        return found | (passes if self.parts is None else {}) | {"seconds": round(self.seconds, 4)}

    def of_image(self, image: int) -> Explanation:
        """Return what was found of one image of the batch, with its share of the costs, for it alone."""
        count = len(self.output)
        if count == 1:
            return self
        part = slice(image, image + 1)

        def own(value: Any) -> Any:
            return value[:, part] if hasattr(value, "shape") else value

        return replace(
            self,
            values={name: values[:, part] for name, values in self.values.items()},
            output=self.output[part],
            forward_passes=self.forward_passes // count,
            backward_passes=self.backward_passes // count,
            flat={name: flat[:, part] for name, flat in self.flat.items()},
            standard_errors=None if self.standard_errors is None else self.standard_errors[:, part],
            additivity=None if self.additivity is None else Additivity(*map(own, self.additivity)),
            numbers={name: own(value) for name, value in self.numbers.items()},
            details=self.details[part],
            seconds=self.seconds / count,
        )

    def why_zero(self, name: str, target: int, image: int = 0) -> str:
        """Return why the values of a layer, or of "", are zero everywhere, in words; empty if they are not.

        A score has no gradient e.g. where a ReLU behind the class scores, or a probability of 1, is flat.
        """
        if self.values[name][target, image].any():
            return ""
        if self.flat[name][target, image] if name in self.flat else self.backward_passes:
            return "the score has no gradient"
        return "nothing positive" if name else "nothing changes the score"

    def maps(self, size: int | tuple[int, int]) -> dict[str, Tensor]:
        """Return, for each layer or "", a map of the pixels (T, B, H, W) of `size`, on the CPU.

        Maps of layers are enlarged, with each cell where it looks. Values of channels are added up. A pixel
        has the value of its part.
        """
        return {name: self._of_pixels(name, values.cpu(), size) for name, values in self.values.items()}

    def _of_pixels(self, name: str, values: Tensor, size: int | tuple[int, int]) -> Tensor:
        if self.parts is not None:
            return values[..., self.parts.cpu()]
        if name:
            from lib.explain import gradients, placement

            if name in self.places:
                sides = size if isinstance(size, tuple) else (size, size)
                return placement.drawn(values, self.places[name], sides)
            return gradients.upsample(values, size)
        return values.sum(2) if values.dim() == 5 else values


# The function of a method that computes its explanation.
Compute = Callable[[Request], Explanation]
