"""Flags of the comparison of explanations."""

from collections.abc import Sequence

from lib.cli.parser import Parser
from lib.cli.scope import Scope
from lib.cli.types import integer

STUDIES = ("digits", "mnist", "cifar10", "folder")
INPAINT = "inpaint"
REMOVALS = ("blur", "mean", "grey", "black", "noise", INPAINT)


def add_comparison_flags(
    parser: Parser, methods: Sequence[str], usual: Sequence[str], measures: Sequence[str]
) -> None:
    """Add the flags that say what is compared, how it is measured, and where the report goes.

    Args:
        parser: parser to which they are added.
        methods: names of all methods.
        usual: those compared by default.
        measures: names of all measures.
    """
    add = parser.group("comparison", Scope.MODE).add
    add(
        "--methods",
        nargs="+",
        choices=(*methods, "all"),
        default=usual,
        metavar="NAME",
        help=f"methods to compare, or all: {', '.join(methods)}",
    )
    add(
        "--measures",
        nargs="+",
        choices=(*measures, "all"),
        metavar="NAME",
        help=f"measures to compute: {', '.join(measures)}; default: all",
    )
    add(
        "--removal",
        choices=REMOVALS,
        default=REMOVALS[0],
        help="what removed parts of an image show; inpaint: the colours around them",
    )
    add(
        "--amp",
        action="store_true",
        help="score removals in bfloat16, all but the last linear layer, which is faster on processors that "
        "have it",
    )
    add("--grid", type=integer(2, 16), default=4, metavar="N", help="N × N patches have Shapley values")
    add(
        "--budget",
        type=integer(12, 2**20),
        default=192,
        metavar="N",
        help="evaluations for the Shapley values of an image; they are exact if all coalitions of the "
        "patches are no more than that, e.g. 512 with --grid 3",
    )
    add("--steps", type=integer(2, 1000), default=8, metavar="N", help="steps of deletion and insertion")
    add(
        "--probed",
        type=integer(0),
        default=2,
        metavar="N",
        help="ask N images what noise and random weights do to the maps, which takes a dozen maps each",
    )
    add(
        "--boxes",
        metavar="FILE",
        help='where the objects are, as JSON: {"IMAGE": [Y0, X0, Y1, X1], …}, in pixels of the photograph, '
        "by the image's name without its suffix",
    )
    _add_report_flags(parser)


def _add_report_flags(parser: Parser) -> None:
    add = parser.group("study", Scope.MODE).add
    add(
        "--study",
        choices=STUDIES,
        help="compare on images of a data set's validation split; folder: of the images in --data-dir, a "
        "folder for each class",
    )
    add("--images", type=integer(1), default=200, metavar="N", only_with="study", help="number of images")
    add = parser.group("report", Scope.MODE).add
    add("--report", metavar="FILE", help="the report, or a folder for it; default: in --out-dir")
    add(
        "--format",
        choices=("html", "md"),
        default="html",
        help="html: a page of its own with all panels; md: the tables alone",
    )
    add("--shown", type=integer(1, 50), default=6, metavar="N", help="show the maps of the first N images")
