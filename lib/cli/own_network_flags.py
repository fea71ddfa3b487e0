"""Flags of a network of the user's own: `--network FILE.py:NAME` and what goes with it."""

from collections.abc import Collection

from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import integer, numbers

OWN_NETWORK = (
    "a network of your own: a class or function NAME without arguments in FILE.py, which is imported: this "
    "runs your code"
)


def add_own_network_flags(parser: Parser, *, without: Collection[str]) -> Group:
    """Add the flags that say how the network of `--network` is made, and what its images are.

    Args:
        parser: parser to which they are added.
        without: names of those that the script has already, because they serve other networks, too.

    Returns:
        Their group.
    """
    group = parser.group("your own network, with --network", Scope.MODE, only_with="network")

    def add(name: str, **options) -> None:
        if name not in without:
            group.add(f"--{name}", **options)

    add("network", metavar="FILE.py:NAME", not_with="restore_file", help=OWN_NETWORK)
    add("network-args", nargs="+", metavar="KEY=VALUE", help="arguments with which NAME is called")
    add("size", type=integer(1, 16384), metavar="N", help="side of its images in pixels; default: 224")
    add(
        "channels",
        type=integer(1, 3),
        choices=(1, 3),
        help="channels of its images; default: those of its first convolution",
    )
    add(
        "mean",
        type=numbers,
        metavar="X,…",
        help="mean that is subtracted from pixels in [0, 1], one number or one a channel; default: "
        "ImageNet's",
    )
    add(
        "std",
        type=numbers,
        metavar="X,…",
        help="standard deviation by which pixels are then divided; default: ImageNet's",
    )
    add(
        "multi-label",
        action="store_true",
        help="an image may have several of its classes, each with a sigmoid",
    )
    return group
