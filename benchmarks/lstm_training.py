#!/usr/bin/env python3
"""Time the training of a 512/512 LSTM on SST-2: the loop of the tutorials against this project's way.

Tokens of real text a second (padding counts for nothing), in turn in one process, on the same number of
threads:

    loop        four gates written in Python, shuffled batches of 16 padded on the left to the longest,
                AdamW as it comes, loss.item() in every step
    this        --model plain: the fused cell, batches of 64 phrases of one length, fused AdamW

and the recurrent layer alone, forwards and backwards, on the batches of `this`:

    bare        a call of torch.nn.LSTM
    layer       lib.models.recurrent.Recurrent
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lib import cli  # noqa: E402
from lib.data import text  # noqa: E402
from lib.data.phrases import PhraseBatches  # noqa: E402
from lib.data.tokens import Encoded, Phrases, Vocabulary  # noqa: E402
from lib.models.phrase_classifiers import PlainClassifier  # noqa: E402
from lib.models.recurrent import LSTM, Recurrent  # noqa: E402

SEED = 42
SIZE = 512
LEARNING_RATE = 5e-4
QUICK = {"dataset": "tiny", "updates": 2, "repetitions": 1}

Update = Callable[[], int]


def make_parser() -> cli.Parser:
    parser = common.make_parser("lstm_training.py", __doc__, repetitions=5)
    add = parser.add_argument_group("what is trained").add_argument
    add(
        "--dataset",
        choices=("sst2", "tiny"),
        default="sst2",
        help="train on these phrases; tiny needs no download",
    )
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="read SST-2/train.tsv in this folder; what is missing there is downloaded",
    )
    add(
        "--updates",
        type=cli.integer(1),
        default=20,
        metavar="N",
        help="time N updates in a repetition, and four times as many of the loop, whose batches are a "
        "quarter as large",
    )
    return parser


class PaddedLoop(nn.Module):
    """The network of `--model plain` with the LSTM as a Python loop over padded words (B, T)."""

    def __init__(self, words: int):
        super().__init__()
        rest = PlainClassifier(words + 1, embedding=SIZE, hidden=SIZE)
        self.embedding = nn.Embedding(words + 1, SIZE, padding_idx=words)
        self.lstm = LSTM(SIZE, SIZE)
        self.ffn, self.norm, self.head = rest.ffn, rest.norm, rest.head

    def forward(self, words: Tensor) -> Tensor:
        h = self.lstm(self.embedding(words))[:, -1]
        return self.head(self.norm(h + self.ffn(h)))


def padded_batches(
    phrases: list[Tensor], labels: Tensor, padding: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield words (16, T) padded on the left, labels (16,), and how many of the words are no padding."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for rows in torch.randperm(len(phrases), generator=generator).split(16):
            chosen = [phrases[row] for row in rows]
            longest = max(map(len, chosen))
            padded = torch.stack([F.pad(p, (longest - len(p), 0), value=padding) for p in chosen])
            yield padded, labels[rows], sum(map(len, chosen))


def loop_update(encoded: Encoded, labels: Tensor, words: int) -> Update:
    """Return a function that makes one update of the tutorials' way and returns its tokens."""
    numbers = encoded.words[encoded.tokens]
    phrases = list(numbers.split(encoded.lengths.tolist()))
    batches = padded_batches(phrases, labels, padding=words)
    model = PaddedLoop(words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def update() -> int:
        padded, targets, tokens = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(padded), targets)
        loss.backward()
        optimizer.step()
        loss.item()
        return tokens

    return update


def batches_of_one_length(encoded: Encoded, labels: Tensor) -> Iterator[tuple[Phrases, Tensor]]:
    batches = PhraseBatches(encoded, labels, batch_size=64, max_tokens=8192, seed=SEED)
    return itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())


def our_update(encoded: Encoded, labels: Tensor, words: int) -> Update:
    """Return a function that makes one update of this project's way and returns its tokens."""
    batches = batches_of_one_length(encoded, labels)
    model = PlainClassifier(words, embedding=SIZE, hidden=SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def update() -> int:
        phrases, targets = next(batches)
        F.cross_entropy(model(phrases), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return phrases.tokens.numel()

    return update


def layer_update(layer: nn.Module, encoded: Encoded, labels: Tensor) -> Update:
    """Return a function that calls a recurrent layer forwards and backwards once and returns its tokens."""
    batches = batches_of_one_length(encoded, labels)
    generator = torch.Generator().manual_seed(SEED)

    def update() -> int:
        phrases, _ = next(batches)
        x = torch.randn(*phrases.tokens.shape, SIZE, generator=generator, requires_grad=True)
        states = layer(x)
        states = states[0] if isinstance(states, tuple) else states
        states.sum().backward()
        layer.zero_grad()
        return phrases.tokens.numel()

    return update


def tokens_per_second(update: Update, updates: int) -> dict[str, float]:
    """Return the tokens a second of so many updates, by the wall clock and by the CPU's."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(update() for _ in range(updates))
    return {"wall": tokens / (time.perf_counter() - wall), "cpu": tokens / (time.process_time() - cpu)}


def measure(ways: dict[str, Update], updates: dict[str, int], repetitions: int) -> list[dict]:
    """Time the ways in turn, after one update of each that is not counted; a row for each, of medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for update in ways.values():
        update()
    for _ in range(repetitions):
        for name, update in ways.items():
            found[name].append(tokens_per_second(update, updates[name]))
    return [
        {"way": name} | {clock: statistics.median(each[clock] for each in times) for clock in ("wall", "cpu")}
        for name, times in found.items()
    ]


def table(rows: list[dict]) -> str:
    lines = [
        "| way | tokens/s | ratio | tokens/CPU-s | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratios = {clock: row[clock] / rows[0][clock] for clock in ("wall", "cpu")}
        lines.append(
            f"| {row['way']} | {row['wall']:,.0f} | {ratios['wall']:.2f} "
            f"| {row['cpu']:,.0f} | {ratios['cpu']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    data = text.load(options.dataset, options.data_dir, {})
    vocabulary = Vocabulary.of(data.train.phrases, sizes=())
    encoded, labels = vocabulary.encode(data.train.phrases), torch.tensor(data.train.labels)
    words = len(vocabulary.words)
    # As many phrases in a repetition of the loop, whose batches are a quarter as large.
    updates = {"loop": 4 * options.updates, "this": options.updates}
    ways = {"loop": loop_update(encoded, labels, words), "this": our_update(encoded, labels, words)}
    training = measure(ways, updates, options.repetitions)
    print(table(training), flush=True)
    layers = {
        "bare": layer_update(nn.LSTM(SIZE, SIZE, batch_first=True), encoded, labels),
        "layer": layer_update(Recurrent(SIZE, SIZE, bidirectional=False), encoded, labels),
    }
    alone = measure(layers, dict.fromkeys(layers, options.updates), options.repetitions)
    print(f"\n{table(alone)}")
    print(
        f"\n{options.dataset}, {options.threads} thread(s), torch {torch.__version__}; "
        f"medians of {options.repetitions}."
    )
    common.write_json(options, {"training": training, "layer": alone})


if __name__ == "__main__":
    cli.run(main)
