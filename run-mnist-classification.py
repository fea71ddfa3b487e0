#!/usr/bin/env python3
"""Classify handwritten digits (or clothes, or Kuzushiji) with a small network, and look inside it.

run-mnist-classification.py --dataset digits                     train on digits, without a download
run-mnist-classification.py | tee -a logs/mnist.log              train on MNIST and keep the log
run-mnist-classification.py --resume                             continue a run that was stopped
run-mnist-classification.py --eval-only --restore-file CKPT      evaluate, and draw what the network learnt
run-mnist-classification.py --predict-only --restore-file CKPT   write its predictions
run-mnist-classification.py --eval-only --network FILE.py:NAME --weights FILE …
                                                                 the same for a network of your own
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
ROWS = PLAIN | {"learning_rate": 0.002, "max_epoch": 5, "clip_norm": 1.0}
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


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-mnist-classification.py",
        description=__doc__,
        epilog=cli.describe_recipes(RECIPES | {"with --dataset digits": ON_DIGITS}),
    )
    data = cli.add_dataset_flags(parser, DATASETS, "mnist", datasets.choices(DATASETS))
    data.add(
        "--holdout",
        type=cli.integer(0),
        default=0,
        metavar="N",
        help="validate on N training examples, and evaluate the official test split once at the end",
    )
    network = parser.group("network", cli.Scope.NETWORK)
    network.add(
        "--model",
        choices=tuple(RECIPES),
        default="mnist-classifier",
        help="the network; the recipe of each is shown below",
    )
    add_input_flags(network)
    cli.add_network_option_flags(parser, OPTIONS.values())
    cli.add_list_models_flag(cli.add_run_flags(parser))
    cli.add_training_flags(parser, "the recipe of the model")
    cli.add_augmentation_flags(parser, "shift", "rotate", "scale", "flip", "erase")
    views = cli.add_view_flags(parser)
    views.add(
        "--pool",
        choices=("gap", "flatten"),
        default="flatten",
        help="how --layers turns a feature map into a vector: global average pooling, or all values",
    )
    cli.add_thumbnail_flag(views)
    cli.add_input_flags(parser)
    own = cli.add_own_network_flags(parser, without=("size", "mean", "std", "multi-label"))
    own.add("--weights", metavar="FILE", help="the file of its weights")
    return parser


def add_input_flags(network: cli.Group) -> None:
    """Add the flags that say what an input of the network is."""
    network.add(
        "--size", type=cli.integer(8, 512), default=28, metavar="N", help="side of the images in pixels"
    )
    network.add(
        "--mean",
        type=cli.number(-1000, 1000),
        default=0.0,
        metavar="X",
        help="mean that is subtracted from pixels in [0, 1]",
    )
    network.add(
        "--std",
        type=cli.number(1e-6, 1e6),
        default=1.0,
        metavar="X",
        help="standard deviation by which pixels are then divided",
    )


def recipe(flags) -> dict:
    # A checkpoint of another script may name a model that has no recipe here; `build` then refuses it.
    own = models.option_defaults(flags.model)
    return own | RECIPES.get(flags.model, PLAIN) | (ON_DIGITS if flags.dataset == "digits" else {})


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    from lib.tasks import image_classification as task
    from lib.tasks import image_data, image_prediction, image_views, inspection, own_classifier
    from lib.training import run as training

    if line.values["list_models"]:
        task.list_models(RECIPES)
        return
    image_prediction.check_input(line.values["input"] or ())
    with training.start(TASK, line, recipe) as run:
        settings = image_data.DataSettings.of(run.flags)
        if run.flags["network"]:
            model, data = own_classifier.load(run, settings)
        else:
            data = image_data.load_grey(run, settings)
            model = task.build(run, data)
        if run.flags["predict_only"]:
            image_prediction.predict(run, model, data, image_prediction.PredictionSettings.of(run.flags))
        elif run.flags["eval_only"]:
            image_views.look_inside(run, model, data, inspection.ViewSettings.of(run.flags))
        else:
            learning = task.LearningSettings.of(run.flags)
            task.fit(run, model, data, learning)
            task.report(run, model, data, learning.test_views)


if __name__ == "__main__":
    cli.run(main)
