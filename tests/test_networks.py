"""The table of networks: what one declaration of an option brings."""

import pytest
import torch
from conftest import call

from lib import models
from lib.runtime import memory
from lib.runtime.errors import UserError

SCRIPTS = ("run-mnist-classification.py", "run-image-classification.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_networks_there_are_can_be_listed_with_their_sizes_and_options(script, tmp_path):
    done = call(script, "--list-models", folder=tmp_path)
    assert (done.status, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["network", "parameters", "input", "options"]
    row = next(row for row in rows if row.startswith("row-lstm"))
    assert "295,434 at 1×28×28" in row  # as README.md has it
    assert row.endswith("--hidden --depth")
    assert not list(tmp_path.iterdir())


def test_an_option_belongs_to_the_networks_that_declare_it():
    found = models.options(("lenet5", "simple-cnn", "row-rnn", "row-gru"))
    assert {name: networks for name, (_, networks) in found.items()} == {
        "bn": ["simple-cnn"],
        "dropout": ["simple-cnn"],
        "hidden": ["row-rnn", "row-gru"],
        "depth": ["row-rnn", "row-gru"],
    }


@pytest.mark.parametrize("name", [name for name, entry in models.ENTRIES.items() if entry.sizes])
def test_every_network_of_images_is_made_from_its_entry_with_its_options(name):
    entry = models.ENTRIES[name]
    channels, size = entry.sizes
    values = {"count": 2, "share": 0.25, "switch": True}
    own = {option.name: (option.values or [values.get(option.kind)])[0] for option in entry.options}
    sized = {} if entry.is_segmenter else {"size": size}
    assert list(models.build(name, classes=3, channels=channels, **sized, **own).parameters())


def test_a_configuration_that_a_network_does_not_have_is_said():
    with pytest.raises(UserError, match="model lenet5 cannot be made from"):
        models.build("lenet5", hidden=3)


@pytest.mark.parametrize("hidden", [30_000, 100_000])
def test_a_network_that_exceeds_the_memory_is_refused_before_it_is_made(monkeypatch, hidden):
    monkeypatch.setattr(memory, "physical", lambda: 2**32)
    with pytest.raises(UserError, match=r"take .* GB, and this machine has 4.29 GB"):
        models.build("row-lstm", classes=2, channels=1, size=8, hidden=hidden)


@pytest.mark.long
def test_a_large_network_has_the_same_weights_as_if_nothing_was_checked(monkeypatch):
    def made() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return models.build("row-rnn", classes=2, channels=1, size=8, hidden=5000).state_dict()

    before = made()
    monkeypatch.setattr(models, "_LARGE", 2**62)
    assert all(torch.equal(value, before[name]) for name, value in made().items())
