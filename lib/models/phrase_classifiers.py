"""Classifiers of phrases: word vectors, recurrent layers, pooling; and ensembles of such networks.

Their input is `lib.data.tokens.Phrases`: phrases of one length per batch, without padding.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import models
from lib.data.tokens import Phrases
from lib.models.averaging import mean_answer
from lib.models.recurrent import Pool, Recurrent
from lib.models.word_vectors import BigramVectors, WordVectors
from lib.runtime.errors import UserError

BIGRAM_SIZE = 64


class Dropout(NamedTuple):
    """The shares that a classifier drops in training."""

    word: float = 0.0  # of words, whose own vector is replaced by that of unknown words
    bigram: float = 0.0  # of bigrams, whose vector is replaced by zero
    embedding: float = 0.0  # of the numbers that each recurrent layer takes
    recurrent: float = 0.0  # of the weights between states
    head: float = 0.0  # of the features


class PhraseClassifier(nn.Module):
    """The base of all networks of phrases: `embed` and then `classify`.

    The two steps are separate because explanations differentiate with respect to the word vectors.
    """

    stages: tuple[str, ...]
    dropout = Dropout()
    vectors: WordVectors
    recurrent: nn.ModuleList

    @property
    def layers(self) -> Iterable[Recurrent]:
        """The recurrent layers, with their type, which `nn.ModuleList` does not know."""
        return cast(Iterable[Recurrent], self.recurrent)

    def configure(self, dropout: Dropout, cell: str) -> None:
        """Set the dropout for training, and how LSTMs are computed: `fused` or `reference`."""
        self.dropout = dropout
        self.vectors.word_dropout = dropout.word
        for layer in self.layers:
            layer.drop_connect, layer.cell = dropout.recurrent, cell

    def forward(self, phrases: Phrases) -> Tensor:
        """Return logits (B, classes)."""
        return self.classify(self.embed(phrases))

    def embed(self, phrases: Phrases) -> Tensor:
        """Return word vectors (B, T, D)."""
        return self.vectors(phrases)

    def classify(self, vectors: Tensor) -> Tensor:
        """Word vectors (B, T, D) to logits (B, classes)."""
        raise NotImplementedError

    def _drop(self, x: Tensor, share: float) -> Tensor:
        return F.dropout(x, share, self.training) if share else x


class SentimentClassifier(PhraseClassifier):
    """Word vectors, `depth` LSTM layers, pooling of the states, and one linear layer.

    With `bigrams`, the linear layer also takes the mean and the maximum of the phrase's bigram vectors, so
    the LSTM does not have to find the meaning of pairs of words such as `not funny`.

    Args:
        words, ngrams: sizes of the vocabulary.
        classes: number of classes.
        embedding: size D of word vectors.
        hidden: size H of the states of one direction.
        depth: number of LSTM layers; from the second on they are residual.
        bidirectional: whether each layer also reads phrases backwards.
        pool: one of `POOLS`.
        bigrams: number of bigram vectors, which all bigrams share by hashing; 0 for none.
    """

    stages = ("pool", "head")

    def __init__(
        self,
        words: int,
        ngrams: int,
        classes: int = 2,
        embedding: int = 128,
        hidden: int = 128,
        depth: int = 1,
        bidirectional: bool = True,
        pool: str = "mean+max",
        bigrams: int = 0,
    ):
        super().__init__()
        states = hidden * (2 if bidirectional else 1)
        self.vectors = WordVectors(words, ngrams, embedding)
        self.bigrams = BigramVectors(bigrams, BIGRAM_SIZE) if bigrams else None
        self.recurrent = nn.ModuleList(
            Recurrent(states if i else embedding, hidden, bidirectional) for i in range(depth)
        )
        self.pool = Pool(pool, states, bidirectional)
        self.head = nn.Linear(self.pool.output_size + (2 * BIGRAM_SIZE if bigrams else 0), classes)
        for layer in self.layers:
            layer.initialise()

    def configure(self, dropout: Dropout, cell: str) -> None:
        super().configure(dropout, cell)
        if self.bigrams:
            self.bigrams.dropout = dropout.bigram

    def embed(self, phrases: Phrases) -> Tensor:
        """Return word vectors (B, T, D), or (B, T, D + `BIGRAM_SIZE`) with the bigram vectors appended."""
        words = self.vectors(phrases)
        return torch.cat([words, self.bigrams(phrases)], dim=2) if self.bigrams else words

    def classify(self, vectors: Tensor) -> Tensor:
        size = self.vectors.words.embedding_dim
        x, bigrams = vectors[..., :size], vectors[..., size:]
        x = self._drop(x, self.dropout.embedding)
        for i, layer in enumerate(self.recurrent):
            x = x + layer(self._drop(x, self.dropout.embedding)) if i else layer(x)
        features = self.pool(x)
        if self.bigrams:
            features = torch.cat([features, bigrams.mean(1), bigrams.amax(1)], dim=1)
        return self.head(self._drop(features, self.dropout.head))


class PlainClassifier(PhraseClassifier):
    """The plain published network: a unidirectional LSTM, and a residual block on its last state h.

        features = LayerNorm(h + FFN(h))

    Args:
        words: size of the vocabulary.
        ngrams: must be 0, because this network has no character n-grams.
        classes: number of classes.
        embedding: size of word vectors.
        hidden: size of the state.
    """

    stages = ("pool", "norm", "head")

    def __init__(
        self, words: int, ngrams: int = 0, classes: int = 2, embedding: int = 512, hidden: int = 512
    ):
        super().__init__()
        if ngrams:
            raise UserError("the plain network has no character n-grams: leave out --ngrams")
        self.vectors = WordVectors(words, 0, embedding)
        self.recurrent = nn.ModuleList([Recurrent(embedding, hidden, bidirectional=False)])
        self.pool = Pool("last", hidden, bidirectional=False)
        self.ffn = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, classes)

    def classify(self, vectors: Tensor) -> Tensor:
        h = self.pool(self.recurrent[0](self._drop(vectors, self.dropout.embedding)))
        return self.head(self._drop(self.norm(h + self.ffn(h)), self.dropout.head))


class Ensemble(nn.Module):
    """An ensemble of networks: the mean of their probabilities, as logits."""

    def __init__(self, members: Iterable["PhraseClassifier"]):
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def networks(self) -> Iterable[PhraseClassifier]:
        """The members, with their type, which `nn.ModuleList` does not know."""
        return cast(Iterable[PhraseClassifier], self.members)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(f"members.{i}.pool" for i in range(len(self.members)))

    def configure(self, dropout: Dropout, cell: str) -> None:
        for member in self.networks:
            member.configure(dropout, cell)

    def forward(self, phrases: Phrases) -> Tensor:
        """Return the logarithms of the mean probabilities, (B, classes)."""
        return self.classify(self.embed(phrases))

    def embed(self, phrases: Phrases) -> Tensor:
        """Return the members' word vectors, concatenated: (B, T, members · D)."""
        return torch.cat([member.embed(phrases) for member in self.networks], dim=2)

    def classify(self, vectors: Tensor) -> Tensor:
        parts = zip(self.networks, vectors.chunk(len(self.members), dim=2), strict=True)
        return mean_answer(member.classify(part) for member, part in parts)


def ensemble_of(members: int, member: dict[str, Any]) -> Ensemble:
    """Return an ensemble of new networks; `member` holds the `name` and the `config` of each.

    The name must be that of a `PhraseClassifier`.
    """
    networks = (models.build(member["name"], **member["config"]) for _ in range(members))
    return Ensemble(cast(Iterator[PhraseClassifier], networks))
