#!/usr/bin/env python3
"""Draw how much each pixel of an image adds to a classifier's score, by integrated gradients.

run-integrated-gradients.py --ptm resnet18 --input cat.jpg --tolerance 0.01    the three most probable classes
run-integrated-gradients.py --ptm vgg16 --input cat.jpg --target 'Egyptian cat' tabby --baseline blur
run-integrated-gradients.py --restore-file CKPT --input digits:7               a network trained here, offline
run-integrated-gradients.py --ptm resnet18 --input cat.jpg --steps 50 --quadrature gauss-legendre

The values add up to the difference between the image's score and the baseline's, except for a gap, which is
printed with every map.
"""

from lib import cli
from lib.cli import Scope
from lib.explain.methods import METHODS
from lib.runtime.errors import UserError


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-integrated-gradients.py", description=__doc__)
    cli.add_explanation_flags(parser)
    group = parser.group("method", Scope.MODE)
    group.add(
        "--baseline",
        default="black",
        metavar="WHICH",
        help="start of the path: black, grey, mean (colour), blur, noise, or an image file",
    )
    cli.add_method_options(group, METHODS["integrated-gradients"].options)
    cli.add_smoothing_flags(parser, "the values")
    parser.rename("--rule", "--quadrature")  # in run-grad-cam.py, --rule is one of backpropagation
    return parser


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    line.check_company()
    if "steps" in line.typed and "tolerance" in line.typed:
        raise UserError("--steps and --tolerance both say how many steps: choose one")
    from lib.tasks import explanation_run
    from lib.tasks import integrated_gradients as task

    settings = task.PathSettings.of(line.values)
    with explanation_run.start("ig", line, settings.words(line.typed)) as run:
        task.explain(run, settings)


if __name__ == "__main__":
    cli.run(main)
