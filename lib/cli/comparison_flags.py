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
        help="score removals in bfloat16, all but the last linear layer: faster where the processor has it",
    )
    add(
        "--grid",
        type=integer(2, 16),
        default=4,
        metavar="N",
        help="compute the Shapley values of N × N patches, 2 to 16",
    )
    add(
        "--budget",
        type=integer(12, 2**20),
        default=192,
        metavar="N",
        help="evaluate the network N times for the Shapley values of an image, at least 12, and three times "
        "for each patch; values are exact where N is at least 2 to the number of patches, as 512 is with "
        "--grid 3",
    )
    add(
        "--steps",
        type=integer(2, 1000),
        default=8,
        metavar="N",
        help="steps of deletion and insertion, 2 to 1000",
    )
    add(
        "--probed",
        type=integer(0),
        default=2,
        metavar="N",
        help="see of the first N images what noise and random weights do to their maps, for which a dozen "
        "maps are made of each",
    )
    add(
        "--boxes",
        metavar="FILE",
        help='where the objects are, as JSON: {"IMAGE": [Y0, X0, Y1, X1], …}, a box for an image, in pixels '
        "of the photograph; IMAGE is the name of its file, or that in titles (cat-2 for the second cat.jpg)",
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
    add(
        "--report",
        metavar="FILE",
        help="the report, or a folder for it (DIR/); its tables in Markdown and the sheet of the methods' "
        "maps lie beside it; default: in --out-dir",
    )
    add(
        "--format",
        choices=("html", "md"),
        default="html",
        help="html: a page of its own with all panels; md: the tables alone",
    )
    add(
        "--shown",
        type=integer(1, 50),
        default=6,
        metavar="N",
        help="show the maps of the first N images, 1 to 50",
    )
