"""Measures of faithfulness: equal to loops in float64 and to Captum, and right on planted networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from scipy import stats

from lib.evaluation import faithfulness, maps, removal
from lib.evaluation.removal import (
    Removal,
    cell_sums,
    grid,
    inpainted,
    random_cells,
    random_squares,
    shown_without,
)

SIZE = (8, 8)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS = drawn(3, *SIZE, seed=5) - 0.3


def score(images: torch.Tensor) -> torch.Tensor:
    """A score that is not linear: a sum of weighted pixels, and its square."""
    total = (images * WEIGHTS).sum((1, 2, 3))
    return total + 0.1 * total.square()


@pytest.fixture
def game() -> Removal:
    return Removal(score, drawn(3, *SIZE, seed=1), drawn(3, *SIZE, seed=2) / 4)


def mixed(game: Removal, shown) -> float:
    """The score of one image, pixel by pixel."""
    image = game.image.clone()
    for row, column in itertools.product(range(SIZE[0]), range(SIZE[1])):
        if not shown[row][column]:
            image[:, row, column] = game.baseline[:, row, column]
    total = sum(
        float(image[c, y, x] * WEIGHTS[c, y, x]) for c in range(3) for y in range(8) for x in range(8)
    )
    return total + 0.1 * total**2


# ---- against loops


def test_the_game_shows_the_baseline_where_pixels_are_removed(game):
    masks = drawn(5, *SIZE, seed=3) > 0.5
    expected = [mixed(game, mask.tolist()) for mask in masks]
    assert game(masks).tolist() == pytest.approx(expected, abs=1e-9)
    assert game.evaluations == 5


def test_holes_are_painted_with_what_surrounds_them():
    image = drawn(3, 13, 10, seed=3)
    shown = drawn(4, 1, 13, 10, seed=4) > torch.tensor([0.3, 0.6, 0.9, 2.0])[:, None, None, None]
    found = inpainted(image, shown)
    assert torch.equal(torch.where(shown, found, image), image.expand(4, -1, -1, -1))
    assert image.amin() <= found.amin() <= found.amax() <= image.amax()
    torch.testing.assert_close(found[3], image.mean((1, 2))[:, None, None].expand_as(image))
    plain = torch.full_like(image, 0.3)
    torch.testing.assert_close(inpainted(plain, shown), plain.expand(4, -1, -1, -1))


def test_a_hole_in_a_slope_of_brightness_is_filled_closer_than_with_its_mean():
    slope = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 32, 32)
    shown = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    shown[..., 8:16, 4:12] = False
    hole = ~shown[0, 0]
    gap = (inpainted(slope, shown)[0, 0] - slope[0])[hole].abs()
    assert gap.mean() < 0.05
    assert gap.mean() < 0.25 * (slope.mean() - slope[0])[hole].abs().mean()


def test_without_a_baseline_the_game_paints_what_is_removed():
    image, masks = drawn(1, *SIZE, seed=5), drawn(3, *SIZE, seed=6) > 0.5
    found = Removal(lambda images: images.flatten(1).sum(1), image, None)(masks)
    expected = torch.where(masks[:, None], image, inpainted(image, masks[:, None]))
    torch.testing.assert_close(found, expected.flatten(1).sum(1))


def test_deletion_and_insertion_are_areas_under_normalised_curves(game):
    values, steps = drawn(*SIZE, seed=4), 6
    full, empty = mixed(game, np.ones(SIZE)), mixed(game, np.zeros(SIZE))
    places = sorted(itertools.product(range(8), range(8)), key=lambda at: -float(values[at]))
    areas = []
    for removes in (True, False):
        curve = []
        for step in range(steps + 1):
            shown = np.full(SIZE, removes)
            for at in places[: round(step * 64 / steps)]:
                shown[at] = not removes
            curve.append((mixed(game, shown) - empty) / (full - empty))
        areas.append(np.trapezoid(curve, dx=1 / steps))
    assert faithfulness.deletion_insertion(game, values, full, empty, steps) == pytest.approx(areas, abs=1e-6)


def test_there_is_nothing_to_delete_of_an_image_that_scores_no_higher_than_its_baseline(game):
    found = faithfulness.deletion_insertion(game, drawn(*SIZE), 1.0, 1.0)
    assert all(math.isnan(area) for area in found)
    assert math.isnan(faithfulness.f_fidelity(game, drawn(4), grid(SIZE, 2), 1.0, 2.0))


def test_correlations_are_those_of_scipy_also_with_ties():
    a, b = (drawn(40, seed=1) * 6).round(), drawn(40, seed=2)
    assert faithfulness.pearson(a, b) == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-9)
    assert faithfulness.spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-9)
    assert faithfulness.spearman(torch.ones(40), b) == 0
    assert math.isnan(faithfulness.spearman(a, torch.ones(40)))


def test_sensitivity_n_and_single_deletion_are_correlations_over_sets_of_cells(game):
    values, cells = drawn(*SIZE, seed=6) - 0.5, grid(SIZE, 4)
    sums, full = cell_sums(values, cells), mixed(game, np.ones(SIZE))
    subsets = random_cells(16, [2, 8], 12, seed=7)
    assert subsets.sum(-1).tolist() == [[2] * 12, [8] * 12]
    drops = full - game(shown_without(subsets.flatten(0, 1), cells)).view(2, 12)
    each = []
    for sets in subsets:
        told, lost = [], []
        for chosen in sets:
            inside = [[bool(chosen[4 * (y // 2) + x // 2]) for x in range(8)] for y in range(8)]
            told.append(sum(float(values[y, x]) for y in range(8) for x in range(8) if inside[y][x]))
            lost.append(full - mixed(game, ~np.array(inside)))
        each.append(np.corrcoef(told, lost)[0, 1])
    found = faithfulness.sensitivity_n(subsets.double() @ sums, drops)
    assert found == pytest.approx(np.mean(each), abs=1e-6)

    alone = full - game(shown_without(torch.eye(16).bool(), cells))
    lost = [full - mixed(game, (cells != cell).numpy()) for cell in range(16)]
    told = [float(values[cells == cell].sum()) for cell in range(16)]
    assert faithfulness.single_deletion(sums, alone) == pytest.approx(
        stats.spearmanr(told, lost)[0], abs=1e-6
    )


def test_infidelity_is_the_mean_squared_error_of_predicted_drops(game):
    values, squares = drawn(*SIZE, seed=8), random_squares(SIZE, 20, seed=9)
    full = mixed(game, np.ones(SIZE))
    told = [float(values[square].sum()) for square in squares]
    lost = [full - mixed(game, ~square.numpy()) for square in squares]
    sums, drops = (squares.double() * values).sum((1, 2)), full - game(~squares)
    expected = np.mean([(a - b) ** 2 for a, b in zip(told, lost, strict=True)])
    assert faithfulness.infidelity(sums, drops) == pytest.approx(expected, abs=1e-6)
    factor = np.dot(told, lost) / np.dot(told, told)
    best = np.mean([(factor * a - b) ** 2 for a, b in zip(told, lost, strict=True)])
    share = best / np.mean(np.square(lost)) if factor > 0 else 1.0
    assert faithfulness.unexplained(sums, drops) == pytest.approx(share, abs=1e-6)
    assert faithfulness.unexplained(-sums, drops) == (1.0 if factor > 0 else pytest.approx(1 - (1 - share)))


def test_f_fidelity_removes_of_both_parts_no_more_than_a_tenth_of_the_cells(game):
    cells, full, empty = grid(SIZE, 8), mixed(game, np.ones(SIZE)), mixed(game, np.zeros(SIZE))
    sums, asked = drawn(64, seed=3), []

    def noted(masks):
        asked.append(masks)
        return game(masks)

    found = faithfulness.f_fidelity(noted, sums, cells, full, empty, samples=3, seed=4)
    (masks,) = asked
    assert (~masks).sum((1, 2)).tolist() == [6] * 6
    best = set(sums.argsort(descending=True)[:16].tolist())
    removed = [set(cells[~mask].tolist()) for mask in masks]
    assert [each <= best for each in removed] == [True] * 3 + [False] * 3
    assert not any(each & best for each in removed[3:])
    lost = [full - mixed(game, mask.numpy()) for mask in masks]
    assert found == pytest.approx((np.mean(lost[:3]) - np.mean(lost[3:])) / (full - empty), abs=1e-6)


def test_agreement_and_the_share_of_the_best_patches():
    sums, truth = torch.tensor([4.0, 3, 2, 1]), torch.tensor([3.0, 5, -1, 2])
    assert faithfulness.shapley_agreement(sums, truth) == pytest.approx(stats.spearmanr(sums, truth)[0])
    assert faithfulness.top_share(sums, truth, 2) == pytest.approx(8 / 10)
    assert faithfulness.top_share(sums, truth, 3) == pytest.approx(7 / 10)
    assert math.isnan(faithfulness.top_share(sums, -truth.abs(), 2))


def test_maps_are_compared_and_located():
    values, others = drawn(*SIZE, seed=1) - 0.3, drawn(3, *SIZE, seed=2)
    changes = [math.sqrt(sum(float(d) ** 2 for d in (each - values).flatten())) for each in others]
    norm = math.sqrt(sum(float(v) ** 2 for v in values.flatten()))
    assert maps.max_sensitivity(values, others) == pytest.approx(max(changes) / norm, abs=1e-6)
    told = stats.spearmanr(values.abs().flatten(), others[0].flatten())[0]
    assert maps.similarity(values, others[0]) == pytest.approx(told, abs=1e-6)

    inside = maps.box_mask((2, 3, 6, 8), SIZE)
    assert inside.nonzero().amin(0).tolist() == [2, 3]
    assert int(inside.sum()) == 20
    positive = [(float(values[at]), bool(inside[at])) for at in itertools.product(range(8), range(8))]
    mass = sum(max(v, 0) for v, is_in in positive if is_in) / sum(max(v, 0) for v, _ in positive)
    assert maps.relevance_mass(values, inside) == pytest.approx(mass, abs=1e-6)
    strongest = sorted(positive, reverse=True)[:20]
    assert maps.relevance_rank(values, inside) == pytest.approx(sum(is_in for _, is_in in strongest) / 20)
    assert maps.pointing(values, inside) == float(strongest[0][1])


# ---- against a peer


def test_infidelity_is_that_of_captum(game):
    # The image as a mask of ones that multiplies the distance from the baseline; Captum removes parts of it.
    values, squares = drawn(*SIZE, seed=8), random_squares(SIZE, 20, seed=9)

    def masked(shown):
        return score(game.baseline + shown[:, None] * (game.image - game.baseline))

    def remove(inputs, _baselines=None):
        return squares.double(), inputs - squares.double()

    sums = (squares.double() * values).sum((1, 2))
    drops = game(torch.ones(1, *SIZE).bool()) - game(~squares)
    for rescaled in (False, True):
        peer = captum_infidelity(
            masked,
            remove,
            torch.ones(1, *SIZE).double(),
            values[None],
            n_perturb_samples=20,
            normalize=rescaled,
        )
        assert faithfulness.infidelity(sums, drops, rescaled=rescaled) == pytest.approx(float(peer), abs=1e-6)


def test_max_sensitivity_is_that_of_captum():
    image, noise = drawn(1, 3, *SIZE, seed=1), 0.04 * drawn(10, 3, *SIZE, seed=2) - 0.02

    def explain(images):
        images = images.clone().requires_grad_()
        with torch.enable_grad():  # which Captum switches off
            (gradient,) = torch.autograd.grad(score(images).sum(), images)
        return (gradient * images).detach().sum(1)

    def explain_all(images):  # Captum hands over a tuple, and expects one
        return tuple(map(explain, images)) if isinstance(images, tuple) else explain(images)

    peer = sensitivity_max(explain_all, image, lambda inputs, _radius: inputs[0] + noise)
    found = maps.max_sensitivity(explain(image)[0], explain(image + noise))
    assert found == pytest.approx(float(peer), abs=1e-6)


# ---- planted networks

PATCH = (slice(0, 4), slice(0, 4))
OTHER = (slice(4, 8), slice(4, 8))


def planted(kind: str) -> Removal:
    """An image of ones on zeros; the score is the sum over a patch, or the product of two patches' sums."""

    def of(images):
        first, second = images[:, 0][:, *PATCH].sum((1, 2)), images[:, 0][:, *OTHER].sum((1, 2))
        return first if kind == "sum" else first * second

    return Removal(of, torch.ones(1, *SIZE, dtype=torch.float64), torch.zeros(1, *SIZE, dtype=torch.float64))


def map_of(*patches) -> torch.Tensor:
    found = torch.zeros(SIZE, dtype=torch.float64)
    for patch in patches:
        found[patch] = 1
    return found


def test_of_a_sum_over_a_patch_the_patch_has_the_analytic_values_and_every_other_map_is_worse():
    game, cells = planted("sum"), grid(SIZE, 4)
    right, wrong = map_of(PATCH), map_of(OTHER)
    full, empty = (float(game(torch.full((1, *SIZE), each))) for each in (True, False))
    assert (full, empty) == (16, 0)
    # A quarter of the pixels hold the score: it falls in a straight line to 0 in two of eight steps.
    good = faithfulness.deletion_insertion(game, right, full, empty, steps=8)
    assert good == pytest.approx(((0.5 + 0.5) / 8, (0.5 + 0.5 + 6) / 8), abs=1e-9)
    bad = faithfulness.deletion_insertion(game, wrong, full, empty, steps=8)
    assert bad.deletion > good.deletion + 0.2
    assert bad.insertion < good.insertion - 0.2

    squares = random_squares(SIZE, 64, seed=1)
    drops = full - game(~squares)

    def infidelity(values):
        return faithfulness.infidelity((squares.double() * values).sum((1, 2)), drops)

    assert infidelity(right) == pytest.approx(0, abs=1e-9)
    assert infidelity(wrong) > 1
    alone = full - game(shown_without(torch.eye(16).bool(), cells))
    assert faithfulness.single_deletion(cell_sums(right, cells), alone) == pytest.approx(1)
    assert faithfulness.single_deletion(cell_sums(wrong, cells), alone) == pytest.approx(-1 / 3)
    subsets = random_cells(16, [4, 8], 30, seed=2)
    lost = full - game(shown_without(subsets.flatten(0, 1), cells)).view(2, 30)
    found = [faithfulness.sensitivity_n(subsets.double() @ cell_sums(m, cells), lost) for m in (right, wrong)]
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.2
    # Half of the four cells of the explanation, but no more than a tenth of the 16: two of four pixels each.
    assert faithfulness.f_fidelity(game, cell_sums(right, cells), cells, full, empty) == pytest.approx(8 / 16)


def test_of_a_product_of_two_patches_each_has_half_and_a_map_of_one_explains_half_of_it():
    game = planted("product")
    cells = grid(SIZE, 2)
    full = float(game(torch.ones(1, *SIZE).bool()))
    assert full == 256
    subsets = torch.tensor(list(itertools.product([False, True], repeat=4)))
    values = dict(zip(map(tuple, subsets.tolist()), game(shown_without(~subsets, cells)), strict=True))
    truth = torch.zeros(4, dtype=torch.float64)
    for players in itertools.permutations(range(4)):
        shown = [False] * 4
        for player in players:
            before = values[tuple(shown)]
            shown[player] = True
            truth[player] += (values[tuple(shown)] - before) / 24
    assert truth.tolist() == pytest.approx([128, 0, 0, 128])
    both, one, wrong = map_of(PATCH, OTHER), map_of(PATCH), map_of((slice(0, 4), slice(4, 8)))
    agreement = [faithfulness.shapley_agreement(cell_sums(m, cells), truth) for m in (both, one, wrong)]
    assert agreement == pytest.approx([1, 1 / math.sqrt(3), -1 / math.sqrt(3)])
    shares = [faithfulness.top_share(cell_sums(m, cells), truth, 2) for m in (both, one, wrong)]
    assert shares[0] == 1
    assert shares[1] >= 0.5
    # Without one of the patches nothing is left: its removal takes all, and removing both takes no more.
    alone = full - game(shown_without(torch.eye(4).bool(), cells))
    assert alone.tolist() == [256, 0, 0, 256]


def test_grids_and_squares_lie_within_images_of_any_size():
    assert grid((3, 5), 8).tolist() == [[5 * row + column for column in range(5)] for row in range(3)]
    cells = grid((224, 200), 4)
    assert cells.unique().numel() == 16
    squares = random_squares((9, 30), 50, seed=3)
    assert squares.any(2).any(1).all()
    assert not squares.all()


def test_equal_values_are_ordered_at_random_and_always_the_same_way():
    first, again = faithfulness.order(torch.zeros(100)), faithfulness.order(torch.zeros(100))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.arange(100))
    assert faithfulness.order(torch.tensor([1.0, 3.0, 2.0])).tolist() == [1, 2, 0]
    assert removal.cell_sums(torch.ones(4, 4), grid((4, 4), 2)).tolist() == [4] * 4
