#!/usr/bin/env python3
"""Gradient explanations side by side with pytorch-grad-cam and Captum: seconds, gradients taken, memory.

time          ResNet-18 with random weights, by turns in one process, medians. Peers are told the
              targets; what is here finds them in the same forward pass. Every map is upsampled.
completeness  gradients that integrated gradients take until |Σ − (F(x) − F(x′))| ≤ 1 %, over images of
              digits that small networks trained here have not seen. Here, the values must have settled,
              too. Captum's default rule (gauss-legendre) does not say how many steps it takes: counted
              are its default of 50, doubled from scratch until it is right; and with hindsight, the
              fewest steps that are.
memory        peak of processes that integrate in 10 and in 300 steps.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib import models, train  # noqa: E402
from lib.data import images  # noqa: E402
from lib.data.batches import InOrder, TensorBatches  # noqa: E402
from lib.explain.gradients import grad_cam, guided_backprop, upsample  # noqa: E402
from lib.explain.integrated_gradients import integrated_gradients  # noqa: E402
from lib.explain.scores import class_scores, top_classes, top_scores  # noqa: E402
from lib.objectives import classification  # noqa: E402
from lib.optimisation import Settings  # noqa: E402
from lib.runlog import RunLog  # noqa: E402

SEED = 42
SIZE = 224
LAYER = "layer4"
INTEGRATION_STEPS = 6
TOLERANCE = 0.01
MOST_PEER_STEPS = 3200
DIGITS = {"lenet5": 15, "mnist-classifier": 20, "deep-cnn": 3}  # and epochs: 15 s together


def resnet() -> nn.Module:
    torch.manual_seed(SEED)
    return torchvision.models.resnet18(weights=None).eval()


def time_all(options: argparse.Namespace) -> list[dict]:
    """Return a row for each explanation and number of targets."""
    model, batch = resnet(), torch.randn(options.batch_size, 3, SIZE, SIZE)
    rows = []
    for k in (1, 3):
        with torch.no_grad():
            targets = top_classes(model(batch), k)
        for name, ways in explanations(model, batch, targets).items():
            rows.append({"explanation": name, "targets": k, **in_turn(ways, options.repetitions)})
    return rows


def explanations(
    model: nn.Module, batch: Tensor, targets: Tensor
) -> dict[str, dict[str, Callable[[], object]]]:
    """Return, for each explanation, the ways to it."""
    from captum.attr import GuidedBackprop, IntegratedGradients, LayerAttribution, LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    k = len(targets)

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    def their_cams() -> None:
        with GradCAM(model, [model.layer4]) as cam:
            for row in targets.tolist():
                cam(batch, [ClassifierOutputTarget(c) for c in row])

    def captums_cams() -> None:
        peer = LayerGradCam(model, model.layer4)
        for row in targets:
            maps = peer.attribute(batch, row, relu_attributions=True)
            LayerAttribution.interpolate(maps, (SIZE, SIZE), "bilinear")

    def captums_integrals() -> None:
        options = {"n_steps": INTEGRATION_STEPS, "method": "riemann_middle", "return_convergence_delta": True}
        for row in targets[:, :1]:
            IntegratedGradients(model).attribute(batch[:1], 0, row, **options, internal_batch_size=len(batch))

    def our_integrals() -> None:
        scores = class_scores(targets[:, :1])
        integrated_gradients(
            lambda points: scores(model(points)),
            batch[0],
            torch.zeros_like(batch[0]),
            steps=INTEGRATION_STEPS,
            batch_size=len(batch),
        )

    return {
        "Grad-CAM": {
            "this": lambda: upsample(grad_cam(model, [LAYER], batch, top_scores(k)).maps[LAYER], SIZE),
            "forward": forward,
            "pytorch-grad-cam": their_cams,
            "captum": captums_cams,
        },
        "guided backpropagation": {
            "this": lambda: guided_backprop(model, batch, top_scores(k)),
            "captum": lambda: [GuidedBackprop(model).attribute(batch, row) for row in targets],
        },
        f"integrated gradients, one image, {INTEGRATION_STEPS} steps": {
            "this": our_integrals,
            "captum": captums_integrals,
        },
    }


def in_turn(ways: dict[str, Callable[[], object]], repetitions: int) -> dict:
    """Return the median seconds, wall-clock and CPU, of each way, all called once before, then by turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum's, of hooks that it sets
        for turn in range(repetitions + 1):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                way()
                if turn:
                    seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        f"{name}_{unit}_seconds": statistics.median(pair[index] for pair in pairs)
        for name, pairs in seconds.items()
        for index, unit in enumerate(("wall", "cpu"))
    }


def trained(name: str, data: images.ImageData) -> nn.Module:
    """Return a network of that name that has learnt the digits."""
    torch.manual_seed(SEED)
    model = models.build(name)
    with tempfile.TemporaryDirectory() as folder:
        train.fit(
            model,
            classification(),
            TensorBatches(*data.train, batch_size=32, seed=SEED),
            InOrder(*data.valid),
            Settings(seed=SEED, max_epoch=DIGITS[name], learning_rate=4e-3),
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=train.Checkpoints(Path(folder)),
        )
    return model.eval()


def completeness(options: argparse.Namespace) -> list[dict]:
    """Return a row for each network: gradients taken an image, here and by Captum."""
    data = images.load("digits", Path("data"), size=28)
    rows = []
    for name in DIGITS:
        model = trained(name, data)
        accuracy = train.evaluate(model, classification(), InOrder(*data.valid))["accuracy"]
        counts = [gradients_taken(model, x) for x in data.valid.images[: options.images]]
        columns = {key: [each[key] for each in counts] for key in counts[0]}
        rows.append(
            {"network": name, "accuracy": accuracy, "images": options.images}
            | {f"{key}_median": statistics.median(values) for key, values in columns.items()}
            | {f"{key}_mean": statistics.mean(values) for key, values in columns.items()}
        )
    return rows


def gradients_taken(model: nn.Module, x: Tensor) -> dict[str, int]:
    from captum.attr import IntegratedGradients

    black, peer = torch.zeros_like(x), IntegratedGradients(model)
    with torch.no_grad():
        target = int(model(x[None]).argmax())
    ours = integrated_gradients(lambda p: model(p)[:, target], x, black, tolerance=TOLERANCE)
    wanted = TOLERANCE * abs(ours.score - ours.baseline_score)

    def right(steps: int) -> bool:
        delta = peer.attribute(x[None], 0, target, n_steps=steps, return_convergence_delta=True)[1]
        return abs(float(delta)) <= wanted or steps >= MOST_PEER_STEPS

    steps = total = 50
    while not right(steps):
        steps *= 2
        total += steps
    return {
        "this": ours.evaluations,
        "captum": total,
        "captum_hindsight": next(n for n in range(1, MOST_PEER_STEPS + 1) if right(n)),
    }


def memory(options: argparse.Namespace) -> list[dict]:
    """Return one row: the peaks of two processes of their own, in MiB."""
    peaks = {}
    for steps in (10, 300):
        command = [sys.executable, __file__, "--peak-of", str(steps), "--batch-size", str(options.batch_size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        peaks[f"peak_{steps}_steps_mib"] = int(done.stdout) // 1024
    return [peaks | {"ratio": peaks["peak_300_steps_mib"] / peaks["peak_10_steps_mib"]}]


def integrate(steps: int, batch_size: int) -> None:
    """Integrate the gradients of ResNet-18 and print this process's peak of memory in KiB."""
    model, x = resnet(), torch.randn(3, SIZE, SIZE)
    black = torch.zeros_like(x)
    integrated_gradients(lambda p: model(p)[:, 0], x, black, steps=steps, batch_size=batch_size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak // 1024 if sys.platform == "darwin" else peak)


def time_table(rows: list[dict]) -> list[str]:
    """Seconds and ratios are wall-clock; those of CPU seconds stand in brackets."""
    lines = [
        "| explanation | targets | this, ms (CPU) | / forward | pytorch-grad-cam / this | Captum / this |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours = [f"{1000 * row[f'this_{unit}_seconds']:.0f}" for unit in ("wall", "cpu")]
        cells = [
            row["explanation"],
            str(row["targets"]),
            f"{ours[0]} ({ours[1]})",
            ratio(row, "this", "forward"),
            ratio(row, "pytorch-grad-cam", "this"),
            ratio(row, "captum", "this"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio(row: dict, numerator: str, denominator: str) -> str:
    if not {f"{numerator}_wall_seconds", f"{denominator}_wall_seconds"} <= set(row):
        return ""
    wall, cpu = (
        row[f"{numerator}_{unit}_seconds"] / row[f"{denominator}_{unit}_seconds"] for unit in ("wall", "cpu")
    )
    return f"{wall:.2f} ({cpu:.2f})"


def completeness_table(rows: list[dict]) -> list[str]:
    lines = [
        "| network | accuracy | this: median (mean) | Captum, from 50 on | with hindsight | this / Captum |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        pairs = [
            f"{row[f'{key}_median']:g} ({row[f'{key}_mean']:.0f})"
            for key in ("this", "captum", "captum_hindsight")
        ]
        share = [row[f"this_{key}"] / row[f"captum_{key}"] for key in ("median", "mean")]
        cells = [row["network"], f"{row['accuracy']:.3f}", *pairs, f"{share[0]:.2f} ({share[1]:.2f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_table(rows: list[dict]) -> list[str]:
    (row,) = rows
    cells = f"| {row['peak_10_steps_mib']} | {row['peak_300_steps_mib']} | {row['ratio']:.2f} |"
    return ["| 10 steps, MiB | 300 steps, MiB | ratio |", "|---:|---:|---:|", cells]


SECTIONS = {
    "time": (time_all, time_table),
    "completeness": (completeness, completeness_table),
    "memory": (memory, memory_table),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all"
    )
    parser.add_argument("-bs", "--batch-size", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="of completeness; default: 32")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="default: 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the tables, too")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)  # how `memory` calls itself
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        integrate(options.peak_of, options.batch_size)
        return
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {unknown.pop()!r}; choose from {', '.join(SECTIONS)}")
    found = {}
    for name in options.sections or SECTIONS:
        measure, table = SECTIONS[name]
        found[name] = measure(options)
        print("\n".join([f"{name}:", "", *table(found[name]), ""]), flush=True)
    print(
        f"ResNet-18 at {SIZE} px, batch size {options.batch_size}, {options.threads} thread(s), "
        f"medians of {options.repetitions}, torch {torch.__version__}."
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
