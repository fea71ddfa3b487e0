"""Games of image parts: players, masks, batches, ranks, records, bf16."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import found_by_two_ranks
from torch import nn

from lib.data import photographs
from lib.explain import batch_size, players
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.coalitions import all_coalitions
from lib.explain.games import Evaluation, MaskedImage
from lib.explain.targets import class_scores
from lib.runtime.errors import RunFailed, UserError
from lib.tasks import evaluation_store
from lib.tasks.evaluation_store import EvaluationStore


def small_network(channels=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def small_game(**options):
    generator = torch.Generator().manual_seed(1)
    image, baseline = torch.rand(2, 1, 8, 8, generator=generator)
    scores = class_scores([0, 3], "log-odds")
    return MaskedImage(small_network(), image, baseline, players.patches(8, 4).map, scores, **options)


def test_patches_cover_the_image_row_by_row_and_the_last_may_be_smaller():
    found = players.patches(5, 2)
    assert found.map.tolist() == [
        [0, 0, 1, 1, 2],
        [0, 0, 1, 1, 2],
        [3, 3, 4, 4, 5],
        [3, 3, 4, 4, 5],
        [6, 6, 7, 7, 8],
    ]
    assert found.note == "2 px do not divide 5: the last row and column have 1 px"
    assert players.patches(224, 28).count == 64
    assert not players.patches(224, 28).note
    assert players.patches(8, 8).count == 1


def test_positions_are_in_units_of_the_spacing():
    positions = players.patches(224, 28).positions
    assert torch.allclose(positions[1] - positions[0], torch.tensor([0.0, 1.0]).double())
    assert torch.allclose(positions[8] - positions[0], torch.tensor([1.0, 0.0]).double())


@pytest.mark.parametrize(
    ("side", "message"),
    [(225, "larger than the image"), (11, r"441 players, more than 400: -lp 12 or more")],
)
def test_patches_that_make_no_game_are_refused(side, message):
    with pytest.raises(UserError, match=message):
        players.patches(224, side)


def players_of(path, size):
    return players.from_labels(photographs.read_labels(path), size, path)


def test_superpixels_cover_the_image_and_follow_its_edges():
    image = torch.zeros(3, 40, 40)
    image[:, :, 23:] = 1
    found = players.superpixels(image, 10)
    assert sorted(found.map.unique().tolist()) == list(range(found.count))
    across = {int(p) for p in found.map[:, 22].unique()} & {int(p) for p in found.map[:, 23].unique()}
    assert not across
    assert players.superpixels(image[:1], 10).count > 1


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_a_label_image_has_a_player_for_each_value(tmp_path, mode):
    values = np.zeros((8, 8), np.uint8)
    values[2:5, 3:] = 200
    if mode != "1":
        values[7] = 90
    Image.fromarray(values).convert(mode, dither=Image.Dither.NONE).save(tmp_path / "labels.png")
    found = players_of(tmp_path / "labels.png", 8)
    assert found.count == (2 if mode == "1" else 3)
    assert len(found.map[torch.from_numpy(values == 200)].unique()) == 1


def test_label_images_that_make_no_game_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="has 9×8 pixels; the network sees 8×8"):
        players_of(tmp_path / "wide.png", 8)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="is not an image in a known format"):
        players_of(tmp_path / "text.png", 8)
    with pytest.raises(UserError, match="there is no file"):
        players_of(tmp_path / "missing.png", 8)
    Image.fromarray(np.arange(441).reshape(21, 21).astype(np.uint16)).save(tmp_path / "many.png")
    with pytest.raises(UserError, match="441 players, more than 400"):
        players_of(tmp_path / "many.png", 21)


def test_absent_players_show_the_baseline_and_present_ones_the_image():
    game = small_game()
    coalition = torch.tensor([[True, False, False, True]])
    masked = game.masked(coalition)[0]
    for player, present in enumerate(coalition[0]):
        here = game.player_map == player
        assert torch.equal(masked[:, here], (game.image if present else game.baseline)[:, here])


def test_values_are_the_scores_of_masked_images_one_by_one():
    game = small_game()
    coalitions = all_coalitions(4)
    for coalition, value in zip(coalitions, game(coalitions), strict=True):
        mask = coalition[game.player_map]
        logits = game.model(torch.where(mask, game.image, game.baseline)[None]).double()
        expected = class_scores([0, 3], "log-odds")(logits)[:, 0]
        assert torch.allclose(value, expected, rtol=0, atol=1e-5)
    assert game(coalitions).dtype == torch.float64


def test_log_odds_stay_finite_where_probabilities_are_one():
    game = small_game()
    game.model[-1].weight.data *= 1e4
    assert game(all_coalitions(4)).isfinite().all()


@pytest.mark.parametrize("most", [1, 3, 16, 4096])
def test_values_do_not_depend_on_the_size_of_batches(most):
    game, coalitions = small_game(), all_coalitions(4).repeat(20, 1)
    expected = game(coalitions)
    assert torch.allclose(
        Evaluation(game, tuner=BatchSizeTuner(most))(coalitions), expected, rtol=0, atol=1e-5
    )


def test_batches_are_halved_when_memory_runs_out():
    game, sizes = small_game(), []

    def tight(coalitions):
        sizes.append(len(coalitions))
        if len(coalitions) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return game(coalitions)

    coalitions = all_coalitions(4)
    assert torch.allclose(Evaluation(tight)(coalitions), game(coalitions), rtol=0, atol=1e-5)
    assert sizes == [16, 8, 4, *[2] * 8]


def test_memory_for_not_even_one_image_is_a_failure_with_a_reason():
    def never(_coalitions):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(RunFailed, match="memory does not even hold"):
        Evaluation(never)(all_coalitions(4))


def test_other_errors_of_the_network_are_not_swallowed():
    def wrong(_coalitions):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Evaluation(wrong)(all_coalitions(4))


def test_the_batch_size_doubles_as_long_as_that_pays():
    tuner = BatchSizeTuner(1000)
    # Of each size, a batch that warms up and two that count: 100 a second, then 160, then 164: not worth it.
    for seconds in (1.0, 0.16, 0.2, 1.0, 0.5, 0.20, 1.0, 0.39, 0.5):
        tuner.note(tuner.size, seconds)
    assert tuner.size == 32
    tuner.note(32, 1e-6)
    assert tuner.size == 32
    greedy = BatchSizeTuner(100)
    for _ in range(30):
        greedy.note(greedy.size, 0.1)
    assert greedy.size == 64


def test_large_images_begin_with_small_batches_on_a_cpu():
    assert batch_size.first(torch.zeros(3, 224, 224)) == 2
    assert batch_size.first(torch.zeros(3, 32, 32)) == 16


def test_an_evaluation_that_is_stopped_answers_for_the_first_coalitions():
    seen = []
    evaluation = Evaluation(
        small_game(), tuner=BatchSizeTuner(4), is_stopped=lambda: len(seen) >= 2, progress=seen.append
    )
    coalitions = all_coalitions(4)
    found = evaluation(coalitions)
    assert seen == [4, 4]
    assert torch.allclose(found, small_game()(coalitions[:8]), rtol=0, atol=1e-5)
    assert len(evaluation(coalitions)) == 0


class Counted:
    """A game that counts what it is asked."""

    def __init__(self):
        self.game, self.asked = small_game(), 0

    def __call__(self, coalitions):
        self.asked += len(coalitions)
        return self.game(coalitions)


def test_a_record_is_asked_before_the_network(tmp_path):
    path, coalitions = tmp_path / "record.npz", all_coalitions(4)
    first, again, other = Counted(), Counted(), Counted()
    record = EvaluationStore(path, "a", (4, 2))
    expected = Evaluation(first, record=record)(coalitions[:10])
    record.save()
    evaluation = Evaluation(again, record=EvaluationStore(path, "a", (4, 2)))
    found = evaluation(coalitions)
    assert torch.equal(found[:10], expected)
    assert (first.asked, again.asked, evaluation.reused) == (10, 6, 10)
    record = EvaluationStore(path, "b", (4, 2))
    Evaluation(other, record=record)(coalitions)
    record.save()
    assert other.asked == 16
    assert EvaluationStore(path, "a", (4, 2)).knows(coalitions).sum() == 10
    assert EvaluationStore(path, "b", (4, 2)).knows(coalitions).all()


def test_a_record_is_written_while_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_store, "SECONDS_BETWEEN_SAVES", 0.0)
    record = EvaluationStore(tmp_path / "record.npz", "a", (4, 2))
    record.add(all_coalitions(4)[:3], torch.zeros(3, 2).double())
    assert EvaluationStore(tmp_path / "record.npz", "a", (4, 2)).knows(all_coalitions(4)).sum() == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "record.npz").write_bytes(content)
    with pytest.raises(UserError, match="holds no values of an earlier run"):
        EvaluationStore(tmp_path / "record.npz", "a", (4, 2))


def test_the_fingerprint_changes_with_whatever_values_depend_on():
    usual = small_game()
    prints = {usual.fingerprint("log-odds"), usual.fingerprint("logit"), small_game(amp=True).fingerprint()}
    for change in ("image", "baseline", "player_map"):
        game = small_game()
        setattr(game, change, getattr(game, change).flip(-1))
        prints.add(game.fingerprint("log-odds"))
    game = small_game()
    game.model[0].weight.data[0, 0, 0, 0] += 1
    prints.add(game.fingerprint("log-odds"))
    assert len(prints) == 7
    assert small_game().fingerprint("log-odds") in prints


def test_under_amp_the_last_layer_computes_in_float32_and_no_hook_stays():
    game, kinds = small_game(amp=True), []
    head = game.model[-1]
    handle = head.register_forward_hook(
        lambda _m, inputs, output: kinds.extend([inputs[0].dtype, output.dtype])
    )
    found = game(all_coalitions(4))
    handle.remove()
    assert kinds == [torch.float32, torch.float32]
    assert not head._forward_hooks
    assert not head._forward_pre_hooks
    exact = small_game()(all_coalitions(4))
    assert 0 < (found - exact).abs().max() < 0.1


def test_hooks_of_the_last_layer_are_gone_after_an_error():
    game = small_game(amp=True)
    game.model[-1].weight.data = torch.zeros(5, 3)
    with pytest.raises(RuntimeError):
        game(all_coalitions(4))
    assert not game.model[-1]._forward_hooks
    assert not torch.is_autocast_enabled("cpu")


WORKER = """
import json, sys
import torch
from lib.runtime import distributed
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.coalitions import all_coalitions
from lib.explain.games import Evaluation
from test_games import Counted
torch.set_num_threads(1)
with distributed.process_group(torch.device("cpu")):
    game = Counted()
    values = Evaluation(game, tuner=BatchSizeTuner(4))(all_coalitions(4)[:15])
    with open(f"{sys.argv[1]}/rank-{distributed.rank()}.json", "w") as file:
        json.dump({"asked": game.asked, "values": values.tolist()}, file)
"""


@pytest.mark.slow
def test_ranks_share_the_coalitions_and_know_all_values(tmp_path):
    found = found_by_two_ranks(WORKER, tmp_path)
    assert [one["asked"] for one in found] == [8, 8]
    assert found[0]["values"] == found[1]["values"]
    alone = small_game()(all_coalitions(4)[:15])
    assert torch.allclose(torch.tensor(found[0]["values"]).double(), alone, rtol=0, atol=1e-5)
