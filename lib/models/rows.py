"""Recurrent networks that read an image row by row from top to bottom, like a phrase word by word."""

from torch import Tensor, nn

from lib.models.recurrent import Pool, Recurrent, differentiable

# PyTorch's layer of each cell, and the number of gates stacked in its matrices.
_PLAIN = {"rnn": (nn.RNN, 1), "gru": (nn.GRU, 3)}


class PlainRecurrent(nn.Module):
    """A layer of an Elman network (1990), or of gated recurrent units (Cho et al. 2014).

    The initial weights are those of `lib.models.recurrent.Recurrent`: orthogonal between states,
    Glorot-uniform from the input; all biases are zero.
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int):
        super().__init__()
        kind, gates = _PLAIN[cell]
        self.rnn = kind(input_size, hidden_size, batch_first=True)
        for part in self.rnn.weight_hh_l0.detach().chunk(gates):
            nn.init.orthogonal_(part)
        for part in self.rnn.weight_ih_l0.detach().chunk(gates):
            nn.init.xavier_uniform_(part)
        for bias in (self.rnn.bias_hh_l0, self.rnn.bias_ih_l0):
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the state after each step, (B, T, H)."""
        with differentiable(self, x):
            return self.rnn(x)[0]


class RowClassifier(nn.Module):
    """A recurrent network over the rows of an image, and one linear layer on its last state.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        classes: number of classes.
        channels: channels of the images; a row has the pixels of all of them.
        size: side length of the images in pixels.
        hidden: size of the state.
        depth: number of recurrent layers.
    """

    stages = ("last", "output")

    def __init__(
        self,
        cell: str,
        classes: int = 10,
        channels: int = 1,
        size: int = 28,
        hidden: int = 128,
        depth: int = 1,
    ):
        super().__init__()
        inputs = [channels * size] + [hidden] * (depth - 1)
        self.recurrent = nn.Sequential(*(_layer(cell, each, hidden) for each in inputs))
        self.last = Pool("last", hidden, bidirectional=False)
        self.output = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, classes)."""
        rows = images.transpose(1, 2).flatten(2)
        return self.output(self.last(self.recurrent(rows)))


def _layer(cell: str, input_size: int, hidden_size: int) -> nn.Module:
    if cell != "lstm":
        return PlainRecurrent(cell, input_size, hidden_size)
    layer = Recurrent(input_size, hidden_size, bidirectional=False)
    layer.initialise()
    return layer
