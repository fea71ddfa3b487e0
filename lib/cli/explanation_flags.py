"""Flags of the scripts that explain images."""

from collections.abc import Iterable
from typing import Any

from lib.cli.flags import add_config_flags, add_machine_flags
from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import integer, number, numbers

MOST_PASSES = 1_000_000  # of a network for one map; more would take days


def add_explanation_flags(parser: Parser) -> None:
    """Add the flags of the scripts that explain image classifiers: networks, images, classes, and outputs."""
    group = parser.group("network", Scope.MODE)
    add = group.one_of().add
    add(
        "--ptm", metavar="NAME", help="a pretrained classifier of torchvision, e.g. resnet18, vgg16, vit_b_16"
    )
    add(
        "--restore-file",
        nargs="+",
        metavar="FILE",
        help="one or more checkpoints of image classifiers, e.g. of several epochs",
    )
    add("--network", metavar="FILE.py:NAME", help=OWN_NETWORK_HELP)
    group.add(
        "--weights",
        metavar="WHICH",
        help="weights of --ptm: torchvision's name, e.g. IMAGENET1K_V1, a file with a state_dict, or random; "
        "default: torchvision's own, downloaded on first use; weights of --network: a file",
    )
    group.add(
        "--classes",
        metavar="FILE|A,B,…",
        help="names of the classes of --ptm or --network, in their order: a list, or a file with one in each "
        "line (or number,name), or JSON",
    )
    add_machine_flags(group)
    add_config_flags(group)
    add_own_network_flags(parser.group("your own network, with --network", Scope.MODE, only_with="network"))
    _add_image_flags(parser)
    _add_question_flags(parser)
    _add_output_flags(parser)


def _add_image_flags(parser: Parser) -> None:
    add = parser.group("images", Scope.MODE).add
    add("--input", nargs="+", metavar="IMAGE", help="image files, or validation examples such as digits:7")
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
    add("--save-values", metavar="FILE.npz", help="save the arrays behind the picture as they were computed")
    add("--json", metavar="FILE", help="also write the numbers of the panels as JSON records")
    add("--show", action="store_true", help="open pictures in windows, too")


OWN_NETWORK_HELP = (
    "a network of your own: a class or function NAME without arguments in FILE.py, which is imported: this "
    "runs your code"
)


def add_own_network_flags(group: Group) -> None:
    """Add the flags that say how the network of `--network` is made and what its images are."""
    add = group.add
    add("--network-args", nargs="+", metavar="KEY=VALUE", help="arguments with which NAME is called")
    add("--size", type=integer(1, 16384), metavar="N", help="side of its images in pixels; default: 224")
    add(
        "--channels",
        type=integer(1, 3),
        choices=(1, 3),
        help="channels of its images; default: those of its first convolution",
    )
    add(
        "--mean",
        type=numbers,
        metavar="X,…",
        help="mean that is subtracted from pixels in [0, 1], one number or one a channel; default: "
        "ImageNet's",
    )
    add(
        "--std",
        type=numbers,
        metavar="X,…",
        help="standard deviation by which pixels are then divided; default: ImageNet's",
    )
    add(
        "--multi-label",
        action="store_true",
        help="an image may have several of its classes, each with a sigmoid",
    )


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
