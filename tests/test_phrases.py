"""Batches of phrases, and the augmentation that swaps phrases of one label."""

from collections import Counter
from itertools import chain

import pytest
import torch

from lib.data.phrases import PhraseBatches, PhrasesInOrder, PhraseSwap
from lib.data.tokens import Vocabulary

# Batches


def numbered(lengths: list[int]) -> tuple[Vocabulary, object, torch.Tensor]:
    """Phrases of these lengths, each of words of its own number, and the numbers as labels."""
    phrases = [tuple(f"{number}" for _ in range(length)) for number, length in enumerate(lengths)]
    vocabulary = Vocabulary.of(phrases, ())
    return vocabulary, vocabulary.encode(phrases), torch.arange(len(lengths))


LENGTHS = [1, 3, 3, 2, 7, 3, 1, 1, 2, 3, 7, 7, 3, 1, 2, 40]


def test_every_phrase_comes_once_an_epoch_with_its_label_and_without_padding():
    _, encoded, labels = numbered(LENGTHS)
    batches = PhraseBatches(encoded, labels, batch_size=3, max_tokens=1000, seed=1)
    for epoch in range(3):
        seen = []
        for phrases, targets in batches.epoch(epoch):
            assert phrases.tokens.shape == (len(targets), LENGTHS[targets[0]])
            assert torch.equal(phrases.words[phrases.tokens][:, 0] - 1, targets)
            seen += targets.tolist()
        assert sorted(seen) == list(range(len(LENGTHS)))


def test_the_order_is_a_function_of_seed_and_epoch_and_begins_where_it_is_told():
    _, encoded, labels = numbered(LENGTHS)

    def order(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        batches = PhraseBatches(encoded, labels, batch_size=3, max_tokens=1000, seed=seed)
        list(batches.epoch(5))
        return [targets.tolist() for _, targets in batches.epoch(epoch, start)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2, start=3) == order(1, 2)[3:]
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert len(order(1, 2)) == len(PhraseBatches(encoded, labels, batch_size=3, max_tokens=1000, seed=1))


def test_batches_hold_no_more_phrases_or_words_than_they_may():
    _, encoded, labels = numbered(LENGTHS)
    batches = PhraseBatches(encoded, labels, batch_size=4, max_tokens=14, seed=1)
    sizes = {tuple(phrases.tokens.shape) for phrases, _ in batches.epoch(0)}
    assert all(count <= 4 and (count * length <= 14 or count == 1) for count, length in sizes)
    assert (1, 40) in sizes


def test_two_ranks_share_every_batch_and_no_phrase(monkeypatch):
    _, encoded, labels = numbered(LENGTHS)
    monkeypatch.setattr("lib.runtime.distributed.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("lib.runtime.distributed.rank", lambda rank=rank: rank)
        batches = PhraseBatches(encoded, labels, batch_size=3, max_tokens=1000, seed=1)
        shares.append([targets.tolist() for _, targets in batches.epoch(0)])
        assert len(shares[-1]) == len(batches)
    assert sorted(chain.from_iterable(shares[0] + shares[1])) == list(range(len(LENGTHS)))
    for mine, its in zip(*shares, strict=True):
        assert len({LENGTHS[row] for row in mine + its}) == 1


def test_answers_in_the_order_of_the_batches_come_back_in_the_order_of_the_rows():
    _, encoded, labels = numbered(LENGTHS)
    batches = PhrasesInOrder(encoded, labels, max_tokens=7)
    seen = torch.cat([targets for _, targets in batches])
    assert [LENGTHS[row] for row in seen] == sorted(LENGTHS)
    assert torch.equal(batches.restored(seen), labels)
    assert all(p.tokens.numel() <= 7 or len(p) == 1 for p, _ in batches)


# Phrase swap


CORPUS = {
    "a warm and funny film": 1,
    "a cold and dreary film": 0,
    "warm and funny": 1,
    "sweet and tender": 1,
    "cold and dreary": 0,
    "long and boring": 0,
    "film": 1,
    "no part of another": 0,
}


def swapped(rate: float, row: int, times: int = 60) -> Counter:
    phrases = [tuple(phrase.split()) for phrase in CORPUS]
    vocabulary = Vocabulary.of(phrases)
    encoded = vocabulary.encode(phrases)
    swap = PhraseSwap(encoded, torch.tensor(list(CORPUS.values())), rate)
    torch.manual_seed(0)
    rows = torch.full((times,), row)
    words = encoded.words[swap(encoded.rows(rows), rows)]
    return Counter(" ".join(vocabulary.words[word] for word in phrase) for phrase in words.tolist())


def test_a_part_that_is_a_phrase_is_exchanged_for_one_of_its_label_and_length():
    assert set(swapped(1.0, 0)) == {"a warm and funny film", "a sweet and tender film"}
    assert set(swapped(1.0, 1)) == {"a cold and dreary film", "a long and boring film"}


def test_a_whole_phrase_and_one_without_parts_stay_as_they_are():
    assert set(swapped(1.0, 2)) == {"warm and funny"}
    assert set(swapped(1.0, 7)) == {"no part of another"}


def test_no_phrase_is_changed_at_a_rate_of_zero_and_about_half_of_them_at_a_half():
    assert set(swapped(0.0, 0)) == {"a warm and funny film"}
    # One of its two parts is chosen; `film` has but itself to be exchanged for, the other one more.
    changed = swapped(0.5, 0, times=4000)["a sweet and tender film"] / 4000
    assert changed == pytest.approx(0.5 * 0.5 * 0.5, abs=0.03)
