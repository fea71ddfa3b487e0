#!/usr/bin/env python3
"""Draw how much each pixel of an image adds to a classifier's score, by integrated gradients.

run-integrated-gradients.py --ptm resnet18 --input cat.jpg --tolerance 0.01    the three most probable classes
run-integrated-gradients.py --ptm vgg16 --input cat.jpg --target 'Egyptian cat' tabby --baseline blur
run-integrated-gradients.py --restore-file CKPT --input digits:7               a network trained here, offline
run-integrated-gradients.py --ptm resnet18 --input cat.jpg --steps 50 --rule gauss-legendre

The values add up to the difference between the image's score and the baseline's, except for a gap, which is
printed with every map.
"""

from lib import cli
from lib.runtime.errors import UserError


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-integrated-gradients.py", description=__doc__)
    cli.add_explanation_flags(parser)
    add = parser.add_argument_group("method").add_argument
    add(
        "--baseline",
        default="black",
        metavar="WHICH",
        help="start of the path: black, grey, mean (colour), blur, noise, or an image file",
    )
    rules = ("midpoint", "trapezoid", "gauss-legendre", "right")
    add("--rule", choices=rules, default="midpoint", help="quadrature rule of the integral")
    add(
        "--steps",
        type=cli.integer(1),
        metavar="N",
        help="number of steps of the path, instead of --tolerance",
    )
    add(
        "--tolerance",
        type=cli.number(0, above=True),
        default=0.01,
        metavar="X",
        help="treble the steps until the gap is below this share of the difference and the map changes "
        "by less",
    )
    add(
        "-bs",
        "--batch-size",
        type=cli.integer(1),
        metavar="N",
        help="points of the path per batch; default: the fastest number, measured during the run",
    )
    cli.add_smoothing_flags(parser, "the values")
    return parser


def main(argv=None) -> None:
    typed, defaults = make_parser().parse_typed(argv)
    cli.check_needs(typed, {"noise": "smooth"})
    if "steps" in typed and "tolerance" in typed:
        raise UserError("--steps and --tolerance both say how many steps: choose one")
    from lib.tasks import explanation_run
    from lib.tasks import integrated_gradients as task

    with explanation_run.start("ig", typed, defaults) as run:
        task.explain(run)


if __name__ == "__main__":
    cli.run(main)
