#!/usr/bin/env python3
"""Measure where explanations of an area lie: their share inside it, against its share of the image.

    segmentation   the pixels of a class in the true mask, for each class and image of a validation split; the
                   score is the sum of the logits of the class over them
    autoencoder    a box of the reconstruction at z = μ, for images of a validation split

A map that looked everywhere alike would have as much inside the area as the area has of the image: a ratio
of 1. Shares are of magnitudes, and means over all areas, with the standard error of the mean.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lib import cli, models  # noqa: E402
from lib.cli.types import box  # noqa: E402
from lib.data import image_inputs, masks  # noqa: E402
from lib.data.masks import Reading  # noqa: E402
from lib.data.preprocessing import Preprocessing  # noqa: E402
from lib.data.segmentation_sets import MASKED_SETS  # noqa: E402
from lib.explain.areas import class_area_target, output_area_target, share_inside  # noqa: E402
from lib.explain.explanation import Request  # noqa: E402
from lib.explain.methods import METHODS  # noqa: E402
from lib.explain.targets import Target  # noqa: E402
from lib.models import explained_autoencoder  # noqa: E402
from lib.models.network import Network, load_checkpoint  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402

NAMES = ("grad-cam", "hires-cam", "layer-cam", "guided", "input-x-gradient")
QUICK = {"dataset": "shapes", "images": 2}
Asked = tuple[Tensor, Tensor, Target]  # pixels (1, C, H, W), area (H, W), what is explained


def make_parser() -> cli.Parser:
    parser = common.make_parser("area_explanations.py", __doc__)
    add = parser.add_argument_group("what is explained").add_argument
    add("--segmentation", metavar="CKPT", help="checkpoint of a network that segments")
    add("--dataset", choices=tuple(MASKED_SETS), default="camvid", help="images with masks to explain")
    add("--autoencoder", metavar="CKPT", help="checkpoint of an autoencoder")
    add("--examples", default="mnist", metavar="NAME", help="images for the autoencoder")
    add("--area", type=box, default=(8, 8, 14, 14), metavar="Y0,X0,Y1,X1", help="area of the reconstruction")
    add("--data-dir", default="data", metavar="DIR", help="folder of the data sets")
    add("--images", type=cli.integer(1), default=20, metavar="N", help="explain N images of each")
    add("--least", type=cli.integer(1), default=200, metavar="N", help="leave out classes of fewer pixels")
    return parser


def of_segmentation(network: Network, options: SimpleNamespace) -> Iterator[Asked]:
    """Yield the areas of the classes of some validation images, at equal steps through the split."""
    entry = MASKED_SETS[options.dataset]
    found = entry.read(Path(options.data_dir), Reading(network.size, entry.ignore, entry.classes))
    _, valid, _ = masks.divide(found.splits, None, None)
    count = min(options.images, len(valid))
    for number in range(count):
        image, mask = valid[number * len(valid) // count]
        for label in mask.unique().tolist():
            area = mask == label
            if label != entry.ignore and int(area.sum()) >= options.least:
                yield image[None].float() / 255, area, class_area_target(label, area)


def of_autoencoder(network: Network, options: SimpleNamespace) -> Iterator[Asked]:
    """Yield the same box for some validation images."""
    top, left, bottom, right = options.area
    area = torch.zeros(network.size, network.size, dtype=torch.bool)
    area[top:bottom, left:right] = True
    names = [f"{options.examples}:{number}" for number in range(options.images)]
    for image in image_inputs.read(names, network.preprocessing, options.data_dir):
        yield image.pixels[None], area, output_area_target(area)


def measured(network: Network, asked: Sequence[Asked], names: Sequence[str]) -> dict[str, list[float]]:
    """Return, for each method, the share of each map inside its area; maps of zeros are left out."""
    shares: dict[str, list[float]] = {}
    for name in names:
        try:
            METHODS[name].check(network)
        except UserError:  # guided backpropagation needs ReLUs
            continue
        for pixels, area, target in asked:
            found = METHODS[name].explain(Request(network, pixels, [target]))
            (maps,) = found.maps((pixels.shape[2], pixels.shape[3])).values()
            if maps.any():
                shares.setdefault(name, []).append(share_inside(maps[0, 0], area))
    return shares


def show(title: str, asked: Sequence[Asked], shares: dict[str, list[float]]) -> dict:
    """Print a table, and return its numbers."""
    of_image = [float(area.float().mean()) for _, area, _ in asked]
    usual = statistics.mean(of_image)
    print(f"\n{title}: {len(asked)} areas, which have {usual:.4f} of the image on average\n")
    print("| method | maps | share inside the area | ± | ratio |\n|---|---|---|---|---|")
    numbers: dict = {"area": usual}
    for name, found in shares.items():
        mean = statistics.mean(found)
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
        print(f"| {name} | {len(found)} | {mean:.4f} | {error:.4f} | {mean / usual:.2f} |")
        numbers[name] = {"maps": len(found), "share": mean, "error": error}
    return numbers


def untrained() -> Network:
    torch.manual_seed(0)
    how = Preprocessing(80, 3, (0.5,) * 3, (0.25,) * 3, native=True)
    return Network(models.build("small", classes=4, width=4), (), how, "small", dense=True)


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    numbers = {}
    if options.segmentation or options.quick:
        network = load_checkpoint(options.segmentation) if options.segmentation else untrained()
        asked = list(of_segmentation(network, options))
        numbers["segmentation"] = show(
            f"{network.name} on {options.dataset}", asked, measured(network, asked, NAMES)
        )
    if options.autoencoder:
        network = explained_autoencoder.load(options.autoencoder, reconstructs=True)
        asked = list(of_autoencoder(network, options))
        numbers["autoencoder"] = show(
            f"{network.name} on {options.examples}", asked, measured(network, asked, NAMES)
        )
    if not numbers:
        raise UserError("nothing to explain: give --segmentation CKPT, --autoencoder CKPT, or --quick")
    common.write_json(options, numbers)


if __name__ == "__main__":
    cli.run(main)
