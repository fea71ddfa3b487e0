#!/usr/bin/env python3
"""Draw how much each part of an image raises or lowers a class's score: Shapley values with their errors.

run-shapley-value.py --ptm resnet18 --input cat.jpg               8×8 patches, the three most probable classes
run-shapley-value.py --ptm vgg16 --input dog.jpg -lp 14 --budget 4096 --tolerance 0.05
run-shapley-value.py --ptm resnet18 --input cat.jpg --players slic --segments 50
run-shapley-value.py --restore-file CKPT --input digits:7 -lp 7   16 players: exact, offline
torchrun --nproc-per-node 4 run-shapley-value.py …                on several devices

The parts are the players of a game: v(S) is the score of the image that shows only the parts S, on the
baseline. If there are too many parts n to evaluate all 2ⁿ coalitions, the values are estimates with a stated
error.
"""

from lib import cli
from lib.cli import Scope
from lib.explain.methods import METHODS


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-shapley-value.py", description=__doc__)
    cli.add_explanation_flags(parser)
    parser.set_defaults(score="log-odds")
    add = parser.group("players", Scope.MODE).add
    add(
        "--players",
        default="patches",
        metavar="WHICH",
        help="the parts of the image: patches, slic (superpixels), or a label image file",
    )
    add(
        "-lp",
        "--patch-side-len",
        type=cli.integer(1),
        metavar="N",
        help="side of a square patch in pixels; default: an eighth of the image's side, e.g. 28 of 224",
    )
    add(
        "--segments",
        type=cli.integer(1, 400),
        default=50,
        metavar="N",
        help="approximate number of superpixels with --players slic",
    )
    add(
        "--baseline",
        default="grey",
        metavar="WHICH",
        help="content of absent players: black, grey, mean (colour), blur, noise, or an image file",
    )
    group = parser.group("estimate", Scope.MODE)
    cli.add_method_options(group, METHODS["shapley"].options)
    group.add(
        "--resume-values",
        metavar="FILE.npz",
        help="store evaluations in this file, and reuse those it already has",
    )
    add = parser.group("more pictures", Scope.MODE).add
    add(
        "--show-uncertainty",
        action="store_true",
        help="also draw a figure in which players of uncertain sign are hatched",
    )
    add("--interactions", action="store_true", help="also draw the strongest pairwise interactions")
    return parser


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    line.check_company()
    from lib.tasks import explanation_run
    from lib.tasks import shapley_explanation as task

    settings = task.ShapleySettings.of(line.values)
    task.check(settings, line.typed)
    with explanation_run.start("shap", line, settings.words(line.typed)) as run:
        task.explain(run, settings)


if __name__ == "__main__":
    cli.run(main)
