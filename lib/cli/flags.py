"""Groups of flags that several scripts share."""

import argparse
import itertools
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lib.cli.parser import integer, names_of, number
from lib.runtime.errors import UserError
from lib.runtime.spelling import as_typed

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")


def add_dataset_flags(
    parser: argparse.ArgumentParser,
    dataset_names: Sequence[str],
    default: str,
    choices: Iterable[tuple[str, Sequence[str], str]],
) -> Callable[..., argparse.Action]:
    """Flags of which images to learn from; returns what adds a script's own flags to their group.

    Args:
        parser: gets the flags.
        dataset_names: the data sets that suit the script.
        default: the one that it takes where the user names none.
        choices: what else one can say of them: flag, values (the first is the default), help.
    """
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        choices=dataset_names,
        default=default,
        help="digits needs no download; folder is your own",
    )
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="the folder of images, or the one that data sets are downloaded to",
    )
    for flag, values, text in choices:
        add(f"--{flag}", choices=values, help=f"{text}; default: {values[0]}")
    add("--classes", type=_names, default=(), metavar="NAME,…", help="of a folder: only these classes")
    add(
        "--valid-fraction",
        type=number(0, 0.9, above=True),
        metavar="X",
        help="of a folder, or of colour images: validate on this share of the training images; "
        "default: on the split there is for it, or 0.1",
    )
    add("--skip-bad", action="store_true", help="of a folder: leave out images that cannot be read")
    add(
        "--workers",
        type=integer(0, 64),
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="of a folder: processes that read images above 64 px",
    )
    add("--limit", type=integer(1), metavar="N", help="train on a fixed stratified subset of so many")
    return add


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_run_flags(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Flags of every script that trains: what to do, with which checkpoint, on which device.

    Returns the group of what to do, for what a script can do besides.
    """
    group = parser.add_argument_group("what to do (default: train)")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--eval-only", action="store_true", help="evaluate --restore-file and look inside it")
    what.add_argument("--predict-only", action="store_true", help="write the predictions of --restore-file")
    what.add_argument("--resume", action="store_true", help="go on with the run in --checkpoint-dir")
    group.add_argument(
        "--restore-file",
        metavar="FILE",
        help="checkpoint, or bare state_dict of --model, to evaluate, predict with, or start training from",
    )
    group.add_argument("--out-dir", default="imgs", metavar="DIR", help="folder for pictures")
    group.add_argument("--out-file", metavar="FILE", help="file for predictions; standard output by default")
    group.add_argument("--show", action="store_true", help="open pictures in windows, too")
    add_machine_flags(group)
    group.add_argument(
        "--seed",
        type=integer(0, 2**32 - 1),
        default=42,
        metavar="N",
        help="of weights, order and augmentation",
    )
    return what


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    """Flags of what to compute on, of every script that computes."""
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    group.add_argument(
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        help="compute with N threads on the CPU; default: one for small networks, which gain nothing from "
        "more, and one for each core otherwise",
    )


def add_view_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of what `--eval-only` draws of a classifier's features; returns their group."""
    group = parser.add_argument_group("looking inside, with --eval-only")
    add = group.add_argument
    add("--layers", nargs="+", metavar="LAYER", help="whose features to embed; default: the model's stages")
    add(
        "--samples",
        type=integer(2),
        default=1000,
        metavar="N",
        help="examples to embed, stratified, 16 a class or more",
    )
    add("--dims", type=int, choices=(2, 3), default=2, help="of the embeddings")
    add(
        "--perplexity",
        type=number(0, above=True),
        metavar="X",
        help="of t-SNE; default: 30, or a third of fewer than 90 samples",
    )
    add("--projector", metavar="DIR", help="write the files of TensorBoard's embedding projector, too")
    return group


def add_network_option_flags(
    parser: argparse.ArgumentParser, options: Iterable[tuple[tuple[str, str, str, float], Sequence[str]]]
) -> None:
    """A flag for each option of the script's networks: `lib.models.Option`, and the networks that have it."""
    add = parser.add_argument_group("options of networks").add_argument
    for (name, kind, text, most), networks in options:
        kinds: dict[str, dict[str, Any]] = {
            "count": {"type": integer(1, int(most)), "metavar": "N"},
            "share": {"type": number(0, most), "metavar": "X"},
            "switch": {"action": "store_true"},
        }
        add(f"--{name}", help=f"{', '.join(networks)}: {text}", **kinds[kind])


def add_list_models_flag(group: argparse._MutuallyExclusiveGroup) -> None:
    """The flag that lists networks instead of training one."""
    group.add_argument("--list-models", action="store_true", help="print the networks there are, and end")


def add_thumbnail_flag(group: argparse._ArgumentGroup) -> None:
    """The flag of views whose examples are images; `group` is that of `add_view_flags`."""
    group.add_argument("--thumbnails", action="store_true", help="draw the images at their t-SNE points, too")


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of what `--predict-only` reads instead of the validation split."""
    group = parser.add_argument_group("images of one's own, with --predict-only")
    group.add_argument("--input", nargs="+", metavar="FILE", help="image files")
    group.add_argument("--invert", action="store_true", help="they are dark on light; MNIST is not")


def add_explanation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every script that explains answers about images: whose, about what, and where it goes."""
    group = parser.add_argument_group("network")
    add = group.add_mutually_exclusive_group().add_argument
    add("--ptm", metavar="NAME", help="a classifier of torchvision's, e.g. resnet18, vgg16, vit_b_16")
    add(
        "--restore-file",
        nargs="+",
        metavar="FILE",
        help="checkpoints of image classifiers, one or more epochs",
    )
    group.add_argument(
        "--weights",
        metavar="WHICH",
        help="of --ptm: torchvision's name such as IMAGENET1K_V1, a file of a state_dict, or random; "
        "default: torchvision's, fetched on first use",
    )
    add_machine_flags(group)
    add = parser.add_argument_group("images").add_argument
    add("--input", nargs="+", metavar="IMAGE", help="image files, or validation examples such as digits:7")
    add("--data-dir", default="data", metavar="DIR", help="holds MNIST/raw/…; downloaded where missing")
    add("--invert", action="store_true", help="image files are dark on light; MNIST is not")
    add = parser.add_argument_group("what is explained").add_argument
    add("-k", "--top-k", type=integer(1), default=3, metavar="N", help="the likeliest classes of each image")
    add("--target", nargs="+", metavar="CLASS", help="these classes instead, by name or number")
    add("--score", choices=("logit", "log-odds", "probability"), default="logit", help="of a class")
    seeds = integer(0, 2**32 - 1)
    add("--seed", type=seeds, default=42, metavar="N", help="of random weights and of noise")
    add = parser.add_argument_group("where it goes").add_argument
    add("--out-dir", default="imgs", metavar="DIR", help="folder for pictures")
    add("--save-values", metavar="FILE.npz", help="keep the arrays behind the picture, as they are")
    add("--json", metavar="FILE", help="write the numbers of the panels as records, too")
    add("--show", action="store_true", help="open pictures in windows, too")


def check_needs(typed: Mapping, needs: Mapping[str, str]) -> None:
    """Raise a UserError if a flag was typed without the one that it `needs` to mean something."""
    for name, needed in needs.items():
        if name in typed and needed not in typed:
            raise UserError(f"--{name.replace('_', '-')} goes with --{needed.replace('_', '-')} alone")


def add_smoothing_flags(parser: argparse.ArgumentParser, of_what: str) -> None:
    """Flags of SmoothGrad, which averages a map over noisy images."""
    add = parser.add_argument_group("smoothing").add_argument
    add("--smooth", type=integer(1), metavar="N", help=f"average {of_what} over N noisy images (SmoothGrad)")
    add(
        "--noise",
        type=number(0, above=True),
        default=0.15,
        metavar="X",
        help="its standard deviation, as a share of the image's range",
    )


def describe_recipes(recipes: Mapping[str, Mapping]) -> str:
    """Return, for the end of a script's `--help`, what each recipe sets, as one would type it."""

    lines = [
        f"  {name}: "
        + " ".join(
            f"--{flag.replace('_', '-')} {as_typed(value)}"
            for flag, value in recipe.items()
            if value not in (None, ())
        )
        for name, recipe in recipes.items()
    ]
    return "\n".join(
        [
            "recipes:",
            *(textwrap.fill(line, 108, subsequent_indent="    ", break_on_hyphens=False) for line in lines),
        ]
    )


def add_training_flags(
    parser: argparse.ArgumentParser, recipe: str, optimizers: Sequence[str] = OPTIMIZERS
) -> None:
    """Flags of `lib.training.optimisation.Settings`, and of where checkpoints go.

    Args:
        parser: gets the flags.
        recipe: says where the default of a flag that has none of its own comes from.
        optimizers: those that suit the script's networks.
    """
    group = parser.add_argument_group(f"training ({recipe} where no default is shown)")
    add = group.add_argument
    add("-bs", "--batch-size", type=integer(1), metavar="N", help="examples an update, over all ranks")
    add("-lr", "--learning-rate", type=number(0, above=True), metavar="X", help="the highest of the schedule")
    add("--max-epoch", type=integer(1), metavar="N", help="passes over the training split")
    add("--max-update", type=integer(1), metavar="N", help="stop after so many updates")
    also = ", muon" if "muon" in optimizers else ""
    add("--optimizer", choices=optimizers, help="muon is for convolutions" if also else None)
    add("--schedule", choices=("one-cycle", "constant"), help="of the learning rate")
    add("--warmup", type=number(0, 1), metavar="X", help="share of a one-cycle in which the rate rises")
    add("--weight-decay", type=number(0), metavar="X", help="not on biases and norms")
    add("--momentum", type=number(0, 1), default=0.9, metavar="X", help=f"of sgd{also}")
    add("--beta2", type=number(0, 0.999999), default=0.999, metavar="X", help=f"of adam, adamw{also}")
    add("--clip-norm", type=number(0, above=True), metavar="X", help="clip the gradient to this norm")
    add(
        "--label-smoothing",
        type=number(0, 0.99),
        metavar="X",
        help="share of a target spread over all classes",
    )
    add(
        "--ema",
        type=number(0, 1),
        metavar="X",
        help="evaluate averaged weights; the decay an update, e.g. 0.999",
    )
    add(
        "--patience", type=integer(1), metavar="N", help="stop after so many validations without a better one"
    )
    add("--log-interval", type=integer(1), default=100, metavar="N", help="updates between [TRAIN] lines")
    add(
        "--validate-interval-updates",
        type=integer(1),
        metavar="N",
        help="validate and save every N updates instead of every epoch",
    )
    add("--save-epochs", type=_integers, default=(), metavar="N,N", help="keep the checkpoints of these")
    add("--amp", action="store_true", help="bf16 autocast")
    add("--compile", action="store_true", help="torch.compile the network")
    add(
        "--checkpoint-dir",
        metavar="DIR",
        help="folder of the run's checkpoints; default: ckpts/MODEL, or ckpts/MODEL-DATASET if --dataset is "
        "another than usual; --resume takes the newest of these",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the run in --checkpoint-dir although it is one of another network or of other data",
    )
    add("--tensorboard", metavar="DIR", help="write the numbers of the log for TensorBoard, too")


def add_augmentation_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Flags of `lib.data.augment`; `names` are those of it that suit the script's images."""
    add = parser.add_argument_group("augmentation").add_argument
    add("--augment", type=names_of(*names), metavar="NAME,…", help=f"some of {', '.join(names)}, or none")
    add("--shift-pixels", type=integer(1, 64), metavar="N", help="how far shift goes")
    add(
        "--test-views",
        type=int,
        choices=(1, 2, 6),
        default=1,
        help="whose mean is the answer: 2, an image and its mirror image; 6, both moved by a pixel, too",
    )


def add_window_flag(parser: argparse.ArgumentParser) -> None:
    """The flag of runs that begin with parts of the images, of scripts whose networks take any size."""
    parser.add_argument_group("windows").add_argument(
        "--windows",
        type=_windows,
        metavar="X:Y,…",
        help="begin with random windows of the images, which is faster: of X of their side up to Y of the "
        "epochs, and so on, and then the whole images; or none",
    )


def _windows(text: str) -> tuple[tuple[float, float], ...]:
    """A flag type: `SHARE:UNTIL,…`, of the side and of the epochs; empty or `none` for none."""
    share = number(0, 1, above=True)
    parts = [part for part in text.split(",") if part and part != "none"]
    windows = tuple(tuple(map(share, part.split(":"))) for part in parts)
    if any(len(window) != 2 for window in windows):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHARE:UNTIL,… such as 0.75:0.6, or none")
    ends = [until for _, until in windows]
    if any(end <= previous for previous, end in itertools.pairwise(ends)):
        raise argparse.ArgumentTypeError(f"{text!r}: each window must last longer than the one before it")
    return windows


def _integers(text: str) -> tuple[int, ...]:
    return tuple(integer(1)(part) for part in text.split(","))
