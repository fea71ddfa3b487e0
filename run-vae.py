#!/usr/bin/env python3
"""Train a variational autoencoder of images, compare it with others, and look inside it.

run-vae.py --dataset digits                                      train on digits, without a download
run-vae.py --dataset faces --data-dir DIR --size 64 --loss mse   train on a folder of faces
run-vae.py --resume                                              continue a run that was stopped
run-vae.py --eval-only --restore-file CKPT --interpolate 3 8     evaluate, and draw what it learnt
run-vae.py --sample 64 --restore-file CKPT --out-dir imgs        write images that it makes up
run-vae.py --predict-only --restore-file CKPT --out-file F.npz   write the latent means of images
"""

from typing import Any

from lib import cli, models
from lib.data import datasets

TASK = "reconstruction"
DATASETS = (
    *(name for name, each in datasets.DATASETS.items() if each.channels in (1, 3)),
    "faces",
    datasets.FOLDER,
)

# Found on 5,000 held-out training images of MNIST. Typed flags override them.
PLAIN: dict[str, Any] = {
    "net": "linear",
    "latent": 20,
    "hidden": 512,
    "depth": 3,
    "dropout": 0.0,
    "activation": "silu",
    "loss": "bce",
    "batch_size": 256,
    "max_epoch": 70,
    "learning_rate": 0.003,
    "optimizer": "adamw",
    "schedule": "one-cycle",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "ema": 0.999,
    "noise": "none",
    "augment": ("shift",),
    "shift_pixels": 1,
    "augmented_share": 0.5,
}
RECIPES = {
    "vae": PLAIN,
    "cvae": PLAIN,
    "dvae": PLAIN | {"noise": "gaussian"},
    "vae-gan": PLAIN
    | {
        "net": "conv",
        "hidden": 256,
        "depth": 1,
        "batch_size": 128,
        "max_epoch": 20,
        "learning_rate": 0.001,
    },
}
ON_MNIST = {"validate_interval_updates": 705}  # every third epoch: each would take 4 % of the time
ON_DIGITS = {"batch_size": 32, "max_epoch": 100, "learning_rate": 0.002}
# Found on eight of 32 people, held out of training.
ON_FACES: dict[str, Any] = {
    "depth": 2,
    "batch_size": 32,
    "max_epoch": 300,
    "learning_rate": 0.001,
    "ema": 0.99,
    "augment": ("flip", "shift", "rotate", "scale"),
    "shift_pixels": 2,
    "augmented_share": 0.9,
}
CHANGES: dict[str, dict[str, Any]] = {
    "mnist": ON_MNIST,
    "digits": ON_DIGITS,
    "faces": ON_FACES,
    datasets.FOLDER: ON_FACES,
}

OPTIONS = models.options(tuple(RECIPES))


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog="run-vae.py",
        description=__doc__,
        epilog=cli.describe_recipes(
            RECIPES | {f"with --dataset {name}": changes for name, changes in CHANGES.items()}
        ),
    )
    data = cli.add_dataset_flags(parser, DATASETS, "mnist", datasets.choices(DATASETS), own_networks=False)
    cli.add_reconstruction_data_flags(data)
    network = parser.group("network", cli.Scope.NETWORK)
    network.add(
        "--model",
        choices=tuple(RECIPES),
        default="vae",
        help="the network: a plain VAE, one that is told the class, a denoising one, or one with a "
        "discriminator; the recipe of each is shown below",
    )
    network.add(
        "--size",
        type=cli.integer(8, 512),
        metavar="N",
        help="side of the images in pixels, a multiple of 4; default: 28 for drawings, otherwise 32",
    )
    cli.add_network_option_flags(parser, OPTIONS.values())
    modes = cli.add_run_flags(parser)
    cli.add_list_models_flag(modes)
    modes.add(
        "--sample",
        type=cli.integer(1, 100_000),
        metavar="N",
        help="write N images that --restore-file makes up",
    )
    cli.add_training_flags(parser, "the recipe of the model", label_smoothing=False)
    cli.add_variational_flags(parser)
    cli.add_augmentation_flags(parser, "shift", "rotate", "scale", "flip", "erase", test_views=False)
    views = cli.add_view_flags(parser)
    cli.add_latent_view_flags(views)
    cli.add_thumbnail_flag(views)
    cli.add_input_flags(parser, "encode")
    return parser


def recipe(flags) -> dict:
    own = RECIPES.get(flags.model, PLAIN)
    return models.option_defaults(flags.model) | own | CHANGES.get(flags.dataset, {})


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    from lib.tasks import image_prediction, reconstruction_data, reconstruction_output, reconstruction_views
    from lib.tasks import reconstruction as task
    from lib.training import run as training

    if line.values["list_models"]:
        task.list_models(RECIPES)
        return
    image_prediction.check_input(line.values["input"] or ())
    with training.start(TASK, line, recipe) as run:
        data = reconstruction_data.load(run, reconstruction_data.DataSettings.of(run.flags))
        model = task.build(run, data)
        if run.flags["predict_only"]:
            output = reconstruction_output.PredictionSettings.of(run.flags)
            reconstruction_output.predict(run, model, data, output)
        elif run.flags["sample"]:
            sampling = reconstruction_output.SampleSettings.of(run.flags)
            reconstruction_output.sample(run, model, sampling)
        elif run.flags["eval_only"]:
            views = reconstruction_views.ViewSettings.of(run.flags)
            reconstruction_views.look_inside(run, model, data, views)
        else:
            task.fit(run, model, data, task.LearningSettings.of(run.flags))
            task.report(run, model, data, task.ReportSettings.of(run.flags))


if __name__ == "__main__":
    cli.run(main)
