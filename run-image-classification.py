#!/usr/bin/env python3
"""Classify colour images (CIFAR-10, CIFAR-100 or a folder) with a small network or one of torchvision's.

run-image-classification.py                                      train on CIFAR-10, downloaded to ./data
run-image-classification.py --dataset folder --data-dir DIR      train on DIR/CLASS/*.jpg or DIR/train/CLASS/…
run-image-classification.py … --model resnet18 --weights IMAGENET1K_V1 --freeze
                                                                 train a new head on pretrained features
run-image-classification.py --resume                             continue a run that was stopped
run-image-classification.py --eval-only --restore-file CKPT      evaluate, and draw what the network learnt
run-image-classification.py --predict-only --restore-file CKPT   write its predictions
run-image-classification.py --eval-only --network FILE.py:NAME --weights FILE …
                                                                 the same for a network of your own
torchrun --nproc-per-node 2 run-image-classification.py …        train on several devices

A comparison of optimizers, with all runs in one figure:

for run in adam:1e-2 adam:1e-3 adam:1e-4 sgd:1e-2 sgd:1e-3; do
    run-image-classification.py --model lenet5 --schedule constant --optimizer ${run%:*} -lr ${run#*:} \\
        --checkpoint-dir ckpts/lenet5-$run > logs/lenet5-$run.log
done
plot-log.py --log-file logs/lenet5-*.log --prefix lenet5
"""

from lib import cli, models
from lib.data import datasets

TASK = "image-classification"
DATASETS = datasets.names(channels=3)

# Training settings of each model; typed flags override them. The optimizer, windows and learning rate of
# fast-cnn were chosen on images held out of CIFAR-10's training split, its number of epochs by the clock. The
# batch size of LeNet-5 was chosen on the validation split. The other recipes are first guesses.
PLAIN = {
    "batch_size": 16,  # LeNet-5 still improves after 8 epochs: accuracy 0.631, 0.647, 0.661 with 64, 32, 16
    "max_epoch": 8,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "schedule": "one-cycle",
    "warmup": 0.1,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "augment": ("flip",),
    "shift_pixels": 2,
}
DEEPER = PLAIN | {
    "batch_size": 128,
    "max_epoch": 20,
    "optimizer": "adamw",
    "learning_rate": 0.004,
    "weight_decay": 0.05,
    "augment": ("shift", "flip"),
}
ROWS = DEEPER | {"learning_rate": 0.002, "clip_norm": 1.0}
TORCHVISION = PLAIN | {
    "batch_size": 32,
    "max_epoch": 20,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "augment": (),
}
RECIPES = {
    "lenet5": PLAIN,
    "simple-cnn": DEEPER,
    "deep-cnn": DEEPER | {"learning_rate": 0.007, "label_smoothing": 0.05, "ema": 0.99},
    "fast-cnn": DEEPER
    | {
        "max_epoch": 16,
        "optimizer": "muon",
        "learning_rate": 0.006,
        "weight_decay": 0.25,
        "label_smoothing": 0.1,
        "windows": ((0.625, 0.32), (0.75, 0.64)),
        "test_views": 6,
    },
    "row-rnn": ROWS,
    "row-lstm": ROWS,
    "row-gru": ROWS,
}

# With --freeze: no convolution is trained, so muon has no use. Without windows and test views the images
# never change, so their features are computed once.
HEAD_ALONE = {"optimizer": "adamw", "windows": (), "test_views": 1}

OPTIONS = models.options(tuple(RECIPES))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-image-classification.py",
        description=__doc__,
        epilog=cli.describe_recipes(RECIPES | {"a network of torchvision's": TORCHVISION}),
    )
    data = cli.add_dataset_flags(parser, DATASETS, "cifar10", datasets.choices(DATASETS))
    data.add(
        "--size",
        type=cli.integer(8, 1024),
        scope=cli.Scope.NETWORK,
        metavar="N",
        help="side of the images in pixels; default: the size that goes with --weights, otherwise 32, or 224 "
        "for torchvision's networks",
    )
    add_network_flags(parser)
    cli.add_network_option_flags(parser, OPTIONS.values())
    cli.add_list_models_flag(cli.add_run_flags(parser))
    cli.add_training_flags(parser, "the recipe of the model")
    cli.add_augmentation_flags(parser, "color", "affine", "crop", "flip", "erase", "shift", "rotate", "scale")
    cli.add_window_flag(parser)
    views = cli.add_view_flags(parser)
    views.add(
        "--pool",
        choices=("gap", "flatten"),
        default="gap",
        help="how --layers turns a feature map into a vector: global average pooling, or all values",
    )
    cli.add_thumbnail_flag(views)
    cli.add_input_flags(parser)
    cli.add_own_network_flags(parser, without=("size", "multi-label"))
    return parser


def add_network_flags(parser: cli.Parser) -> None:
    network = parser.group("network", cli.Scope.NETWORK)
    network.add(
        "--model",
        default="fast-cnn",
        metavar="NAME",
        help=f"the network: {', '.join(RECIPES)}, or one of torchvision's",
    )
    network.add(
        "--weights",
        metavar="WHICH",
        scope=cli.Scope.TRAINING,
        fixed=True,
        not_with="restore_file",
        help="initial weights: torchvision's name such as IMAGENET1K_V1, a file for this network, or random; "
        "with --network the file of its weights",
    )
    network.add(
        "--freeze",
        action="store_true",
        scope=cli.Scope.TRAINING,
        fixed=True,
        help="train only the last layer; its inputs are computed once if no augmentation changes the images",
    )
    network.add(
        "--trunk-lr",
        scope=cli.Scope.TRAINING,
        type=cli.number(0, above=True),
        metavar="X",
        help="learning rate of all layers but the last",
    )


def recipe(flags) -> dict:
    own = models.option_defaults(flags.model)
    return own | RECIPES.get(flags.model, TORCHVISION) | (HEAD_ALONE if flags.freeze else {})


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    from lib.tasks import image_classification as task
    from lib.tasks import image_data, image_prediction, image_views, inspection, own_classifier
    from lib.training import run as training

    if line.values["list_models"]:
        task.list_models(RECIPES, "and any of torchvision's classifiers, e.g. resnet18, vgg16, vit_b_16")
        return
    image_prediction.check_input(line.values["input"] or ())
    with training.start(TASK, line, recipe) as run:
        settings = image_data.DataSettings.of(run.flags)
        if run.flags["network"]:
            model, data = own_classifier.load(run, settings)
        else:
            initial = task.initial_weights(run, run.flags["weights"])
            usual = initial.preprocessing if initial else None
            data = image_data.load_photographs(run, settings, usual)
            model = task.build(run, data, initial)
        if run.flags["predict_only"]:
            image_prediction.predict(run, model, data, image_prediction.PredictionSettings.of(run.flags))
        elif run.flags["eval_only"]:
            image_views.look_inside(run, model, data, inspection.ViewSettings.of(run.flags))
        else:
            learning = task.LearningSettings.of(run.flags)
            data = task.freeze(run, model, data, learning)
            task.fit(run, model, data, learning)
            task.report(run, model, data, learning.test_views)


if __name__ == "__main__":
    cli.run(main)
