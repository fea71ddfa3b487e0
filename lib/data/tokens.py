"""Words: raw text split as the corpus is, the vocabulary of words and n-grams, and their tensors."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, chain, count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# The word of number 0 stands for all that are not in the vocabulary.
UNKNOWN = "<unk>"

# An n-gram of one word alone says nothing that the word's own vector does not: 31,020 of 65,372 stay.
WORDS_PER_NGRAM = 2

_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...", "\ufeff": " ", "\0": " "}
)
_LINE_BREAK = re.compile(r"<br ?/?>")
_ABBREVIATIONS = "mr|mrs|ms|dr|prof|jr|sr|st|vs|etc|inc|co|bros|wash|sept|al"
_SUFFIXES = "s|re|ve|ll|d|m"
_TOKEN = re.compile(
    rf"""
      \.{{2,}} | -{{2,}} | [?!]+ | \*+ | `` | ''
    | '(?: n' | (?:em|til|tis|twas|n|\d+s?)(?!\w) )
    | (?:{_ABBREVIATIONS})\.(?!\w) | \d?[a-z]\.(?:[a-z]\.)*(?!\w)
    | n't(?!\w) | '(?:{_SUFFIXES})(?!\w)
    | \w+?(?=n't(?!\w)) | can(?=not(?!\w)) | ol'
    | \w+ (?: (?: -(?!-) | [/&] | [.,](?=\d) | \.(?=(?:com|net|org)\b) | '(?!(?:{_SUFFIXES})(?!\w)) ) \w+ )*
    | \S
    """,
    re.VERBOSE,
)


def tokenise(text: str) -> list[str]:
    """Split raw English as the Penn Treebank, and so the corpus, does, in lower case.

    "It's great, don't miss it!" becomes it 's great , do n't miss it ! – text that is already split so
    stays as it is. Typographic quotes and dashes become the corpus' plain ones.
    """
    text = _LINE_BREAK.sub(" ", text.lower().translate(_TYPOGRAPHY))
    return list(chain.from_iterable(map(_split, text.split())))


@lru_cache(maxsize=1 << 16)
def _split(chunk: str) -> tuple[str, ...]:
    tokens = _TOKEN.findall(chunk)
    # A straight quote opens before what it stands in front of, and closes behind everything else.
    return tuple(
        ("``" if not any(map(str.isalnum, chain(*tokens[:i]))) and i + 1 < len(tokens) else "''")
        if token == '"'
        else token
        for i, token in enumerate(tokens)
    )


def words_never_alone(phrases: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the words of some phrases that are none of the phrases themselves, in order of appearance."""
    alone = {phrase for phrase in phrases if len(phrase) == 1}
    words = dict.fromkeys((word,) for phrase in phrases for word in phrase)
    return [word for word in words if word not in alone]


class Phrases(NamedTuple):
    """A batch of B phrases of T words each: what the text networks take.

    Attributes:
        tokens: (B, T) which of the batch's U different words stands there.
        words: (U,) the number of each in the vocabulary, 0 if it is not in it.
        ngrams: (M,) the numbers of their character n-grams, word after word.
        starts: (U,) where in `ngrams` those of each word begin.
    """

    tokens: Tensor
    words: Tensor
    ngrams: Tensor
    starts: Tensor

    def to(self, device: torch.device | str) -> "Phrases":
        return Phrases(*(tensor.to(device) for tensor in self))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Encoded:
    """N phrases of any length as numbers, without padding, and the table of their U different words.

    Attributes:
        tokens: (all words of all phrases,) which of the U words.
        starts: (N,) where in `tokens` each phrase begins.
        lengths: (N,) words a phrase, one at least.
        words, ngrams: the table, as in `Phrases`.
        ngram_starts, ngram_counts: (U,) where in `ngrams` those of each word begin, and how many.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    words: Tensor
    ngrams: Tensor
    ngram_starts: Tensor
    ngram_counts: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Encoded":
        return Encoded(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def rows(self, index: Tensor) -> Tensor:
        """Return the tokens (B, T) of the phrases `index` (B,), which are of equal length."""
        length = int(self.lengths[index[0]]) if len(index) else 1
        return self.tokens[self.starts[index, None] + torch.arange(length, device=index.device)]

    def phrases(self, tokens: Tensor) -> Phrases:
        """Return tokens (B, T) as a batch, with the table of the words that occur in it alone."""
        used, tokens = torch.unique(tokens, return_inverse=True)
        counts = self.ngram_counts[used]
        starts = counts.cumsum(0) - counts
        shift = torch.repeat_interleave(self.ngram_starts[used] - starts, counts)
        ngrams = self.ngrams[torch.arange(len(shift), device=shift.device) + shift]
        return Phrases(tokens, self.words[used], ngrams, starts)


@dataclass(frozen=True)
class Vocabulary:
    """The words and the character n-grams that a network has vectors for.

    Attributes:
        words: `UNKNOWN` first.
        ngrams: of the sizes `sizes`, within `<word>`, the brackets being the word's ends.
    """

    words: Sequence[str]
    ngrams: Sequence[str] = ()
    sizes: Sequence[int] = ()
    _known: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, phrases: Iterable[Sequence[str]], sizes: Sequence[int] = (3, 4, 5)) -> "Vocabulary":
        """Return every word of `phrases`, and every n-gram that at least two of the words have."""
        words = list(dict.fromkeys(chain.from_iterable(phrases)))
        # Not sets: their order, and so the numbers of the n-grams, would differ from process to process.
        shared = Counter(chain.from_iterable(dict.fromkeys(_ngrams(word, sizes)) for word in words))
        ngrams = [ngram for ngram, words_with in shared.items() if words_with >= WORDS_PER_NGRAM]
        return cls([UNKNOWN, *words], ngrams, tuple(sizes))

    def plain(self) -> dict[str, Any]:
        """Return the vocabulary as plain values, for a checkpoint: `Vocabulary(**plain)` is the same."""
        return {"words": list(self.words), "ngrams": list(self.ngrams), "sizes": list(self.sizes)}

    def unknown(self, words: Iterable[str]) -> list[str]:
        """Return those of `words` that are not in the vocabulary, in their order."""
        return [word for word in words if word not in self._word_numbers]

    @cached_property
    def _word_numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def _ngram_numbers(self) -> dict[str, int]:
        return {ngram: number for number, ngram in enumerate(self.ngrams)}

    def encode(self, phrases: Iterable[Sequence[str]]) -> Encoded:
        """Return phrases, each a sequence of words, as numbers; an empty one as a word unknown."""
        index: dict[str, int] = defaultdict(count().__next__)
        lengths, tokens = [], []
        for phrase in phrases:
            phrase = phrase or (UNKNOWN,)
            lengths.append(len(phrase))
            tokens.extend(map(index.__getitem__, phrase))
        numbers = [self._word_numbers.get(word, 0) for word in index]
        ngrams = [self._ngrams_of(word, number) for word, number in zip(index, numbers, strict=True)]
        counts = [len(each) for each in ngrams]
        return Encoded(
            tokens=_tensor(tokens),
            starts=_starts(lengths),
            lengths=_tensor(lengths),
            words=_tensor(numbers),
            ngrams=_tensor(list(chain.from_iterable(ngrams))),
            ngram_starts=_starts(counts),
            ngram_counts=_tensor(counts),
        )

    def _ngrams_of(self, word: str, number: int) -> list[int]:
        # Remembered for the words of the vocabulary alone: a stream has no end of others.
        found = self._known.get(word)
        if found is None:
            numbers = self._ngram_numbers
            found = [numbers[ngram] for ngram in _ngrams(word, self.sizes) if ngram in numbers]
            if number:
                self._known[word] = found
        return found


def _ngrams(word: str, sizes: Iterable[int]) -> list[str]:
    if word == UNKNOWN:
        return []
    whole = f"<{word}>"
    return [whole[i : i + n] for n in sizes for i in range(len(whole) - n + 1)]


def _tensor(numbers: list[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64))


def _starts(lengths: list[int]) -> Tensor:
    return _tensor(list(accumulate(lengths, initial=0))[:-1])
