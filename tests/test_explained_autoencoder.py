"""Autoencoders that are explained: latent units at z = μ, and areas of the reconstruction."""

import json

import pytest
import torch
from conftest import call, panels_of
from test_vae import make, some_images

from lib import models
from lib.data.preprocessing import Preprocessing
from lib.explain.areas import output_box_target as box_target
from lib.explain.explanation import Request
from lib.explain.methods import METHODS
from lib.explain.targets import unit_target
from lib.models import explained_autoencoder
from lib.models.network import Network
from lib.runtime import checkpoint
from lib.runtime.errors import UserError


def network(*, reconstructs: bool, **config) -> Network:
    kind = explained_autoencoder.Reconstruction if reconstructs else explained_autoencoder.LatentMeans
    return Network(kind(make(**config)), (), Preprocessing(8, 1, (0.0,), (1.0,)), "vae")


@pytest.mark.parametrize("net", ["linear", "conv"])
def test_the_outputs_are_the_latent_means_and_their_reconstruction(net):
    model, images = make(net=net).eval(), some_images()
    assert torch.equal(explained_autoencoder.LatentMeans(model)(images), model.encode(images)[0])
    assert torch.equal(explained_autoencoder.Reconstruction(model)(images), model.reconstruct(images))


def test_a_unit_and_an_area_are_scalars_of_these_outputs():
    model, images = make().eval(), some_images()
    assert torch.equal(unit_target(2).score(model.encode(images)[0]), model.encode(images)[0][:, 2])
    decoded = model.reconstruct(images)
    expected = decoded[:, :, 1:4, 2:7].sum((1, 2, 3))
    torch.testing.assert_close(box_target((1, 2, 4, 7)).score(decoded), expected)
    with pytest.raises(UserError, match="no unit 3: the network has 3, from 0"):
        unit_target(3).score(model.encode(images)[0])
    with pytest.raises(UserError, match="1,2,4,9 is not within the output of 8×8 pixels"):
        box_target((1, 2, 4, 9)).score(decoded)


@pytest.mark.parametrize("target", [unit_target(1), box_target((2, 2, 5, 6))], ids=lambda each: each.name)
def test_integrated_gradients_add_up_to_the_difference_from_the_baseline(target):
    explained = network(reconstructs="area" in target.name)
    images = some_images(2)
    found = METHODS["integrated-gradients"].explain(Request(explained, images, [target]))
    full, empty = (target.score(explained.logits(pixels)) for pixels in (images, torch.zeros_like(images)))
    total = found.maps(8)[""][0].sum((1, 2))
    assert torch.allclose(total, full - empty, atol=0.02 * float((full - empty).abs().max()))


def test_class_activation_maps_are_of_the_encoder_and_need_its_maps():
    request = Request(network(reconstructs=True, net="conv"), some_images(1), [box_target((0, 0, 4, 4))])
    (layer,) = METHODS["grad-cam"].explain(request).values
    assert layer.startswith("encoder.maps")
    for reconstructs in (False, True):
        with pytest.raises(UserError, match="has a spatial map"):
            METHODS["grad-cam"].check(network(reconstructs=reconstructs, net="linear"))


def test_guided_backpropagation_needs_relus():
    METHODS["guided"].check(network(reconstructs=True, activation="relu", depth=2))
    with pytest.raises(UserError, match="does not apply to the silu"):
        METHODS["guided"].check(network(reconstructs=True))


# ---- from the command line


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    """Checkpoints of untrained autoencoders of digits: `linear.pt`, `conv.pt` and `cvae.pt`."""
    folder = tmp_path_factory.mktemp("autoencoders")
    for name, kind, net in (("linear", "vae", "linear"), ("conv", "vae", "conv"), ("cvae", "cvae", "linear")):
        torch.manual_seed(0)
        config = {"channels": 1, "size": 28, "net": net, "hidden": 16, "latent": 4, "activation": "relu"}
        config |= {"classes": 10} if kind == "cvae" else {}
        content = {
            "task": "reconstruction",
            "model": {"name": kind, "config": config},
            "state_dict": models.build(kind, **config).state_dict(),
            "classes": list("0123456789"),
            "preprocessing": {"size": 28, "channels": 1, "mean": [0.0], "std": [1.0]},
            "flags": {},
            "epoch": 0,
        }
        checkpoint.save(folder / f"{name}.pt", content)
    return folder


@pytest.mark.parametrize(
    ("script", "name", "flags"),
    [
        ("run-grad-cam.py", "conv", ("--unit", "3", "1")),
        ("run-grad-cam.py", "conv", ("--area", "8,8,16,20", "--guided")),
        ("run-grad-cam.py", "linear", ("--unit", "3", "--method", "guided")),
        ("run-grad-cam.py", "linear", ("--area", "8,8,16,20", "--method", "occlusion")),
        ("run-integrated-gradients.py", "linear", ("--area", "8,8,16,20", "0,0,4,4")),
        ("run-shapley-value.py", "linear", ("--unit", "2", "-lp", "14")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_the_scripts_that_explain_take_an_autoencoder(script, name, flags, autoencoders, tmp_path):
    usual = ("--restore-file", autoencoders / f"{name}.pt", "--input", "digits:7")
    outputs = ("--json", "found.json", "--save-values", "found.npz")
    done = call(script, *usual, *flags, *outputs, folder=tmp_path)
    assert panels_of(done, may_be_zero=True)
    records = json.loads((tmp_path / "found.json").read_text())
    assert all("probability" not in record for record in records)
    numbers = [value for value in flags[1:3] if not value.startswith("-")]
    assert {record["class"] for record in records} == {f"{flags[0][2:]} {value}" for value in numbers}
    if flags[0] == "--unit":
        assert {record["target"] for record in records} == set(map(int, numbers))
    (picture,) = (tmp_path / "imgs").glob("*.png")
    assert f"of-{flags[0][2:]}" in picture.name


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("linear", ("--unit", "1"), "no layer of the network has a spatial map"),
        ("linear", ("--area", "0,0,4,4"), "no layer of the network has a spatial map"),
        ("linear", (), "say what to explain of it, --unit N or --area"),
        ("linear", ("--unit", "4", "--method", "guided"), "no unit 4: the network has 4"),
        ("linear", ("--unit", "1", "--area", "0,0,4,4"), "leave out --area"),
        ("linear", ("--unit", "1", "--score", "logit"), "leave out --score"),
        ("linear", ("--area", "0,0,4,4", "-k", "2"), "leave out --top-k"),
        ("linear", ("--area", "4,4,4,9"), "is no box Y0,X0,Y1,X1"),
        ("cvae", ("--unit", "1"), "cvae must be told the class"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_explained_is_told_in_one_line(name, flags, message, autoencoders, tmp_path):
    usual = ("--restore-file", autoencoders / f"{name}.pt", "--input", "digits:7")
    done = call("run-grad-cam.py", *usual, *flags, folder=tmp_path)
    assert done.status == 2, done.stderr
    assert done.is_one_line_error()
    assert message in done.stderr


def test_a_classifier_has_neither(subject_folder, tmp_path):
    own = ("--restore-file", subject_folder / "own.pt")
    for which in (own, ("--ptm", "resnet18", "--weights", "random")):
        done = call("run-grad-cam.py", *which, "--input", "digits:7", "--unit", "1", folder=tmp_path)
        assert done.status == 2, done.stderr
        assert done.is_one_line_error()
