"""Flags of the scripts that explain images."""

from collections.abc import Iterable
from typing import Any

from lib.cli.flags import add_config_flags, add_machine_flags
from lib.cli.own_network_flags import OWN_NETWORK, add_own_network_flags
from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import box, integer, number

MOST_PASSES = 1_000_000  # of a network for one map; more would take days


def add_explanation_flags(parser: Parser) -> None:
    """Add the flags of the scripts that explain image classifiers: networks, images, classes, and outputs."""
    group = parser.group("network", Scope.MODE)
    add = group.one_of().add
    add(
        "--ptm",
        nargs="+",
        metavar="NAME",
        help="one or more pretrained classifiers of torchvision, e.g. resnet18, vgg16, vit_b_16",
    )
    add(
        "--restore-file",
        nargs="+",
        metavar="FILE",
        help="one or more checkpoints, e.g. of several epochs: of classifiers, of networks that segment, "
        "or of autoencoders",
    )
    add("--network", metavar="FILE.py:NAME", help=OWN_NETWORK)
    group.add(
        "--weights",
        nargs="+",
        metavar="WHICH",
        help="weights of --ptm, one for each or one for all: torchvision's name, e.g. IMAGENET1K_V1, a file "
        "with a state_dict, or random; default: torchvision's own, downloaded on first use; weights of "
        "--network: a file",
    )
    group.add(
        "--classes",
        metavar="FILE|A,B,…",
        help="names of the classes of --ptm or --network, in their order: a list, or a file with one in each "
        "line (or number,name), or JSON",
    )
    add_machine_flags(group)
    add_config_flags(group)
    add_own_network_flags(parser, without=("network",))
    _add_image_flags(parser)
    _add_question_flags(parser)
    _add_output_flags(parser)


def _add_image_flags(parser: Parser) -> None:
    add = parser.group("images", Scope.MODE).add
    add(
        "--input",
        nargs="+",
        metavar="IMAGE",
        help="image files, folders (all images in and below them), patterns such as 'photos/*.jpg', or "
        "validation examples such as digits:7",
    )
    add(
        "--fit",
        choices=("crop", "pad", "stretch", "native"),
        help="how a photograph becomes an input: the crop of its centre, the whole of it padded or stretched "
        "to a square, or in its own proportions; default: as the network was trained, for photographs crop",
    )
    add(
        "--longest-side",
        type=integer(1, 4096),
        metavar="N",
        only_with="fit",
        help="longest side of the input with --fit native; default: the side of the network's inputs",
    )
    add("--skip-bad", action="store_true", help="skip image files that cannot be read, and name them")
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="folder of data sets such as MNIST/raw/…; missing ones are downloaded",
    )
    add(
        "--invert",
        action="store_true",
        help="invert image files, because they are dark on light, which MNIST is not",
    )


def _add_question_flags(parser: Parser) -> None:
    add = parser.group("what is explained", Scope.MODE).add
    add(
        "-k",
        "--top-k",
        type=integer(1),
        default=3,
        metavar="N",
        help="explain the N most probable classes of each image",
    )
    add("--target", nargs="+", metavar="CLASS", help="explain these classes instead, given by name or number")
    add(
        "--unit",
        nargs="+",
        type=integer(0),
        metavar="N",
        help="of an autoencoder: explain the means μ of these latent units, counted from 0",
    )
    add(
        "--area",
        nargs="+",
        type=box,
        metavar="Y0,X0,Y1,X1",
        help="of an autoencoder: explain the summed brightness of these areas of the reconstruction, rows Y0 "
        "to Y1 - 1 and columns X0 to X1 - 1; of a segmentation: its classes summed over one such area",
    )
    add(
        "--region",
        metavar="WHICH",
        help="of a segmentation: where the scores of a class are summed: over the box of --area (area), over "
        "the pixels where it is predicted (prediction) or true (truth, with --mask), over all of them (all), "
        "or at one pixel (Y,X); default: prediction",
    )
    add("--mask", nargs="+", metavar="IMAGE", help="true masks of the images, for --region truth")
    add(
        "--score",
        choices=("logit", "log-odds", "probability"),
        default="logit",
        help="the score of a class that is explained",
    )
    seeds = integer(0, 2**32 - 1)
    add("--seed", type=seeds, default=42, metavar="N", help="seed of random weights and of noise")


def _add_output_flags(parser: Parser) -> None:
    add = parser.group("output", Scope.MODE).add
    add("--out-dir", default="imgs", metavar="DIR", scope=Scope.MACHINE, help="folder for pictures")
    add(
        "--on",
        choices=("original", "input"),
        default="original",
        help="what maps are drawn on: the whole photograph, or the part that the network sees",
    )
    add("--columns", type=integer(2, 100), metavar="N", help="panels on a line of a sheet; default: 5")
    add(
        "--scale",
        choices=("row", "panel"),
        default="row",
        help="what the strongest colour stands for: a method's strongest value in a row, or in each panel",
    )
    add(
        "--save-values",
        metavar="FILE.npz",
        help="save the maps as they were computed, with the names of what they show; a folder (DIR/) gets a "
        "file for each image, and the same command goes on where it was killed",
    )
    add(
        "--json",
        metavar="FILE",
        help="write the numbers of the panels as JSON; FILE.jsonl gets a line for each panel as soon as "
        "it is known, and the same command goes on where it was killed",
    )
    add("--show", action="store_true", help="open pictures in windows, too")


def add_method_options(group: Group, options: Iterable[Any], method: str = "") -> None:
    """Add the options that the table of methods (`lib.explain.methods`) declares for one of them.

    Args:
        group: group to which the flags are added.
        options: the options.
        method: name of the method for the help texts, if the script has several.
    """
    for option in options:
        names = [*([f"-{option.short}"] if option.short else []), f"--{option.name}"]
        about = f"{method}: {option.help}" if method else option.help
        if option.kind is bool:
            group.add(*names, action="store_true", help=about)
        elif option.choices:
            group.add(*names, choices=option.choices, default=option.default, help=about)
        else:
            is_integer = option.kind is int
            kind = (
                integer(option.minimum, MOST_PASSES)
                if is_integer
                else number(option.minimum, above=option.above)
            )
            letter = "N" if is_integer else "X"
            group.add(*names, type=kind, default=option.default, metavar=letter, help=about)


def add_smoothing_flags(parser: Parser, of_what: str, only_with: str = "") -> None:
    """Add the flags of SmoothGrad, which averages a map over noisy images.

    Args:
        parser: parser to which the flags are added.
        of_what: what is averaged, for the help text.
        only_with: name of the flag without which they are refused.
    """
    parser.rename("--smooth", "--smoothgrad")  # in plot-log.py, --smooth is a moving average
    add = parser.group("smoothing", Scope.MODE).add
    add(
        "--smoothgrad",
        type=integer(1, MOST_PASSES),
        metavar="N",
        only_with=only_with,
        help=f"average {of_what} over N noisy images (SmoothGrad)",
    )
    add(
        "--noise",
        type=number(0, above=True),
        default=0.15,
        metavar="X",
        only_with="smoothgrad",
        help="standard deviation of the noise, as a share of the image's range",
    )
