#!/usr/bin/env python3
"""What a GPU makes of this project, in one table of a few minutes: training, explanations, and their numbers.

training      the default networks of MNIST, CIFAR-10 (fast-cnn) and SST-2, seconds by their logs
explanations  Grad-CAM, integrated gradients and Shapley values of one network, in batches, with and without
              bfloat16: images a second, or evaluations a second
difference    how far each explanation is from the one that the CPU computes in float32: the largest
              difference of two values, as a share of the largest value. In float32 it should be below 1e-3,
              or not much above the rounding.
rounding      how far that explanation of the CPU is from the one that it computes in float64: how far two
              machines may differ. It is largest for integrated gradients: a gradient jumps where rounding
              closes a ReLU.

Both are left out where the map of the random network is zero everywhere.

The network has random weights: the times do not depend on them. Training that cannot be run, because its
data are not there, is left out, and standard error says so. Without a CUDA device, name another one.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lib import cli  # noqa: E402
from lib.explain.explanation import Explanation, Request  # noqa: E402
from lib.explain.methods import METHODS  # noqa: E402
from lib.explain.players import patches  # noqa: E402
from lib.explain.targets import class_target, top_classes  # noqa: E402
from lib.models.network import Network, load_pretrained  # noqa: E402
from lib.runtime import distributed, runlog  # noqa: E402
from lib.runtime.errors import UserError, say  # noqa: E402

EXPLANATIONS = ("grad-cam", "integrated-gradients", "shapley")
TRAINING = {
    "MNIST": ("run-mnist-classification.py", ()),
    "CIFAR-10, fast-cnn": ("run-image-classification.py", ("--model", "fast-cnn", "--amp")),
    "SST-2": ("run-sst2-classification.py", ()),
}
QUICK_TRAINING = {
    "digits, an epoch": ("run-mnist-classification.py", ("--dataset", "digits", "--max-epoch", "1")),
    "tiny phrases, an epoch": ("run-sst2-classification.py", ("--dataset", "tiny", "--max-epoch", "1")),
}
QUICK = {
    "device": "cpu",
    "ptm": "squeezenet1_1",
    "size": 64,
    "batch_size": 2,
    "steps": 2,
    "patch_side_len": 16,
    "budget": 48,
    "repetitions": 1,
}


def make_parser() -> cli.Parser:
    parser = common.make_parser("on_gpu.py", __doc__, repetitions=3)
    add = parser.add_argument_group("where").add_argument
    add("--device", default="cuda", metavar="NAME", help="compute on this device: cuda, cuda:1, mps, cpu")
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="read the data sets in this folder; what is missing there is downloaded",
    )
    add(
        "--photographs",
        metavar="DIR",
        help="train fast-cnn on CLASS/*.jpg in this folder in place of CIFAR-10, and hold a tenth out",
    )
    add("--no-training", dest="training", action="store_false", help="time explanations alone")
    add = parser.add_argument_group("what is explained").add_argument
    add("--ptm", default="resnet50", metavar="NAME", help="explain this network of torchvision's")
    add("--size", type=cli.integer(32, 1024), default=224, metavar="N", help="make images N pixels large")
    add("-bs", "--batch-size", type=cli.integer(1), default=16, metavar="N", help="explain N images at once")
    add("--steps", type=cli.integer(1), default=50, metavar="N", help="integrate gradients in N steps")
    add(
        "-lp", "--patch-side-len", type=cli.integer(1), default=28, metavar="N", help="play with such patches"
    )
    add("--budget", type=cli.integer(2), default=256, metavar="N", help="evaluate N coalitions an image")
    return parser


# ---- training


def train_all(options: SimpleNamespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each network that could be trained."""
    for name, (script, flags) in (QUICK_TRAINING if options.quick else TRAINING).items():
        if script == "run-image-classification.py" and options.photographs:
            folder = str(Path(options.photographs).resolve())
            flags = (*flags, "--dataset", "folder", "--valid-fraction", "0.1", "--data-dir", folder)
        else:
            flags = (*flags, "--data-dir", str(Path(options.data_dir).resolve()))
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / script), *flags, "--device", options.device]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            error = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            say(f"{name} is left out: {error[0]}")
            continue
        events = runlog.parse(done.stdout.splitlines(keepends=True)).runs[-1].events
        yield {
            "what": f"train: {name}",
            "accuracy": events["EVAL"][-1]["Valid_accuracy"],
            "seconds": events["DONE"][-1]["Seconds"],
        }


# ---- explanations


def explain_all(options: SimpleNamespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each explanation, in float32 and in bfloat16."""
    distributed.use_exact_float32()
    network = load_pretrained(options.ptm, "random", options.device)
    reference = load_pretrained(options.ptm, "random")
    precise = load_pretrained(options.ptm, "random")
    precise.module.double()
    # Smooth images, because noise alone makes every class alike.
    coarse = torch.rand(options.batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (options.size, options.size), mode="bicubic").clamp(0, 1)
    for name in EXPLANATIONS:
        # One image is enough to compare with: the CPU takes most of the time.
        expected = values_of(explain(reference, images[:1], name, options))
        exact = values_of(explain(precise, images[:1].double(), name, options))
        for amp in (False, True):
            found = values_of(explain(network, images[:1], name, options, amp=amp))
            times = [
                timed(
                    options.device,
                    lambda name=name, amp=amp: explain(network, images, name, options, amp=amp),
                )
                for _ in range(1 + options.repetitions)
            ]
            seconds = statistics.median(times[1:])  # the first chooses kernels
            count = len(images) * (options.budget if name == "shapley" else 1)
            yield {
                "what": f"{METHODS[name].title}, {'bfloat16' if amp else 'float32'}",
                "seconds": seconds,
                "rate": count / seconds,
                "unit": "evaluations" if name == "shapley" else "images",
                **(
                    {"difference": difference(found, expected), "rounding": difference(expected, exact)}
                    if expected.any()
                    else {}
                ),
            }


def explain(
    network: Network, images: Tensor, name: str, options: SimpleNamespace, *, amp: bool = False
) -> Explanation:
    """Return an explanation of the likeliest class of the first image, for all images (B, C, H, W)."""
    images = images.to(network.device)
    with torch.no_grad():
        target = class_target(int(top_classes(network.logits(images[:1]), 1)))
    settings = {
        "grad-cam": {},
        "integrated-gradients": {"steps": options.steps},
        "shapley": {
            "budget": options.budget,
            "amp": amp,
            "estimator": "odd-gp",
            "players": patches(options.size, options.patch_side_len),
        },
    }[name]
    request = Request(network, images, [target], settings=settings)
    # Shapley values have their own bfloat16, which leaves the last layer in float32.
    by_autocast = amp and name != "shapley"
    with torch.autocast(network.device.type, torch.bfloat16) if by_autocast else nullcontext():
        return METHODS[name].explain(request)


def values_of(found: Explanation) -> Tensor:
    """Return the values of all images in one tensor on the CPU, float64."""
    (values,) = found.values.values()
    return values.detach().double().cpu()


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two values as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def timed(device: str, call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of a call, with all that it has left to the device."""

    def whole() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return common.timed(whole)[0]


# ---- the table


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| what | seconds | a second | accuracy | difference from the CPU | rounding |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = f"{row['rate']:,.1f} {row['unit']}" if "rate" in row else ""
        accuracy = f"{row['accuracy']:.4f}" if "accuracy" in row else ""
        distances = (f"{row[key]:.1e}" if key in row else "" for key in ("difference", "rounding"))
        cells = (row["what"], f"{row['seconds']:.2f}", rate, accuracy, *distances)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def name_of(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: name another with --device, e.g. --device cpu --quick")
    torch.set_num_threads(options.threads)
    rows = [*(train_all(options) if options.training else ()), *explain_all(options)]
    print("\n".join(table(rows)))
    where = f"{name_of(options.device)}, torch {torch.__version__}"
    what = f"{options.ptm} at {options.size} px, batches of {options.batch_size}"
    print(
        f"\n{where}; {what}; integrated gradients in {options.steps} steps, Shapley values by "
        f"{options.budget} evaluations an image; medians of {options.repetitions} after one to warm up."
    )
    common.write_json(options, {"device": name_of(options.device), "rows": rows})


if __name__ == "__main__":
    cli.run(main)
