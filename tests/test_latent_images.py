"""Images from the latent space: ends of interpolations, traversals, styles, imputation; and their sheets."""

import numpy as np
import pytest
import torch
from conftest import SMALL_VAE, VAE_SCRIPT, call
from test_vae import make, some_images

from lib.data.images import ImageData, Split
from lib.data.preprocessing import Preprocessing
from lib.figures import reconstruction as pictures
from lib.figures import style
from lib.tasks import latent_images, reconstruction_views
from lib.tasks.latent_images import Endpoint


def end(model, images, label=None) -> Endpoint:
    labels = None if label is None else torch.full((len(images),), label)
    return Endpoint("some", latent_images.encode(model, images, labels), images, label)


# ---- the images


def test_alpha_one_and_zero_are_the_reconstructions_of_the_ends():
    model, images = make().eval(), some_images(2)
    first, second = end(model, images[:1]), end(model, images[1:])
    walk = latent_images.interpolate(model, first, second, (1.0, 0.5, 0.0))
    assert torch.equal(walk[0, 0], model.reconstruct(images[:1])[0].detach())
    assert torch.equal(walk[0, 2], model.reconstruct(images[1:])[0].detach())
    middle = 0.5 * (first.z + second.z)
    assert torch.allclose(walk[0, 1], model.decode(middle)[0].detach(), atol=1e-6)


def test_a_conditional_one_is_told_the_class_of_the_nearer_end():
    model, images = make("cvae", classes=3).eval(), some_images(2)
    first, second = end(model, images[:1], 0), end(model, images[1:], 2)
    walk = latent_images.interpolate(model, first, second, (1.0, 0.0))
    for place, number, label in ((0, 0, 0), (1, 1, 2)):
        alone = images[number : number + 1]
        expected = model.reconstruct(alone, torch.tensor([label]))[0].detach()
        assert torch.allclose(walk[0, place], expected, atol=1e-6)


def test_a_traversal_changes_one_unit_alone():
    model = make().eval()
    z = torch.tensor([0.3, -1.0, 2.0])
    walk = latent_images.traverse(model, z, [2, 0], 5)
    assert walk.shape == (2, 5, 1, 8, 8)
    changed = z.clone()
    changed[2] = -2.5
    assert torch.allclose(walk[0, 0], model.decode(changed[None])[0].detach(), atol=1e-6)


def test_a_plane_has_the_first_unit_across_and_the_second_downward():
    model = make(latent=2).eval()
    grid = latent_images.plane(model, 3, 2.0)
    expected = model.decode(torch.tensor([[2.0, -2.0]]))[0].detach()
    assert torch.allclose(grid[0, 2], expected, atol=1e-6)


def test_imputation_keeps_visible_pixels_and_does_not_see_hidden_ones():
    model, images = make().eval(), some_images(3)
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:5, 3:7] = True
    filled = latent_images.impute(model, images, hidden)
    assert torch.equal(filled[..., ~hidden], images[..., ~hidden])
    other = torch.where(hidden, 1 - images, images)
    assert torch.equal(latent_images.impute(model, other, hidden), filled)


def test_the_mean_of_a_class_is_over_all_its_images():
    model = make()
    splits = [Split(some_images(6, size=8), torch.tensor([0, 1] * 3)) for _ in range(2)]
    how = Preprocessing(8, 1, (0.0,), (1.0,))
    data = ImageData(*splits, None, ("a", "b"), how)
    first, _ = reconstruction_views._ends(model, data, ("b", "a"))
    both = torch.cat([split.images[split.labels == 1] for split in splits])
    assert torch.allclose(first.z[0], latent_images.encode(model, both).mean(0), atol=1e-6)
    assert first.z.shape == (4, 3)


@pytest.mark.parametrize("examples", [1, 2])
def test_originals_stand_beside_their_own_rows_also_where_one_class_has_fewer(examples):
    images = some_images(4)
    end = Endpoint("a class", torch.zeros(1 + examples, 3), images[:examples])
    assert torch.equal(reconstruction_views._shown(end, 2), images[:1])
    alone = Endpoint("an image", torch.zeros(1, 3), images[:1])
    assert torch.equal(reconstruction_views._shown(alone, 1), images[:1])


# ---- the sheets


def test_a_sheet_shows_each_image_where_it_stands_and_leaves_blanks_white():
    images = np.zeros((2, 3, 4, 4, 3))
    images[0, 1] = 0.5
    images[1, 2] = np.nan
    canvas, side = pictures._tiled(images)
    assert canvas.shape == (2 * 5, 3 * 5, 3)
    assert side == 5
    assert (canvas[0:4, 5:9] == 0.5).all()
    assert (canvas[5:9, 10:14] == 1).all()
    assert (canvas[:, 4] == 1).all()


@pytest.mark.parametrize("rows", [1, 3])
def test_names_of_rows_and_columns_and_any_title_are_drawn(rows, tmp_path):
    images = np.random.default_rng(0).random((rows, 4, 8, 8, 3))
    figure = pictures.sheet(
        images,
        row_names=["a $name", "x" * 60, "c"][:rows],
        column_names=list("abcd"),
        title="z = α · z(glasses) + (1 − α) · z(noglasses)",
    )
    assert style.save(figure, tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.slow
def test_all_pictures_are_drawn_and_logged(trained_vae, tmp_path):
    flags = ("--eval-only", "--restore-file", trained_vae[0], "--interpolate", "3", "8", "--samples", "60")
    more = ("--impute", "8,8,20,20", "--thumbnails", "--projector", "runs", "--layers", "encoder.layers.0")
    done = call(VAE_SCRIPT, *flags, *more, folder=tmp_path)
    assert done.status == 0, done.stderr
    names = {file.stem.removesuffix("-digits") for file in (tmp_path / "imgs").iterdir()}
    assert names == {
        *("reconstruction", "samples", "interpolation", "latent-units", "traversal", "imputation"),
        *("feature", "thumbnails"),
    }
    assert len(done.run().events["FIGURE"]) == len(names)
    assert (tmp_path / "runs" / "projector_config.pbtxt").exists()


@pytest.mark.slow
def test_two_latent_units_are_drawn_as_a_plane_and_classes_as_styles(tmp_path):
    for flags, name in ((("--latent", "2"), "manifold"), (("--model", "cvae"), "styles-cvae")):
        done = call(VAE_SCRIPT, *SMALL_VAE, *flags, "--max-epoch", "1", folder=tmp_path)
        best = done.run().events["BEST"][0]["file"]
        again = call(VAE_SCRIPT, "--eval-only", "--restore-file", best, "--samples", "60", folder=tmp_path)
        assert again.status == 0, again.stderr
        assert (tmp_path / "imgs" / f"{name}-digits.png").exists()


def test_two_classes_are_paired_by_the_names_of_their_files():
    model, pixels = make().eval(), some_images(7)
    names = [f"{each}.png" for each in ("on/a", "on/b", "on/c", "off/c", "off/d", "off/b", "off/e")]
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    mask = torch.tensor([True, False, True, False, True, False, True])
    whole = Split(pixels, labels, names=tuple(names))
    how = Preprocessing(pixels.shape[-1], 1, (0.0,), (1.0,))
    data = ImageData(whole.rows(mask), whole.rows(~mask), None, ("off", "on"), how)
    first, second = reconstruction_views._ends(model, data, ("on", "off"))
    shown = [reconstruction_views.pixels_of(whole.rows(torch.tensor(rows)))[0] for rows in ([1, 2], [5, 3])]
    assert torch.equal(first.images, shown[0])  # b and c, in this order
    assert torch.equal(second.images, shown[1])
    assert len(first.z) == len(second.z) == 3  # the mean of the class, and the two


def test_subfolders_and_files_are_ends_of_interpolations(faces_folder, tmp_path):
    flags = ("--dataset", "faces", "--data-dir", faces_folder, "--size", "16", "--batch-size", "4")
    done = call(VAE_SCRIPT, *flags, "--hidden", "16", "--latent", "3", "--max-epoch", "1", folder=tmp_path)
    assert done.status == 0, done.stderr
    best = ("--eval-only", "--restore-file", done.run().events["BEST"][0]["file"], "--samples", "2")
    file = faces_folder / "lfw" / "ann" / "ann_0000.png"
    for ends in (("ann", "dan"), ("0", file)):
        again = call(VAE_SCRIPT, *best, "--perplexity", "1", "--interpolate", *ends, folder=tmp_path)
        assert again.status == 0, again.stderr
