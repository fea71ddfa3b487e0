"""Vectors of words (from the word and its character n-grams), and vectors of bigrams."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.tokens import Phrases

# Standard deviations of the initial vectors. With PyTorch's default of 1, one epoch on 30,000 phrases reaches
# a validation accuracy of 0.65, with 0.1 it reaches 0.80: large random vectors drown out what is learnt.
VECTOR_SCALE = 0.1
BIGRAM_SCALE = 0.02

# The prime 2³¹ − 1, for hashing.
_PRIME = (1 << 31) - 1


class WordVectors(nn.Module):
    """Word vectors: a vector per word plus the mean of those of its character n-grams.

    Such vectors are described by Bojanowski et al. 2017. Unknown words share one vector, and have n-grams of
    their own.

    Attributes:
        word_dropout: in training, the share of words whose own vector is replaced by that of unknown words.
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
        # The n-grams' mean is computed once per different word, and then looked up for each word (B, T).
        return vectors + F.embedding(phrases.tokens, self.ngrams(phrases.ngrams, phrases.starts))


class BigramVectors(nn.Module):
    """A vector for each pair of neighbouring words; the first word's partner is the beginning of the phrase.

    Bigrams share `buckets` vectors by a hash of their words' numbers, so no vocabulary of bigrams is needed
    (Weinberger et al. 2009, arXiv:0902.2206; as in fastText, Joulin et al. 2017, arXiv:1607.01759).

    Attributes:
        dropout: in training, the share of the bigrams whose vector is set to zero.
    """

    def __init__(self, buckets: int, size: int):
        super().__init__()
        self.vectors = nn.Embedding(buckets, size)
        self.dropout = 0.0
        nn.init.normal_(self.vectors.weight, std=BIGRAM_SCALE)

    def forward(self, phrases: Phrases) -> Tensor:
        """Return the vector of each word paired with the word before it, (B, T, D)."""
        words = phrases.words[phrases.tokens]
        # A pair is hashed as the polynomial before · factor + word, which tells (a, b) from (b, a).
        # −1 stands for the beginning of the phrase; + 2 makes the factor positive for it, too.
        before = F.pad(words[:, :-1], (1, 0), value=-1)
        buckets = ((before + 2) * 1_000_003 + words) % _PRIME % self.vectors.num_embeddings
        vectors = self.vectors(buckets)
        if self.training and self.dropout:
            kept = torch.rand(words.shape, device=words.device) >= self.dropout
            vectors = vectors * (kept / (1 - self.dropout)).unsqueeze(2)
        return vectors
