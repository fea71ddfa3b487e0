"""lib/models/layers.py: what it says of networks whose layers can be counted by hand."""

import pytest
import torch
from torch import nn

from lib.models import layers
from lib.runtime.errors import UserError


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        self.linear(x)
        raise RuntimeError("broken on purpose")


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_table_has_shapes_and_parameters_in_order_of_execution():
    rows = layers.table(small_network(), torch.zeros(2, 1, 8, 8))
    assert [(row.kind, row.shape, row.parameters) for row in rows] == [
        ("Conv2d", (4, 6, 6), 40),
        ("ReLU", (4, 6, 6), 0),
        ("MaxPool2d", (4, 3, 3), 0),
        ("Flatten", (36,), 0),
        ("Linear", (5,), 185),
    ]


def test_order_of_execution_is_not_order_of_definition():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.never = nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(1, 1)

        def forward(self, x):
            return self.second(self.first(x))

    rows = layers.table(Reversed(), torch.zeros(1, 2))
    assert [(row.name, row.shape) for row in rows] == [("first", (3,)), ("second", (2,)), ("never", None)]


def test_rows_add_up_to_the_model_with_shared_and_bare_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))
            self.words, self.out = nn.Embedding(11, 7), nn.Linear(7, 11, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x):
            return self.out(self.words(x) * self.scale)

    model = Tied()
    rows = layers.table(model, torch.zeros(1, 3, dtype=torch.long))
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters()) == 84


def test_the_table_leaves_modes_and_statistics_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    model[1].eval()  # a frozen part inside a model that is training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    layers.table(model, torch.randn(4, 3))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_text_is_aligned_and_ends_with_the_total():
    lines = layers.format_table(layers.table(small_network(), torch.zeros(1, 1, 8, 8)))
    assert len({len(line) for line in lines}) == 1
    assert "4×6×6" in lines[1]
    assert lines[-1].split() == ["total", "225"]


def test_an_lstm_is_recorded_by_its_output_sequence():
    lstm = nn.LSTM(3, 5, batch_first=True)
    with layers.record({"lstm": lstm}) as outputs:
        expected, _ = lstm(torch.randn(2, 4, 3))
    assert torch.equal(outputs["lstm"], expected)


def test_an_in_place_relu_does_not_change_what_was_recorded():
    model, x = small_network(), torch.randn(2, 1, 8, 8)
    with layers.record({"conv": model[0]}) as outputs:
        model(x)
    assert torch.equal(outputs["conv"], model[0](x).detach())
    assert outputs["conv"].min() < 0


def test_a_recording_holds_no_graph():
    model = small_network()
    with layers.record({"fc": model[4]}) as outputs:
        model(torch.randn(1, 1, 8, 8))
    assert not outputs["fc"].requires_grad


def test_hooks_are_gone_after_success_and_after_an_error():
    model = Broken()
    with pytest.raises(RuntimeError, match="on purpose"), layers.record(dict(model.named_modules())):
        model(torch.zeros(1, 2))
    assert hooks_of(model) == 0
    with pytest.raises(UserError, match="Broken does not take inputs of 2: broken on purpose"):
        layers.table(model, torch.zeros(1, 2))
    assert hooks_of(model) == 0
    assert model.training
    intact = small_network()
    layers.table(intact, torch.zeros(1, 1, 8, 8))
    assert hooks_of(intact) == 0


def test_resolve_returns_the_modules_named():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Tanh()))
    assert layers.resolve(model, ["1.0", "0"]) == {"1.0": model[1][0], "0": model[0]}


def test_resolve_tells_what_holds_layers_from_what_is_called():
    class Block(nn.ModuleDict):
        def forward(self, x):
            return self["inner"](x)

    model = nn.ModuleDict({"list": nn.ModuleList([nn.Tanh()]), "block": Block({"inner": nn.Tanh()})})
    assert layers.resolve(model, ["block"]) == {"block": model["block"]}
    with pytest.raises(UserError, match="there is no layer 'list'"):
        layers.resolve(model, ["list"])


def test_an_unknown_layer_is_answered_with_the_nearest_names_first():
    model = nn.ModuleDict({"conv1": nn.Identity(), "fc1": nn.Identity(), "fc2": nn.Identity()})
    with pytest.raises(UserError, match=r"no layer 'fc3'; choose from fc[12], fc[12], conv1"):
        layers.resolve(model, ["conv1", "fc3"])


def test_the_list_of_names_stays_short_in_a_large_network():
    model = nn.Sequential(*(nn.Identity() for _ in range(500)))
    with pytest.raises(UserError) as error:
        layers.resolve(model, ["layer17"])
    assert "17," in str(error.value)
    assert str(error.value).endswith("and 476 more")
    assert len(str(error.value)) < 300


def test_the_empty_name_is_no_layer():
    with pytest.raises(UserError):
        layers.resolve(small_network(), [""])
