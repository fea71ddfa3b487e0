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

from lib import cli, models
from lib.data.segmentation_sets import MASKED_SETS

TASK = "segmentation"
AUGMENTATIONS = ("crop", "flip", "scale", "color")

# Training settings of each model; typed flags override them. Those of small were chosen on a sequence of
# CamVid's training images that was held out; the others are first guesses.
PLAIN = {
    "batch_size": 8,
    "max_epoch": 40,
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "schedule": "one-cycle",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "ema": 0.99,
    "class_weights": "log",
    "iou_loss": 0.0,
    "augment": ("crop", "flip", "scale", "color"),
    "window": 0.5,
    "test_views": 1,
}
RECIPES = {
    "small": PLAIN | {"optimizer": "muon", "learning_rate": 0.006, "weight_decay": 0.05},
    "fcn32": PLAIN,
    "fcn16": PLAIN,
    "fcn8": PLAIN,
}
ON_SHAPES = {"max_epoch": 12, "window": 1.0, "augment": ("flip", "scale"), "class_weights": "none"}

OPTIONS = models.options(tuple(RECIPES))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-segmentation.py",
        description=__doc__,
        epilog=cli.describe_recipes(RECIPES | {"with --dataset shapes": ON_SHAPES}),
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
    own = models.option_defaults(flags.model)
    return own | RECIPES.get(flags.model, PLAIN) | (ON_SHAPES if flags.dataset == "shapes" else {})


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
