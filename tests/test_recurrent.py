"""The LSTM against its equations, and the networks of phrases."""

import pytest
import torch
from torch import nn

from lib import models
from lib.data.phrases import PhrasesInOrder
from lib.data.tokens import Vocabulary
from lib.models import phrase_classifiers, recurrent
from lib.models.phrase_classifiers import Dropout
from lib.models.recurrent import LSTM, Pool, Recurrent, to_gates
from lib.runtime.errors import UserError

CELLS = ("fused", "reference")
SENTENCES = [
    "a warm and funny film",
    "dull",
    "not dull at all",
    "never funny",
    "a cold , dull and dreary film .",
    "funny",
    "warm and never cold",
    "the funniest films of filmmakers",
]
PHRASES = [tuple(sentence.split()) for sentence in SENTENCES]
VOCABULARY = Vocabulary.of(PHRASES)
SIZES = {"words": len(VOCABULARY.words), "ngrams": len(VOCABULARY.ngrams)}


def sentiment(**config) -> phrase_classifiers.SentimentClassifier:
    torch.manual_seed(0)
    return phrase_classifiers.SentimentClassifier(**SIZES, embedding=8, hidden=6, **config)


def logits_of(model: nn.Module, phrases, max_tokens: int = 1000) -> torch.Tensor:
    encoded = VOCABULARY.encode(phrases)
    batches = PhrasesInOrder(encoded, torch.zeros(len(encoded)), max_tokens=max_tokens)
    with torch.no_grad():
        return batches.restored(torch.cat([model(phrases) for phrases, _ in batches]))


# The cell


def test_an_lstm_of_one_unit_follows_its_equations_by_hand():
    lstm = LSTM(1, 1).double()
    for number, (name, parameter) in enumerate(sorted(lstm.named_parameters())):
        nn.init.constant_(parameter, 0.1 * (number + 1))
        assert parameter.numel() == 1, name
    value = {name: parameter.item() for name, parameter in lstm.named_parameters()}

    def gate(name: str, x: float, h: float) -> float:
        return (
            value[f"{name}.from_input.weight"] * x
            + value[f"{name}.from_input.bias"]
            + value[f"{name}.from_state.weight"] * h
            + value[f"{name}.from_state.bias"]
        )

    def sigmoid(z: float) -> float:
        return torch.tensor(z, dtype=torch.float64).sigmoid().item()

    def tanh(z: float) -> float:
        return torch.tensor(z, dtype=torch.float64).tanh().item()

    xs, h, c, expected = [0.5, -1.0, 2.0], 0.0, 0.0, []
    for x in xs:
        c = sigmoid(gate("forget", x, h)) * c + sigmoid(gate("input", x, h)) * tanh(gate("candidate", x, h))
        h = sigmoid(gate("output", x, h)) * tanh(c)
        expected.append(h)
    found = lstm(torch.tensor(xs, dtype=torch.float64).view(1, 3, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_fused_cell_equals_the_equations_in_outputs_and_gradients(bidirectional):
    torch.manual_seed(0)
    layer = Recurrent(5, 7, bidirectional).double()
    x = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, layer.output_size, dtype=torch.float64)
    found = {}
    for cell in CELLS:
        layer.cell = cell
        states = layer(x)
        found[cell] = [states, *torch.autograd.grad((states * weight).sum(), [x, *layer.parameters()])]
    for fused, reference in zip(*found.values(), strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-12)


def test_both_cells_drop_the_same_connections_under_the_same_seed():
    layer = Recurrent(5, 7, bidirectional=True).double()
    layer.drop_connect = 0.5
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    states = []
    for layer.cell in CELLS:
        torch.manual_seed(1)
        states.append(layer(x))
    torch.testing.assert_close(*states, rtol=1e-10, atol=1e-12)
    layer.eval()
    assert not torch.allclose(layer(x), states[0])


def test_dropped_connections_still_receive_gradients_where_they_were_kept():
    layer = Recurrent(5, 7, bidirectional=False)
    layer.drop_connect = 0.5
    layer(torch.randn(3, 6, 5)).sum().backward()
    share = (layer.lstm.weight_hh_l0.grad == 0).float().mean()
    assert 0.3 < share < 0.7


# The names of a gate's parameters, by those of all gates' parameters in one matrix or vector.
STACKS = {
    "weight_ih_l0": "from_input.weight",
    "weight_hh_l0": "from_state.weight",
    "bias_ih_l0": "from_input.bias",
    "bias_hh_l0": "from_state.bias",
}


def test_parameters_converted_there_and_back_are_the_same():
    fused = dict(nn.LSTM(4, 3, batch_first=True).named_parameters())
    gates = to_gates(fused)
    back = {
        stack: torch.cat([gates[f"{gate}.{name}"] for gate in recurrent.GATES])
        for stack, name in STACKS.items()
    }
    assert back.keys() == fused.keys()
    for name in fused:
        assert torch.equal(back[name], fused[name]), name


def test_converted_parameters_load_into_the_network_of_the_equations():
    fused = nn.LSTM(4, 3, batch_first=True)
    equations = LSTM(4, 3)
    equations.load_state_dict(to_gates(fused.state_dict()))
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(equations(x), fused(x)[0])


def test_memories_begin_by_keeping_and_state_matrices_orthogonal():
    layer = Recurrent(5, 6, bidirectional=True)
    layer.initialise()
    for suffix in ("_l0", "_l0_reverse"):
        gates = to_gates(dict(layer.lstm.named_parameters()), suffix)
        assert torch.equal(gates["forget.from_input.bias"], torch.ones(6))
        assert torch.equal(gates["input.from_input.bias"], torch.zeros(6))
        for gate in recurrent.GATES:
            matrix = gates[f"{gate}.from_state.weight"]
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), atol=1e-5, rtol=0)


# Pooling


def test_the_last_state_is_that_of_the_last_word_of_either_direction():
    states = torch.arange(24.0).view(1, 4, 6)
    assert Pool("last", 6, bidirectional=False)(states).tolist() == [[18, 19, 20, 21, 22, 23]]
    assert Pool("last", 6, bidirectional=True)(states).tolist() == [[18, 19, 20, 3, 4, 5]]


def test_attention_over_equal_states_is_that_state():
    state = torch.randn(2, 1, 6)
    pooled = Pool("attention", 6, bidirectional=False)(state.expand(-1, 5, -1))
    torch.testing.assert_close(pooled, state[:, 0])


@pytest.mark.parametrize("how", recurrent.POOLS)
def test_every_pooling_gives_the_size_it_promises_also_for_no_phrase_at_all(how):
    pool = Pool(how, 6, bidirectional=True)
    for batch in (0, 3):
        assert pool(torch.randn(batch, 4, 6)).shape == (batch, pool.output_size)


def test_an_unknown_pooling_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="attention"):
        Pool("median", 6, bidirectional=True)


# The networks


@pytest.mark.parametrize("how", recurrent.POOLS)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_logits_of_a_phrase_depend_neither_on_the_batch_nor_on_the_order(how, depth):
    model = sentiment(pool=how, depth=depth).eval()
    together = logits_of(model, PHRASES)
    alone = torch.cat([logits_of(model, [phrase]) for phrase in PHRASES])
    small = logits_of(model, PHRASES, max_tokens=4)
    backwards = logits_of(model, [*reversed(PHRASES), *PHRASES])
    for other in (alone, small, backwards[: len(PHRASES)].flip(0), backwards[len(PHRASES) :]):
        torch.testing.assert_close(together, other, atol=1e-5, rtol=0)


def test_the_gradients_of_a_network_do_not_depend_on_the_cell():
    encoded = VOCABULARY.encode(PHRASES[:1] * 3)
    phrases = encoded.phrases(encoded.rows(torch.arange(3)))
    model = sentiment(depth=2).double()
    gradients = []
    for cell in CELLS:
        # Not of embeddings: between two layers its mask follows the order of the states in memory.
        model.configure(Dropout(word=0.2, recurrent=0.4, head=0.5), cell)
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(model(phrases).sum(), list(model.parameters())))
    for fused, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, reference, rtol=1e-9, atol=1e-12)


def test_a_word_never_seen_is_told_from_another_by_its_ngrams():
    vectors = sentiment().vectors.eval()
    encoded = VOCABULARY.encode([("funnier", "filmmaker", "qqq")])
    assert encoded.words.tolist() == [0, 0, 0]
    first, second, third = vectors(encoded.phrases(encoded.rows(torch.tensor([0]))))[0]
    assert not torch.allclose(first, second)
    torch.testing.assert_close(third, vectors.words.weight[0])


def test_bigrams_stand_beside_the_words_and_tell_orders_apart():
    model = sentiment(bigrams=64).eval()
    encoded = VOCABULARY.encode([("films", "good"), ("good", "films")])
    vectors = model.embed(encoded.phrases(encoded.rows(torch.arange(2))))
    words, bigrams = vectors.split([8, phrase_classifiers.BIGRAM_SIZE], dim=2)
    torch.testing.assert_close(words[0], words[1].flip(0))
    # The first word's is that of the beginning and it; the second's, that of both.
    assert not torch.allclose(bigrams[0, 1], bigrams[1, 0])
    assert not torch.allclose(bigrams[0, 1], bigrams[1, 1])


def test_bigrams_are_dropped_whole_and_the_rest_make_up_for_it():
    vectors = sentiment(bigrams=64).bigrams.train()
    encoded = VOCABULARY.encode([("films", "good")] * 400)
    phrases = encoded.phrases(encoded.rows(torch.arange(400)))
    whole = vectors(phrases)
    vectors.dropout = 0.25
    torch.manual_seed(0)
    dropped = vectors(phrases)
    kept = dropped.abs().sum(2) > 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    assert 0.7 < float(kept.float().mean()) < 0.8


def test_a_word_vector_is_its_own_plus_the_mean_of_its_ngrams():
    vectors = sentiment().vectors.eval()
    encoded = VOCABULARY.encode([("films",)])
    found = vectors(encoded.phrases(encoded.rows(torch.tensor([0]))))[0, 0]
    ngrams = [
        VOCABULARY.ngrams.index(ngram)
        for ngram in (
            "<fi",
            "fil",
            "ilm",
            "lms",
            "ms>",
            "<fil",
            "film",
            "ilms",
            "lms>",
            "<film",
            "films",
            "ilms>",
        )
        if ngram in VOCABULARY.ngrams
    ]
    assert ngrams
    own = vectors.words.weight[VOCABULARY.words.index("films")]
    torch.testing.assert_close(found, own + vectors.ngrams.weight[ngrams].mean(0))


def test_a_dropped_word_keeps_its_ngrams():
    vectors = sentiment().vectors
    vectors.word_dropout = 1.0
    encoded = VOCABULARY.encode([("film", "funny")])
    phrases = encoded.phrases(encoded.rows(torch.tensor([0])))
    difference = vectors.eval()(phrases) - vectors.train()(phrases)
    own = vectors.words.weight[encoded.words] - vectors.words.weight[0]
    torch.testing.assert_close(difference[0], own)


def test_an_ensemble_answers_with_the_mean_of_its_members_probabilities():
    config = SIZES | {"embedding": 8, "hidden": 6}
    ensemble = models.build("ensemble", members=3, member={"name": "lstm", "config": config}).eval()
    mean = torch.stack([logits_of(member, PHRASES).softmax(1) for member in ensemble.members]).mean(0)
    torch.testing.assert_close(logits_of(ensemble, PHRASES).softmax(1), mean)


def test_the_plain_network_has_the_published_sizes():
    model = models.build("plain", words=10)
    assert model.vectors.words.weight.shape == (10, 512)
    assert model.recurrent[0].lstm.hidden_size == 512
    with pytest.raises(UserError, match="n-grams"):
        models.build("plain", words=10, ngrams=5)


def test_training_drops_and_evaluation_does_not():
    model = sentiment()
    model.configure(Dropout(0.5, 0.5, 0.5, 0.5, 0.5), "fused")
    assert not torch.equal(logits_of(model, PHRASES), logits_of(model, PHRASES))
    model.eval()
    assert torch.equal(logits_of(model, PHRASES), logits_of(model, PHRASES))
