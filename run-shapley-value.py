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


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-shapley-value.py", description=__doc__)
    cli.add_explanation_flags(parser)
    parser.set_defaults(score="log-odds")
    add = parser.add_argument_group("players").add_argument
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
    add = parser.add_argument_group("estimate").add_argument
    add(
        "--estimator",
        choices=("auto", "exact", "odd-gp", "permutation", "per-patch"),
        default="auto",
        help="the estimator; auto is exact if the budget allows all coalitions, and odd-gp otherwise",
    )
    add(
        "--budget",
        type=cli.integer(2),
        metavar="N",
        help="number of evaluations; default: 32 per player, or all coalitions of up to 16 players in images "
        "of up to 64 px",
    )
    positive = cli.number(0, above=True)
    add(
        "--tolerance",
        type=positive,
        metavar="X",
        help="stop when all values are known to X, in units of the score, with 95%% confidence",
    )
    add(
        "-m",
        "--max-context",
        type=cli.integer(1),
        metavar="N",
        help="contexts per patch, with --estimator per-patch",
    )
    add(
        "--resume-values",
        metavar="FILE.npz",
        help="store evaluations in this file, and reuse those it already has",
    )
    add("--amp", action="store_true", help="run forward passes in bfloat16, with the last layer in float32")
    add = parser.add_argument_group("more pictures").add_argument
    add(
        "--show-uncertainty",
        action="store_true",
        help="also draw a figure in which players of uncertain sign are hatched",
    )
    add("--interactions", action="store_true", help="also draw the strongest pairwise interactions")
    return parser


def main(argv=None) -> None:
    typed, defaults = make_parser().parse_typed(argv)
    from types import SimpleNamespace

    from lib.tasks import explanation_run
    from lib.tasks import shapley_explanation as task

    task.check(SimpleNamespace(**(defaults | typed)), typed)
    with explanation_run.start("shap", typed, defaults) as run:
        task.explain(run)


if __name__ == "__main__":
    cli.run(main)
