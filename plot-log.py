#!/usr/bin/env python3
"""Draw what training logs say: the training loss, the validation loss and the validation accuracy.

  python3 plot-log.py --log-file logs/mnist.log --out-dir ./imgs --prefix mnist
  python3 plot-log.py --log-file logs/*.log --prefix all --x epoch --log-scale

Every other field Valid_… of a log becomes a picture as well. The paths of the pictures are printed.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lib import cli
from lib.runtime.errors import UserError, warn
from lib.runtime.files import existing_file, writable_folder
from lib.runtime.runlog import ParsedLog, Run, parse

# What the legend says of runs that differ in it: these flags first, then others, a few in all.
TELLING = ("model", "dataset", "learning_rate", "batch_size", "seed")
UNTELLING = {"id", "resume", "Resume_step", "checkpoint_dir", "out_dir", "tensorboard"}
MOST_TOLD = 4

PICTURE_NAMES = {"Training_loss": "train-loss", "Valid_accuracy": "valid-acc"}
LOWER_IS_BETTER = re.compile("loss|error", re.IGNORECASE)
HIGHER_IS_BETTER = re.compile("acc|iou|dice|f1|psnr", re.IGNORECASE)


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="plot-log.py", description=__doc__)
    add = parser.add_argument
    add("--log-file", nargs="+", required=True, metavar="FILE", help="logs to overlay; - is standard input")
    add("--run", default="newest", metavar="ID", help="what to draw of each log: newest, all, or a run's id")
    add("--out-dir", default="imgs", metavar="DIR", help="folder of the pictures, made where missing")
    add("--prefix", help="begins the pictures' names (default: the name of the first log)")
    add("--format", choices=("png", "svg", "pdf"), default="png")
    add("--x", choices=("step", "epoch"), default="step", help="what the curves run along")
    add(
        "--smooth",
        type=cli.number(0, 100),
        default=4,
        metavar="PERCENT",
        help="width of the running mean over the training loss, in percent of its points; 0 for none",
    )
    add("--log-scale", action="store_true", help="a logarithmic axis for losses")
    add("--show", action="store_true", help="also open a window for each picture")
    return parser


def main(argv=None) -> None:
    flags = make_parser().parse_args(argv)
    prefix = picture_prefix(flags.prefix, flags.log_file[0])
    logs = {name: read_log(name) for name in dict.fromkeys(flags.log_file)}
    chosen = choose_runs(logs, flags.run)
    runs = list(zip(labels(chosen), (run for _, run in chosen), strict=True))
    out_dir = writable_folder(flags.out_dir)
    counts = []
    for tag, key in quantities(run for _, run in chosen):
        path = out_dir / f"{prefix}-{picture_name(key)}.{flags.format}"
        counts.append(draw(tag, key, runs, path, flags))
    drawn, undrawable = map(sum, zip(*counts, strict=True))
    passed_over = {
        "foreign or half-written lines": sum(log.skipped for log in logs.values()),
        "values that cannot be drawn (nan, infinite, or not positive on a log scale)": undrawable,
    }
    if any(passed_over.values()):
        warn("passed over " + ", ".join(f"{n} {what}" for what, n in passed_over.items() if n))
    if not drawn:
        raise UserError("the log holds no value that can be drawn")


def picture_prefix(prefix: str | None, log_file: str) -> str:
    """Return how the pictures' names begin: `prefix`, or what `log_file` is called."""
    if prefix is None:
        return log_name(log_file).replace(" ", "-")
    if not prefix or "/" in prefix:
        raise UserError(f"--prefix {prefix!r} cannot begin a file's name; a folder goes to --out-dir")
    return prefix


def log_path(file: str) -> str:
    return "standard input" if file == "-" else file


def log_name(file: str) -> str:
    return Path(log_path(file)).stem


def read_log(file: str) -> ParsedLog:
    """Parse a log, or standard input for `-`; a `UserError` where there is nothing to parse."""
    try:
        if file == "-":
            log = parse(sys.stdin.buffer)
        else:
            with open(existing_file(file), "rb") as lines:
                log = parse(lines)
    except OSError as error:
        raise UserError(f"cannot read {log_path(file)}: {error.strerror}") from None
    if not log.runs and not log.skipped:
        raise UserError(f"{log_path(file)} is empty")
    return log


def choose_runs(logs: dict[str, ParsedLog], wanted: str) -> list[tuple[str, Run]]:
    """Return `(log file, run)` to draw of each log: its newest run, all, or the one called `wanted`."""
    chosen, ids = [], []
    for file, log in logs.items():
        trained = [run for run in log.runs if run.series("TRAIN", "Training_loss")[0]]
        if not trained:
            raise UserError(
                f"{log_path(file)} has no [TRAIN] lines with a Step and a Training_loss: no run to draw"
            )
        ids += [run.id for run in trained]
        named = [run for run in trained if run.id == wanted]
        runs = {"newest": trained[-1:], "all": trained}.get(wanted, named)
        chosen += [(file, run) for run in runs]
    if not chosen:
        raise UserError(f"there is no run {wanted!r}; there are {', '.join(ids)} (and newest, all)")
    return chosen


def labels(chosen: list[tuple[str, Run]]) -> list[str]:
    """Name the runs so that they can be told apart: by log, by id, by the flags in which they differ."""
    files = list(dict.fromkeys(file for file, _ in chosen))
    names = [log_name(file) for file in files]
    if len(set(names)) < len(names):  # same name, different folders
        names = files
    name_of = dict(zip(files, names, strict=True))
    runs = [run for _, run in chosen]
    keys = telling_keys(runs)
    made = []
    for file, run in chosen:
        parts = [name_of[file]] if len(files) > 1 or len(chosen) == 1 else []
        if len(chosen) > len(files):
            parts.append(run.id)
        parts += [f"{key}={run.fields[key]}" for key in keys if key in run.fields]
        made.append(", ".join(parts))
    return made


def telling_keys(runs: list[Run]) -> list[str]:
    """Return the most telling of the flags that are not the same in all `runs`."""
    keys = dict.fromkeys([*TELLING, *(key for run in runs for key in run.fields if key not in UNTELLING)])
    told = [run.fields for run in runs if run.fields]  # an old log tells nothing, and differs in nothing
    return [key for key in keys if len({str(fields.get(key)) for fields in told}) > 1][:MOST_TOLD]


def quantities(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Return `(tag, key)` of what gets a picture: three always, then what else validation measured."""
    measured = [key for run in runs for key in run.keys("VALID") if key.startswith("Valid_")]
    validated = dict.fromkeys(["Valid_loss", "Valid_accuracy", *measured])
    return [("TRAIN", "Training_loss"), *(("VALID", key) for key in validated)]


def picture_name(key: str) -> str:
    return PICTURE_NAMES.get(key) or re.sub(r"[^\w.]+|_", "-", key.lower())


def draw(tag: str, key: str, runs: list[tuple[str, Run]], path: Path, flags) -> tuple[int, int]:
    """Draw one quantity of the labelled `runs` and print the path, if there is a point to draw.

    Returns:
        how many points were drawn, and how many could not be.
    """
    import numpy as np

    from lib.figures.curves import draw_curves
    from lib.figures.style import save

    curves = [curve(label, run, tag, key, flags.x) for label, run in runs]
    log_scale = flags.log_scale and LOWER_IS_BETTER.search(key) is not None
    drawable = np.concatenate([curve.drawable(log_scale) for curve in curves])
    if drawable.any():
        figure = draw_curves(
            curves,
            key.replace("Valid_", "Validation_").replace("_", " "),
            x=flags.x,
            smooth=flags.smooth if tag == "TRAIN" else 0,
            best=better(key) if tag == "VALID" else None,
            log_scale=log_scale,
        )
        print(save(figure, path, show=flags.show))
    else:
        warn(f"no {key} to draw: {path} is not made")
    return int(drawable.sum()), int((~drawable).sum())


def curve(label: str, run: Run, tag: str, key: str, x: str):
    """Return the `Curve` of `key` over the steps of `run`, or its epochs."""
    import numpy as np

    from lib.figures.curves import Curve

    steps, values = (np.array(numbers, dtype=float) for numbers in run.series(tag, key))
    if x == "epoch":
        length = run.steps_per_epoch()
        if not length:
            raise UserError(f"{label} does not tell its epochs: leave out --x epoch")
        steps = steps / length
    return Curve(label, steps, values)


def better(key: str) -> str | None:
    """Tell which end of a quantity is the good one: "min", "max", or None where its name does not tell."""
    if LOWER_IS_BETTER.search(key):
        return "min"
    return "max" if HIGHER_IS_BETTER.search(key) else None


if __name__ == "__main__":
    cli.run(main)
