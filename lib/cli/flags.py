"""Flags of every script that trains, and those that all scripts share."""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from lib.cli.parser import Group, Parser
from lib.cli.scope import Scope
from lib.cli.types import integer, integers, number
from lib.runtime.spelling import as_typed

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")


def add_run_flags(parser: Parser) -> Group:
    """Add the flags of every script that trains: mode, checkpoint, device and seed.

    Returns the group of mutually exclusive modes, to which a script can add its own.
    """
    group = parser.group("what to do (default: train)", Scope.MODE)
    what = group.one_of()
    what.add("--eval-only", action="store_true", help="evaluate --restore-file and draw what it learnt")
    what.add("--predict-only", action="store_true", help="write the predictions of --restore-file")
    what.add("--resume", action="store_true", help="continue the run in --checkpoint-dir")
    group.add(
        "--restore-file",
        metavar="FILE",
        help="checkpoint, or bare state_dict of --model, to evaluate, to predict with, or to train from",
    )
    group.add("--out-dir", default="imgs", metavar="DIR", scope=Scope.MACHINE, help="folder for pictures")
    group.add(
        "--out-file",
        metavar="FILE",
        only_with="predict_only",
        help="file for predictions; default: standard output",
    )
    group.add("--show", action="store_true", help="open pictures in windows, too")
    add_machine_flags(group)
    add_config_flags(group)
    group.add(
        "--seed",
        type=integer(0, 2**32 - 1),
        default=42,
        metavar="N",
        scope=Scope.TRAINING,
        fixed=True,
        help="seed of the initial weights, the order of the examples, and the augmentation",
    )
    return what


def add_machine_flags(group: Group) -> None:
    """Add the flags that choose the device and the number of threads."""
    group.add(
        "--device",
        default="auto",
        metavar="NAME",
        scope=Scope.MACHINE,
        help="device to compute on: auto, cpu, cuda, cuda:1, mps",
    )
    group.add(
        "--threads",
        type=integer(1, 1024),
        metavar="N",
        scope=Scope.MACHINE,
        kept_for_resume=True,
        help="number of CPU threads; default: one for small networks, which gain nothing from more, "
        "otherwise one per core",
    )


def add_config_flags(group: Group) -> None:
    """Add the flags that read flags from a file and write them to one."""
    group.add(
        "--config",
        metavar="FILE",
        scope=Scope.MACHINE,
        help="a TOML file of flags, e.g. max-epoch = 5; typed flags go before it",
    )
    group.add(
        "--save-config",
        metavar="FILE",
        scope=Scope.MACHINE,
        help="also write the flags of this run as a file for --config",
    )


class NetworkOption(Protocol):
    """A setting of networks; `lib.models.Option` is one."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def least(self) -> int: ...
    @property
    def most(self) -> float: ...
    @property
    def values(self) -> Sequence[str]: ...


def add_network_option_flags(parser: Parser, options: Iterable[tuple[NetworkOption, Sequence[str]]]) -> None:
    """Add a flag for each option of the script's networks.

    Args:
        parser: parser to which the flags are added.
        options: each with the names of the networks that have it.
    """
    add = parser.group("options of networks", Scope.NETWORK).add
    for option, networks in options:
        kinds: dict[str, dict[str, Any]] = {
            "count": {"type": integer(option.least, int(option.most)), "metavar": "N"},
            "share": {"type": number(0, option.most), "metavar": "X"},
            "switch": {"action": argparse.BooleanOptionalAction},
            "choice": {"choices": option.values},
        }
        flag = f"--{option.name.replace('_', '-')}"
        add(flag, help=f"{', '.join(networks)}: {option.help}", **kinds[option.kind])


def add_view_flags(parser: Parser) -> Group:
    """Add the flags of the figures that `--eval-only` draws, and return their group."""
    group = parser.group("looking inside, with --eval-only", Scope.MODE, only_with="eval_only")
    add = group.add
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
    parser: Parser,
    recipe: str,
    optimizers: Sequence[str] = OPTIMIZERS,
    *,
    label_smoothing: bool = True,
) -> None:
    """Add the flags of `lib.training.optimisation.Settings`, and those of the checkpoints.

    Args:
        parser: parser to which the flags are added.
        recipe: source of the defaults of flags that show none, for the heading of the group.
        optimizers: names of the optimizers that suit the script's networks.
        label_smoothing: add `--label-smoothing`, for networks that classify.
    """
    group = parser.group(f"training ({recipe} where no default is shown)", Scope.TRAINING)
    _add_optimisation_flags(group, optimizers)
    add = group.add
    if label_smoothing:
        add(
            "--label-smoothing",
            type=number(0, 0.99),
            metavar="X",
            help="share of each target that is spread over all classes",
        )
    add(
        "--ema",
        fixed=True,
        type=number(0, 1),
        metavar="X",
        help="evaluate an exponential moving average of the weights with this decay per update, e.g. 0.999",
    )
    add("--patience", type=integer(1), metavar="N", help="stop after N validations without improvement")
    add("--amp", action="store_true", help="compute in bfloat16 by autocast")
    add(
        "--compile",
        action="store_true",
        scope=Scope.MACHINE,
        help="compile the network with torch.compile",
    )
    _add_checkpoint_flags(parser.group("checkpoints and log", Scope.TRAINING))


def _add_optimisation_flags(group: Group, optimizers: Sequence[str]) -> None:
    add = group.add
    add(
        "-bs",
        "--batch-size",
        type=integer(1),
        metavar="N",
        fixed=True,
        help="examples per update, over all ranks",
    )
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
        fixed=True,
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


def _add_checkpoint_flags(group: Group) -> None:
    add = group.add
    add(
        "--log-interval",
        scope=Scope.MACHINE,
        type=integer(1),
        metavar="N",
        help="log every N updates and at every validation, and list every layer; default: as many lines as "
        "fit a screen, of the same numbers",
    )
    add(
        "--validate-interval-updates",
        type=integer(1),
        metavar="N",
        help="validate and save every N updates instead of every epoch",
    )
    add(
        "--save-epochs",
        type=integers,
        default=(),
        metavar="N,N",
        help="keep the checkpoints of these epochs",
    )
    add(
        "--checkpoint-dir",
        scope=Scope.MACHINE,
        metavar="DIR",
        help="folder of the run's checkpoints; default: ckpts/MODEL, or ckpts/MODEL-DATASET if --dataset is "
        "not the default; --resume takes the newest of these",
    )
    add(
        "--overwrite",
        action="store_true",
        scope=Scope.MACHINE,
        help="replace the run in --checkpoint-dir even if it used another network or other data",
    )
    add(
        "--tensorboard",
        metavar="DIR",
        scope=Scope.MACHINE,
        help="also write the numbers of the log for TensorBoard",
    )
