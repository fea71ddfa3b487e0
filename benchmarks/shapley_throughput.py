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

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.shapley_games import fewest_evaluations  # noqa: E402
from lib import cli  # noqa: E402
from lib.data import image_inputs  # noqa: E402
from lib.explain import batch_size, players, shapley  # noqa: E402
from lib.explain.baselines import baseline  # noqa: E402
from lib.explain.batch_size import BatchSizeTuner  # noqa: E402
from lib.explain.coalitions import contexts, generator_of  # noqa: E402
from lib.explain.games import Evaluation, MaskedImage  # noqa: E402
from lib.explain.shapley import Plan  # noqa: E402
from lib.explain.targets import class_scores, top_classes  # noqa: E402
from lib.models.network import load_pretrained  # noqa: E402
from lib.runtime import distributed  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402

BATCH_SIZES = (8, 16, 32, 64)
CLASSES = 3
BUDGETS = (512, 2048)  # of which the estimator's own cost is measured
# Times the number of players: budgets among which the one is looked for whose error is small enough.
BUDGETS_A_PLAYER = (3, 4, 6, 8, 12, 16, 32)
WARMING_UP = 512  # evaluations at most, in which the size of the batches is found
QUICK = {
    "ptm": "shufflenet_v2_x0_5",
    "patch_side_len": 56,
    "count": 16,
    "contexts": 1,
    "reference": 128,
    "repetitions": 1,
}


def make_parser() -> cli.Parser:
    parser = common.make_parser("shapley_throughput.py", __doc__, repetitions=3)
    add = parser.add_argument_group("game").add_argument
    add("--ptm", default="resnet18", metavar="NAME", help="explain this network of torchvision's")
    add(
        "--weights",
        default="random",
        metavar="WHICH",
        help="give it these weights, as --weights of run-shapley-value.py does",
    )
    add("--input", metavar="FILE", help="explain this photograph; default: a smooth random image")
    add(
        "-lp",
        "--patch-side-len",
        type=cli.integer(1),
        default=28,
        metavar="N",
        help="play with patches of N pixels",
    )
    add(
        "--device", default="cpu", metavar="NAME", help="compute on this device: auto, cpu, cuda, cuda:1, mps"
    )
    add = parser.add_argument_group("what is timed").add_argument
    add("--count", type=cli.integer(1), default=512, metavar="N", help="time N evaluations at once")
    add(
        "--contexts",
        type=cli.integer(0),
        default=30,
        metavar="N",
        help="let the plain way draw N contexts for each patch and class; with 0 it is not timed",
    )
    add(
        "--reference",
        type=cli.integer(2),
        default=8192,
        metavar="N",
        help="measure errors against values from N evaluations",
    )
    add("--no-captum", dest="captum", action="store_false", help="leave Captum out")
    return parser


def make_game(options: SimpleNamespace) -> tuple[MaskedImage, Tensor]:
    """Return the game of the three likeliest classes, and the players' positions."""
    network = load_pretrained(options.ptm, options.weights, options.device)
    if options.input:
        pixels = image_inputs.read([options.input], network.preprocessing)[0].pixels.to(options.device)
    else:  # a smooth random image
        coarse = torch.rand(1, 3, 14, 14, generator=generator_of(0))
        pixels = torch.nn.functional.interpolate(coarse, network.size, mode="bicubic")[0].clamp(0, 1)
        pixels = pixels.to(options.device)
    with torch.inference_mode():
        classes = top_classes(network.logits(pixels[None]), CLASSES)[:, 0].tolist()
    found = players.patches(network.size, options.patch_side_len)
    if found.count < 2:
        raise UserError(f"-lp {options.patch_side_len} leaves one player alone: give a smaller number")
    empty = network.normalise(baseline("grey", pixels))
    scores = class_scores(classes, "log-odds")
    return MaskedImage(network.module, network.normalise(pixels), empty, found.map, scores), found.positions


def random_coalitions(count: int, n: int) -> Tensor:
    return torch.rand(count, n, generator=generator_of(1)) < 0.5


def bare_loop(game: MaskedImage, count: int, size: int) -> Callable[[], None]:
    """Return a function that sends `count` images through the network, in batches that lie ready."""
    batch = game.image.expand(min(size, count), -1, -1, -1).contiguous()
    whole, rest = divmod(count, len(batch))

    @torch.inference_mode()
    def loop() -> None:
        for _ in range(whole):
            game.logits(batch).cpu()
        if rest:
            game.logits(batch[:rest]).cpu()

    return loop


def captum_loop(game: MaskedImage, orders: int, at_once: int) -> Callable[[], None]:
    """Return a function that samples the values of each class in turn, as Captum explains one output."""
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


def throughput(game: MaskedImage, n: int, options: SimpleNamespace) -> dict:
    """Return evaluations a second of each way, medians over repetitions in turn."""
    count = options.count
    coalitions = random_coalitions(count, n)
    ways: dict[str, Callable[[], object]] = {
        f"bare {size}": bare_loop(game, count, size) for size in BATCH_SIZES
    }
    evaluation = new_evaluation(game, options.device)
    evaluation(random_coalitions(min(WARMING_UP, 2 * count), n))  # finds the size of its batches
    ways["this"] = lambda: evaluation(coalitions)
    orders = max(1, count // n)
    if options.captum and common.is_installed("captum"):
        ways |= {f"captum {size}": captum_loop(game, orders, size) for size in BATCH_SIZES}
    evaluations = {name: (orders * n + 1 if name.startswith("captum") else count) for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repetitions):
        for name, way in ways.items():
            rates[name].append(evaluations[name] / common.timed(way)[0])
    medians = {name: statistics.median(found) for name, found in rates.items()}

    def best(prefix: str) -> float | None:
        return max((rate for name, rate in medians.items() if name.startswith(prefix)), default=None)

    size = evaluation.tuner.size
    masking, _ = common.timed(lambda: [game.masked(part) for part in coalitions.split(size)])
    bare, captum = best("bare"), best("captum")
    return {
        "this": medians["this"],
        "bare": bare,
        "captum": captum,
        "this_over_bare": medians["this"] / bare,
        "this_over_captum": captum and medians["this"] / captum,
        "masking_share": masking / (count / medians["this"]),
        "batch_size": size,
    }


def new_evaluation(game: MaskedImage, device: torch.device) -> Evaluation:
    """Return the evaluation of a game as run-shapley-value.py makes it."""
    tuner = BatchSizeTuner(batch_size.largest(game.image), batch_size.first(game.image))
    return Evaluation(game, device, tuner)


def own_cost(positions: Tensor, rate: float, options: SimpleNamespace) -> list[dict]:
    """Return the estimator's own seconds, on values of the network's kind that cost nothing."""
    n = len(positions)
    weights = torch.randn(n, n, dtype=torch.float64, generator=generator_of(2)) / n

    def cheap(coalitions: Tensor) -> Tensor:
        z = 2.0 * coalitions.double() - 1
        linear, quadratic = z @ weights.mean(1, keepdim=True), (z @ weights * z).sum(1, keepdim=True)
        return torch.tanh(linear + quadratic) + torch.tanh(3 * linear * z[:, :1] * z[:, 1:2])

    rows = []
    for budget in BUDGETS:
        estimate = partial(shapley.odd_gp, cheap, positions, Plan(budget))
        seconds = statistics.median(common.timed(estimate)[0] for _ in range(options.repetitions))
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


def time_to_error(game: MaskedImage, positions: Tensor, options: SimpleNamespace) -> dict:
    """Compare the plain way with the smallest of our budgets whose error is no larger.

    If that of none is, the last one is what is reported.
    """
    n = len(positions)
    # Not fewer than the estimator needs: a game of few players has a small budget for everything.
    reference_budget = max(options.reference, fewest_evaluations(n))
    reference = shapley.odd_gp(
        new_evaluation(game, options.device), positions, Plan(reference_budget, seed=999)
    ).values
    plain, seconds = per_patch_singly(game, n, options.contexts)
    plain_error = float((plain - reference).square().mean())
    for budget in (max(factor * n, fewest_evaluations(n)) for factor in BUDGETS_A_PLAYER):
        started = time.perf_counter()
        values = shapley.odd_gp(new_evaluation(game, options.device), positions, Plan(budget)).values
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
    captum, over_captum = (
        "–" if value is None else f"{value:.{digits}f}"
        for value, digits in ((speed["captum"], 1), (speed["this_over_captum"], 2))
    )
    lines = [
        "| evaluations / s: this | bare loop | Captum | this / bare | this / Captum | masking | batch |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {speed['this']:.1f} | {speed['bare']:.1f} | {captum} "
        f"| {speed['this_over_bare']:.2f} | {over_captum} "
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


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    options.device = distributed.pick_device(options.device)
    game, positions = make_game(options)
    speed = throughput(game, len(positions), options)
    costs = own_cost(positions, speed["this"], options)
    race = time_to_error(game, positions, options) if options.contexts else None
    print("\n".join(report(speed, costs, race)))
    print(
        f"\n{options.ptm}, {len(positions)} players, {options.threads} thread(s), torch {torch.__version__}"
    )
    common.write_json(options, {"speed": speed, "own": costs, "race": race})


if __name__ == "__main__":
    cli.run(main)
