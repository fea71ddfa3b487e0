"""Networks of the user's own: however they are made, answer and are kept, they are explained alike."""

import textwrap

import numpy as np
import pytest
import torch
from conftest import call, panels_of
from safetensors.torch import save_file

from lib.data import class_names
from lib.models.own_network import OwnNetwork, load
from lib.runtime.errors import UserError

NET = """
    import torch
    from torch import nn

    {constants}

    class Net(nn.Module):
        def __init__(self, classes=3, channels=1):
            super().__init__()
            self.conv = nn.Conv2d(channels, 4, 3, 2, 1)
            self.relu = nn.ReLU()
            self.head = nn.Linear(4, classes)

        def forward(self, x):
            x = self.head(self.relu(self.conv(x)).mean((2, 3)))
            return {output}
"""


def write_net(folder, output: str = "x", constants: str = "", more: str = ""):
    path = folder / "my_net.py"
    path.write_text(textwrap.dedent(NET).format(output=output, constants=constants) + textwrap.dedent(more))
    return path


@pytest.fixture
def weights(tmp_path):
    """The state_dict of the network, with weights of its own."""
    net = load(OwnNetwork(f"{write_net(tmp_path)}:Net", size=16)).module
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) for name, value in net.state_dict().items()}


@pytest.fixture
def image(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "it.png")
    return tmp_path / "it.png"


def maps_of(tmp_path, script: str = "run-grad-cam.py", *flags) -> np.ndarray:
    done = call(
        script,
        *("--input", "it.png", "--target", 0, 2, "--save-values", "v.npz", "--out-dir", "imgs", "--size", 16),
        *flags,
        folder=tmp_path,
    )
    panels_of(done, may_be_zero=True)
    with np.load(tmp_path / "v.npz") as values:
        return values["maps"]


OUTPUTS = {
    "a tuple": "(x, x.sum())",
    "a list": "[x]",
    "a dictionary": "{'loss': x.sum(), 'logits': x}",
    "a dictionary of one tensor": "{'scores': x}",
    "an object, as transformers'": "type('Output', (), {'logits': x, 'hidden_states': None})()",
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.usefixtures("image")
def test_what_a_network_returns_may_be_wrapped(tmp_path, weights, output):
    torch.save(weights, tmp_path / "w.pth")
    plain = maps_of(tmp_path, "run-grad-cam.py", "--network", "my_net.py:Net", "--weights", "w.pth")
    write_net(tmp_path, output)
    again = maps_of(tmp_path, "run-grad-cam.py", "--network", "my_net.py:Net", "--weights", "w.pth")
    np.testing.assert_array_equal(again, plain)


@pytest.mark.usefixtures("image")
def test_weights_may_be_kept_in_any_way(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    plain = maps_of(tmp_path, "run-grad-cam.py", "--network", "my_net.py:Net", "--weights", "w.pth")
    prefixed = {f"model.{name}": value for name, value in weights.items()}
    torch.save(
        {"epoch": 3, "state_dict": prefixed, "pytorch-lightning_version": "2.4"}, tmp_path / "lightning.ckpt"
    )
    torch.save({"model": dict(sorted(weights.items()))}, tmp_path / "nested.pt")
    save_file(weights, tmp_path / "plain.safetensors")
    for file in ("lightning.ckpt", "nested.pt", "plain.safetensors"):
        again = maps_of(tmp_path, "run-grad-cam.py", "--network", "my_net.py:Net", "--weights", file)
        np.testing.assert_array_equal(again, plain)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("run-grad-cam.py", ("--guided",)),
        ("run-grad-cam.py", ("--method", "score-cam")),
        ("run-grad-cam.py", ("--method", "occlusion")),
        ("run-integrated-gradients.py", ()),
        ("run-shapley-value.py", ("--patch-side-len", 8)),
    ],
)
@pytest.mark.usefixtures("weights", "image")
def test_every_script_explains_it(tmp_path, script, flags):
    assert np.isfinite(maps_of(tmp_path, script, "--network", "my_net.py:Net", *flags)).all()


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("script", ["run-grad-cam.py", "run-shapley-value.py", "compare-explanations.py"])
def test_code_that_raises_late_is_told_of_in_one_line(tmp_path, script):
    write_net(
        tmp_path,
        output="x if len(x) == 1 and not calls.append(1) and len(calls) < 3 else 1 / 0",
        constants="calls = []",
    )
    flags = ("--network", "my_net.py:Net", "--size", 16, "--input", "it.png")
    done = call(script, *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert "my_net.py raises ZeroDivisionError in line 16: division by zero" in done.stderr


@pytest.mark.usefixtures("image")
def test_a_network_that_no_method_can_explain_is_refused(tmp_path):
    write_net(tmp_path, output="x.detach()")
    flags = ("--network", "my_net.py:Net", "--size", 16, "--input", "it.png")
    flags = (*flags, "--methods", "grad-cam", "input-x-gradient")
    done = call("compare-explanations.py", *flags, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert "no method asked for can explain Net" in done.stderr


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("script", "flags", "reused"),
    [
        ("run-grad-cam.py", ("--json", "r.jsonl"), "reused=1"),
        (
            "compare-explanations.py",
            ("--methods", "grad-cam", "--measures", "deletion", "--format", "md"),
            "reused=5",
        ),
    ],
)
def test_results_that_are_kept_are_of_the_same_code(tmp_path, weights, script, flags, reused):
    torch.save(weights, tmp_path / "w.pth")
    helper = tmp_path / f"helper_of_{script[:3]}.py"  # this process has no other module of the name

    def ask(*more):
        given = (*flags, "--network", "my_net.py:Net", "--size", 16, "--weights", "w.pth", "--target", 0)
        done = call(script, *given, "--input", "it.png", *more, folder=tmp_path)
        assert done.status == 0, done.stderr
        return done.stdout.splitlines()[-1]

    write_net(tmp_path)
    ask()
    assert reused in ask()
    changes: list = [
        lambda: write_net(tmp_path, output="x * 2"),  # another function of the same weights
        lambda: write_net(tmp_path, output="f(x)", constants=f"from {helper.stem} import f"),
        lambda: helper.write_text("f = lambda x: x * 3"),  # in a module that is imported
    ]
    helper.write_text("f = lambda x: x")
    for change in changes:
        change()
        assert "reused=0" in ask()
        assert reused in ask()
    for more in (("--network-args", "classes=3"), ("--multi-label",)):
        assert "reused=0" in ask(*more)


def test_names_sizes_and_means_come_from_the_flags_or_from_constants_of_the_file(tmp_path):
    constants = "CLASSES, SIZE, MEAN, STD = ('a', 'b', 'c'), 12, 0.5, [0.25]"
    path = write_net(tmp_path, constants=constants)
    network = load(OwnNetwork(f"{path}:Net"))
    how = network.preprocessing
    assert (network.classes, how.size, how.channels, how.mean, how.std) == (
        ("a", "b", "c"), 12, 1, (0.5,), (0.25,),
    )  # fmt: skip
    network = load(OwnNetwork(f"{path}:Net", classes="x,y,z", size=16, mean=(0.1,), std=(1.0,)))
    how = network.preprocessing
    assert (network.classes, how.size, how.mean, how.std) == (("x", "y", "z"), 16, (0.1,), (1.0,))
    colour = load(OwnNetwork(f"{path}:Net", network_args=["channels=3", "classes=5"], mean=(0.5,)))
    assert colour.classes == ("0", "1", "2", "3", "4")
    assert (colour.preprocessing.channels, colour.preprocessing.mean) == (3, (0.5,) * 3)


@pytest.mark.usefixtures("weights", "image")
def test_one_logit_tells_two_classes_apart(tmp_path):
    done = call(
        "run-grad-cam.py",
        *("--network", "my_net.py:Net", "--network-args", "classes=1", "--classes", "no,yes"),
        *("--size", 16, "--input", "it.png"),
        folder=tmp_path,
    )
    panels = panels_of(done, may_be_zero=True)
    assert {panel["class"] for panel in panels} == {"no", "yes"}
    assert sum(panel["probability"] for panel in panels) == pytest.approx(1, abs=1e-4)
    assert panels[0]["score"] == pytest.approx(-panels[1]["score"], rel=1e-4)


@pytest.mark.usefixtures("image")
def test_the_classes_of_an_image_may_be_several(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    done = call(
        "run-grad-cam.py",
        *("--network", "my_net.py:Net", "--weights", "w.pth", "--multi-label", "--size", 16),
        *("--input", "it.png", "--score", "log-odds"),
        folder=tmp_path,
    )
    for panel in panels_of(done, may_be_zero=True):
        assert panel["probability"] == pytest.approx(1 / (1 + np.exp(-panel["score"])), rel=1e-3)


BAD = {
    "no such file": ("none.py:Net", {}, "there is no file"),
    "no name": ("my_net.py", {}, "give FILE.py:NAME"),
    "no such name": ("my_net.py:Nett", {}, "it has Net"),
    "not a network": ("my_net.py:number", {}, "makes an object of the type int"),
    "raises when made": ("my_net.py:broken", {}, "raises ValueError in line 21: two lines"),
    "raises when imported": ("bad.py:Net", {}, "raises ZeroDivisionError in line 2"),
    "no Python": ("text.py:Net", {}, "raises SyntaxError"),
    "exits": ("exits.py:Net", {}, "raises SystemExit"),
    "needs arguments": ("my_net.py:needs", {}, "missing a required argument: 'what'"),
    "unknown argument": (
        "my_net.py:Net",
        {"network_args": ["depth=3"]},
        "unexpected keyword argument 'depth'",
    ),
    "no argument": ("my_net.py:Net", {"network_args": ["depth"]}, "give key=value"),
    "other channels": ("my_net.py:Net", {"channels": 3}, "does not take images of 3×16×16"),
    "too many names": ("my_net.py:Net", {"classes": "a,b,c,d"}, "has 3 outputs, and --classes names 4"),
    "two means": ("my_net.py:Net", {"mean": (0.5, 0.5)}, "--mean has 2 numbers"),
    "answers a map": ("my_net.py:mapped", {}, "answers with 1×4×8×8, not with logits"),
    "answers nothing": ("my_net.py:silent", {}, "answers with NoneType"),
    "no ending": ("my_net:Net", {}, "give my_net.py:Net"),
    "a deviation of zero": ("my_net.py:Net", {"std": (0.0,)}, "--std: 0.0 is no finite number of at least"),
    "a negative deviation": ("my_net.py:Net", {"std": (-1.0,)}, "--std: -1.0 is no finite number"),
    "a mean that is none": ("my_net.py:Net", {"mean": (float("nan"),)}, "--mean: nan is no finite number"),
    "answers none": ("my_net.py:lost", {}, "lost answers with numbers that are not finite"),
    "random weights": ("my_net.py:Net", {"weights": "random"}, "--weights random is for torchvision's"),
    "others' weights": ("my_net.py:Net", {"weights": "others.pth"}, "does not fit"),
}
MORE = """
    number = lambda: 3

    def broken():
        raise ValueError("two\\nlines")

    def needs(what):
        return Net()

    def mapped():
        return Net().conv

    class lost(Net):
        def forward(self, x):
            return super().forward(x) / 0

    class silent(Net):
        def forward(self, x):
            return None
"""


@pytest.mark.parametrize(("reference", "flags", "said"), BAD.values(), ids=BAD)
def test_a_wrong_network_is_a_users_mistake_in_one_line(tmp_path, monkeypatch, reference, flags, said):
    monkeypatch.chdir(tmp_path)
    write_net(tmp_path, more=MORE)
    (tmp_path / "bad.py").write_text("\n1 / 0\n")
    (tmp_path / "text.py").write_text("this is no Python\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "others.pth")
    with pytest.raises(UserError) as refused:
        load(OwnNetwork(reference, **{"size": 16, **flags}))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# Lists of class names

LISTS = {
    "lines": "cat\n dog \n\nhot dog\n",
    "numbers and names": "1,dog\n0,cat\n2,hot dog\n",
    "tabs": "0\tcat\n1\tdog\n2\thot dog\n",
    "JSON": '["cat", "dog", "hot dog"]',
    "a JSON object": '{"2": "hot dog", "0": "cat", "1": "dog"}',
    "Keras'": '{"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "hot dog"]}',
    "a byte order mark": "\ufeffcat\ndog\nhot dog",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_class_names_are_read_as_people_keep_them(tmp_path, text):
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    assert class_names.read(str(tmp_path / "names.txt")) == ("cat", "dog", "hot dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names 0 classes"),
        ("one", "names 1 classes"),
        ("0,a\n2,b\n", "does not number its classes from 0 to 1"),
        ('["a", 3]', "something else than texts"),
        ("[1,", "is no JSON"),
        ('{"a": "b"}', "does not number"),
    ],
)
def test_a_list_that_names_no_classes_is_refused(tmp_path, text, said):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        class_names.read(str(tmp_path / "names.txt"))
    with pytest.raises(UserError, match="there is no file"):
        class_names.read("none.txt")


@pytest.mark.usefixtures("image")
def test_torchvisions_networks_take_names_too(tmp_path):
    flags = ("--ptm", "squeezenet1_1", "--weights", "random", "--input", "it.png", "-k", 1)
    (tmp_path / "names.txt").write_text("\n".join(f"class {number}" for number in range(1000)))
    done = call("run-grad-cam.py", *flags, "--classes", "names.txt", folder=tmp_path)
    assert panels_of(done, may_be_zero=True)[0]["class"].startswith("class ")
    assert call("run-grad-cam.py", *flags, "--classes", "a,b", folder=tmp_path).status == 2
