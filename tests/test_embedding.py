"""Embeddings and the projector's files, against closed forms, brute force, and the projector's own reader."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.evaluation import embedding, projector
from lib.runtime.errors import RunFailed, UserError


def blobs(examples: int = 90, size: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three far-apart classes: features (N, size) and labels (N,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(examples) % 3
    return 20 * generator.normal(size=(3, size))[labels] + generator.normal(size=(examples, size)), labels


def embed_one(features: np.ndarray, **options) -> dict[str, np.ndarray]:
    options = {"perplexity": 5, **options}
    return embedding.project({"layer": features}, **options)["layer"]


def brute_force_accuracy(points: np.ndarray, labels: np.ndarray, k: int) -> float:
    hits = 0
    for i in range(len(points)):
        distances = ((points - points[i]) ** 2).sum(axis=1)
        distances[i] = np.inf
        hits += np.bincount(labels[np.argsort(distances)[:k]]).argmax() == labels[i]
    return hits / len(points)


def test_importing_the_module_does_not_import_torch():
    code = "import sys; import lib.evaluation.embedding; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize("shape", [(60, 7), (60, 130), (20, 300)])
@pytest.mark.parametrize("dims", [2, 3])
def test_pca_equals_the_singular_value_decomposition(shape, dims):
    # A flat spectrum, on which a randomised solver is visibly wrong.
    features = np.random.default_rng(0).normal(size=shape) + 5
    u, s, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    points = embed_one(features, dims=dims)["pca"]
    np.testing.assert_allclose(np.abs(points), np.abs(u[:, :dims] * s[:dims]), atol=1e-8)


def test_pca_of_fewer_features_than_dimensions_is_padded_with_zeros():
    features = np.random.default_rng(0).normal(size=(30, 1))
    result = embed_one(features, dims=3)
    np.testing.assert_allclose(np.abs(result["pca"][:, 0]), np.abs(features - features.mean())[:, 0])
    assert not result["pca"][:, 1:].any()
    assert result["tsne"].shape == (30, 3)
    assert (result["tsne"].std(axis=0) > 0).all()


def test_rounding_beyond_the_rank_of_the_features_is_not_shown_as_a_dimension():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 1)) @ generator.normal(size=(1, 200))
    assert not embed_one(features)["pca"][:, 1].any()


def test_tsne_keeps_separate_classes_separate():
    features, labels = blobs(size=80)
    assert embedding.neighbour_accuracy(embed_one(features)["tsne"], labels) == 1


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
def test_tsne_does_not_depend_on_the_scale_of_the_features(factor):
    features, _ = blobs(30)
    np.testing.assert_allclose(
        embed_one(features * factor)["tsne"], embed_one(features)["tsne"], rtol=1e-3, atol=1e-3
    )


def test_points_do_not_depend_on_the_number_of_processes():
    features = {str(seed): blobs(60, 60, seed)[0] for seed in range(3)}
    alone = embedding.project(features, perplexity=5, workers=1)
    together = embedding.project(features, perplexity=5, workers=2)
    assert list(alone) == list(together) == list(features)
    for name, points in alone.items():
        for method, array in points.items():
            np.testing.assert_array_equal(array, together[name][method])


def test_workers_start_while_torch_threads_run_in_the_parent():
    torch = pytest.importorskip("torch")
    (torch.ones(400, 400) @ torch.ones(400, 400)).sum()
    features = {str(seed): blobs(20, seed=seed)[0] for seed in range(2)}
    points = embedding.project(features, perplexity=3, workers=2)
    assert all(np.isfinite(array).all() for methods in points.values() for array in methods.values())


def test_features_that_are_all_the_same_lie_at_the_origin_and_that_is_said(capsys):
    result = embed_one(np.full((20, 100), 3.7, dtype=np.float32))
    assert not result["pca"].any()
    assert not result["tsne"].any()
    assert "layer puts out the same for every example" in capsys.readouterr().err


def test_features_that_are_not_finite_count_as_zero_and_are_counted(capsys):
    features, _ = blobs(30)
    zeroed = features.copy()
    features[3, 1], features[7] = np.nan, np.inf
    zeroed[3, 1], zeroed[7] = 0, 0
    np.testing.assert_array_equal(embed_one(features)["pca"], embed_one(zeroed)["pca"])
    assert "2 of 30 examples" in capsys.readouterr().err


def test_a_perplexity_must_be_below_the_number_of_examples():
    features, _ = blobs(12)
    with pytest.raises(UserError, match="perplexity of 12 needs more than the 12 examples"):
        embed_one(features, perplexity=12)
    assert embed_one(features, perplexity=11)["tsne"].shape == (12, 2)


def test_two_examples_can_be_embedded_in_three_dimensions():
    assert embed_one(np.eye(2), perplexity=1, dims=3)["tsne"].shape == (2, 3)


def test_no_layers_give_no_points():
    assert embedding.project({}) == {}


def test_no_progress_bar_appears_where_there_is_no_terminal(capfd):
    embed_one(blobs(12)[0], perplexity=3)
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_neighbour_accuracy_equals_brute_force(examples, k, classes, seed):
    generator = np.random.default_rng(seed)
    points, labels = generator.normal(size=(examples, 3)), generator.integers(0, classes, examples)
    expected = brute_force_accuracy(points, labels, min(k, examples - 1))
    assert embedding.neighbour_accuracy(points, labels, k) == pytest.approx(expected)


def test_a_point_is_not_its_own_neighbour_among_duplicates():
    points = np.zeros((2, 2))
    assert embedding.neighbour_accuracy(points, np.array([0, 1]), k=1) == 0


def test_one_point_alone_has_no_accuracy():
    assert np.isnan(embedding.neighbour_accuracy(np.zeros((1, 2)), np.array([0])))


def projector_config(folder: Path):
    """Read a folder with the code of TensorBoard's own plugin."""
    projector = pytest.importorskip("tensorboard.plugins.projector")
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((folder / "projector_config.pbtxt").read_text(), projector.ProjectorConfig())


def test_the_projector_reads_every_layer_back(tmp_path):
    plugin = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    names = ["layers.sub-layer0", 'a "quoted" / layer', "../up", "é"]
    features = {name: np.random.default_rng(i).normal(size=(5, i + 2)) for i, name in enumerate(names)}
    config_path = projector.write_projector(tmp_path, features, list("abcde"))
    config = projector_config(tmp_path)
    assert [entry.tensor_name for entry in config.embeddings] == names
    for entry in config.embeddings:
        # The plugin refuses paths that lead out of the folder.
        path = plugin._rel_to_abs_asset_path(entry.tensor_path, str(config_path))
        np.testing.assert_allclose(
            plugin._read_tensor_tsv_file(path), features[entry.tensor_name], rtol=1e-5, atol=1e-6
        )
        assert not entry.HasField("sprite")


def test_labels_keep_one_line_each(tmp_path):
    labels = ["plain", "", "two\nlines", "a\ttab"]
    projector.write_projector(tmp_path, {"layer": np.eye(4)}, labels)
    (entry,) = projector_config(tmp_path).embeddings
    assert (tmp_path / entry.metadata_path).read_text() == "plain\n-\ntwo lines\na tab\n"


def test_the_sprite_is_a_square_grid_read_row_by_row(tmp_path):
    thumbnails = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(4, 2).repeat(3, 3)
    projector.write_projector(tmp_path, {"layer": np.eye(5)}, list("abcde"), thumbnails)
    (entry,) = projector_config(tmp_path).embeddings
    assert list(entry.sprite.single_image_dim) == [4, 6]  # width, height
    sprite = np.asarray(Image.open(tmp_path / entry.sprite.image_path))
    assert sprite.shape == (3 * 6, 3 * 4, 3)
    grid = sprite[::6, ::4, 0]
    assert grid.ravel().tolist() == [0, 1, 2, 3, 4, 255, 255, 255, 255]


def test_a_sprite_is_never_larger_than_browsers_show(monkeypatch):
    monkeypatch.setattr(projector, "LONGEST_SPRITE_SIDE", 100)
    sprite, (height, width) = projector._sprite(np.zeros((26, 40, 20, 3), dtype=np.uint8))
    assert max(sprite.size) <= 100
    assert sprite.size == (6 * width, 6 * height)
    assert (height, width) == (16, 8)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunFailed, match="cannot write to"):
        projector.write_projector(tmp_path / "taken" / "below", {"layer": np.eye(2)}, ["a", "b"])


def test_workers_do_not_outlive_a_parent_that_is_killed():
    code = (
        "import os, signal, time\n"
        "from lib.evaluation import embedding\n"
        "def kill_parent(seconds):\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    time.sleep(seconds)\n"
        "list(embedding._map(kill_parent, [60, 60], {}, 2))\n"
    )
    root = Path(__file__).parent.parent
    # Returns when nobody holds the other end of the pipe any more, the workers included.
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
