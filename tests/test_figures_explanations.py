"""Sheets of explained images: every title whole, zero at zero, nothing distorted."""

import numpy as np
import pytest
from PIL import Image

from lib.figures import explanations, frames, style
from lib.figures.explanations import Tile

RNG = np.random.default_rng(0)
PHOTOGRAPH = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
HEAT = np.linspace(0, 3, 24 * 24).reshape(24, 24)
SIGNED = RNG.normal(size=(24, 24))


def row(columns: int = 3, lines: int = 3) -> list[Tile]:
    long = [
        "a class whose name is so long that it needs two lines",
        *["and a note of a method"] * (lines - 1),
    ]
    panels = [Tile(long, PHOTOGRAPH, SIGNED if i % 2 else HEAT, signed=bool(i % 2)) for i in range(columns)]
    return [Tile(["cat", "resnet18", "layer4 7×7"], PHOTOGRAPH), *panels]


def panels(figure) -> list:
    return [axes for axes in figure.axes if axes.images]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 6), (5, 3)])
def test_titles_are_whole_and_touch_no_panel_and_no_other_title(rows, columns):
    figure = explanations.sheet([row(columns) for _ in range(rows)])
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in panels(figure)]
    places = [axes.get_window_extent() for axes in panels(figure)]
    for title in titles:
        assert figure.bbox.y0 <= title.y0 < title.y1 <= figure.bbox.y1
    for a in range(len(titles)):
        assert not any(titles[a].overlaps(place) for place in places)
        assert not any(titles[a].overlaps(titles[b]) for b in range(a))


def test_panels_keep_the_shape_of_the_image_and_the_input_its_pixels():
    figure = explanations.sheet([row()])
    figure.draw_without_rendering()
    for axes in panels(figure):
        box = axes.get_window_extent()
        assert box.width == pytest.approx(box.height, rel=1e-3)
    np.testing.assert_array_equal(panels(figure)[0].images[0].get_array(), PHOTOGRAPH)


def test_each_kind_of_map_has_a_bar_with_its_unit():
    figure = explanations.sheet([row()])
    labels = " ".join(axes.get_ylabel().replace("\n", " ") for axes in figure.axes)
    assert "share of the strongest value in the panel (left: over black" in labels
    assert "for (red) and against (blue)" in labels
    shared = [[tile._replace(limit=9.0) for tile in row()]]
    labels = " ".join(axes.get_ylabel().replace("\n", " ") for axes in explanations.sheet(shared).axes)
    assert labels.count("strongest value in the row") == 2
    only_heat = explanations.sheet([row(1)])
    assert len(only_heat.axes) == 3


def test_a_map_that_is_zero_says_so_and_one_that_is_not_does_not():
    blank = Tile(["cat"], PHOTOGRAPH, np.zeros((24, 24)))
    figure = explanations.sheet([[blank, Tile(["dog"], PHOTOGRAPH, HEAT)]])
    said = [[text.get_text() for text in axes.texts] for axes in panels(figure)]
    assert said == [["zero everywhere"], []]


def test_heat_is_drawn_as_a_share_of_its_maximum_over_the_image_without_colours():
    for factor in (1e-9, 1.0, 1e9):
        np.testing.assert_allclose(
            explanations.heat_colours(factor * HEAT, PHOTOGRAPH), explanations.heat_colours(HEAT, PHOTOGRAPH)
        )
    white = np.full((2, 2, 3), 255, dtype=np.uint8)
    colours = explanations.heat_colours(np.array([[0.0, 1.0], [0.5, 0.0]]), white)
    np.testing.assert_allclose(colours[0, 0], colours[1, 1])
    assert colours[0, 1].sum() > colours[1, 0].sum() > colours[0, 0].sum()


def test_signed_maps_are_white_at_zero_and_symmetric_about_it():
    values = np.array([[-2.0, -1.0], [0.0, 2.0]])
    colours = explanations.signed_colours(values)
    np.testing.assert_allclose(colours[1, 0], 1, atol=0.01)
    red, _, blue = colours[0, 0]
    assert blue > red  # against
    red, _, blue = colours[1, 1]
    assert red > blue  # for
    np.testing.assert_allclose(explanations.signed_colours(1e-6 * values), colours)


def test_a_signed_map_with_a_single_pixel_still_has_a_scale():
    lonely = np.zeros((100, 100))
    lonely[50, 50] = 1e-3
    colours = explanations.signed_colours(lonely)
    assert np.isfinite(colours).all()
    assert colours[50, 50].sum() < 1.5


def test_an_animation_has_a_frame_for_each_figure_all_of_one_size(tmp_path):
    figures = [explanations.sheet([row(1, lines)]) for lines in (1, 4, 2)]
    path = explanations.save_animation(figures, tmp_path / "a.gif")
    with Image.open(path) as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0


def test_names_that_look_like_formulas_are_drawn_as_they_stand(tmp_path):
    figure = explanations.sheet([[Tile(["$x_1", "a$b"], PHOTOGRAPH)]])
    assert style.save(figure, tmp_path / "a.png").exists()


def test_the_bar_shows_the_colour_of_zero_over_black_and_over_white():
    for picture, column in ((0, 0), (255, -1)):
        pixels = np.full((24, 24, 3), picture, dtype=np.uint8)
        figure = explanations.sheet([[Tile(["cat"], pixels, HEAT)]])
        (bar,) = [axes for axes in figure.axes if not axes.images and axes.collections]
        shown = bar.collections[-1].get_array()[0, column]
        np.testing.assert_allclose(panels(figure)[0].images[0].get_array()[0, 0], shown, atol=0.01)


def test_a_map_of_a_part_is_drawn_in_its_place_and_the_rest_is_faded():
    pixels = np.zeros((60, 100, 3), dtype=np.uint8)
    planted = np.zeros((10, 10))
    planted[4, 7] = 1.0
    drawn = explanations.colours(Tile(["cat"], pixels, planted, box=(40.0, 20.0, 80.0, 60.0)))
    np.testing.assert_allclose(drawn[:20], 0.6)
    np.testing.assert_allclose(drawn[:, :40], 0.6)
    inside = drawn[20:, 40:80].sum(-1)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    assert (row, column) == (pytest.approx(4.5 * 4 - 0.5, abs=1), pytest.approx(7.5 * 4 - 0.5, abs=1))


def test_a_limit_that_maps_share_makes_the_weaker_one_darker():
    strong, weak = (explanations.colours(Tile([], PHOTOGRAPH, each * HEAT, limit=3.0)) for each in (1, 0.2))
    assert strong.sum() > 1.2 * weak.sum()
    np.testing.assert_allclose(strong, explanations.heat_colours(HEAT, PHOTOGRAPH))


def test_grainy_maps_are_smoothed_without_changing_their_sum():
    values = RNG.normal(size=(224, 300))
    smooth = frames.smoothed(values)
    assert smooth.sum() == pytest.approx(values.sum())
    assert smooth.std() < 0.2 * values.std()
    assert frames.smoothed(SIGNED) is SIGNED


def test_a_box_has_an_outline_unless_it_is_all_of_the_picture():
    for box, patches in (((2.0, 2.0, 20.0, 20.0), 2), ((0.0, -4.0, 24.0, 28.0), 0)):
        figure = explanations.sheet([[Tile(["cat"], PHOTOGRAPH, box=box)]])
        assert len(panels(figure)[0].patches) == patches
