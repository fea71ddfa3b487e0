"""run-vae.py from its command line: training, resuming, evaluation, outputs and bad input."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_VAE, VAE_SCRIPT, Ended, assert_same, call
from PIL import Image
from training import Before, Killed, kill

from lib.runtime import checkpoint
from lib.training import fit as loop


def run_vae(*flags, folder: Path) -> Ended:
    return call(VAE_SCRIPT, *flags, folder=folder)


def training_lines(ended: Ended) -> list[dict]:
    return ended.run().events["TRAIN"]


# ---- training


def test_a_run_logs_the_loss_and_its_parts_in_nats(trained_vae):
    lines = training_lines(trained_vae[1])
    for line in lines:
        parts = float(line["Reconstruction"]) + float(line["KL"])
        assert float(line["Training_loss"]) == pytest.approx(parts, rel=1e-4)
    assert float(lines[-1]["Training_loss"]) < float(lines[0]["Training_loss"])
    (found,) = trained_vae[1].run().events["EVAL"]
    total = float(found["Valid_reconstruction"]) + float(found["Valid_KL"])
    assert float(found["Valid_negative_ELBO"]) == pytest.approx(total, rel=1e-4)
    assert 0 < float(found["Valid_PCA_MSE"]) < 1
    assert int(found["Latent"]) == 4


@pytest.mark.parametrize("model", ["vae", pytest.param("vae-gan", marks=pytest.mark.long)])
def test_a_killed_run_ends_after_resume_at_the_same_weights_bit_for_bit(model, tmp_path, monkeypatch):
    flags = (*SMALL_VAE, "--model", model, "--net", "linear", "--dropout", "0.1", "--binarise", "dynamic")
    assert run_vae(*flags, "--checkpoint-dir", "whole", folder=tmp_path).status == 0
    real = loop.fit

    def killed(network, objective, training, *others, **options):
        return real(network, objective, Before(training, 70, kill), *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", killed)
        with pytest.raises(Killed):
            run_vae(*flags, "--checkpoint-dir", "killed", folder=tmp_path)
    done = run_vae(*flags, "--checkpoint-dir", "killed", "--resume", folder=tmp_path)
    assert done.status == 0, done.stderr
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        whole, resumed = (checkpoint.load(tmp_path / folder / name) for folder in ("whole", "killed"))
        for entry in ("state_dict", "training", "epochs", "update", "metrics"):
            assert_same(resumed.get(entry), whole.get(entry), f"{name} {entry}")


@pytest.mark.slow
def test_a_vae_gan_logs_its_discriminator_and_its_feature_matching(tmp_path):
    done = run_vae(*SMALL_VAE, "--model", "vae-gan", "--hidden", "32", "--max-epoch", "1", folder=tmp_path)
    assert done.status == 0, done.stderr
    line = training_lines(done)[-1]
    assert {"Discriminator", "Generator", "Feature_matching", "KL", "Reconstruction"} <= line.keys()


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "cvae"),
        ("--model", "dvae", "--noise", "mask"),
        ("--iwae", "3"),
        ("--free-bits", "0.1", "--beta", "0.5"),
        ("--loss", "mse", "--amp"),
        ("--binarise", "static", "--importance-samples", "10"),
        ("--net", "conv", "--holdout", "100"),
    ],
    ids=" ".join,
)
def test_every_kind_is_trained_evaluated_and_restored(flags, tmp_path):
    importance = "--importance-samples" in flags
    training = flags[:2] if importance else flags
    done = run_vae(*SMALL_VAE, *training, "--max-epoch", "1", "--limit", "200", folder=tmp_path)
    assert done.status == 0, done.stderr
    best = done.run().events["BEST"][0]["file"]
    more = flags[2:] if importance else ()
    again = run_vae("--eval-only", "--restore-file", best, "--samples", "60", *more, folder=tmp_path)
    assert again.status == 0, again.stderr
    name = "Valid_negative_ELBO"
    found, before = (float(each.run().events["EVAL"][0][name]) for each in (again, done))
    assert found == pytest.approx(before, rel=1e-4)
    if importance:
        assert float(again.run().events["EVAL"][0]["Importance_bound"]) < found
    if "--holdout" in flags:
        assert "Test_negative_ELBO" in again.run().events["TEST"][0]


def test_without_held_out_images_the_latest_checkpoint_is_the_best(trained_vae):
    best = trained_vae[1].run().events["BEST"][0]
    assert int(best["Step"]) == int(trained_vae[1].run().events["VALID"][-1]["Step"])


def test_a_posterior_collapse_is_warned_about_with_what_to_try(tmp_path):
    done = run_vae(*SMALL_VAE, "--beta", "1000", "--max-epoch", "2", folder=tmp_path)
    assert done.status == 0
    assert "posterior collapse: 0 of 4 latent units" in done.stderr
    assert "--free-bits" in done.stderr


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(tmp_path):
    done = run_vae(*SMALL_VAE, "--learning-rate", "1e30", "--ema", "0", folder=tmp_path)
    assert done.status == 1
    assert "learning-rate" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_interrupted_run_is_saved(tmp_path):
    from subprocess import PIPE, Popen

    from conftest import command, environment

    flags = ("--dataset", "digits", "--max-epoch", "500")
    with Popen(
        command(VAE_SCRIPT, *flags), cwd=tmp_path, env=environment(), stdout=PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "[VALID]" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
    assert process.returncode == 143
    assert (tmp_path / "ckpts" / "vae-digits" / "checkpoint_last.pt").exists()


# ---- data


def test_faces_are_validated_on_people_that_training_never_sees(faces_folder, tmp_path):
    flags = ("--dataset", "faces", "--data-dir", faces_folder, "--size", "16", "--valid-classes", "bob,dan")
    more = ("--hidden", "16", "--latent", "2", "--max-epoch", "1", "--batch-size", "4")
    done = run_vae(*flags, *more, folder=tmp_path)
    assert done.status == 0, done.stderr
    saved = checkpoint.load(tmp_path / "ckpts" / "vae-faces" / "checkpoint_best.pt")
    assert saved["classes"] == ["ann", "bob", "cid", "dan"]
    assert saved["model"]["config"]["channels"] == 1
    out = ("--predict-only", "--restore-file", "ckpts/vae-faces/checkpoint_best.pt", "--out-file", "z.npz")
    assert run_vae(*out, folder=tmp_path).status == 0
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mu"].shape == (6, 2)
        assert sorted({Path(name).parent.name for name in arrays["names"]}) == ["bob", "dan"]


def test_the_faces_that_ship_with_scikit_image_need_no_folder(tmp_path):
    flags = ("--dataset", "faces", "--hidden", "16", "--latent", "2", "--max-epoch", "1")
    done = run_vae(*flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    assert (
        checkpoint.load(tmp_path / "ckpts" / "vae-faces" / "checkpoint_best.pt")["preprocessing"]["size"]
        == 32
    )


# ---- what is written


def test_latent_means_of_images_are_written(trained_vae, tmp_path):
    flags = ("--predict-only", "--restore-file", trained_vae[0], "--out-file", tmp_path / "z.npz")
    assert run_vae(*flags, folder=tmp_path).status == 0
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mu"].shape == arrays["logvar"].shape == (360, 4)
        assert len(arrays["labels"]) == 360
        assert list(arrays["classes"]) == list("0123456789")
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(tmp_path / "black.png")
    assert run_vae(*flags, "--input", tmp_path / "black.png", folder=tmp_path).status == 0
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mu"].shape == (1, 4)
        assert "labels" not in arrays


def test_samples_are_written_one_image_each_and_do_not_need_the_data(trained_vae, tmp_path):
    flags = ("--sample", "5", "--restore-file", trained_vae[0], "--out-dir", "made", "--data-dir", "nowhere")
    done = run_vae(*flags, folder=tmp_path)
    assert done.status == 0, done.stderr
    files = sorted((tmp_path / "made").iterdir())
    assert [file.name for file in files] == [f"sample-{number:04d}.png" for number in range(5)]
    images = [np.asarray(Image.open(file)) for file in files]
    assert images[0].shape == (28, 28)
    assert not np.array_equal(images[0], images[1])


# ---- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--size", "30"), "multiple of 4"),
        (("--noise", "mask"), "--noise goes with --model dvae alone"),
        (("--iwae", "5", "--free-bits", "1"), "--free-bits does not go with --iwae"),
        (("--net", "circular"), "invalid choice: 'circular'"),
        (("--impute", "8,8,20,20"), "--impute goes with --eval-only alone"),
        (("--sample", "3"), "--sample needs --restore-file"),
        (("--valid-classes", "ann"), "--valid-classes goes with --dataset faces"),
        (("--dataset", "faces", "--data-dir", "nowhere"), "there is no folder nowhere"),
        (("--dataset", "faces", "--valid-classes", "eve"), "there is no 'eve'"),
        (("--latent", "0"), "'0' is not an integer of at least 1"),
        (("--beta", "-1"), "is not a number of at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_ends_in_one_line(flags, message, tmp_path):
    usual = () if "--dataset" in flags else ("--dataset", "digits")
    done = run_vae(*usual, *flags, folder=tmp_path)
    assert done.status == 2, done.stderr
    assert done.is_one_line_error()
    assert message in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--eval-only", "--latent", "5"), "--latent 5 does not fit the checkpoint"),
        (("--eval-only", "--impute", "8,8,8,20"), "is no box"),
        (("--eval-only", "--interpolate", "3", "eleven"), "'eleven'"),
        (("--eval-only", "--interpolate", "3", "index:9999"), "0 to 359"),
        (("--eval-only", "--impute", "8,8,20,40"), "within the images of 28×28 px"),
        (("--predict-only",), "--out-file FILE.npz"),
        (("--predict-only", "--input", "gone.png", "--out-file", "z.npz"), "gone.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_bad_question_to_a_checkpoint_ends_in_one_line(flags, message, trained_vae, tmp_path):
    done = run_vae(*flags, "--restore-file", trained_vae[0], folder=tmp_path)
    assert done.status == 2, done.stderr
    assert done.is_one_line_error()
    assert message in done.stderr


def test_a_checkpoint_of_another_task_is_refused(trained, tmp_path):
    done = run_vae("--eval-only", "--restore-file", trained.best, folder=tmp_path)
    assert done.status == 2
    assert done.is_one_line_error()


def test_networks_are_listed(tmp_path):
    done = run_vae("--list-models", folder=tmp_path)
    assert done.status == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["vae", "cvae", "dvae", "vae-gan"]


def test_the_script_is_executable():
    assert (ROOT / VAE_SCRIPT).stat().st_mode & 0o111
    assert torch.get_num_threads() == 1


@pytest.mark.long
@pytest.mark.parametrize("model", ["vae", "vae-gan"])
def test_two_ranks_train_to_one_checkpoint(model, tmp_path):
    """Each rank has half of every batch; one log and one checkpoint come of it, which can be restored."""
    import subprocess
    import sys

    from conftest import environment

    flags = (*SMALL_VAE, "--model", model, "--net", "linear", "--max-epoch", "1", "--device", "cpu")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, ROOT / VAE_SCRIPT, *flags],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert ended.status == 0, ended.stderr
    (best,) = ended.run().events["BEST"]
    again = run_vae("--sample", "2", "--restore-file", best["file"], folder=tmp_path)
    assert again.status == 0, again.stderr
    assert len(ended.run().events["EVAL"]) == 1
