#!/usr/bin/env python3
"""Measure infidelity and max-sensitivity of maps: the values of this project and of Captum, and the time.

    infidelity        of several maps of one image. Here, the scores without the random squares are computed
                      once for all maps; Captum computes them for each map.
    max-sensitivity   of input × gradient; both explain the same disturbed images in one batch.

Both libraries get the same squares and the same noise, so their values are to be equal.
"""

import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lib import cli  # noqa: E402
from lib.evaluation import faithfulness, maps  # noqa: E402
from lib.evaluation.removal import Removal, random_squares  # noqa: E402
from lib.models.network import load_pretrained  # noqa: E402
from lib.runtime.errors import RunFailed  # noqa: E402

QUICK = {"network": "resnet18", "maps": 2, "squares": 4, "repetitions": 1}
EQUAL = 1e-4  # largest relative difference of values
_NOISE = 5  # disturbed images


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


class Case:
    """A network, an image on a black baseline, random maps, squares and noise."""

    def __init__(self, options: SimpleNamespace) -> None:
        self.network = load_pretrained(options.network, "random")
        generator = torch.Generator().manual_seed(0)
        side = self.network.size
        self.image = torch.rand(3, side, side, generator=generator)
        self.maps = torch.rand(options.maps, side, side, generator=generator)
        self.squares = random_squares((side, side), options.squares, seed=1)
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


def compare(name: str, ours, captums, repetitions: int) -> dict[str, float | str]:
    """Return the largest relative difference of the values, and the median seconds of both.

    Raises:
        RunFailed: the values differ.
    """
    found: dict[str, list[float]] = {"ours": [], "captum": []}
    values: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for key, call in (("ours", ours), ("captum", captums)):
            found[key].append(common.timed(lambda key=key, call=call: values.update({key: call()}))[0])
    pairs = zip(values["ours"], values["captum"], strict=True)
    difference = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
    if not difference <= EQUAL:  # also if it is NaN
        raise RunFailed(f"{name}: the values differ by {difference:.2g} of Captum's")
    seconds = {key: statistics.median(each) for key, each in found.items()}
    ratio = seconds["captum"] / seconds["ours"]
    return {"measure": name, "difference": difference, **seconds, "ratio": ratio}


def main(argv=None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    if not common.is_installed("captum"):
        raise RunFailed("there is nothing to compare with: pip install captum")
    case = Case(options)
    rows = [
        compare(f"infidelity of {options.maps} maps", case.ours, case.captums, options.repetitions),
        compare("max-sensitivity", case.our_sensitivity, case.captums_sensitivity, options.repetitions),
    ]
    print(f"{options.network} with random weights, {case.network.size} px, {options.squares} squares\n")
    print("| measure | difference | here, s | Captum, s | ratio |\n|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['measure']} | {row['difference']:.1e} | {row['ours']:.3f} | {row['captum']:.3f} "
            f"| {row['ratio']:.2f} |"
        )
    common.write_json(options, rows)


if __name__ == "__main__":
    cli.run(main)
