#!/usr/bin/env python3
"""Measure several maps of one image: the values of this project, of Captum and of Quantus, and the time.

    infidelity        Here, the scores without the random squares are computed once for all maps; Captum
                      computes them for each map.
    max-sensitivity   of input × gradient; both explain the same disturbed images in one batch.
    deletion and insertion    areas under the curves, in 14 steps. Quantus flips pixels of the image, and of
                      nothing.
    pointing, relevance mass and rank    of a box, of the maps' positive values.

Libraries get the same squares, noise and box, so their values are to be equal. What is not installed is left
out of the comparison.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib import cli  # noqa: E402
from lib.evaluation import faithfulness, maps  # noqa: E402
from lib.evaluation.maps import box_mask  # noqa: E402
from lib.evaluation.removal import Removal, random_squares  # noqa: E402
from lib.models.network import Network, load_pretrained  # noqa: E402
from lib.runtime.errors import RunFailed  # noqa: E402

QUICK = {"network": "resnet18", "maps": 2, "squares": 4, "repetitions": 1}
EQUAL = 1e-4  # largest relative difference of values
_NOISE = 5  # disturbed images
LOCALISATION: dict[str, tuple[Callable[[Tensor, Tensor], float], str]] = {
    "pointing": (maps.pointing, "PointingGame"),
    "relevance mass": (maps.relevance_mass, "RelevanceMassAccuracy"),
    "relevance rank": (maps.relevance_rank, "RelevanceRankAccuracy"),
}  # our measure, and the name of that of Quantus
_QUIET = {"abs": False, "normalise": False, "disable_warnings": True}  # maps as they are
_STEPS = 14  # of deletion; divides the number of pixels of images of 224 pixels


def make_parser() -> cli.Parser:
    parser = common.make_parser("explanation_measures.py", __doc__, repetitions=3)
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--network",
        default="resnet18",
        metavar="NAME",
        help="torchvision's network, with random weights",
    )
    add("--maps", type=cli.integer(1), default=8, metavar="N", help="number of maps of the image")
    add("--squares", type=cli.integer(2), default=32, metavar="N", help="number of random squares")
    return parser


class Shown(nn.Module):
    """From what is shown of an image, (B, 1, H, W) of zeros and ones, to logits: what Quantus asks about."""

    def __init__(self, network: Network, image: Tensor) -> None:
        super().__init__()
        self.network, self.image = network, image

    def forward(self, shown: Tensor) -> Tensor:
        return self.network.logits(shown * self.image)


class Case:
    """A network, an image on a black baseline, random maps, squares and noise."""

    def __init__(self, options: SimpleNamespace) -> None:
        self.network = load_pretrained(options.network, "random")
        generator = torch.Generator().manual_seed(0)
        side = self.network.size
        self.image = torch.rand(3, side, side, generator=generator)
        self.maps = torch.rand(options.maps, side, side, generator=generator)
        self.squares = random_squares((side, side), options.squares, seed=1)
        self.inside = box_mask((side / 4, side / 4, side / 2, side * 0.9), (side, side))
        self.noise = 0.04 * torch.rand(_NOISE, 3, side, side, generator=generator) - 0.02

    def score(self, pixels: Tensor) -> Tensor:
        """Return the logits of class 0 (N,)."""
        return self.network.logits(pixels)[:, 0]

    def explain(self, pixels: Tensor) -> Tensor:
        """Return input × gradient (N, H, W)."""
        with torch.enable_grad():
            source = pixels.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.score(source).sum(), source)
        return (gradient * pixels).sum(1)

    # ---- infidelity

    def ours(self) -> list[float]:
        """Return the infidelity of each map."""
        game = Removal(self.score, self.image, torch.zeros_like(self.image))
        shown = torch.cat([torch.ones_like(self.squares[:1]), ~self.squares])
        scores = game(shown)
        sums = torch.einsum("shw,mhw->ms", self.squares.double(), self.maps.double())
        drops = scores[0] - scores[1:]
        return [faithfulness.infidelity(row, drops, rescaled=True) for row in sums]

    def captums(self) -> list[float]:
        """Return the same by Captum, which takes the image as a mask of ones to remove squares from."""
        from captum.metrics import infidelity

        squares = self.squares.float()

        def masked(shown: Tensor) -> Tensor:
            return self.score(shown[:, None] * self.image)

        def remove(inputs: Tensor) -> tuple[Tensor, Tensor]:
            return squares, inputs - squares

        whole = torch.ones_like(self.maps[:1])
        with torch.no_grad():
            return [
                float(
                    infidelity(
                        masked, remove, whole, each[None], n_perturb_samples=len(squares), normalize=True
                    )
                )
                for each in self.maps
            ]

    # ---- max-sensitivity

    def our_sensitivity(self) -> list[float]:
        """Return the max-sensitivity of input × gradient."""
        (before,) = self.explain(self.image[None])
        return [maps.max_sensitivity(before, self.explain(self.image + self.noise))]

    def captums_sensitivity(self) -> list[float]:
        """Return the same by Captum."""
        from captum.metrics import sensitivity_max

        def explain(images: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            return tuple(map(self.explain, images)) if isinstance(images, tuple) else self.explain(images)

        def disturb(inputs: tuple[Tensor, ...], _radius: float) -> Tensor:
            return inputs[0] + self.noise

        found = sensitivity_max(explain, self.image[None], disturb, n_perturb_samples=len(self.noise))
        return [float(found)]

    # ---- deletion and insertion

    def our_areas(self) -> list[float]:
        """Return the areas under the curves of deletion and insertion of each map, one after the other."""
        game = Removal(self.score, self.image, torch.zeros_like(self.image))
        ends = torch.tensor([True, False])[:, None, None].expand(2, *self.maps.shape[1:])
        full, empty = game(ends).tolist()
        return [
            area
            for each in self.maps
            for area in faithfulness.deletion_insertion(game, each, full, empty, _STEPS)
        ]

    def quantus_areas(self) -> list[float]:
        """Return the same from the curves of Quantus, which end with nothing shown, and with everything."""
        import quantus

        def flipped(start: float, end: float) -> np.ndarray:
            features = self.maps[0].numel() // _STEPS
            metric = quantus.PixelFlipping(features_in_step=features, perturb_baseline=end, **_QUIET)
            return np.array(metric(**self._asked(start)))

        deletion, insertion = flipped(1.0, 0.0), flipped(0.0, 1.0)
        empty, full = deletion[:, -1:], insertion[:, -1:]
        inner = [((curve[:, :-1] - empty) / (full - empty)).sum(1) for curve in (deletion, insertion)]
        return list(((0.5 + np.stack(inner, 1)) / _STEPS).ravel())

    # ---- localisation

    def our_localisation(self, measure: Callable[[Tensor, Tensor], float]) -> list[float]:
        """Return a measure of localisation of each map."""
        return [measure(each, self.inside) for each in self.maps]

    def quantus_localisation(self, name: str) -> list[float]:
        """Return the same by Quantus."""
        import quantus

        inside = self.inside.expand(len(self.maps), 1, *self.inside.shape)
        metric = getattr(quantus, name)(**_QUIET)
        return [float(each) for each in metric(**self._asked(), s_batch=inside.numpy())]

    def _asked(self, start: float = 1.0) -> dict[str, object]:
        """Return what every metric of Quantus is asked about: the network, and each map with the image."""
        return {
            "model": Shown(self.network, self.image).eval(),
            "softmax": False,
            "x_batch": np.full((len(self.maps), 1, *self.maps.shape[1:]), start, dtype=np.float32),
            "y_batch": np.zeros(len(self.maps), dtype=int),
            "a_batch": self.maps[:, None].numpy(),
        }


Values = Callable[[], Sequence[float]]


def compare(name: str, ours: Values, peer: str, theirs: Values, repetitions: int) -> dict[str, float | str]:
    """Return the largest relative difference of the values, and the median seconds of both.

    Raises:
        RunFailed: the values differ.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    values: dict[str, Sequence[float]] = {}
    for _ in range(repetitions):
        for key, call in (("ours", ours), ("peer", theirs)):
            seconds[key].append(common.timed(lambda key=key, call=call: values.update({key: call()}))[0])
    pairs = zip(values["ours"], values["peer"], strict=True)
    difference = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
    if not difference <= EQUAL:  # also if it is NaN
        raise RunFailed(f"{name}: the values differ by {difference:.2g} of those of {peer}")
    medians = {key: statistics.median(each) for key, each in seconds.items()}
    ratio = medians["peer"] / medians["ours"]
    return {"measure": name, "with": peer, "difference": difference, **medians, "ratio": ratio}


def comparisons(case: Case) -> Iterator[tuple[str, Values, str, Values]]:
    """Yield what can be compared: a measure, our values, the name of a peer, and its values."""
    if common.is_installed("captum"):
        yield "infidelity", case.ours, "Captum", case.captums
        yield "max-sensitivity of a method", case.our_sensitivity, "Captum", case.captums_sensitivity
    if common.is_installed("quantus"):
        yield "deletion and insertion", case.our_areas, "Quantus", case.quantus_areas
        for name, (measure, metric) in LOCALISATION.items():
            ours = functools.partial(case.our_localisation, measure)
            yield name, ours, "Quantus", functools.partial(case.quantus_localisation, metric)


def main(argv=None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    case = Case(options)
    rows = [
        compare(name, ours, peer, theirs, options.repetitions)
        for name, ours, peer, theirs in comparisons(case)
    ]
    if not rows:
        raise RunFailed("there is nothing to compare with: pip install captum quantus")
    print(
        f"{options.network} with random weights, {case.network.size} px, {options.maps} maps, "
        f"{options.squares} squares\n"
    )
    print("| measure | peer | difference | here, s | peer, s | peer / here |")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['measure']} | {row['with']} | {row['difference']:.1e} | {row['ours']:.4f} "
            f"| {row['peer']:.4f} | {row['ratio']:.2f} |"
        )
    common.write_json(options, rows)


if __name__ == "__main__":
    cli.run(main)
