"""Long short-term memory, as its equations and as PyTorch's fused kernel, and classifiers of phrases.

The input of the classifiers is `lib.data.tokens.Phrases`: phrases of one length per batch, without padding.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib import models
from lib.data.tokens import Phrases
from lib.models.answers import mean_answer
from lib.models.word_vectors import BigramVectors, WordVectors
from lib.runtime.errors import UserError

POOLS = ("last", "max", "mean", "mean+max", "attention")
BIGRAM_SIZE = 64

# The order in which `torch.nn.LSTM` stacks the gates in its matrices.
GATES = ("input", "forget", "candidate", "output")
# Names of a `Gate`'s four parameters, by the names under which `torch.nn.LSTM` stacks those of all gates.
_STACKS = {
    "weight_ih": "from_input.weight",
    "weight_hh": "from_state.weight",
    "bias_ih": "from_input.bias",
    "bias_hh": "from_state.bias",
}


class Gate(nn.Module):
    """A gate: activation(W x + b + U h + d), computed from the input x and the previous state h."""

    def __init__(self, input_size: int, hidden_size: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.from_input = nn.Linear(input_size, hidden_size)
        self.from_state = nn.Linear(hidden_size, hidden_size)
        self.activation = activation

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x (B, D) and h (B, H) to (B, H)."""
        return self.activation(self.from_input(x) + self.from_state(h))


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000).

    f = σ(W_f x + U_f h)        forget gate: the share of the memory that is kept
    i = σ(W_i x + U_i h)        input gate: the share of the candidate that is written
    ĉ = tanh(W_c x + U_c h)     candidate for the memory
    o = σ(W_o x + U_o h)        output gate: the share of the memory that is visible in the state
    c ← f ⊙ c + i ⊙ ĉ           memory
    h ← o ⊙ tanh(c)             state

    Each gate also has two biases, as in `torch.nn.LSTM`.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.forget = Gate(input_size, hidden_size, torch.sigmoid)
        self.input = Gate(input_size, hidden_size, torch.sigmoid)
        self.candidate = Gate(input_size, hidden_size, torch.tanh)
        self.output = Gate(input_size, hidden_size, torch.sigmoid)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one word: x (B, D), state h and memory c (B, H) to the next state and memory."""
        c = self.forget(x, h) * c + self.input(x, h) * self.candidate(x, h)
        h = self.output(x, h) * torch.tanh(c)
        return h, c

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the state after each word, (B, T, H); state and memory start at zero."""
        h = c = x.new_zeros(len(x), self.hidden_size)
        states = []
        for x_t in x.unbind(1):
            h, c = self.step(x_t, h, c)
            states.append(h)
        return torch.stack(states, 1)


def to_gates(fused: Mapping[str, Tensor], suffix: str = "_l0") -> dict[str, Tensor]:
    """Convert the parameters of a `torch.nn.LSTM` to those of an `LSTM`: as views, so gradients flow back.

    Args:
        fused: parameters by name, `weight_ih_l0` and so on.
        suffix: layer and direction, `_l0` or `_l0_reverse`.
    """
    return {
        f"{gate}.{name}": part
        for stack, name in _STACKS.items()
        for gate, part in zip(GATES, fused[stack + suffix].chunk(4), strict=True)
    }


def from_gates(gates: Mapping[str, Tensor], suffix: str = "_l0") -> dict[str, Tensor]:
    """Convert the parameters of an `LSTM` to those of a `torch.nn.LSTM`; the inverse of `to_gates`."""
    return {
        stack + suffix: torch.cat([gates[f"{gate}.{name}"] for gate in GATES])
        for stack, name in _STACKS.items()
    }


class Recurrent(nn.Module):
    """One LSTM layer over the phrase and, if it is bidirectional, a second LSTM over the reversed phrase.

    The parameters are those of a `torch.nn.LSTM`, for both ways of computing.

    Attributes:
        cell: `fused` computes with `torch.nn.LSTM`, `reference` with `LSTM`.
        drop_connect: in training, the share of the state-to-state weights that are set to zero. One mask
            holds for all words of a batch (Wan et al. 2013; Merity, Keskar & Socher 2018, arXiv:1708.02182).
    """

    def __init__(self, input_size: int, hidden_size: int, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True, bidirectional=bidirectional)
        self.cell = "fused"
        self.drop_connect = 0.0

    @property
    def output_size(self) -> int:
        return self.lstm.hidden_size * (2 if self.lstm.bidirectional else 1)

    def initialise(self) -> None:
        """Initialise the weights: orthogonal between states, Glorot-uniform from the input, and zero biases.

        Orthogonal matrices (Saxe et al. 2014) neither shrink nor enlarge gradients through time at first.
        Only the forget gate's bias is 1 (Jozefowicz, Zaremba & Sutskever 2015), so that the memory is kept.
        """
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            for gate, part in zip(GATES, parameter.detach().chunk(4), strict=True):
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(part)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(part)
                elif name.startswith("bias_ih") and gate == "forget":
                    nn.init.ones_(part)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to states (B, T, H), or (B, T, 2H): those of both directions, concatenated."""
        weights: dict[str, Tensor] = dict(self.lstm.named_parameters())
        dropping = self.training and self.drop_connect > 0
        if dropping:
            weights |= {
                name: F.dropout(weight, self.drop_connect)
                for name, weight in weights.items()
                if name.startswith("weight_hh")
            }
        if self.cell == "reference":
            return self._reference(x, weights)
        with differentiable(self, x):
            return (functional_call(self.lstm, weights, x) if dropping else self.lstm(x))[0]

    def _reference(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        with torch.device("meta"):  # without memory: `functional_call` supplies all parameters
            equations = LSTM(self.lstm.input_size, self.lstm.hidden_size)
        states = functional_call(equations, to_gates(weights), x)
        if not self.lstm.bidirectional:
            return states
        backwards = functional_call(equations, to_gates(weights, "_l0_reverse"), x.flip(1))
        return torch.cat([states, backwards.flip(1)], dim=2)


@contextlib.contextmanager
def differentiable(layer: nn.Module, x: Tensor) -> Iterator[None]:
    """Make PyTorch's recurrent `layer` differentiable with respect to x, also in eval mode.

    cuDNN's recurrent layers have no backward pass in eval mode, so the context switches cuDNN off there.
    """
    explained = x.requires_grad and not layer.training
    with torch.backends.cudnn.flags(enabled=False) if explained else contextlib.nullcontext():
        yield


class Pool(nn.Module):
    """Pooling of a phrase's states (B, T, S) to its features: (B, S), or (B, 2S) for `mean+max`.

    `last` takes each direction's state after the last word it reads; `attention` weights the states by
    softmax(vᵀ tanh(W h + b)) over the words (Yang et al. 2016).
    """

    def __init__(self, how: str, states: int, bidirectional: bool):
        super().__init__()
        if how not in POOLS:
            raise UserError(f"there is no pooling {how!r}; there are {', '.join(POOLS)}")
        self.how, self.bidirectional = how, bidirectional
        self.output_size = 2 * states if how == "mean+max" else states
        if how == "attention":
            self.score = nn.Sequential(nn.Linear(states, states), nn.Tanh(), nn.Linear(states, 1, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        if self.how == "last":
            return self._last(states)
        if self.how == "max":
            return states.amax(1)
        if self.how == "mean":
            return states.mean(1)
        if self.how == "mean+max":
            return torch.cat([states.mean(1), states.amax(1)], dim=1)
        return (self.score(states).softmax(1) * states).sum(1)

    def _last(self, states: Tensor) -> Tensor:
        if not self.bidirectional:
            return states[:, -1]
        # The backward direction reads the first word last.
        half = states.shape[2] // 2
        return torch.cat([states[:, -1, :half], states[:, 0, half:]], dim=1)


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
