"""Estimators of Shapley values: ours, and those of shap, Captum and shapiq that are installed."""

import contextlib
import functools
import inspect
import io
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks import common
from benchmarks.shapley_games import Game
from lib.explain import shapley
from lib.explain.shapley import Plan
from lib.runtime.errors import RunFailed, UserError, say

OURS = ("odd-gp", "permutation", "per-patch")

# Values of a game from so many evaluations and a seed, (n,).
Estimator = Callable[[Game, int, int], np.ndarray]
# Values (n,), and their standard errors (n,) if the estimator states them.
Answer = tuple[torch.Tensor, torch.Tensor | None]


def ours(name: str) -> Callable[[Game, int, int], Answer | None]:
    """Return one of our estimators; it returns None if the evaluations are too few for it."""

    def answer(game: Game, budget: int, seed: int) -> Answer | None:
        try:
            found = shapley.ESTIMATORS[name](game.of_tensor, game.positions, Plan(budget, seed=seed))
        except RunFailed as error:
            say_once(f"{name} is left out at {budget} evaluations of {game.n} players: {error}")
            return None
        return found.values[0], found.standard_errors[0]

    return answer


@functools.cache
def say_once(text: str) -> None:
    say(text)


def shap_permutation(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap

    masker = shap.maskers.Independent(np.zeros((1, game.n)))
    explainer = shap.PermutationExplainer(game.of_array, masker, seed=seed)
    return explainer(np.ones((1, game.n)), max_evals=max(budget, 2 * game.n + 1), silent=True).values[0]


def shap_kernel(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap

    np.random.seed(seed)
    explainer = shap.KernelExplainer(game.of_array, np.zeros((1, game.n)))
    full = np.ones((1, game.n))
    return explainer.shap_values(full, nsamples=budget - 2, l1_reg=False, silent=True)[0]


def shap_partition(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap
    from scipy.cluster.hierarchy import linkage

    np.random.seed(seed)
    masker = shap.maskers.Partition(
        np.zeros((1, game.n)), clustering=linkage(game.positions.numpy(), "complete")
    )
    explainer = shap.PartitionExplainer(game.of_array, masker)
    return explainer(np.ones((1, game.n)), max_evals=budget, silent=True).values[0]


def captum(method: str, samples: Callable[[int, int], int]) -> Estimator:
    """Return one of Captum's estimators; `samples` maps evaluations and players to a number of samples."""

    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from captum import attr

        torch.manual_seed(seed)
        np.random.seed(seed)
        explainer = getattr(attr, method)(lambda inputs: torch.from_numpy(game.of_array(inputs)))
        ones = torch.ones(1, game.n, dtype=torch.float64)
        return explainer.attribute(ones, n_samples=samples(budget, game.n))[0].double().numpy()

    return estimate


SHAP = {
    "shap PermutationExplainer": shap_permutation,
    "shap KernelExplainer": shap_kernel,
    "shap PartitionExplainer": shap_partition,
}
CAPTUM = {
    "Captum ShapleyValueSampling": captum(
        "ShapleyValueSampling", lambda budget, n: max(1, (budget - 1) // n)
    ),
    "Captum KernelShap": captum("KernelShap", lambda budget, _n: budget),
}

# shapiq's own list lacks these, in some versions or in all.
SHAPIQ_BESIDES_ITS_LIST = ("RegressionMSR", "ProxySHAP")
# Options of shapiq's estimators; each gets those that its version takes. On the games of `--tables`, pairs of
# complements made the error of no estimator larger, and that of most two to four times smaller.
SHAPIQ_OPTIONS = {"index": "SV", "pairing_trick": True, "show_progress": False}


def shapiq_estimators() -> dict[str, Estimator]:
    """Return the estimators of Shapley values that the installed version of shapiq brings."""
    from shapiq import approximator

    kinds = list(getattr(approximator, "SV_APPROXIMATORS", ()))
    kinds += [getattr(approximator, name) for name in SHAPIQ_BESIDES_ITS_LIST if hasattr(approximator, name)]
    return {f"shapiq {kind.__name__}": shapiq_estimator(kind) for kind in kinds}


def shapiq_estimator(kind: type) -> Estimator:
    """Return one of shapiq's approximators as an estimator.

    The options that an approximator takes differ between versions, so they are read from its signature.
    """
    known = inspect.signature(kind).parameters
    options = {name: value for name, value in SHAPIQ_OPTIONS.items() if name in known}

    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        explainer = kind(n=game.n, random_state=seed, **options)
        found = explainer.approximate(budget=budget, game=game.of_array)
        return np.array([found[(player,)] for player in range(game.n)])

    return estimate


def peers(wanted: Sequence[str], unwanted: Sequence[str]) -> dict[str, Estimator]:
    """Return the installed libraries' estimators: the `wanted` ones, or by default all but the `unwanted`.

    Raises:
        UserError: an installed library has no estimator of a name that is wanted.
    """
    libraries: dict[str, Callable[[], dict[str, Estimator]]] = {
        "shap": lambda: SHAP,
        "captum": lambda: CAPTUM,
        "shapiq": shapiq_estimators,
    }
    named = {name: name.partition(" ")[0].lower() for name in wanted if name not in OURS}
    missing = set()
    found: dict[str, Estimator] = {}
    for library, estimators in libraries.items():
        if wanted and library not in named.values():
            continue
        if common.is_installed(library):
            found |= estimators()
        else:
            missing.add(library)
    unknown = [name for name, library in named.items() if name not in found and library not in missing]
    if unknown:
        raise UserError(f"there is no estimator {unknown[0]!r}; there are {', '.join((*OURS, *found))}")
    chosen = wanted or found
    return {name: found[name] for name in found if name in chosen and name not in unwanted}


def forgiving(name: str, estimate: Estimator, patience: float) -> Callable[[Game, int, int], Answer | None]:
    """Return a library's estimator that returns None if it fails, or was too slow before.

    The exceptions that it may raise depend on the library's version, so all of them are caught.
    """
    slow: list[str] = []

    def answer(game: Game, budget: int, seed: int) -> Answer | None:
        if slow:
            return None
        started = time.perf_counter()
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                values = torch.as_tensor(estimate(game, budget, seed), dtype=torch.float64)
            if not values.isfinite().all():
                raise ValueError("not all of its values are finite")
        except ImportError as error:
            say_once(f"{name} is left out: {error}")
            return None
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            say_once(f"{name} is left out at {budget} evaluations of {game.n} players: {what}")
            return None
        seconds = time.perf_counter() - started - game.seconds
        if seconds > patience:
            slow.append(name)
            say_once(f"{name} is left out from {budget} evaluations on: it took {seconds:.1f} s (--patience)")
            return None
        return values, None

    return answer
