"""Settled flags: which value a flag has, and what a checkpoint has to say in it; runs as a whole."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SCRIPT, call, module_of
from PIL import Image

from lib import cli
from lib.cli import settle as settling
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.runlog import RunLog
from lib.training import run as training

TASK = "image-classification"


def parser() -> cli.Parser:
    """A script's flags in small: the shared ones, a network's, and one of the script's own evaluation."""
    parser = cli.Parser(prog="small.py")
    data = parser.group("data", cli.Scope.DATA).add
    data("--dataset", default="mnist")
    data("--data-dir", default="data", is_path=True)
    network = parser.group("network", cli.Scope.NETWORK).add
    network("--model", default="lenet5")
    network("--size", type=int, default=28)
    network("--weights", scope=cli.Scope.TRAINING, fixed=True, not_with="restore_file")
    cli.add_run_flags(parser)
    cli.add_training_flags(parser, "the recipe of the model")
    cli.add_view_flags(parser).add("--sharpness", type=float)
    cli.add_input_flags(parser)
    return parser


def command_line(**typed) -> cli.CommandLine:
    """The command line of which `typed` are the flags."""
    empty = parser().parse([])
    return replace(empty, typed=typed)


RECIPES = {
    "lenet5": {"batch_size": 128, "learning_rate": 0.004, "warmup": 0.3},
    "mnist-classifier": {"batch_size": 64, "learning_rate": 0.03, "warmup": 0.3},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(flags) -> dict:
    return RECIPES[flags.model]


def settle(**typed) -> SimpleNamespace:
    return SimpleNamespace(**settling.settle(TASK, command_line(**typed), recipe).values)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A function that writes a checkpoint of a run with some flags, and returns its file."""
    monkeypatch.chdir(tmp_path)

    def save(name=checkpoint.BEST, folder="ckpts/lenet5", **flags):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "task": TASK,
            "model": {"name": flags.get("model", "lenet5"), "config": {}},
            "state_dict": {"w": torch.zeros(1)},
            "flags": {"model": "lenet5", "size": 28, "data_dir": ".", **flags},
            "run": "r1",
            "epoch": 0,
            "update": 5,
            "metrics": {},
            "training": {},
        }
        checkpoint.save(path, content)
        return str(path)

    return save


def test_a_flag_is_what_was_typed_or_else_of_the_recipe_or_else_the_default():
    flags = settle(learning_rate=0.5)
    assert flags.learning_rate == 0.5
    assert flags.batch_size == 128
    assert flags.warmup == 0.3
    assert flags.beta2 == 0.999


def test_the_recipe_is_that_of_the_model_that_was_typed():
    assert settle(model="mnist-classifier").batch_size == 64


def test_a_checkpoint_stands_between_what_was_typed_and_the_recipe(saved):
    path = saved(batch_size=7, learning_rate=0.1, beta2=0.9)
    flags = settle(restore_file=path, eval_only=True, learning_rate=0.5)
    assert (flags.learning_rate, flags.batch_size, flags.beta2, flags.warmup) == (0.5, 7, 0.9, 0.3)


def test_a_checkpoint_says_which_model_it_is_of(saved):
    path = saved(model="mnist-classifier")
    flags = settle(restore_file=path, eval_only=True)
    assert flags.model == "mnist-classifier"
    assert flags.batch_size == 64


def test_a_value_typed_counts_even_where_it_is_the_default(saved):
    path = saved(beta2=0.9)
    assert settle(restore_file=path, eval_only=True, beta2=0.999).beta2 == 0.999


def test_what_a_run_does_is_never_taken_from_a_checkpoint(saved):
    path = saved(eval_only=True, out_dir="/elsewhere", device="cuda:7", checkpoint_dir="other", resume=True)
    flags = settle(restore_file=path, predict_only=True)
    assert (flags.eval_only, flags.resume, flags.out_dir, flags.device) == (False, False, "imgs", "auto")
    assert flags.checkpoint_dir == "ckpts/lenet5"


def test_a_new_run_from_old_weights_takes_only_what_the_network_is(saved):
    path = saved(size=32, batch_size=7, learning_rate=0.1)
    flags = settle(restore_file=path)
    assert (flags.size, flags.batch_size, flags.learning_rate) == (32, 128, 0.004)


@pytest.mark.parametrize("what", [{"eval_only": True}, {"predict_only": True}, {}])
def test_a_flag_that_contradicts_the_network_in_the_checkpoint_is_refused_with_both_values(saved, what):
    path = saved(size=32)
    with pytest.raises(UserError, match="--size 28 does not fit the checkpoint, which was trained with 32"):
        settle(restore_file=path, size=28, **what)
    assert settle(restore_file=path, size=32, **what).size == 32


def test_a_data_folder_of_another_machine_is_forgotten_and_one_that_is_here_is_kept(saved, tmp_path):
    assert settle(restore_file=saved(data_dir="/another/machine"), eval_only=True).data_dir == "data"
    assert settle(restore_file=saved(data_dir=str(tmp_path)), eval_only=True).data_dir == str(tmp_path)
    typed = settle(restore_file=saved(data_dir=str(tmp_path)), eval_only=True, data_dir="mine")
    assert typed.data_dir == "mine"


@pytest.mark.parametrize("flags", [{"dataset": [5]}, {"size": "7"}, {"beta2": None}])
def test_a_checkpoint_with_flags_of_another_kind_is_damaged(saved, flags):
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        settle(restore_file=saved(**flags), eval_only=True)


def test_a_checkpoint_of_another_script_may_name_what_this_one_does_not_offer(saved):
    path = saved(optimizer="another", save_epochs=("a",))
    restored = settle(restore_file=path, eval_only=True)
    assert (restored.optimizer, restored.save_epochs) == (None, ())
    with pytest.raises(UserError, match=r"the checkpoint is damaged.*--optimizer 'another'"):
        settle(resume=True, checkpoint_dir=saved(checkpoint.LAST, optimizer="another").rpartition("/")[0])


@pytest.mark.parametrize("what", ["eval_only", "predict_only"])
def test_to_look_at_a_network_there_must_be_a_file_of_it(what):
    with pytest.raises(UserError, match=f"--{what.replace('_', '-')} needs --restore-file"):
        settle(**{what: True})


def test_a_run_is_resumed_or_begun_from_a_file_but_not_both(saved):
    with pytest.raises(UserError, match="leave out --restore-file"):
        settle(resume=True, restore_file=saved())


def test_a_bare_state_dict_leaves_every_flag_as_it_was_typed(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "bare.pt")
    flags = settle(restore_file=str(tmp_path / "bare.pt"), eval_only=True, model="mnist-classifier")
    assert (flags.model, flags.batch_size) == ("mnist-classifier", 64)


def test_a_resume_takes_the_flags_of_its_run(saved):
    saved(checkpoint.LAST, batch_size=7, max_epoch=5)
    assert settle(resume=True).batch_size == 7
    assert settle(resume=True, max_epoch=9).max_epoch == 9


@pytest.mark.parametrize("typed", [{"seed": 9}, {"batch_size": 9}, {"weights": 9}])
def test_a_resume_does_not_go_on_with_another_run(saved, typed):
    saved(checkpoint.LAST, batch_size=7, seed=42, weights=None)
    (name,) = typed
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} 9 does not fit the checkpoint"):
        settle(resume=True, **typed)


@pytest.mark.parametrize("others", [5, 4, -1])
def test_ranks_that_find_different_checkpoints_all_say_so(monkeypatch, others):
    """Hosts may have different disks, and would wait for each other for ever."""
    monkeypatch.setattr(
        training.distributed, "max_over_ranks", lambda mine, _: max(mine, others if mine > 0 else -others)
    )
    settled = settling.settle(TASK, command_line(), recipe)
    run = training.TrainingRun(TASK, replace(settled, saved={"update": 5}), torch.device("cpu"), RunLog("x"))
    expectation = pytest.raises(UserError, match="not all ranks find the same checkpoint in ckpts/lenet5")
    with contextlib.nullcontext() if others == 5 else expectation:
        run.check_ranks()


@pytest.mark.parametrize("name", ["input", "out_file", "layers", "projector", "sharpness"])
def test_a_flag_that_would_do_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} goes with --(eval|predict)-only alone"):
        settle(**{name: "x"})


def test_a_resume_finds_its_run_where_it_is_told(saved):
    saved(checkpoint.LAST, folder="mine", batch_size=7)
    assert settle(resume=True, checkpoint_dir="mine").batch_size == 7
    assert settle(resume=True).batch_size == 128


@pytest.mark.parametrize("lost", ["training", "run", "update", "metrics"])
def test_a_checkpoint_without_the_state_of_its_run_cannot_be_resumed(saved, lost):
    path = saved(checkpoint.LAST)
    content = checkpoint.load(path)
    del content[lost], content["format"]
    checkpoint.save(Path(path), content)
    with pytest.raises(UserError, match=f"checkpoint_last.pt .*{lost}"):
        settle(resume=True)


def test_a_bare_state_dict_cannot_be_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpts" / "lenet5").mkdir(parents=True)
    torch.save({"w": torch.zeros(1)}, tmp_path / "ckpts" / "lenet5" / checkpoint.LAST)
    with pytest.raises(UserError, match=r"checkpoint_last\.pt"):
        settle(resume=True)


# Whole runs, on the digits

SHORT = ("--dataset", "digits", "--limit", "60", "--max-epoch", "1")


def test_a_resumed_run_keeps_its_id_and_a_new_one_has_its_own(tmp_path):
    first = call(SCRIPT, *SHORT, folder=tmp_path).run()
    resumed = call(SCRIPT, "--resume", "--max-epoch", "2", folder=tmp_path).run()
    anew = call(SCRIPT, *SHORT, folder=tmp_path).run()
    assert resumed.id == first.id != anew.id
    assert resumed.fields["Resume_step"] == first.series("VALID", "Valid_loss")[0][-1]
    assert resumed.fields["limit"] == 60


def test_with_nothing_to_resume_a_run_starts_anew_and_says_so(tmp_path):
    done = call(SCRIPT, *SHORT, "--resume", folder=tmp_path)
    assert done.status == 0
    assert "[RUN] nothing to resume in ckpts/mnist-classifier-digits: starting anew" in done.stdout
    assert done.run().events["VALID"]


def test_the_run_line_says_every_flag_that_has_a_value(tmp_path):
    fields = call(SCRIPT, *SHORT, "--seed", "7", folder=tmp_path).run().fields
    assert (fields["seed"], fields["dataset"], fields["limit"]) == (7, "digits", 60)
    assert fields["model"] == "mnist-classifier"
    assert "restore_file" not in fields


def test_the_best_weights_are_in_the_network_after_training(tmp_path):
    """[EVAL] repeats the best [VALID], not the last."""
    run = call(SCRIPT, *SHORT, "--max-epoch", "6", "-lr", "0.3", folder=tmp_path).run()
    best_step = run.events["BEST"][-1]["Step"]
    best = next(event for event in run.events["VALID"] if event["Step"] == best_step)
    assert run.events["EVAL"][-1]["Valid_loss"] == best["Valid_loss"]
    assert run.events["EVAL"][-1]["Valid_accuracy"] == best["Valid_accuracy"]
    assert best["Valid_accuracy"] == max(event["Valid_accuracy"] for event in run.events["VALID"])


def test_a_run_does_not_take_the_weights_of_another_in_its_folder_for_its_own(tmp_path, monkeypatch):
    train = training.loop.fit

    def fit(*args, checkpoints, **options):
        progress = train(*args, checkpoints=checkpoints, **options)
        checkpoint.save(checkpoints.best, checkpoint.load(checkpoints.best) | {"run": "another"})
        return progress

    monkeypatch.setattr(training.loop, "fit", fit)
    done = call(SCRIPT, "--dataset", "digits", "--max-update", 1, folder=tmp_path)
    assert (done.status, done.stderr.count("\n")) == (1, 1)
    assert "checkpoint_best.pt is of run another" in done.stderr


def test_a_run_begun_from_old_weights_begins_with_them(tmp_path, trained):
    done = call(SCRIPT, *SHORT, "--restore-file", trained.best, "-lr", "1e-9", folder=tmp_path)
    old = trained.ended.run().events["EVAL"][-1]["Valid_accuracy"]
    # One epoch at no rate: only the statistics of batch normalisation can move.
    assert done.run().events["EVAL"][-1]["Valid_accuracy"] == pytest.approx(old, abs=0.1)
    assert (
        checkpoint.load(tmp_path / "ckpts/mnist-classifier-digits" / checkpoint.LAST)["run"] == done.run().id
    )


def test_answers_on_standard_output_have_it_to_themselves(monkeypatch, saved):
    path = saved()
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    line = command_line(restore_file=path, predict_only=True, device="cpu")
    with training.start(TASK, line, recipe) as run:
        run.log.text("RUN", "a remark")
    assert "a remark" in stderr.getvalue()


# Scopes


def test_a_checkpoint_keeps_the_network_the_data_and_the_training_alone():
    line = command_line(sharpness=1.0, eval_only=True, out_dir="x", device="cpu", log_interval=3, seed=7)
    kept = settling.Settled(line, line.values, {}, {}).kept
    of_scope = {
        name
        for name, flag in line.flags.items()
        if flag.scope in (cli.Scope.NETWORK, cli.Scope.DATA, cli.Scope.TRAINING)
    }
    assert set(kept) == of_scope | {"threads"}
    assert not {"sharpness", "eval_only", "out_dir", "device", "log_interval", "overwrite"} & set(kept)


@pytest.mark.parametrize("script", ["run-mnist", "run-image", "run-sst2"])
def test_every_flag_of_a_training_script_has_a_scope(script):
    line = module_of(f"{script}-classification.py").make_parser().parse([])
    assert set(line.defaults) == set(line.flags)
    needed = {flag.only_with for flag in line.flags.values()} | {f.not_with for f in line.flags.values()}
    assert needed - {""} <= set(line.flags)


def test_an_old_checkpoint_that_keeps_flags_of_the_machine_does_not_impose_them(saved):
    path = saved(log_interval=7, workers=3, device="cuda:7", no_such_flag=1)
    flags = settle(restore_file=path, eval_only=True)
    assert (flags.log_interval, flags.device) == (None, "auto")
    assert not hasattr(flags, "workers")
    assert not hasattr(flags, "no_such_flag")


def test_threads_are_kept_for_a_resume_alone(saved):
    path = saved(checkpoint.LAST, threads=3)
    assert settle(resume=True).threads == 3
    assert settle(restore_file=path, eval_only=True).threads is None


def test_two_flags_that_exclude_each_other_are_refused(saved):
    with pytest.raises(UserError, match="--weights does not go with --restore-file: give one of them"):
        settle(weights="w.pth", restore_file=saved())


def test_settling_says_where_every_value_comes_from(saved):
    path = saved(size=28, beta2=0.9)
    line = replace(
        command_line(restore_file=path, eval_only=True, seed=7, clip_norm=1.0), config={"clip_norm"}
    )
    sources = settling.settle(TASK, line, recipe).sources
    assert set(sources["typed"]) == {"restore_file", "eval_only", "seed"}
    assert sources["config"] == ["clip_norm"]
    assert {"size", "beta2", "model"} <= set(sources["checkpoint"])
    assert set(sources["recipe"]) == {"batch_size", "learning_rate", "warmup"}


def test_the_run_line_says_what_matters_in_its_mode(classify, tmp_path):
    trained = classify("--dataset", "digits", "--limit", 60, "--max-update", 2, "--checkpoint-dir", "c")
    fields = trained.run().fields
    assert {"batch_size", "learning_rate", "dataset", "checkpoint_dir"} <= fields.keys()
    assert not {"samples", "dims"} & fields.keys()  # of --eval-only
    assert "[MODEL]" in trained.stdout
    picture = tmp_path / "zero.png"
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(picture)
    best = tmp_path / "c" / checkpoint.BEST
    answered = classify("--predict-only", "--restore-file", best, "--input", picture, "--out-file", "p.tsv")
    fields = answered.run().fields
    assert fields["restore_file"] == str(best)
    assert (
        not {"batch_size", "learning_rate", "max_epoch", "dataset", "data_dir", "checkpoint_dir"}
        & fields.keys()
    )
    assert "[MODEL]" not in answered.stdout
