"""Files of flags: what --config reads, what --save-config writes, and what goes before what."""

from types import SimpleNamespace

import pytest
from conftest import SCRIPT, call, module_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import cli
from lib.cli import config
from lib.runtime.errors import UserError

SHORT = ("--dataset", "digits", "--limit", "60", "--max-epoch", "1")


@pytest.fixture
def parser() -> cli.Parser:
    parser = cli.Parser(prog="small.py")
    training = parser.group("training", cli.Scope.TRAINING)
    training.add("--max-epoch", type=cli.integer(1), default=5)
    training.add("-lr", "--learning-rate", type=cli.number(0, above=True))
    training.add("--amp", action="store_true")
    training.add("--augment", type=cli.subset_of("shift", "rotate"), default=())
    mode = parser.group("mode", cli.Scope.MODE)
    modes = mode.one_of()
    modes.add("--eval-only", action="store_true")
    modes.add("--resume", action="store_true")
    mode.add("--layers", nargs="+", only_with="eval_only")
    mode.add("--title")
    cli.add_config_flags(mode)
    return parser


@pytest.fixture
def parse(parser, tmp_path):
    """A function that writes a configuration and parses a command line that names it."""

    def parse(text: str, *argv: str) -> cli.CommandLine:
        file = tmp_path / "flags.toml"
        file.write_text(text, encoding="utf-8")
        return parser.parse(["--config", str(file), *argv])

    return parse


def test_a_file_sets_flags_of_every_kind(parse):
    line = parse(
        """
        max-epoch = 9
        title = "-- α \\"quoted\\""
        [training]
        learning_rate = 1e-3
        amp = true
        augment = ["shift", "rotate"]
        [mode]
        eval-only = true
        layers = ["conv1", "conv2"]
        """
    )
    values = line.values
    assert (values["max_epoch"], values["learning_rate"], values["amp"]) == (9, 0.001, True)
    assert values["augment"] == ("shift", "rotate")
    assert values["layers"] == ["conv1", "conv2"]
    assert values["title"] == '-- α "quoted"'
    assert line.config == set(line.typed) - {"config"}


def test_a_typed_flag_goes_before_that_of_the_file(parse):
    line = parse("max-epoch = 9\namp = true", "--max-epoch", "2")
    assert (line.values["max_epoch"], line.values["amp"]) == (2, True)
    assert line.config == {"amp"}


def test_a_switch_can_be_off_and_then_counts_as_given(parse):
    line = parse("amp = false\nresume = false", "--eval-only")
    assert (line.typed["amp"], line.typed["resume"], line.typed["eval_only"]) == (False, False, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-epoch = 0", "flags.toml: argument --max-epoch: '0' is not an integer of at least 1"),
        ("max-epoch = 1.5", "'1.5' is not an integer"),
        ("max-epoch = true", "max-epoch is a number, a text or a list"),
        ("max-epochs = 3", "max-epochs is no flag of this script (did you mean max-epoch?)"),
        ("amp = 1", "amp is true or false"),
        ("augment = ['turn']", "'turn' is none of shift, rotate"),
        ("config = 'x'", "config is no flag"),
        ("max-epoch = 3\n[training]\nmax_epoch = 4", "sets max_epoch twice"),
        ("max-epoch 3", "is no TOML file"),
        ("\x00", "is no TOML file"),
        ("eval-only = true\nresume = true", "not allowed with argument"),
        ("a = {b = {c = 1}}", "b is no flag"),
    ],
)
def test_a_wrong_file_is_a_users_mistake_in_one_line(parse, text, said):
    with pytest.raises(UserError) as refused:
        parse(text)
    assert said in str(refused.value)


def test_a_file_that_excludes_what_is_typed_is_refused(parse):
    with pytest.raises(UserError, match="not allowed with argument"):
        parse("resume = true", "--eval-only")


def test_a_file_that_is_not_there_is_a_users_mistake(parser, tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        parser.parse(["--config", str(tmp_path / "none.toml")])
    with pytest.raises(UserError, match="cannot read"):
        parser.parse(["--config", str(tmp_path)])


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(1, 10**9),
    rate=st.floats(1e-300, 1e300),
    amp=st.booleans(),
    augment=st.sets(st.sampled_from(["shift", "rotate"])),
    title=TEXTS,
    layers=st.lists(TEXTS.filter(lambda text: not text.startswith("-")), min_size=1, max_size=3),
)
def test_what_is_saved_is_read_back(tmp_path_factory, epochs, rate, amp, augment, title, layers):
    parser = cli.Parser(prog="small.py")
    group = parser.group("all", cli.Scope.TRAINING)
    group.add("--epochs", type=cli.integer(1))
    group.add("--rate", type=cli.number(0))
    group.add("--amp", action="store_true")
    group.add("--augment", type=cli.subset_of("shift", "rotate"))
    group.add("--title")
    group.add("--layers", nargs="+")
    cli.add_config_flags(group)
    values = {
        "epochs": epochs,
        "rate": rate,
        "amp": amp,
        "augment": tuple(sorted(augment)),
        "title": title,
        "layers": layers,
    }
    file = tmp_path_factory.mktemp("config") / "flags.toml"
    config.save(str(file), values | {"config": None, "save_config": None}, parser.parse([]).flags, {})
    assert parser.parse(["--config", str(file)]).typed == values | {"config": str(file)}


# Whole runs


def test_a_saved_configuration_repeats_its_run(tmp_path):
    flags = ("--seed", 7, "-lr", 0.02, "--augment", "shift", "--save-epochs", "1")
    first = call(SCRIPT, *SHORT, *flags, "--save-config", "run.toml", folder=tmp_path).run()
    text = (tmp_path / "run.toml").read_text()
    tables = [line for line in text.splitlines() if line.startswith("[")]
    assert tables == ["[network]", "[data]", "[training]"]
    assert not {"device", "workers", "log-interval"} & {line.partition(" ")[0] for line in text.splitlines()}
    again = call(SCRIPT, "--config", "run.toml", folder=tmp_path).run()
    assert again.events["EVAL"] == first.events["EVAL"]
    assert "learning_rate" in again.fields["From_config"]
    assert "learning_rate" in first.fields["From_typed"]
    assert "batch_size" in first.fields["From_recipe"]
    other = call(SCRIPT, "--config", "run.toml", "--seed", 8, "--overwrite", folder=tmp_path).run()
    assert other.fields["seed"] == 8
    assert other.events["EVAL"] != first.events["EVAL"]


def test_every_flag_of_a_training_script_can_be_saved_and_read(tmp_path):
    for script in ("run-mnist", "run-image", "run-sst2"):
        module = module_of(f"{script}-classification.py")
        for model in module.RECIPES:
            parser = module.make_parser()
            line = parser.parse(["--model", model])
            values = line.values | module.recipe(SimpleNamespace(**line.values))
            file = tmp_path / f"{script}-{model}.toml"
            config.save(str(file), values, line.flags, line.typed)
            read = parser.parse(["--config", str(file)]).values
            assert {name: read[name] for name in values if name != "config"} == {
                name: value for name, value in values.items() if name != "config"
            }


@pytest.mark.parametrize("output", ["run.toml", "mine.toml"])
def test_a_configuration_is_not_written_over_the_one_that_is_read(tmp_path, output):
    (tmp_path / "run.toml").write_text("max-update = 1")
    done = call(SCRIPT, "--config", "run.toml", "--save-config", output, *SHORT, folder=tmp_path)
    assert done.status == (2 if output == "run.toml" else 0)
