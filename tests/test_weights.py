"""Weights as people have them: equal whatever the file's shape; one line for what cannot be used."""

import os

import pytest
import torch
from fuzz import Damage, weights_door
from safetensors.torch import save_file
from torch import nn

from lib.models import pretrained
from lib.runtime import checkpoint, weights
from lib.runtime.errors import UserError

SMALL = "squeezenet1_1"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return pretrained.build(SMALL, classes=12).half().state_dict()


def prefixed(prefix: str):
    return lambda state: {prefix + name: value for name, value in state.items()}


SHAPES = {
    "plain": dict,
    "alphabetical": lambda state: dict(sorted(state.items())),
    "reversed": lambda state: dict(reversed(state.items())),
    "bfloat16": lambda state: {name: value.bfloat16() for name, value in state.items()},
    "float64": lambda state: {name: value.double() for name, value in state.items()},
    "parameters": lambda state: {name: nn.Parameter(value) for name, value in state.items()},
    "counters": lambda state: (
        {"total_ops": torch.zeros(1)} | state | {"features.0.total_ops": torch.zeros(1)}
    ),
    "a nested state_dict twice": lambda state: {"state_dict": {"model": state}, "epoch": torch.tensor(3)},
    "beside a tensor": lambda state: {"model": state, "best": torch.tensor(0.5)},
    "Lightning, with a loss": lambda state: {
        "state_dict": prefixed("model.")(state) | {"criterion.weight": torch.ones(12)},
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
    },
    "a student beside its teacher": lambda state: prefixed("net.")(state) | {"teacher.x": torch.ones(2)},
    "compiled inside": lambda state: {
        name.replace("features.", "features._orig_mod."): value for name, value in state.items()
    },
}
SHAPES |= {f"under {key}": lambda state, key=key: {key: state, "epoch": 3} for key in weights.NESTED}
SHAPES |= {
    f"prefix {prefix}": prefixed(prefix)
    for prefix in (
        "module.", "model.", "net.", "_orig_mod.", "backbone.", "module.model.", "model._orig_mod.",
        "module._orig_mod.net.", "classifier_of_ours.",
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_a_file_of_any_shape_gives_the_same_logits(tmp_path, state, kind, capsys):
    path = tmp_path / "mine.pth"
    torch.save(SHAPES[kind](state), path)
    found = pretrained.load(SMALL, str(path))
    assert len(found.classes) == 12
    own = found.model.state_dict()
    for name, value in state.items():
        tolerance = 1e-2 if kind == "bfloat16" else 0
        torch.testing.assert_close(own[name], value.float(), rtol=tolerance, atol=0)
    assert ("left" in capsys.readouterr().err) == (
        kind in ("Lightning, with a loss", "a student beside its teacher")
    )


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.bin"])
def test_safetensors_are_told_by_their_content(tmp_path, state, name):
    save_file(state, tmp_path / name)
    own = pretrained.load(SMALL, str(tmp_path / name)).model.state_dict()
    assert all(torch.equal(own[key], value.float()) for key, value in state.items())


def test_an_average_beside_the_weights_is_left_with_a_word(tmp_path, state, capsys):
    torch.save({"ema": {k: v * 0 for k, v in state.items()}, "model": state}, tmp_path / "two.pth")
    own = pretrained.load(SMALL, str(tmp_path / "two.pth")).model.state_dict()
    assert torch.equal(own["features.0.weight"], state["features.0.weight"].float())
    assert "left are those under ema" in capsys.readouterr().err


def test_weights_of_a_larger_network_that_holds_all_names_are_refused(tmp_path):
    torch.save(pretrained.build("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"unknown layer1.2.conv1.weight and"):
        pretrained.load("resnet18", str(tmp_path / "resnet34.pth"))


def refusal(path) -> str:
    with pytest.raises(UserError) as refused:
        pretrained.load(SMALL, str(path))
    assert "\n" not in str(refused.value)
    assert path.name in str(refused.value)
    return str(refused.value)


FIRST = "features.0.weight"
UNUSABLE = {
    "nan": (lambda w: w.index_fill(0, torch.tensor([3]), float("nan")), "NaN"),
    "infinite": (lambda w: w.index_fill(0, torch.tensor([3]), float("inf")), "infinite"),
    "infinite in float32": (lambda w: (w.double() + 1) * 1e300, "infinite"),
    "sparse": (lambda w: w.float().to_sparse(), "sparse"),
    "meta": (lambda w: w.to("meta"), "without values"),
    "huge and meta": (lambda _: torch.empty(10**12, 10**3, device="meta"), "without values"),
    "complex": (lambda w: w.to(torch.complex64), "complex64"),
    "int8": (lambda w: w.to(torch.int8), "int8"),
    "boolean": (lambda w: w.to(torch.bool), "bool"),
    "quantised": (lambda w: torch.quantize_per_tensor(w.float(), 0.1, 0, torch.qint8), "qint8"),
    "expanded": (lambda _: torch.zeros(1).expand(10**9), "more values"),
    "another shape": (lambda w: w[:, :2], r"is (64, 2, 3, 3), not (64, 3, 3, 3)"),
}


@pytest.mark.parametrize("name", [FIRST, "classifier.1.bias"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_weights_without_an_answer_are_refused_by_name(tmp_path, state, kind, name):
    change, said = UNUSABLE[kind]
    if kind == "another shape" and name != FIRST:
        pytest.skip("a bias has one dimension")
    torch.save(state | {name: change(state[name])}, tmp_path / "bad.pth")
    message = refusal(tmp_path / "bad.pth")
    assert name in message
    assert said in message


def test_a_mask_of_the_networks_own_may_be_infinite():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))

    model = Masked()
    checkpoint.restore_weights(model, model.state_dict(), "it")
    with pytest.raises(UserError, match="1 of 2 values of mask are NaN"):
        checkpoint.restore_weights(
            model, model.state_dict() | {"mask": torch.tensor([0.0, float("nan")])}, "it"
        )


def test_what_is_no_file_of_weights_is_one_line_at_once(tmp_path, state):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "folder" in refusal(tmp_path / "folder")
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(2**43)
    assert "memory" in refusal(tmp_path / "huge.pth")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(tmp_path / "lfs.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    assert "torch.save(model.state_dict(), FILE)" in refusal(tmp_path / "module.pth")
    torch.save({"state_dict": state, "callbacks": {"path": tmp_path}}, tmp_path / "lightning.ckpt")
    assert "save the weights alone" in refusal(tmp_path / "lightning.ckpt")


def test_damaged_files_of_weights_are_loaded_or_one_line(tmp_path):
    weights_door(tmp_path, Damage(0), 60)
