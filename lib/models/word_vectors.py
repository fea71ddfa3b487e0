"""Vectors of the words of a phrase, from the words themselves, their characters and their neighbours."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.tokens import Phrases

# Of word vectors at first. With the library's 1, an epoch on 30,000 phrases ends at a validation accuracy
# of 0.65, with 0.1 at 0.80: sums of large random numbers drown what is learnt of a word.
VECTOR_SCALE = 0.1
BIGRAM_SCALE = 0.02


# A large prime, for hashing: 2³¹ − 1.
_PRIME = (1 << 31) - 1


class WordVectors(nn.Module):
    """A word's vector: its own plus the mean of those of its character n-grams (Bojanowski et al. 2017).

    A word that is not in the vocabulary has the vector of unknown words and its n-grams.

    Attributes:
        word_dropout: in training, the share of words whose own vector is the one of unknown words.
    """

    def __init__(self, words: int, ngrams: int, size: int):
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.ngrams = nn.EmbeddingBag(ngrams, size, mode="mean") if ngrams else None
        self.word_dropout = 0.0
        for table in self.parameters():
            nn.init.normal_(table, std=VECTOR_SCALE)

    def forward(self, phrases: Phrases) -> Tensor:
        """Return the vectors of the words, (B, T, D)."""
        words = phrases.words[phrases.tokens]
        if self.training and self.word_dropout:
            words = words.masked_fill(torch.rand(words.shape, device=words.device) < self.word_dropout, 0)
        vectors = self.words(words)
        if self.ngrams is None:
            return vectors
        return vectors + F.embedding(phrases.tokens, self.ngrams(phrases.ngrams, phrases.starts))


class BigramVectors(nn.Module):
    """A vector for each two neighbouring words, the first with the beginning of the phrase.

    Bigrams share `buckets` vectors by a hash of their words' numbers, so that there need be no vocabulary
    of them (Weinberger et al. 2009, arXiv:0902.2206; as in fastText, Joulin et al. 2017, arXiv:1607.01759).

    Attributes:
        dropout: in training, the share of the bigrams whose vector is zero.
    """

    def __init__(self, buckets: int, size: int):
        super().__init__()
        self.vectors = nn.Embedding(buckets, size)
        self.dropout = 0.0
        nn.init.normal_(self.vectors.weight, std=BIGRAM_SCALE)

    def forward(self, phrases: Phrases) -> Tensor:
        """Return the vectors of each word and the one before it, (B, T, D)."""
        words = phrases.words[phrases.tokens]
        before = F.pad(words[:, :-1], (1, 0), value=-1)
        buckets = ((before + 2) * 1_000_003 + words) % _PRIME % self.vectors.num_embeddings
        vectors = self.vectors(buckets)
        if self.training and self.dropout:
            kept = torch.rand(words.shape, device=words.device) >= self.dropout
            vectors = vectors * (kept / (1 - self.dropout)).unsqueeze(2)
        return vectors
