#!/usr/bin/env python3
"""Gradient explanations side by side with pytorch-grad-cam and Captum: seconds, gradients taken, memory.

memory        peak of the process after it has integrated in few steps, and then in many.
time          ResNet-18 with random weights, by turns in one process, medians. Peers are told the
              targets; what is here finds them in the same forward pass. Every map is upsampled.
completeness  gradients that integrated gradients take until |Σ − (F(x) − F(x′))| ≤ 1 %, over images of
              digits that small networks trained here have not seen. Here, the values must have settled,
              too. Captum's default rule (gauss-legendre) does not say how many steps it takes: counted
              are its default of 50, doubled from scratch until it is right; and with hindsight, the
              fewest steps that are.

What is not installed is left out of the comparison.
"""

import io
import resource
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib import cli, models  # noqa: E402
from lib.data import images  # noqa: E402
from lib.explain.gradients import grad_cam, guided_backprop, upsample  # noqa: E402
from lib.explain.integrated_gradients import integrated_gradients  # noqa: E402
from lib.explain.targets import class_scores, top_classes  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402
from lib.runtime.runlog import RunLog  # noqa: E402
from lib.training.fit import Checkpoints, fit  # noqa: E402
from lib.training.objectives import classification  # noqa: E402
from lib.training.optimisation import Settings  # noqa: E402
from lib.training.validation import evaluate  # noqa: E402

SEED = 42
LAYER = "layer4"
INTEGRATION_STEPS = 6
TOLERANCE = 0.01
MOST_PEER_STEPS = 3200
DIGITS = {"lenet5": 15, "mnist-classifier": 20, "deep-cnn": 3}  # and epochs: 15 s together
QUICK_DIGITS = {"lenet5": 1}
QUICK = {"size": 64, "paths": (2, 6), "batch_size": 6, "images": 1, "repetitions": 1, "warm_ups": 0}


def make_parser() -> cli.Parser:
    parser = common.make_parser("gradient_explanations.py", __doc__, repetitions=7)
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"measure these: {', '.join(SECTIONS)}; default: all of them",
    )
    add = parser.add_argument_group("what is explained").add_argument
    add(
        "--warm-ups",
        type=cli.integer(0),
        default=1,
        metavar="N",
        help="call each way N times before it is timed",
    )
    add("--size", type=cli.integer(64, 1024), default=224, metavar="N", help="make images N pixels large")
    add("-bs", "--batch-size", type=cli.integer(1), default=4, metavar="N", help="explain N images at once")
    add(
        "--images",
        type=cli.integer(1),
        default=32,
        metavar="N",
        help="explain N digits where completeness is measured",
    )
    add(
        "--paths",
        type=cli.integer(1),
        nargs=2,
        default=(10, 300),
        metavar="N",
        help="compare the memory of integrations in so many steps",
    )
    return parser


def resnet() -> nn.Module:
    torch.manual_seed(SEED)
    return torchvision.models.resnet18(weights=None).eval()


def time_all(options: SimpleNamespace) -> list[dict]:
    """Return a row for each explanation and number of targets."""
    model, batch = resnet(), torch.randn(options.batch_size, 3, options.size, options.size)
    rows = []
    for k in (1, 3):
        with torch.no_grad():
            targets = top_classes(model(batch), k)
        for name, ways in explanations(model, batch, targets).items():
            rows.append(
                {"explanation": name, "targets": k, **in_turn(ways, options.repetitions, options.warm_ups)}
            )
    return rows


def explanations(
    model: nn.Module, batch: Tensor, targets: Tensor
) -> dict[str, dict[str, Callable[[], object]]]:
    """Return, for each explanation, the ways to it: here, and by the libraries that are installed."""
    k, size = len(targets), batch.shape[-1]

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    def our_integrals() -> None:
        scores = class_scores(targets[:, :1])
        integrated_gradients(
            lambda points: scores(model(points)),
            batch[0],
            torch.zeros_like(batch[0]),
            steps=INTEGRATION_STEPS,
            batch_size=len(batch),
        )

    ways: dict[str, dict[str, Callable[[], object]]] = {
        "Grad-CAM": {
            "this": lambda: upsample(grad_cam(model, [LAYER], batch, likeliest(k)).maps[LAYER], size),
            "forward": forward,
        },
        "guided backpropagation": {"this": lambda: guided_backprop(model, batch, likeliest(k))},
        f"integrated gradients, one image, {INTEGRATION_STEPS} steps": {"this": our_integrals},
    }
    if common.is_installed("pytorch_grad_cam"):
        ways["Grad-CAM"]["pytorch-grad-cam"] = by_pytorch_grad_cam(model, batch, targets)
    if common.is_installed("captum"):
        for own, theirs in zip(ways.values(), by_captum(model, batch, targets), strict=True):
            own["captum"] = theirs
    return ways


def by_pytorch_grad_cam(model: nn.Module, batch: Tensor, targets: Tensor) -> Callable[[], object]:
    """Return pytorch-grad-cam's way to Grad-CAM."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def maps() -> None:
        with GradCAM(model, [model.layer4]) as cam:
            for row in targets.tolist():
                cam(batch, [ClassifierOutputTarget(c) for c in row])

    return maps


def by_captum(model: nn.Module, batch: Tensor, targets: Tensor) -> tuple[Callable[[], object], ...]:
    """Return Captum's ways to Grad-CAM, guided backpropagation and integrated gradients."""
    from captum.attr import GuidedBackprop, IntegratedGradients, LayerAttribution, LayerGradCam

    def maps() -> None:
        peer = LayerGradCam(model, model.layer4)
        for row in targets:
            coarse = peer.attribute(batch, row, relu_attributions=True)
            LayerAttribution.interpolate(coarse, tuple(batch.shape[-2:]), "bilinear")

    def guided() -> None:
        for row in targets:
            GuidedBackprop(model).attribute(batch, row)

    def integrals() -> None:
        options = {"n_steps": INTEGRATION_STEPS, "method": "riemann_middle", "return_convergence_delta": True}
        for row in targets[:, :1]:
            IntegratedGradients(model).attribute(batch[:1], 0, row, **options, internal_batch_size=len(batch))

    return maps, guided, integrals


def in_turn(ways: dict[str, Callable[[], object]], repetitions: int, warm_ups: int) -> dict:
    """Return the median seconds, wall-clock and CPU, of each way, called by turns after some warm-ups."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum's, of hooks that it sets
        for turn in range(warm_ups + repetitions):
            for name, way in ways.items():
                taken = common.timed(way)
                if turn >= warm_ups:
                    seconds[name].append(taken)
    return {
        f"{name}_{unit}_seconds": statistics.median(pair[index] for pair in pairs)
        for name, pairs in seconds.items()
        for index, unit in enumerate(("wall", "cpu"))
    }


def trained(name: str, epochs: int, data: images.ImageData) -> nn.Module:
    """Return a network of that name that has learnt the digits for some epochs."""
    torch.manual_seed(SEED)
    model = models.build(name)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            classification(),
            data.train.shuffled((), lambda _names: None, batch_size=32, seed=SEED),
            data.valid.in_order(),
            Settings(seed=SEED, max_epoch=epochs, learning_rate=4e-3),
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=Checkpoints(Path(folder)),
        )
    return model.eval()


def completeness(options: SimpleNamespace) -> list[dict]:
    """Return a row for each network: gradients taken an image, here and by Captum."""
    data = images.load("digits", Path("data"), size=28)
    rows = []
    for name, epochs in (QUICK_DIGITS if options.quick else DIGITS).items():
        model = trained(name, epochs, data)
        accuracy = evaluate(model, classification(), data.valid.in_order())["accuracy"]
        counts = [gradients_taken(model, x) for x in data.valid.images[: options.images]]
        columns = {key: [each[key] for each in counts] for key in counts[0]}
        rows.append(
            {"network": name, "accuracy": accuracy, "images": len(counts)}
            | {f"{key}_median": statistics.median(values) for key, values in columns.items()}
            | {f"{key}_mean": statistics.mean(values) for key, values in columns.items()}
        )
    return rows


def gradients_taken(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return how many gradients make the values of image x add up, here and by Captum if it is installed."""
    black = torch.zeros_like(x)
    with torch.no_grad():
        target = int(model(x[None]).argmax())
    ours = integrated_gradients(lambda p: model(p)[:, target], x, black, tolerance=TOLERANCE)
    counts = {"this": ours.evaluations}
    if common.is_installed("captum"):
        counts |= captums_gradients(model, x, target, TOLERANCE * abs(ours.score - ours.baseline_score))
    return counts


def captums_gradients(model: nn.Module, x: Tensor, target: int, wanted: float) -> dict[str, int]:
    """Return how many gradients Captum takes until the gap is as small as wanted."""
    from captum.attr import IntegratedGradients

    peer = IntegratedGradients(model)

    def right(steps: int) -> bool:
        delta = peer.attribute(x[None], 0, target, n_steps=steps, return_convergence_delta=True)[1]
        return abs(float(delta)) <= wanted or steps >= MOST_PEER_STEPS

    steps = total = 50
    while not right(steps):
        steps *= 2
        total += steps
    fewest = next(n for n in range(1, MOST_PEER_STEPS + 1) if right(n))
    return {"captum": total, "captum_hindsight": fewest}


def memory(options: SimpleNamespace) -> list[dict]:
    """Return one row: the peaks of this process after few steps and after many, in MiB."""
    model, x = resnet(), torch.randn(3, options.size, options.size)
    peaks = []
    for steps in options.paths:
        integrated_gradients(
            lambda p: model(p)[:, 0], x, torch.zeros_like(x), steps=steps, batch_size=options.batch_size
        )
        peaks.append(peak_memory() // 1024)
    few, many = peaks
    return [{"steps": list(options.paths), "peaks_mib": peaks, "ratio": many / few}]


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in KiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux a new process inherits there the peak of the process that started it.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


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
            f"{row[f'{key}_median']:g} ({row[f'{key}_mean']:.0f})" if f"{key}_median" in row else ""
            for key in ("this", "captum", "captum_hindsight")
        ]
        share = ""
        if "captum_median" in row:
            median, mean = (row[f"this_{key}"] / row[f"captum_{key}"] for key in ("median", "mean"))
            share = f"{median:.2f} ({mean:.2f})"
        cells = [row["network"], f"{row['accuracy']:.3f}", *pairs, share]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_table(rows: list[dict]) -> list[str]:
    (row,) = rows
    few, many = row["steps"]
    cells = f"| {row['peaks_mib'][0]} | {row['peaks_mib'][1]} | {row['ratio']:.2f} |"
    return [f"| {few} steps, MiB | {many} steps, MiB | ratio |", "|---:|---:|---:|", cells]


SECTIONS = {
    "memory": (memory, memory_table),  # the first: of what came before it, a peak would remain
    "time": (time_all, time_table),
    "completeness": (completeness, completeness_table),
}


def likeliest(k: int) -> Callable[[Tensor], Tensor]:
    """Return the function from logits to the scores of each image's k most probable classes."""
    return lambda output: class_scores(top_classes(output, k))(output)


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        raise UserError(f"there is no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    found = {}
    for name, (measure, table) in SECTIONS.items():
        if name not in (options.sections or SECTIONS):
            continue
        found[name] = measure(options)
        print("\n".join([f"{name}:", "", *table(found[name]), ""]), flush=True)
    print(
        f"ResNet-18 at {options.size} px, batch size {options.batch_size}, {options.threads} thread(s), "
        f"medians of {options.repetitions}, torch {torch.__version__}."
    )
    common.write_json(options, found)


if __name__ == "__main__":
    cli.run(main)
