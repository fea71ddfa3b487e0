#!/usr/bin/env python3
"""Plot training logs: the training loss, the validation loss and the validation accuracy.

  python3 plot-log.py logs/mnist.log --out-dir ./imgs --prefix mnist
  python3 plot-log.py logs/*.log --prefix all --x epoch --log-scale

Every other Valid_… field of a log gets a figure as well. The paths of the figures are printed.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib import cli
from lib.runtime.errors import UserError, warn
from lib.runtime.files import check_name, writable_folder
from lib.runtime.runlog import ParsedLog, Run, parse
from lib.runtime.text_lines import decoded, open_text

# Flags that the legend shows if the runs differ in them: these first, then others, MOST_TOLD in all.
TELLING = ("model", "dataset", "learning_rate", "batch_size", "seed")
UNTELLING = {
    "id",
    "resume",
    "Resume_step",
    "checkpoint_dir",
    "out_dir",
    "tensorboard",
    "config",
    "save_config",
}
UNTELLING |= {f"From_{source}" for source in ("typed", "config", "checkpoint", "recipe")}
MOST_TOLD = 4
ROOM = 60  # characters of a picture's name behind its prefix

COUNTS = {2: "two", 3: "three", 4: "four"}
PICTURE_NAMES = {"Training_loss": "train-loss", "Valid_accuracy": "valid-acc"}
LOWER_IS_BETTER = re.compile("loss|error", re.IGNORECASE)
HIGHER_IS_BETTER = re.compile("acc|iou|dice|f1|psnr", re.IGNORECASE)


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="plot-log.py", description=__doc__)
    add = parser.add_argument
    add("logs", nargs="*", metavar="LOG", help="logs to overlay; - is standard input")
    add("--log-file", nargs="+", default=(), metavar="FILE", help="the same, for scripts of earlier versions")
    add(
        "--run",
        default="newest",
        metavar="ID",
        help="the run to draw from each log: newest, all, or a run's id",
    )
    add("--out-dir", default="imgs", metavar="DIR", help="folder for pictures; it is created if missing")
    add("--prefix", help="first part of the pictures' names; default: the name of the first log")
    add("--format", choices=("png", "svg", "pdf"), default="png", help="file format of the pictures")
    add("--x", choices=("step", "epoch"), default="step", help="unit of the x axis")
    add(
        "--running-mean",
        type=cli.number(0, 100),
        default=4,
        metavar="PERCENT",
        help="width of the running mean of the training loss, in percent of its points; 0 for none",
    )
    parser.rename("--smooth", "--running-mean")
    add("--log-scale", action="store_true", help="use a logarithmic axis for losses")
    add("--show", action="store_true", help="also open a window for each picture")
    return parser


def main(argv=None) -> None:
    flags = SimpleNamespace(**make_parser().parse(argv).values)
    files = [*flags.logs, *flags.log_file]
    if not files:
        raise UserError("no log given: name one or more, e.g. plot-log.py logs/mnist.log")
    prefix = picture_prefix(flags.prefix, files[0])
    logs = {name: read_log(name) for name in dict.fromkeys(files)}
    for name, log in logs.items():
        warn_of_mixture(name, log)
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
    """Return the first part of the pictures' names: `prefix`, or else the name of `log_file`."""
    if prefix is None:
        return log_name(log_file).replace(" ", "-")
    if not prefix or "/" in prefix:
        raise UserError(f"--prefix {prefix!r} cannot begin a file's name; a folder goes to --out-dir")
    check_name(prefix, room=ROOM)
    return prefix


def log_path(file: str) -> str:
    return "standard input" if file == "-" else file


def log_name(file: str) -> str:
    return Path(log_path(file)).stem


def read_log(file: str) -> ParsedLog:
    """Parse a log file, or standard input for `-`.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    try:
        if file == "-":
            log = parse(decoded(sys.stdin.buffer))
        else:
            with open_text(Path(file)) as lines:
                log = parse(decoded(lines))
    except OSError as error:
        raise UserError(f"cannot read {log_path(file)}: {error.strerror}") from None
    if not log.runs and not log.skipped:
        raise UserError(f"{log_path(file)} is empty")
    return log


def warn_of_mixture(file: str, log: ParsedLog) -> None:
    """Warn if several runs wrote the log at the same time."""
    if not log.together:
        return
    ids = sorted({each for group in log.together for each in group})
    how = "their steps and losses, which is a guess" if log.is_guessed else "the run's id in each line"
    warn(
        f"{COUNTS.get(len(ids), len(ids))} runs wrote {log_path(file)} at the same time ({', '.join(ids)}): "
        f"their lines are told apart by {how}; --run chooses one, or all"
    )


def choose_runs(logs: dict[str, ParsedLog], wanted: str) -> list[tuple[str, Run]]:
    """Return pairs `(log file, run)` to draw: each log's newest run, all its runs, or the run `wanted`."""
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
    """Return distinct names for the runs: the log, the run's id, and the flags in which they differ."""
    files = list(dict.fromkeys(file for file, _ in chosen))
    names = [log_name(file) for file in files]
    if len(set(names)) < len(names):  # two files of the same name in different folders
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
    """Return at most MOST_TOLD flags in which the `runs` differ, the most informative first."""
    keys = dict.fromkeys([*TELLING, *(key for run in runs for key in run.fields if key not in UNTELLING)])
    told = [run.fields for run in runs if run.fields]  # logs of old versions have no flags to compare
    return [key for key in keys if len({str(fields.get(key)) for fields in told}) > 1][:MOST_TOLD]


def quantities(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Return `(tag, key)` of each quantity to draw: always three, then all others of the validation."""
    measured = [key for run in runs for key in run.keys("VALID") if key.startswith("Valid_")]
    validated = dict.fromkeys(["Valid_loss", "Valid_accuracy", *measured])
    return [("TRAIN", "Training_loss"), *(("VALID", key) for key in validated)]


def picture_name(key: str) -> str:
    return PICTURE_NAMES.get(key) or re.sub(r"[^\w.]+|_", "-", key.lower())[:ROOM]


def draw(tag: str, key: str, runs: list[tuple[str, Run]], path: Path, flags) -> tuple[int, int]:
    """Draw one quantity of the labelled `runs` and print the path, if there is any point to draw.

    Returns:
        The numbers of points that were drawn and that could not be drawn.
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
            smooth=flags.running_mean if tag == "TRAIN" else 0,
            best=better(key) if tag == "VALID" else None,
            log_scale=log_scale,
        )
        print(save(figure, path, show=flags.show))
    else:
        warn(f"no {key} to draw: {path} is not made")
    return int(drawable.sum()), int((~drawable).sum())


def curve(label: str, run: Run, tag: str, key: str, x: str):
    """Return the `Curve` of `key` over the steps, or the epochs, of `run`."""
    import numpy as np

    from lib.figures.curves import Curve

    found = run.validations(key) if tag == "VALID" else run.series(tag, key)
    steps, values = (np.array(numbers, dtype=float) for numbers in found)
    ranks = np.array(ranks_of(run, steps)) if tag == "VALID" else None
    if x == "epoch":
        length = run.steps_per_epoch()
        if not length:
            raise UserError(f"{label} does not tell its epochs: leave out --x epoch")
        steps = steps / length
    return Curve(label, steps, values, ranks)


def ranks_of(run: Run, steps) -> list[float]:
    """Return ranks of validations: of equally good ones, that of [BEST] or of the lowest loss is the best."""
    losses = dict(zip(*run.validations("Valid_loss"), strict=True))
    chosen = run.events["BEST"][-1].get("Step") if run.events.get("BEST") else None
    ranks = [float("inf") if step == chosen else -losses.get(step, float("inf")) for step in steps]
    return [float("-inf") if rank != rank else rank for rank in ranks]  # a loss may be NaN


def better(key: str) -> str | None:
    """Return whether a quantity is better small or large: "min", "max", or None if its name does not say."""
    if LOWER_IS_BETTER.search(key):
        return "min"
    return "max" if HIGHER_IS_BETTER.search(key) else None


if __name__ == "__main__":
    cli.run(main)
