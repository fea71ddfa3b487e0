"""Flags of the script that trains autoencoders."""

from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import box, integer, names, number, numbers


def add_reconstruction_data_flags(group: Group) -> None:
    """Add the flags that choose the images of an autoencoder to the group of the data."""
    group.add(
        "--holdout",
        type=integer(0),
        default=0,
        metavar="N",
        help="with grey data sets: validate on N training images, and use the test split once, at the end",
    )
    group.add(
        "--valid-classes",
        type=names,
        default=(),
        metavar="NAME,…",
        help="with --dataset faces: validate on these folders, e.g. on people that training never sees; "
        "default: a tenth of the images",
    )
    group.add(
        "--binarise",
        choices=("none", "static", "dynamic"),
        default="none",
        help="draw black and white pixels with the probabilities of the grey ones, once or in every epoch; "
        "figures of one choice are not comparable with those of another",
    )


def add_variational_flags(parser: Parser) -> None:
    """Add the flags of `lib.training.variational.VariationalSettings`."""
    add = parser.group("loss of the autoencoder", Scope.TRAINING).add
    add("--beta", type=number(0), default=1.0, metavar="X", help="weight of the KL term; 0: an autoencoder")
    add(
        "--free-bits",
        type=number(0),
        default=0.0,
        metavar="X",
        help="KL in nats that each latent unit has for free, e.g. 0.1, against posterior collapse",
    )
    add(
        "--iwae",
        type=integer(1, 1000),
        default=1,
        metavar="K",
        help="train on the importance-weighted bound with K latent vectors per image",
    )
    add(
        "--noise",
        choices=("none", "gaussian", "mask"),
        help="dvae: noise of the images that the encoder is shown in training",
    )
    add(
        "--noise-level",
        type=number(0, 10),
        default=0.5,
        metavar="X",
        help="dvae: standard deviation of the noise, or share of the pixels that the mask blackens",
    )
    add(
        "--augmented-share",
        type=number(0, 1),
        metavar="X",
        help="share of the images that --augment changes; the bound is that of images left as they are",
    )
    add(
        "--gamma",
        type=number(0),
        default=1.0,
        metavar="X",
        help="vae-gan: weight of the feature matching in the loss of the decoder",
    )


def add_latent_view_flags(group: Group) -> None:
    """Add the flags of the pictures of an autoencoder to the group that `add_view_flags` returns."""
    add = group.add
    add(
        "--interpolate",
        nargs=2,
        metavar=("A", "B"),
        help="two classes, by name, or two images, each a number in the validation split (index:3 where 3 is "
        "the name of a class) or a file; default: the first two images of the validation split",
    )
    add(
        "--alphas",
        type=numbers,
        metavar="X,…",
        help="weights of A in the interpolation: 1 is A, 0 is B; default: nine from 1 to 0",
    )
    add(
        "--impute",
        type=box,
        metavar="Y0,X0,Y1,X1",
        help="hide the pixels of rows Y0 to Y1 - 1 and columns X0 to X1 - 1, and fill them in",
    )
    add(
        "--importance-samples",
        type=integer(1, 100_000),
        metavar="N",
        help="also estimate the importance-weighted bound with N latent vectors per image",
    )
