#!/usr/bin/env python3
"""Time Shapley values of 64 patches of a photograph under ResNet-18: evaluations a second, time to an error.

    throughput   this: the game, batches and bookkeeping of run-shapley-value.py; bare: a loop over ready-made
                 batches through the network alone, at the best of some sizes; Captum's ShapleyValueSampling,
                 at its best perturbations_per_eval. In turn, in one process. An evaluation answers for three
                 classes at once; Captum takes one for each.
    own cost     seconds that the odd-gp estimator itself takes, and their share of the forward passes
    per-patch    time of the plain way, one image a pass, 30 contexts a patch and class, against odd-gp with a
                 budget at which its error is no larger; both errors against a reference of many evaluations

The network has random weights unless --weights names a file: the time does not depend on them, the errors do.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from lib.explain import players, shapley, subject  # noqa: E402
from lib.explain.baselines import baseline  # noqa: E402
from lib.explain.coalitions import contexts, generator_of  # noqa: E402
from lib.explain.games import Evaluation, MaskedImage, largest_batch  # noqa: E402
from lib.explain.scores import class_scores, top_classes  # noqa: E402
from lib.explain.shapley import Plan  # noqa: E402

BATCH_SIZES = (8, 16, 32, 64)
CLASSES = 3


def make_game(options: argparse.Namespace) -> tuple[MaskedImage, Tensor]:
    """Return the game of the three likeliest classes, and the players' positions."""
    network = subject.load_pretrained(options.ptm, options.weights, options.device)
    if options.input:
        pixels = network.read([options.input])[0].pixels.to(options.device)
    else:  # a smooth random image
        coarse = torch.rand(1, 3, 14, 14, generator=generator_of(0))
        pixels = torch.nn.functional.interpolate(coarse, network.size, mode="bicubic")[0].clamp(0, 1)
        pixels = pixels.to(options.device)
    with torch.inference_mode():
        classes = top_classes(network.logits(pixels[None]), CLASSES)[:, 0].tolist()
    found = players.patches(network.size, options.patch_side_len)
    empty = network.normalise(baseline("grey", pixels))
    scores = class_scores(classes, "log-odds")
    return MaskedImage(network.model, network.normalise(pixels), empty, found.map, scores), found.positions


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def random_coalitions(count: int, n: int) -> Tensor:
    return torch.rand(count, n, generator=generator_of(1)) < 0.5


def bare_loop(game: MaskedImage, count: int, size: int) -> Callable[[], None]:
    """Return what sends so many images through the network, in batches that lie ready."""
    batch = game.image.expand(size, -1, -1, -1).contiguous()

    @torch.inference_mode()
    def loop() -> None:
        for _ in range(count // size):
            game.logits(batch).cpu()

    return loop


def captum_loop(game: MaskedImage, orders: int, at_once: int) -> Callable[[], None]:
    """Return what samples the values of each class in turn: Captum explains one output at a time."""
    from captum.attr import ShapleyValueSampling

    def forward(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return game.scores(game.model(inputs).double()).T

    def loop() -> None:
        for target in range(CLASSES):
            torch.manual_seed(0)
            ShapleyValueSampling(forward).attribute(
                game.image[None],
                baselines=game.baseline[None],
                target=target,
                feature_mask=game.player_map[None, None],
                n_samples=orders,
                perturbations_per_eval=at_once,
            )

    return loop


def throughput(game: MaskedImage, n: int, options: argparse.Namespace) -> dict:
    """Return evaluations a second of each way, medians over repetitions in turn."""
    count = options.count // max(BATCH_SIZES) * max(BATCH_SIZES)
    coalitions = random_coalitions(count, n)
    ways: dict[str, Callable[[], object]] = {
        f"bare {size}": bare_loop(game, count, size) for size in BATCH_SIZES
    }
    evaluation = Evaluation(game, options.device, largest_batch(game.image))
    evaluation(random_coalitions(512 if options.count >= 256 else 128, n))  # finds its pace
    ways["this"] = lambda: evaluation(coalitions)
    orders = max(1, count // n)
    if options.captum:
        ways |= {f"captum {size}": captum_loop(game, orders, size) for size in BATCH_SIZES}
    evaluations = {name: (orders * n + 1 if name.startswith("captum") else count) for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repetitions):
        for name, way in ways.items():
            rates[name].append(evaluations[name] / timed(way))
    medians = {name: statistics.median(found) for name, found in rates.items()}

    def best(prefix: str) -> float:
        return max((rate for name, rate in medians.items() if name.startswith(prefix)), default=math.nan)

    size = evaluation.pace.size
    masking = timed(lambda: [game.masked(part) for part in coalitions.split(size)])
    return {
        "this": medians["this"],
        "bare": best("bare"),
        "captum": best("captum"),
        "this_over_bare": medians["this"] / best("bare"),
        "this_over_captum": medians["this"] / best("captum"),
        "masking_share": masking / (count / medians["this"]),
        "batch_size": size,
    }


def own_cost(positions: Tensor, rate: float, options: argparse.Namespace) -> list[dict]:
    """Return the estimator's own seconds, on values of the network's kind that cost nothing."""
    n = len(positions)
    weights = torch.randn(n, n, dtype=torch.float64, generator=generator_of(2)) / n

    def cheap(coalitions: Tensor) -> Tensor:
        z = 2.0 * coalitions.double() - 1
        linear, quadratic = z @ weights.mean(1, keepdim=True), (z @ weights * z).sum(1, keepdim=True)
        return torch.tanh(linear + quadratic) + torch.tanh(3 * linear * z[:, :1] * z[:, 1:2])

    rows = []
    for budget in (512, 2048):
        times = [
            timed(partial(shapley.odd_gp, cheap, positions, Plan(budget))) for _ in range(options.repetitions)
        ]
        seconds = statistics.median(times)
        rows.append({"evaluations": budget, "own_seconds": seconds, "share": seconds / (budget / rate)})
    return rows


def per_patch_singly(game: MaskedImage, n: int, rounds: int) -> tuple[Tensor, float]:
    """Return values (T, n) of the plain way, class by class and image by image, and the seconds it took."""
    targets = game(torch.ones(1, n, dtype=torch.bool)).shape[1]
    drawn = [contexts(n, rounds, generator_of(seed)) for seed in range(targets)]
    started = time.perf_counter()
    values = torch.zeros(targets, n, dtype=torch.float64)
    for target, design in enumerate(drawn):
        for player in range(n):
            for present, absent in design[:, player]:
                gain = game(present[None])[0, target] - game(absent[None])[0, target]
                values[target, player] += gain / rounds
    return values, time.perf_counter() - started


def time_to_error(game: MaskedImage, positions: Tensor, options: argparse.Namespace) -> dict:
    """Compare the plain way, 30 contexts, with the smallest of our budgets whose error is no larger."""
    n = len(positions)
    evaluation = Evaluation(game, options.device, largest_batch(game.image))
    reference = shapley.odd_gp(evaluation, positions, Plan(options.reference, seed=999)).values
    plain, seconds = per_patch_singly(game, n, options.contexts)
    plain_error = float((plain - reference).square().mean())
    for budget in (3 * n, 4 * n, 6 * n, 8 * n, 12 * n, 16 * n, 32 * n):
        started = time.perf_counter()
        values = shapley.odd_gp(Evaluation(game, options.device), positions, Plan(budget)).values
        ours = time.perf_counter() - started
        error = float((values - reference).square().mean())
        if error <= plain_error:
            break
    passes = 2 * n * options.contexts * len(plain)
    return {
        "plain_passes": passes,
        "plain_seconds": seconds,
        "plain_mse": plain_error,
        "evaluations": budget,
        "seconds": ours,
        "mse": error,
        "speedup": seconds / ours,
    }


def report(speed: dict, costs: Sequence[dict], race: dict | None) -> list[str]:
    lines = [
        "| evaluations / s: this | bare loop | Captum | this / bare | this / Captum | masking | batch |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {speed['this']:.1f} | {speed['bare']:.1f} | {speed['captum']:.1f} "
        f"| {speed['this_over_bare']:.2f} | {speed['this_over_captum']:.2f} "
        f"| {speed['masking_share']:.1%} | {speed['batch_size']} |",
        "",
        "| evaluations | odd-gp's own seconds | share of the forward passes |",
        "|---:|---:|---:|",
        *(f"| {row['evaluations']} | {row['own_seconds']:.2f} | {row['share']:.1%} |" for row in costs),
    ]
    if race:
        lines += [
            "",
            "| | forward passes | seconds | mean squared error |",
            "|---|---:|---:|---:|",
            f"| per-patch, image by image | {race['plain_passes']} | {race['plain_seconds']:.1f} "
            f"| {race['plain_mse']:.2e} |",
            f"| odd-gp | {race['evaluations']} | {race['seconds']:.1f} | {race['mse']:.2e} |",
            f"| ratio | | {race['speedup']:.1f} | |",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ptm", default="resnet18", metavar="NAME")
    add("--weights", default="random", metavar="WHICH", help="as for run-shapley-value.py; default: random")
    add("--input", metavar="FILE", help="a photograph; default: a smooth random image")
    add("-lp", "--patch-side-len", type=int, default=28, metavar="N")
    add("--device", default="cpu", metavar="NAME")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    add("--count", type=int, default=512, metavar="N", help="evaluations timed at once; default: 512")
    add("--repetitions", type=int, default=3, metavar="N", help="default: 3")
    add(
        "--contexts", type=int, default=30, metavar="N", help="of the plain way; 0 leaves it out; default: 30"
    )
    add(
        "--reference", type=int, default=8192, metavar="N", help="evaluations of the reference; default: 8192"
    )
    add("--no-captum", dest="captum", action="store_false")
    add("--json", type=Path, metavar="FILE", help="write the numbers, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    game, positions = make_game(options)
    speed = throughput(game, len(positions), options)
    costs = own_cost(positions, speed["this"], options)
    race = time_to_error(game, positions, options) if options.contexts else None
    print("\n".join(report(speed, costs, race)))
    print(
        f"\n{options.ptm}, {len(positions)} players, {options.threads} thread(s), torch {torch.__version__}"
    )
    if options.json:
        options.json.write_text(json.dumps({"speed": speed, "own": costs, "race": race}, indent=1) + "\n")


if __name__ == "__main__":
    main()
