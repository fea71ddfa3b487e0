#!/usr/bin/env python3
"""Draw where in an image a classifier sees its classes: Grad-CAM, related methods, guided backpropagation.

run-grad-cam.py --ptm resnet18 --input cat.jpg                        the three most probable classes
run-grad-cam.py --ptm vgg16 --input dog.jpg -k 5 --guided             with fine lines: guided Grad-CAM
run-grad-cam.py --ptm resnet18 --input a.jpg b.jpg --layer layer3 layer4     images × layers on one sheet
run-grad-cam.py --restore-file CKPT --input digits:7                  a network trained here, offline
run-grad-cam.py --restore-file CKPT CKPT … --input 7.png --animate    how the maps change from epoch to epoch
run-grad-cam.py --ptm resnet18 --list-layers                          list the layers to choose from
"""

from lib import cli
from lib.cli import Scope
from lib.explain.methods import drawn_by

METHODS = drawn_by("run-grad-cam.py")


def describe_methods() -> str:
    """Return the table of methods that ends the `--help` text."""
    lines = [f"  {each.name:<17} {each.title:<17} {each.paper}" for each in METHODS.values()]
    return "\n".join(["methods:", *lines])


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog="run-grad-cam.py", description=__doc__, epilog=describe_methods())
    cli.add_explanation_flags(parser)
    group = parser.group("method", Scope.MODE)
    add = group.add
    add("--method", choices=tuple(METHODS), default="grad-cam", help="the method; see the table below")
    add(
        "--layer",
        nargs="+",
        metavar="NAME",
        help="layers whose maps are drawn; default: the last layer with a spatial map",
    )
    add(
        "--place",
        choices=("receptive-field", "grid"),
        default="receptive-field",
        help="where a map is drawn: each cell at the centre of the pixels that it sees, or on an even grid "
        "over the image, as other tools draw it",
    )
    add("--list-layers", action="store_true", help="list the layers that have a spatial map, and exit")
    add("--counterfactual", action="store_true", help="draw the evidence against the class")
    add("--guided", action="store_true", help="add columns of guided backprop and guided Grad-CAM")
    add(
        "--rule",
        choices=("guided", "deconvnet"),
        default="guided",
        only_with="guided",
        help="backpropagation rule of the ReLUs, with --guided",
    )
    cli.add_smoothing_flags(parser, "guided backprop", only_with="guided")
    add(
        "--randomise",
        type=cli.integer(0),
        default=0,
        metavar="N",
        help="add panels with random weights in the last 1 … N layers: "
        "a map that does not change explains nothing",
    )
    add(
        "-bs",
        "--batch-size",
        type=cli.integer(1),
        metavar="N",
        help="images explained in one pass, where they have one size; default: 1 on a CPU, 16 on other "
        "devices; methods of many passes, and --smoothgrad, take one by one",
    )
    add("--animate", action="store_true", help="also write a GIF with one frame per network")
    add(
        "--baseline",
        default="grey",
        metavar="WHICH",
        help="occlusion: content of the square: black, grey, mean (colour), blur, noise, or an image file",
    )
    for method in METHODS.values():
        cli.add_method_options(group, method.options, method.name)
    return parser


def main(argv=None) -> None:
    line = make_parser().parse(argv)
    line.check_company()
    from lib.tasks import class_activation as task
    from lib.tasks import explanation_run

    settings = task.MapSettings.of(line.values)
    task.check(settings, line.typed)
    with explanation_run.start("gradcam", line, settings.words) as run:
        if run.files.list_layers:
            task.list_layers(run)
        else:
            task.explain(run, settings)


if __name__ == "__main__":
    cli.run(main)
