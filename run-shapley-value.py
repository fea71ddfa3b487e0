#!/usr/bin/env python3
"""Draw how much each part of an image pushes a class up or down: Shapley values, with their errors.

run-shapley-value.py --ptm resnet18 --input cat.jpg                 8×8 patches, the three likeliest classes
run-shapley-value.py --ptm vgg16 --input dog.jpg -lp 14 --budget 4096 --tolerance 0.05
run-shapley-value.py --ptm resnet18 --input cat.jpg --players slic --segments 50
run-shapley-value.py --restore-file CKPT --input digits:7 -lp 7     16 players: exact, offline
torchrun --nproc-per-node 4 run-shapley-value.py …                  on several devices

The parts play a game: v(S) is the score of the image that shows the parts S alone, on the baseline. Where all
2ⁿ coalitions of n parts are too many, the values come with a stated error.
"""

from lib import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-shapley-value.py", description=__doc__)
    cli.add_explanation_flags(parser)
    parser.set_defaults(score="log-odds")
    add = parser.add_argument_group("players").add_argument
    add("--players", default="patches", metavar="WHICH", help="patches, slic, or a label image's file")
    add(
        "-lp",
        "--patch-side-len",
        type=cli.integer(1),
        metavar="N",
        help="side of a square patch in pixels; default: an eighth of the image's, 28 of 224",
    )
    add("--segments", type=cli.integer(1, 400), default=50, metavar="N", help="superpixels of slic, about")
    add(
        "--baseline",
        default="grey",
        metavar="WHICH",
        help="what absent players show: black, grey, mean (colour), blur, noise, or an image file",
    )
    add = parser.add_argument_group("estimate").add_argument
    add(
        "--estimator",
        choices=("auto", "exact", "odd-gp", "permutation", "per-patch"),
        default="auto",
        help="auto is exact where the budget holds all coalitions, and odd-gp otherwise",
    )
    add(
        "--budget",
        type=cli.integer(2),
        metavar="N",
        help="evaluations; default: 32 a player, or all of up to 16 players where images have up to 64 px",
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
        help="contexts a patch, of --estimator per-patch",
    )
    add("--resume-values", metavar="FILE.npz", help="keep evaluations there, and reuse those that are there")
    add("--amp", action="store_true", help="bf16 forward passes, with the last layer in float32")
    add = parser.add_argument_group("more pictures").add_argument
    add("--show-uncertainty", action="store_true", help="hatch players whose sign is not certain")
    add("--interactions", action="store_true", help="draw the strongest interactions of two players")
    return parser


def main(argv=None) -> None:
    typed, defaults = make_parser().parse_typed(argv)
    from types import SimpleNamespace

    from lib.tasks import image_explanation
    from lib.tasks import shapley_explanation as task

    task.check(SimpleNamespace(**(defaults | typed)), typed)
    with image_explanation.start("shap", typed, defaults) as run:
        task.explain(run)


if __name__ == "__main__":
    cli.run(main)
