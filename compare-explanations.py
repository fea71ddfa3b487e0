#!/usr/bin/env python3
"""Compare explanations of image classifiers on one page, measured against controls that know nothing.

compare-explanations.py --ptm squeezenet1_0 --weights FILE --input cat.jpg dog.jpg
compare-explanations.py --restore-file CKPT --input digits:7 digits:12 --methods all
compare-explanations.py --network my_net.py:make --weights w.pth --input photos/ --report comparison/
compare-explanations.py --restore-file CKPT --study digits --images 200       a table with intervals

Results are kept in --out-dir: the same command again reads them, another method costs only itself, and a run
that was stopped goes on.
"""

from lib import cli
from lib.evaluation.measures import MEASURES
from lib.explain.methods import METHODS

# Methods of few passes of the network, which are compared by default.
QUICK = (
    *("grad-cam", "hires-cam", "layer-cam", "grad-cam++", "xgrad-cam"),
    *("input-x-gradient", "guided", "integrated-gradients"),
)


def describe_measures() -> str:
    """Return the table of measures that ends the `--help` text."""
    lines = [f"  {each.name:<21} {each.paper}" for each in MEASURES.values()]
    return "\n".join(["measures:", *lines])


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="compare-explanations.py", description=__doc__, epilog=describe_measures())
    cli.add_explanation_flags(parser)
    cli.add_comparison_flags(parser, tuple(METHODS), QUICK, tuple(MEASURES))
    parser.set_defaults(top_k=1, score="log-odds", out_dir="comparison")
    return parser


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    line.check_company()
    from lib.tasks import comparison_job, comparison_study, explanation_run

    line = comparison_study.line_of(line)
    with explanation_run.start("compare", line) as run:
        comparison_job.compare(run, line.values)


if __name__ == "__main__":
    cli.run(main)
