#!/usr/bin/env python3
"""Classify handwritten digits (or clothes, or Kuzushiji) with a small network, and look inside it.

run-mnist-classification.py --dataset digits                     train on digits, without a download
run-mnist-classification.py | tee -a logs/mnist.log              train on MNIST and keep the log
run-mnist-classification.py --resume                             continue a run that was stopped
run-mnist-classification.py --eval-only --restore-file CKPT      evaluate, and draw what the network learnt
run-mnist-classification.py --predict-only --restore-file CKPT   write its predictions
torchrun --nproc-per-node 2 run-mnist-classification.py …        train on several devices
"""

from lib import cli, models
from lib.data import datasets

TASK = "image-classification"
DATASETS = datasets.names(channels=1)

# The best training settings found for each model on held-out training examples. Typed flags override them.
PLAIN = {
    "batch_size": 128,
    "max_epoch": 10,
    "optimizer": "adamw",
    "schedule": "one-cycle",
    "warmup": 0.2,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
    "augment": (),
    "shift_pixels": 2,
}
ROWS = PLAIN | {"learning_rate": 0.002, "max_epoch": 5, "clip_norm": 1.0, "hidden": 256, "depth": 1}
RECIPES = {
    "mnist-classifier": PLAIN | {"learning_rate": 0.03, "shift_pixels": 1},
    "lenet5": PLAIN | {"learning_rate": 0.004},
    "deep-cnn": PLAIN
    | {
        "learning_rate": 0.007,
        "weight_decay": 0.05,
        "label_smoothing": 0.05,
        "ema": 0.99,
        "augment": ("shift", "rotate", "scale"),
    },
    "row-rnn": ROWS,
    "row-lstm": ROWS,
    "row-gru": ROWS,
}
ON_DIGITS = {
    "batch_size": 32,
    "learning_rate": 0.01,
    "max_epoch": 100,
    "augment": ("shift",),
    "shift_pixels": 2,
}

OPTIONS = models.options(tuple(RECIPES))
STRUCTURAL = ("model", "size", "mean", "std", *OPTIONS)


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-mnist-classification.py",
        description=__doc__,
        epilog=cli.describe_recipes(RECIPES | {"with --dataset digits": ON_DIGITS}),
    )
    add = cli.add_dataset_flags(parser, DATASETS, "mnist", datasets.choices(DATASETS))
    add(
        "--holdout",
        type=cli.integer(0),
        default=0,
        metavar="N",
        help="validate on N training examples, and evaluate the official test split once at the end",
    )
    add("--size", type=cli.integer(8, 512), default=28, metavar="N", help="side of the images in pixels")
    add(
        "--mean",
        type=cli.number(-1000),
        default=0.0,
        metavar="X",
        help="mean that is subtracted from pixels in [0, 1]",
    )
    above_zero = cli.number(0, above=True)
    add(
        "--std",
        type=above_zero,
        default=1.0,
        metavar="X",
        help="standard deviation by which pixels are then divided",
    )
    parser.add_argument_group("network").add_argument(
        "--model",
        choices=tuple(RECIPES),
        default="mnist-classifier",
        help="the network; the recipe of each is shown below",
    )
    cli.add_network_option_flags(parser, OPTIONS.values())
    cli.add_list_models_flag(cli.add_run_flags(parser))
    cli.add_training_flags(parser, "the recipe of the model")
    cli.add_augmentation_flags(parser, "shift", "rotate", "scale", "flip", "erase")
    views = cli.add_view_flags(parser)
    views.add_argument(
        "--pool",
        choices=("gap", "flatten"),
        default="flatten",
        help="how --layers turns a feature map into a vector: global average pooling, or all values",
    )
    cli.add_thumbnail_flag(views)
    cli.add_input_flags(parser)
    return parser


def recipe(flags) -> dict:
    # A checkpoint of another script may name a model that has no recipe here; `build` then refuses it.
    return RECIPES.get(flags.model, PLAIN) | (ON_DIGITS if flags.dataset == "digits" else {})


def main(argv=None) -> None:
    typed, defaults = make_parser().parse_typed(argv)
    from lib.tasks import image_classification as task
    from lib.tasks import image_views
    from lib.training import session

    if typed.get("list_models"):
        task.list_models(RECIPES)
        return
    task.check_input(typed.get("input", ()))
    with session.start(TASK, typed, defaults, recipe, STRUCTURAL) as run:
        data = task.load(run)
        model = task.build(run, data)
        if run.flags.predict_only:
            task.predict(run, model, data)
        elif run.flags.eval_only:
            image_views.look_inside(run, model, data)
        else:
            task.fit(run, model, data)
            task.report(run, model, data)


if __name__ == "__main__":
    cli.run(main)
