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
    """Add the flags that choose the training images; return the `add_argument` of their group.

    Args:
        parser: parser to which the flags are added.
        dataset_names: names of the data sets that suit the script.
        default: the data set used if the user names none.
        choices: further choices that data sets offer: flag, values (the first is the default), help.
    """
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        choices=dataset_names,
        default=default,
        help="the data set; digits needs no download, folder means your own images in --data-dir",
    )
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="your folder of images, or the folder that data sets are read from and downloaded to",
    )
    for flag, values, text in choices:
        add(f"--{flag}", choices=values, help=f"{text}; default: {values[0]}")
    add(
        "--classes",
        type=_names,
        default=(),
        metavar="NAME,…",
        help="with --dataset folder: use only these classes",
    )
    add(
        "--valid-fraction",
        type=number(0, 0.9, above=True),
        metavar="X",
        help="with --dataset folder or colour images: validate on this share of the training images; "
        "default: the data set's own validation or test split, or 0.1 if it has none",
    )
    add("--skip-bad", action="store_true", help="with --dataset folder: leave out images that cannot be read")
    add(
        "--workers",
        type=integer(0, 64),
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="with --dataset folder: number of processes that read images larger than 64 px",
    )
    add("--limit", type=integer(1), metavar="N", help="train on a fixed stratified subset of N examples")
    return add


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def add_run_flags(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the flags of every script that trains: mode, checkpoint, device and seed.

    Returns the group of mutually exclusive modes, to which a script can add its own.
    """
    group = parser.add_argument_group("what to do (default: train)")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--eval-only", action="store_true", help="evaluate --restore-file and draw what it learnt"
    )
    what.add_argument("--predict-only", action="store_true", help="write the predictions of --restore-file")
    what.add_argument("--resume", action="store_true", help="continue the run in --checkpoint-dir")
    group.add_argument(
        "--restore-file",
        metavar="FILE",
        help="checkpoint, or bare state_dict of --model, to evaluate, to predict with, or to train from",
    )
    group.add_argument("--out-dir", default="imgs", metavar="DIR", help="folder for pictures")
    group.add_argument("--out-file", metavar="FILE", help="file for predictions; default: standard output")
    group.add_argument("--show", action="store_true", help="open pictures in windows, too")
    add_machine_flags(group)
    group.add_argument(
        "--seed",
        type=integer(0, 2**32 - 1),
        default=42,
        metavar="N",
        help="seed of the initial weights, the order of the examples, and the augmentation",
    )
    return what


def add_machine_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that choose the device and the number of threads."""
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="device to compute on: auto, cpu, cuda, cuda:1, mps"
    )
    group.add_argument(
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        help="number of CPU threads; default: one for small networks, which gain nothing from more, "
        "otherwise one per core",
    )


def add_view_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of the figures that `--eval-only` draws, and return their group."""
    group = parser.add_argument_group("looking inside, with --eval-only")
    add = group.add_argument
    add(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="layers whose features are embedded; default: the model's stages",
    )
    add(
        "--samples",
        type=integer(2),
        default=1000,
        metavar="N",
        help="number of examples to embed, stratified, with at least 16 per class",
    )
    add("--dims", type=int, choices=(2, 3), default=2, help="number of dimensions of the embeddings")
    add(
        "--perplexity",
        type=number(0, above=True),
        metavar="X",
        help="perplexity of t-SNE; default: 30, or a third of the samples if there are fewer than 90",
    )
    add("--projector", metavar="DIR", help="also write files for TensorBoard's embedding projector")
    return group


def add_network_option_flags(
    parser: argparse.ArgumentParser, options: Iterable[tuple[tuple[str, str, str, float], Sequence[str]]]
) -> None:
    """Add a flag for each option of the script's networks.

    Args:
        parser: parser to which the flags are added.
        options: each a `lib.models.Option`, and the names of the networks that have it.
    """
    add = parser.add_argument_group("options of networks").add_argument
    for (name, kind, text, most), networks in options:
        kinds: dict[str, dict[str, Any]] = {
            "count": {"type": integer(1, int(most)), "metavar": "N"},
            "share": {"type": number(0, most), "metavar": "X"},
            "switch": {"action": "store_true"},
        }
        add(f"--{name}", help=f"{', '.join(networks)}: {text}", **kinds[kind])


def add_list_models_flag(group: argparse._MutuallyExclusiveGroup) -> None:
    """Add the flag that lists the networks instead of training one."""
    group.add_argument("--list-models", action="store_true", help="print the available networks and exit")


def add_thumbnail_flag(group: argparse._ArgumentGroup) -> None:
    """Add the flag that draws the images themselves; `group` is the one that `add_view_flags` returns."""
    group.add_argument("--thumbnails", action="store_true", help="also draw the images at their t-SNE points")


def add_input_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose image files for `--predict-only`, instead of the validation split."""
    group = parser.add_argument_group("your own images, with --predict-only")
    group.add_argument("--input", nargs="+", metavar="FILE", help="image files to classify")
    group.add_argument(
        "--invert",
        action="store_true",
        help="invert the image files, because they are dark on light, which MNIST is not",
    )


def add_explanation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the scripts that explain image classifiers: networks, images, classes, and outputs."""
    group = parser.add_argument_group("network")
    add = group.add_mutually_exclusive_group().add_argument
    add(
        "--ptm", metavar="NAME", help="a pretrained classifier of torchvision, e.g. resnet18, vgg16, vit_b_16"
    )
    add(
        "--restore-file",
        nargs="+",
        metavar="FILE",
        help="one or more checkpoints of image classifiers, e.g. of several epochs",
    )
    group.add_argument(
        "--weights",
        metavar="WHICH",
        help="weights of --ptm: torchvision's name, e.g. IMAGENET1K_V1, a file with a state_dict, or random; "
        "default: torchvision's own, downloaded on first use",
    )
    add_machine_flags(group)
    add = parser.add_argument_group("images").add_argument
    add("--input", nargs="+", metavar="IMAGE", help="image files, or validation examples such as digits:7")
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="folder of data sets such as MNIST/raw/…; missing ones are downloaded",
    )
    add(
        "--invert",
        action="store_true",
        help="invert image files, because they are dark on light, which MNIST is not",
    )
    add = parser.add_argument_group("what is explained").add_argument
    add(
        "-k",
        "--top-k",
        type=integer(1),
        default=3,
        metavar="N",
        help="explain the N most probable classes of each image",
    )
    add("--target", nargs="+", metavar="CLASS", help="explain these classes instead, given by name or number")
    add(
        "--score",
        choices=("logit", "log-odds", "probability"),
        default="logit",
        help="the score of a class that is explained",
    )
    seeds = integer(0, 2**32 - 1)
    add("--seed", type=seeds, default=42, metavar="N", help="seed of random weights and of noise")
    add = parser.add_argument_group("output").add_argument
    add("--out-dir", default="imgs", metavar="DIR", help="folder for pictures")
    add("--save-values", metavar="FILE.npz", help="save the arrays behind the picture as they were computed")
    add("--json", metavar="FILE", help="also write the numbers of the panels as JSON records")
    add("--show", action="store_true", help="open pictures in windows, too")


def check_needs(typed: Mapping, needs: Mapping[str, str]) -> None:
    """Raise a UserError if a flag was typed without the flag that it needs."""
    for name, needed in needs.items():
        if name in typed and needed not in typed:
            raise UserError(f"--{name.replace('_', '-')} goes with --{needed.replace('_', '-')} alone")


def add_smoothing_flags(parser: argparse.ArgumentParser, of_what: str) -> None:
    """Add the flags of SmoothGrad, which averages a map over noisy images."""
    add = parser.add_argument_group("smoothing").add_argument
    add("--smooth", type=integer(1), metavar="N", help=f"average {of_what} over N noisy images (SmoothGrad)")
    add(
        "--noise",
        type=number(0, above=True),
        default=0.15,
        metavar="X",
        help="standard deviation of the noise, as a share of the image's range",
    )


def describe_recipes(recipes: Mapping[str, Mapping]) -> str:
    """Return the recipes as text for the end of a script's `--help`, each as one would type it."""
    lines = [
        f"  {name}: "
        + " ".join(_as_flag(flag, value) for flag, value in recipe.items() if value not in (None, ()))
        for name, recipe in recipes.items()
    ]
    return "\n".join(
        [
            "recipes:",
            *(textwrap.fill(line, 108, subsequent_indent="    ", break_on_hyphens=False) for line in lines),
        ]
    )


def _as_flag(name: str, value: Any) -> str:
    spelled = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{spelled}" if value else f"--no-{spelled}"
    return f"--{spelled} {as_typed(value)}"


def add_training_flags(
    parser: argparse.ArgumentParser, recipe: str, optimizers: Sequence[str] = OPTIMIZERS
) -> None:
    """Add the flags of `lib.training.optimisation.Settings`, and those of the checkpoints.

    Args:
        parser: parser to which the flags are added.
        recipe: source of the defaults of flags that show none, for the heading of the group.
        optimizers: names of the optimizers that suit the script's networks.
    """
    group = parser.add_argument_group(f"training ({recipe} where no default is shown)")
    add = group.add_argument
    add("-bs", "--batch-size", type=integer(1), metavar="N", help="examples per update, over all ranks")
    add(
        "-lr",
        "--learning-rate",
        type=number(0, above=True),
        metavar="X",
        help="the highest learning rate of the schedule",
    )
    add("--max-epoch", type=integer(1), metavar="N", help="number of passes over the training split")
    add("--max-update", type=integer(1), metavar="N", help="stop after N updates")
    also = ", muon" if "muon" in optimizers else ""
    add(
        "--optimizer",
        choices=optimizers,
        help=f"the optimizer{'; muon is meant for convolutions' if also else ''}",
    )
    add("--schedule", choices=("one-cycle", "constant"), help="schedule of the learning rate")
    add(
        "--warmup",
        type=number(0, 1),
        metavar="X",
        help="share of the one-cycle schedule in which the rate rises",
    )
    add(
        "--weight-decay",
        type=number(0),
        metavar="X",
        help="weight decay, except of biases and normalisation layers",
    )
    add("--momentum", type=number(0, 1), default=0.9, metavar="X", help=f"momentum of sgd{also}")
    add(
        "--beta2",
        type=number(0, 0.999999),
        default=0.999,
        metavar="X",
        help=f"second beta of adam, adamw{also}",
    )
    add("--clip-norm", type=number(0, above=True), metavar="X", help="clip the gradient to this norm")
    add(
        "--label-smoothing",
        type=number(0, 0.99),
        metavar="X",
        help="share of each target that is spread over all classes",
    )
    add(
        "--ema",
        type=number(0, 1),
        metavar="X",
        help="evaluate an exponential moving average of the weights with this decay per update, e.g. 0.999",
    )
    add("--patience", type=integer(1), metavar="N", help="stop after N validations without improvement")
    add(
        "--log-interval",
        type=integer(1),
        default=100,
        metavar="N",
        help="number of updates between [TRAIN] lines",
    )
    add(
        "--validate-interval-updates",
        type=integer(1),
        metavar="N",
        help="validate and save every N updates instead of every epoch",
    )
    add(
        "--save-epochs",
        type=_integers,
        default=(),
        metavar="N,N",
        help="keep the checkpoints of these epochs",
    )
    add("--amp", action="store_true", help="compute in bfloat16 by autocast")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add(
        "--checkpoint-dir",
        metavar="DIR",
        help="folder of the run's checkpoints; default: ckpts/MODEL, or ckpts/MODEL-DATASET if --dataset is "
        "not the default; --resume takes the newest of these",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the run in --checkpoint-dir even if it used another network or other data",
    )
    add("--tensorboard", metavar="DIR", help="also write the numbers of the log for TensorBoard")


def add_augmentation_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of `lib.data.augment`; `names` are the augmentations that suit the script's images."""
    add = parser.add_argument_group("augmentation").add_argument
    add(
        "--augment",
        type=names_of(*names),
        metavar="NAME,…",
        help=f"augmentations: some of {', '.join(names)}, or none",
    )
    add(
        "--shift-pixels",
        type=integer(1, 64),
        metavar="N",
        help="largest shift in pixels of the augmentation shift",
    )
    add(
        "--test-views",
        type=int,
        choices=(1, 2, 6),
        default=1,
        help="number of views of an image whose outputs are averaged: 2, the image and its mirror image; "
        "6, also both shifted by a pixel in two directions",
    )


def add_window_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--windows`, for scripts whose networks take images of any size."""
    parser.add_argument_group("windows").add_argument(
        "--windows",
        type=_windows,
        metavar="X:Y,…",
        help="train on random windows of the images at first, which is faster: windows of X of the side "
        "until Y of the epochs, and so on, then the whole images; or none",
    )


def _windows(text: str) -> tuple[tuple[float, float], ...]:
    """Flag type: `SHARE:UNTIL,…`, shares of the side and of the epochs; empty or `none` for none."""
    share = number(0, 1, above=True)
    parts = [part for part in text.split(",") if part and part != "none"]
    numbers = [tuple(map(share, part.split(":"))) for part in parts]
    if any(len(each) != 2 for each in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHARE:UNTIL,… such as 0.75:0.6, or none")
    windows = tuple((side, until) for side, until in numbers)
    ends = [until for _, until in windows]
    if any(end <= previous for previous, end in itertools.pairwise(ends)):
        raise argparse.ArgumentTypeError(f"{text!r}: each window must last longer than the one before it")
    return windows


def _integers(text: str) -> tuple[int, ...]:
    return tuple(integer(1)(part) for part in text.split(","))
