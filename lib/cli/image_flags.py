"""Flags of the scripts that classify images."""

import os
from collections.abc import Iterable, Sequence

from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import integer, names, number, subset_of, windows


def add_dataset_flags(
    parser: Parser,
    dataset_names: Sequence[str],
    default: str,
    choices: Iterable[tuple[str, Sequence[str], str]],
    *,
    own_networks: bool = True,
) -> Group:
    """Add the flags that choose the training images; return their group.

    Args:
        parser: parser to which the flags are added.
        dataset_names: names of the data sets that suit the script.
        default: the data set used if the user names none.
        choices: further choices that data sets offer: flag, values (the first is the default), help.
        own_networks: whether the script takes `--network`, too.
    """
    group = add_source_flags(
        parser,
        dataset_names,
        default,
        "the data set; digits needs no download, folder means your own images in --data-dir",
        "your folder of images, or the folder that data sets are read from and downloaded to",
    )
    add = group.add
    for flag, values, text in choices:
        add(f"--{flag}", choices=values, help=f"{text}; default: {values[0]}")
    add(
        "--valid-fraction",
        type=number(0, 0.9, above=True),
        metavar="X",
        help="with --dataset folder or colour images: validate on this share of the training images; "
        "default: the data set's own validation or test split, or 0.1 if it has none",
    )
    _add_folder_flags(group, own_networks)
    add("--limit", type=integer(1), metavar="N", help="train on a fixed stratified subset of N examples")
    return group


def add_source_flags(
    parser: Parser, dataset_names: Sequence[str], default: str, dataset_help: str, folder_help: str
) -> Group:
    """Add --dataset and --data-dir; return their group, for the flags that divide and choose the examples."""
    group = parser.group("data", Scope.DATA)
    group.add("--dataset", choices=dataset_names, default=default, help=dataset_help)
    group.add("--data-dir", default="data", metavar="DIR", is_path=True, help=folder_help)
    return group


def _add_folder_flags(group: Group, own_networks: bool) -> None:
    add = group.add
    of_own = "; with --network: the names of its classes, in their order, or a file that lists them"
    add(
        "--classes",
        type=names,
        default=(),
        metavar="NAME,…",
        help="with --dataset folder: use only these classes" + of_own * own_networks,
    )
    add(
        "--skip-bad",
        action="store_true",
        scope=Scope.TRAINING,
        help="with --dataset folder: leave out images that cannot be read",
    )
    add(
        "--workers",
        type=integer(0, 64),
        scope=Scope.MACHINE,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="with --dataset folder: number of processes that read images larger than 64 px",
    )


def add_list_models_flag(group: Group) -> None:
    """Add the flag that lists the networks instead of training one."""
    group.add("--list-models", action="store_true", help="print the available networks and exit")


def add_thumbnail_flag(group: Group) -> None:
    """Add the flag that draws the images themselves; `group` is the one that `add_view_flags` returns."""
    group.add("--thumbnails", action="store_true", help="also draw the images at their t-SNE points")


def add_input_flags(parser: Parser, verb: str = "classify") -> None:
    """Add the flags that choose image files for `--predict-only`, instead of the validation split.

    `verb` says what is done with them.
    """
    group = parser.group("your own images, with --predict-only", Scope.MODE, only_with="predict_only")
    group.add("--input", nargs="+", metavar="FILE", help=f"image files to {verb}")
    group.add(
        "--invert",
        action="store_true",
        help="invert the image files, because they are dark on light, which MNIST is not",
    )


def add_augmentation_flags(parser: Parser, *names: str, test_views: bool = True) -> None:
    """Add the flags of `lib.data.augment`.

    Args:
        parser: parser to which the flags are added.
        names: the augmentations that suit the script's images.
        test_views: add `--test-views`, too, for networks that classify.
    """
    add = parser.group("augmentation", Scope.TRAINING).add
    add(
        "--augment",
        type=subset_of(*names),
        metavar="NAME,…",
        help=f"augmentations: some of {', '.join(names)}, or none",
    )
    add(
        "--shift-pixels",
        type=integer(1, 64),
        metavar="N",
        help="largest shift in pixels of the augmentation shift",
    )
    if not test_views:
        return
    add(
        "--test-views",
        type=int,
        choices=(1, 2, 6),
        default=1,
        help="number of views of an image whose outputs are averaged: 2, the image and its mirror image; "
        "6, also both shifted by a pixel in two directions",
    )


def add_window_flag(parser: Parser) -> None:
    """Add `--windows`, for scripts whose networks take images of any size."""
    parser.group("windows", Scope.TRAINING).add(
        "--windows",
        type=windows,
        metavar="X:Y,…",
        help="train on random windows of the images at first, which is faster: windows of X of the side "
        "until Y of the epochs, and so on, then the whole images; or none",
    )
