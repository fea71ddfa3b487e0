"""The sentences among the phrases of a corpus, and which rows to hold out so that none of them leaks."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from lib.runtime.errors import UserError

Phrase = tuple[str, ...]

# The sentences that are held out, or kept by a limit, do not depend on --seed, so that seeds are compared on
# the same examples.
SPLIT_SEED = 0

# Sentences that share a run of this many words are held out together. With 6, the largest group on SST-2 has
# 8 sentences; with 5, common turns of phrase begin to chain unrelated sentences together.
SHARED_RUN = 6

# Phrases of at least this many words are looked up by their first words.
BEGINNING = 8


def fixed_permutation(count: int) -> list[int]:
    """Return the numbers 0 … count − 1 in a random order, which is the same in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def held_out_rows(phrases: Sequence[Phrase], share: float) -> tuple[list[int], list[int]]:
    """Hold out a share of the sentences of a corpus of phrases: `(rows of the rest, rows held out)`.

    A sentence is a phrase that is not part of a longer phrase. A phrase of a held-out sentence stays in the
    rest only if it also occurs in a sentence of the rest (`funny`, `the film`). So the rest reveals no more
    about the held-out sentences than it does about those of an official validation split.

    Raises:
        UserError: one of the two parts would be empty.
    """
    owners, sentences = _sentences(phrases)
    groups = _related(sentences)
    names = sorted(set(groups))
    chosen = {names[i] for i in fixed_permutation(len(names))[: round(share * len(names))]}
    held = [groups[sentence] in chosen for sentence in range(len(sentences))]
    kept, out = [], []
    for row, phrase in enumerate(phrases):
        if not all(held[sentence] for sentence in owners[phrase]):
            kept.append(row)
        elif phrase == sentences[owners[phrase][0]]:
            out.append(row)
    if not kept or not out:
        raise UserError(f"--holdout {share:g} of {len(names)} sentences leaves nothing on one side")
    return kept, out


def _sentences(phrases: Sequence[Phrase]) -> tuple[dict, list]:
    """Find the sentences of a corpus: `(indices of the sentences that contain each phrase, sentences)`."""
    owners: dict[Phrase, list[int]] = {phrase: [] for phrase in phrases}
    sentences: list[Phrase] = []
    lengths: dict[Phrase, set[int]] = {}  # by their first words
    for phrase in owners:
        if len(phrase) >= BEGINNING:
            lengths.setdefault(phrase[:BEGINNING], set()).add(len(phrase))
    # Longest first: a phrase is a part only of longer phrases, so when its turn comes, it either has all its
    # owners or is a sentence itself.
    for phrase in sorted(owners, key=len, reverse=True):
        if owners[phrase]:
            continue
        for part in _parts(phrase, lengths):
            # A phrase may occur twice in one sentence.
            if part in owners and len(sentences) not in owners[part][-1:]:
                owners[part].append(len(sentences))
        sentences.append(phrase)
    return owners, sentences


def _parts(phrase: Phrase, lengths: Mapping[Phrase, set[int]]) -> Iterator[Phrase]:
    """Yield all short parts of a phrase, and the longer parts that begin like a known phrase.

    Trying every part would take time quadratic in the length of the phrase.
    """
    for first in range(len(phrase)):
        for end in range(first + 1, min(first + BEGINNING, len(phrase) + 1)):
            yield phrase[first:end]
        for length in lengths.get(phrase[first : first + BEGINNING], ()):
            yield phrase[first : first + length]


def _related(sentences: Sequence[Phrase]) -> list[int]:
    """Group the sentences that share a run of `SHARED_RUN` words: return a group number for each sentence.

    Groups are merged by union-find, because the relation is transitive.
    """
    parents = list(range(len(sentences)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]  # path halving
        return i

    first_with: dict[Phrase, int] = {}
    for number, sentence in enumerate(sentences):
        for start in range(len(sentence) - SHARED_RUN + 1):
            other = first_with.setdefault(sentence[start : start + SHARED_RUN], number)
            parents[root(number)] = root(other)
    return [root(i) for i in range(len(sentences))]
