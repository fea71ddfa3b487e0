"""Recurrent layers: long short-term memory as its equations and as PyTorch's fused kernel, and pooling."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.runtime.errors import UserError

POOLS = ("last", "max", "mean", "mean+max", "attention")

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
            # `F.dropout` divides what it keeps by 1 − share, so evaluation needs no other weights.
            weights |= {
                name: F.dropout(weight, self.drop_connect)
                for name, weight in weights.items()
                if name.startswith("weight_hh")
            }
        # With the same weights, both cells compute the same function, up to rounding.
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
