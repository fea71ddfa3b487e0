#!/usr/bin/env python3
"""Segment images: give each pixel a class, with a small network or a fully convolutional one.

run-segmentation.py --dataset shapes                             train on shapes, without a download
run-segmentation.py --dataset camvid --data-dir DIR              train on street scenes
run-segmentation.py --dataset folder --data-dir DIR              train on DIR/images/* and DIR/masks/*
run-segmentation.py … --model fcn8 --encoder vgg16 --weights IMAGENET1K_V1
                                                                 begin with a pretrained encoder
run-segmentation.py --resume                                     continue a run that was stopped
run-segmentation.py --eval-only --restore-file CKPT              evaluate, draw truth, prediction and error
run-segmentation.py --predict-only --restore-file CKPT --input a.jpg --out-dir out
                                                                 write a mask and an overlay of each image
torchrun --nproc-per-node 2 run-segmentation.py …                train on several devices
"""

from typing import Any

from lib import cli, models
from lib.data.segmentation_sets import MASKED_SETS

TASK = "segmentation"
AUGMENTATIONS = ("crop", "flip", "scale", "color")

# Training settings of each model; typed flags override them. The optimizer and the mirror image of small were
# chosen on a held-out sequence of CamVid's training images, 0006R0: after 80 CPU-seconds, muon had a mean IoU
# of 0.336 there and adamw 0.229, and the mirror image added 0.007. The other recipes are first guesses.
PLAIN = {
    "batch_size": 8,
    "max_epoch": 40,
    "optimizer": "muon",
    "learning_rate": 0.01,
    "schedule": "one-cycle",
    "warmup": 0.1,
    "weight_decay": 0.05,
    "ema": 0.99,
    "class_weights": "log",
    "iou_loss": 0.0,
    "augment": ("crop", "flip", "scale", "color"),
    "window": 0.5,
    "test_views": 1,
}
FCN = PLAIN | {"learning_rate": 0.005}
RECIPES = {
    "small": PLAIN | {"test_views": 2},
    "fcn32": FCN,
    "fcn16": FCN,
    "fcn8": FCN,
}
ON_DATASETS: dict[str, dict[str, Any]] = {
    # Validation takes as long as two epochs, so there are four.
    "camvid": {"max_epoch": 48, "validate_interval_updates": 552},
    "shapes": {
        "max_epoch": 35,
        "width": 8,
        "window": 1.0,
        "augment": ("flip",),
        "class_weights": "none",
        "ema": 0.95,
        "test_views": 1,
    },
}

OPTIONS = models.options(tuple(RECIPES))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-segmentation.py",
        description=__doc__,
        epilog=cli.describe_recipes(
            RECIPES | {f"with --dataset {name}": changes for name, changes in ON_DATASETS.items()}
        ),
    )
    cli.add_masked_set_flags(parser, tuple(MASKED_SETS), "camvid")
    network = parser.group("network", cli.Scope.NETWORK)
    network.add(
        "--model",
        choices=tuple(RECIPES),
        default="small",
        help="the network; the recipe of each is shown below",
    )
    network.add(
        "--size",
        type=cli.integer(32, 4096),
        metavar="N",
        help="longest side of the images in pixels; larger ones are reduced; default: as they are",
    )
    network.add(
        "--weights",
        metavar="WHICH",
        scope=cli.Scope.TRAINING,
        fixed=True,
        not_with="restore_file",
        help="initial weights of the encoder of fcn8, fcn16, fcn32: torchvision's name such as "
        "IMAGENET1K_V1, a file, or random",
    )
    cli.add_network_option_flags(parser, OPTIONS.values())
    cli.add_list_models_flag(cli.add_run_flags(parser))
    cli.add_training_flags(parser, "the recipe of the model", label_smoothing=False)
    cli.add_segmentation_flags(parser, AUGMENTATIONS)
    cli.add_segmented_input_flags(parser)
    return parser


def recipe(flags) -> dict:
    own = models.option_defaults(flags.model) | RECIPES.get(flags.model, PLAIN)
    changes = ON_DATASETS.get(flags.dataset, {})
    return own | {name: value for name, value in changes.items() if name != "width" or "width" in own}


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    from lib.tasks import image_classification, segmentation_views
    from lib.tasks import segmentation as task
    from lib.training import run as training

    if line.values["list_models"]:
        image_classification.list_models(RECIPES)
        return
    segmentation_views.check_input(line.values["input"] or ())
    with training.start(TASK, line, recipe) as run:
        data = task.load(run, task.DataSettings.of(run.flags))
        model = task.build(run, data, run.flags["weights"])
        if run.flags["predict_only"]:
            segmentation_views.predict(run, model, data, segmentation_views.PredictionSettings.of(run.flags))
        elif run.flags["eval_only"]:
            segmentation_views.look_inside(run, model, data, segmentation_views.ViewSettings.of(run.flags))
        else:
            task.fit(run, model, data, task.LearningSettings.of(run.flags))
            task.report(run, model, data)


if __name__ == "__main__":
    cli.run(main)
