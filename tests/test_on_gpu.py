"""The benchmark of a GPU, on a machine that has none; its quick form is in tests/test_benchmarks.py."""

from types import SimpleNamespace

import pytest
import torch
from conftest import call

from benchmarks import on_gpu
from lib.models.network import load_pretrained


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_what_to_do(tmp_path):
    done = call("benchmarks/on_gpu.py", folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()
    assert "--device cpu" in done.stderr


def test_the_difference_is_a_share_of_the_largest_value():
    expected = torch.tensor([[1.0, -4.0], [0.0, 2.0]])
    assert on_gpu.difference(expected, expected) == 0
    assert on_gpu.difference(expected + torch.tensor([0.0, 0.02]), expected) == pytest.approx(0.005)


@pytest.mark.parametrize("name", on_gpu.EXPLANATIONS)
def test_an_image_has_the_same_explanation_alone_and_in_a_batch(name):
    network = load_pretrained("squeezenet1_1", "random")
    options = SimpleNamespace(steps=1, size=32, patch_side_len=8, budget=48)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = on_gpu.values_of(on_gpu.explain(network, images[:1], name, options))
    together = on_gpu.values_of(on_gpu.explain(network, images, name, options))
    torch.testing.assert_close(together[:, :1], alone, rtol=1e-3, atol=1e-5)


def test_training_that_cannot_run_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    training = {"nothing": ("run-mnist-classification.py", ("--limit", "none"))}
    monkeypatch.setattr(on_gpu, "TRAINING", training)
    options = SimpleNamespace(quick=False, photographs=None, data_dir=tmp_path, device="cpu")
    assert list(on_gpu.train_all(options)) == []
    assert "nothing is left out: error: " in capsys.readouterr().err
