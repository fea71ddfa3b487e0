"""Flags of the script that segments images."""

from collections.abc import Sequence

from lib.cli.image_flags import add_source_flags
from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import integer, names, number, subset_of


def add_masked_set_flags(parser: Parser, dataset_names: Sequence[str], default: str) -> Group:
    """Add the flags that choose the images and masks; return their group.

    Args:
        parser: parser to which the flags are added.
        dataset_names: names of the data sets.
        default: the data set used if the user names none.
    """
    group = add_source_flags(
        parser,
        dataset_names,
        default,
        "the data set; shapes are made on the fly, folder means your own images and masks in --data-dir",
        "your folder with images/ and masks/ of the same names (or train/images/, train/masks/, …), or the "
        "folder that data sets are read from",
    )
    add = group.add
    add(
        "--valid-fraction",
        type=number(0, 0.9, above=True),
        metavar="X",
        help="with --dataset folder: validate on this share of the training images; default: 0.1",
    )
    add(
        "--classes",
        type=names,
        default=(),
        metavar="NAME,…",
        help="with --dataset folder: names of the labels 0, 1, …; default: those in classes.txt, or numbers",
    )
    add(
        "--ignore-index",
        type=integer(0, 255),
        metavar="N",
        help="label of the pixels that have no class; default: the data set's own (camvid 11, otherwise 255)",
    )
    add("--limit", type=integer(1), metavar="N", help="train on a fixed random subset of N images")
    return group


def add_segmentation_flags(parser: Parser, augmentations: Sequence[str]) -> None:
    """Add the flags of the loss and of the joint augmentation of images and masks."""
    add = parser.group("loss and augmentation", Scope.TRAINING).add
    add(
        "--class-weights",
        choices=("none", "median-frequency", "log"),
        help="weights of the classes in the loss: by their frequency, or by its logarithm, which differ less",
    )
    add(
        "--iou-loss",
        type=number(0),
        metavar="X",
        help="weight of a loss of the mean IoU that is added to the cross-entropy",
    )
    add(
        "--augment",
        type=subset_of(*augmentations),
        metavar="NAME,…",
        help=f"augmentations: some of {', '.join(augmentations)}, or none",
    )
    add(
        "--window",
        type=number(0, 1, above=True),
        metavar="X",
        help="side of the windows that training sees, as a share of that of the images",
    )
    add(
        "--test-views",
        type=int,
        choices=(1, 2),
        help="number of views of an image whose answers are averaged: 2, the image and its mirror image",
    )


def add_segmented_input_flags(parser: Parser) -> None:
    """Add the flags of `--predict-only`, and how many pictures `--eval-only` draws."""
    group = parser.group("your own images, with --predict-only", Scope.MODE, only_with="predict_only")
    group.add(
        "--input", nargs="+", metavar="FILE", help="image files to segment; default: the validation split"
    )
    views = parser.group("looking inside, with --eval-only", Scope.MODE, only_with="eval_only")
    views.add(
        "--pictures",
        type=integer(1, 64),
        default=6,
        metavar="N",
        help="number of images that are drawn with truth, prediction and error",
    )
