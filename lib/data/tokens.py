"""Words: a tokeniser for raw text, the vocabulary of words and character n-grams, and phrases as tensors."""

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

# Word number 0 represents all words outside the vocabulary.
UNKNOWN = "<unk>"

# An n-gram that occurs in only one word adds nothing to that word's own vector, so it is dropped: 31,020 of
# 65,372 are kept.
WORDS_PER_NGRAM = 2

_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...", "\ufeff": " ", "\0": " "}
)
_LINE_BREAK = re.compile(r"<br ?/?>")
_ABBREVIATIONS = "mr|mrs|ms|dr|prof|jr|sr|st|vs|etc|inc|co|bros|wash|sept|al"
_SUFFIXES = "s|re|ve|ll|d|m"
_TOKEN = re.compile(
    rf"""
      # Runs of punctuation are one token: ... -- ?! ** and the quotes `` ''
      \.{{2,}} | -{{2,}} | [?!]+ | \*+ | `` | ''
      # Words that begin with an apostrophe: 'n' 'em 'til 'tis '90s
    | '(?: n' | (?:em|til|tis|twas|n|\d+s?)(?!\w) )
      # Abbreviations and initials, with their full stops: mr. u.s.
    | (?:{_ABBREVIATIONS})\.(?!\w) | \d?[a-z]\.(?:[a-z]\.)*(?!\w)
      # Clitics, and the words before them: do|n't it|'s can|not
    | n't(?!\w) | '(?:{_SUFFIXES})(?!\w)
    | \w+?(?=n't(?!\w)) | can(?=not(?!\w)) | ol'
      # Words, with inner hyphens, slashes, apostrophes, and full stops or commas in numbers and domains
    | \w+ (?: (?: -(?!-) | [/&] | [.,](?=\d) | \.(?=(?:com|net|org)\b) | '(?!(?:{_SUFFIXES})(?!\w)) ) \w+ )*
    | \S
    """,
    re.VERBOSE,
)


def tokenise(text: str) -> list[str]:
    """Split raw English into lower-case words by the rules of the Penn Treebank, as in SST-2.

    "It's great, don't miss it!" becomes it 's great , do n't miss it ! – text that is already split this
    way is not changed. Typographic quotes and dashes become plain ones.
    """
    text = _LINE_BREAK.sub(" ", text.lower().translate(_TYPOGRAPHY))
    return list(chain.from_iterable(map(_split, text.split())))


@lru_cache(maxsize=1 << 16)
def _split(chunk: str) -> tuple[str, ...]:
    tokens = _TOKEN.findall(chunk)
    # A straight quote opens a quotation if something follows it in the chunk and no letter or digit precedes
    # it; otherwise it closes one.
    return tuple(
        ("``" if not any(map(str.isalnum, chain(*tokens[:i]))) and i + 1 < len(tokens) else "''")
        if token == '"'
        else token
        for i, token in enumerate(tokens)
    )


def words_never_alone(phrases: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the words that never occur as a phrase of one word, in order of appearance."""
    alone = {phrase for phrase in phrases if len(phrase) == 1}
    words = dict.fromkeys((word,) for phrase in phrases for word in phrase)
    return [word for word in words if word not in alone]


class Phrases(NamedTuple):
    """A batch of B phrases of T words each: the input of the text networks.

    Vectors are computed once for each of the batch's U different words, however often a word occurs.

    Attributes:
        tokens: (B, T) index of each word among the U different words.
        words: (U,) number of each word in the vocabulary, 0 for unknown words.
        ngrams: (M,) numbers of the character n-grams of the U words, concatenated.
        starts: (U,) index in `ngrams` at which each word's n-grams begin.
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
    """N phrases of any lengths as numbers, without padding, and the table of their U different words.

    Attributes:
        tokens: (total number of words,) index of each word among the U different words, phrase after phrase.
        starts: (N,) index in `tokens` at which each phrase begins.
        lengths: (N,) number of words of each phrase, at least one.
        words, ngrams: the table of words, as in `Phrases`.
        ngram_starts, ngram_counts: (U,) index in `ngrams` at which a word's n-grams begin; their number.
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
        """Return the tokens (B, T) of the phrases `index` (B,), which must have equal lengths."""
        length = int(self.lengths[index[0]]) if len(index) else 1
        return self.tokens[self.starts[index, None] + torch.arange(length, device=index.device)]

    def phrases(self, tokens: Tensor) -> Phrases:
        """Return tokens (B, T) as a batch, with a table of only those words that occur in it."""
        used, tokens = torch.unique(tokens, return_inverse=True)
        counts = self.ngram_counts[used]
        starts = counts.cumsum(0) - counts
        # Gather the n-grams of the used words: entry i of the new list is entry i + shift of the old one.
        shift = torch.repeat_interleave(self.ngram_starts[used] - starts, counts)
        ngrams = self.ngrams[torch.arange(len(shift), device=shift.device) + shift]
        return Phrases(tokens, self.words[used], ngrams, starts)


@dataclass(frozen=True)
class Vocabulary:
    """The words and character n-grams that have vectors.

    Attributes:
        words: the words, `UNKNOWN` first.
        ngrams: the n-grams of `<word>`; the brackets mark the ends of the word.
        sizes: the lengths of the n-grams.
    """

    words: Sequence[str]
    ngrams: Sequence[str] = ()
    sizes: Sequence[int] = ()
    _known: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, phrases: Iterable[Sequence[str]], sizes: Sequence[int] = (3, 4, 5)) -> "Vocabulary":
        """Collect every word of `phrases`, and every n-gram that occurs in at least two words."""
        words = list(dict.fromkeys(chain.from_iterable(phrases)))
        # dict.fromkeys and not set: the order of a set of strings, and with it the numbering of the n-grams,
        # differs between processes.
        shared = Counter(chain.from_iterable(dict.fromkeys(_ngrams(word, sizes)) for word in words))
        ngrams = [ngram for ngram, words_with in shared.items() if words_with >= WORDS_PER_NGRAM]
        return cls([UNKNOWN, *words], ngrams, tuple(sizes))

    def plain(self) -> dict[str, Any]:
        """Return the vocabulary as plain values, for a checkpoint; `Vocabulary(**plain)` restores it."""
        return {"words": list(self.words), "ngrams": list(self.ngrams), "sizes": list(self.sizes)}

    def unknown(self, words: Iterable[str]) -> list[str]:
        """Return the words that are not in the vocabulary, in their order."""
        return [word for word in words if word not in self._word_numbers]

    @cached_property
    def _word_numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    @cached_property
    def _ngram_numbers(self) -> dict[str, int]:
        return {ngram: number for number, ngram in enumerate(self.ngrams)}

    def encode(self, phrases: Iterable[Sequence[str]]) -> Encoded:
        """Encode phrases, each a sequence of words; an empty phrase becomes one unknown word."""
        index: dict[str, int] = defaultdict(count().__next__)
        lengths: list[int] = []
        tokens: list[int] = []
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
        # Cached only for words of the vocabulary, because a stream may have any number of other words.
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
