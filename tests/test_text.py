"""Words, phrases and their batches: tokeniser, vocabulary, files, hold-out, batches, phrase swap."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import permutations

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lib.data import sentences, text, text_files
from lib.data.text import TextSplit
from lib.data.tokens import UNKNOWN, Vocabulary, tokenise
from lib.runtime.errors import UserError

# The tokeniser


@pytest.mark.parametrize(
    ("raw", "split"),
    [
        ("It's great, don't miss it!", "it 's great , do n't miss it !"),
        ('He said "wow" (really).', "he said `` wow '' ( really ) ."),
        ("I can't… won't—cannot—stop.", "i ca n't ... wo n't -- can not -- stop ."),
        ("“Mr. Smith’s” film cost $10,000, 50%!!!", "`` mr. smith 's '' film cost $ 10,000 , 50 % !!!"),
        ("the '80s rock 'n' roll, by the U.S. army.", "the '80s rock 'n' roll , by the u.s. army ."),
        ("well-made,fun;cheap and/or dull--yes", "well-made , fun ; cheap and/or dull -- yes"),
        ("The end.This is<br />new at feardotcom.com", "the end . this is new at feardotcom.com"),
        ("clichés, naïve; 7.50 o'fallon d'etre", "clichés , naïve ; 7.50 o'fallon d'etre"),
        ("  \t\n", ""),
    ],
)
def test_raw_text_is_split_the_way_the_corpus_is(raw, split):
    assert " ".join(tokenise(raw)) == split


def test_text_that_is_split_already_stays_as_it_is():
    rows = text.load("tiny", "", {}).train.phrases
    assert [tuple(tokenise(" ".join(row))) for row in rows] == list(rows)
    line = "`` it 's n't 'em '60s ... -- ca n't mr. u.s. , '' ?! **** 4/5ths r&d"
    assert tokenise(line) == line.split()


@given(st.text())
def test_splitting_loses_no_letter_and_leaves_no_blank(raw):
    tokens = tokenise(raw)
    assert all(token and token == "".join(token.split()) for token in tokens)
    letters = Counter(c for c in raw.lower().replace("<br />", "").replace("<br>", "") if c.isalpha())
    kept = Counter(c for token in tokens for c in token if c.isalpha())
    assert kept == letters or "<br" in raw.lower()


# The vocabulary


def test_every_word_of_the_training_split_is_in_the_vocabulary_and_no_other():
    vocabulary = Vocabulary.of([("a", "film"), ("a", "filmmaker")])
    assert vocabulary.words == [UNKNOWN, "a", "film", "filmmaker"]
    assert vocabulary.encode([("film", "unheard")]).words.tolist() == [2, 0]


def test_the_ngrams_are_those_that_two_words_share():
    assert set(Vocabulary.of([("film", "filth")]).ngrams) == {"<fi", "fil", "<fil"}
    assert Vocabulary.of([("film", "filth")], sizes=()).ngrams == []


@pytest.mark.slow
def test_a_vocabulary_is_the_same_in_every_process():
    code = (
        "from lib.data.tokens import *; print(Vocabulary.of([('filmmaker', 'filmmaking', 'makes')]).ngrams)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1


def test_a_vocabulary_from_its_plain_values_encodes_alike():
    vocabulary = Vocabulary.of([("warm", "warmth", "and", "film")])
    again = Vocabulary(**json.loads(json.dumps(vocabulary.plain())))
    phrases = [("warm", "and", "warmest"), ()]
    for name, tensor in vars(vocabulary.encode(phrases)).items():
        assert torch.equal(tensor, getattr(again.encode(phrases), name)), name


def test_an_empty_phrase_is_one_unknown_word():
    encoded = Vocabulary.of([("warm",)]).encode([(), ("warm",)])
    assert encoded.lengths.tolist() == [1, 1]
    assert encoded.words[encoded.tokens].tolist() == [0, 1]


def test_a_batch_has_the_words_and_ngrams_of_its_phrases_alone():
    phrases = [("warm", "warmth"), ("cold", "colder"), ("warmth", "cold")]
    encoded = Vocabulary.of(phrases).encode(phrases)
    batch = encoded.phrases(encoded.rows(torch.tensor([0, 2])))
    assert batch.words[batch.tokens].tolist() == [[1, 2], [2, 3]]
    for place, word in enumerate(batch.words.tolist()):
        row = encoded.words.tolist().index(word)
        first = int(encoded.ngram_starts[row])
        whole = encoded.ngrams[first : first + int(encoded.ngram_counts[row])]
        end = batch.starts.tolist()[place + 1] if place + 1 < len(batch.starts) else len(batch.ngrams)
        assert torch.equal(batch.ngrams[batch.starts[place] : end], whole)


# Files


def rows_of(content: str | bytes, suffix: str) -> list[text_files.Row]:
    content = content.encode() if isinstance(content, str) else content
    return list(text_files.read_lines(io.BytesIO(content), "file", suffix))


def test_every_format_reads_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = {"sentence": ['say " no', "NA, null"], "label": [1, 0]}
    parquet.write_table(pyarrow.table(table), tmp_path / "file.parquet")
    records = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    contents = {
        ".tsv": 'sentence\tlabel\nsay " no\t1\nNA, null\t0\n',
        ".csv": 'label,sentence\n1,"say "" no"\n0,"NA, null"\n',
        ".jsonl": "\n".join(map(json.dumps, records)),
    }
    for suffix, content in contents.items():
        assert [row[1:] for row in rows_of(content, suffix)] == [('say " no', "1"), ("NA, null", "0")], suffix
    assert [row[1:] for row in text_files.read_file(tmp_path / "file.parquet")] == [
        ('say " no', "1"),
        ("NA, null", "0"),
    ]


def test_bytes_that_are_not_utf_8_do_not_stop_a_file():
    assert rows_of(b"good \xff film\r\n\nbad", "") == [
        ("file line 1", "good � film", None),
        ("file line 2", "", None),
        ("file line 3", "bad", None),
    ]


BAD_FILES = {
    "no column of text": (".tsv", "words\tlabel\na\t1\n", "no column sentence"),
    "too few columns": (".tsv", "sentence\tlabel\na\t1\nb\n", "line 3 has 1 columns, not 2"),
    "no label": (".tsv", "sentence\tlabel\na\t1\nb\t\n", "line 3 has no label"),
    "label of an unlabelled split": (".tsv", "sentence\tlabel\na\t1\nb\t-1\n", "line 3 has no label"),
    "no column of labels": (".tsv", "sentence\na\n", "line 2 has no label"),
    "one class": (".tsv", "sentence\tlabel\na\t1\nb\t1\n", "two classes"),
    "no JSON": (".jsonl", '{"sentence": "a", "label": 1}\n{"sen', "line 2 is not JSON"),
    "JSON without end": (".jsonl", "[" * 100_000, "is not JSON"),
    "JSON without text": (".jsonl", "[1]\n", "entry 1 is no object"),
    "quote without end": (".csv", 'sentence,label\n"a,1\n', "no CSV"),
    "no Parquet": (".parquet", "PAR1", "cannot be read as Parquet"),
    "nothing": (".tsv", "", "no column sentence"),
}


@pytest.mark.parametrize(("suffix", "content", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_learnt_from_is_refused_by_the_line(tmp_path, suffix, content, said):
    path = tmp_path / f"train{suffix}"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        text.load("sst2", "", {"train": str(path), "valid": str(path), "test": None})
    assert "\n" not in str(error.value)


def files_with(folder, empty: str, content: str) -> dict[str, str]:
    """Three files of phrases, of which the one called `empty` has another content."""
    good = "sentence\tlabel\n" + "".join(f"a{number} film\t{number % 2}\n" for number in range(20))
    for name in ("train", "valid", "test"):
        (folder / f"{name}.tsv").write_text(content if name == empty else good)
    return {name: str(folder / f"{name}.tsv") for name in ("train", "valid", "test")}


def test_a_test_file_of_blank_rows_is_not_replaced_by_the_validation_split(tmp_path):
    files = files_with(tmp_path, "test", "sentence\tlabel\n \t1\n")
    with pytest.raises(UserError, match=r"test\.tsv holds no phrase") as error:
        text.load("sst2", "", files, holdout=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("holdout", [0, 0.5])
@pytest.mark.parametrize(
    "content", ["sentence\tlabel\n", "sentence\tlabel\n \t1\n\t0\n"], ids=["empty", "blank"]
)
@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_a_file_without_a_phrase_is_refused_by_name(tmp_path, name, content, holdout):
    with pytest.raises(UserError, match=rf"{name}\.tsv holds no phrase") as error:
        text.load("sst2", "", files_with(tmp_path, name, content), holdout=holdout)
    assert "\n" not in str(error.value)


def test_an_official_split_without_a_phrase_is_refused(tmp_path):
    files_with(tmp_path, "", "")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n \t1\n")
    with pytest.raises(UserError, match="the validation split of sst2 holds no phrase"):
        text.load("sst2", tmp_path, {}, holdout=0.5)


def test_labels_of_validation_are_those_of_training(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\tgood\nb\tbad\n")
    (tmp_path / "valid.tsv").write_text("sentence\tlabel\na\tfair\n")
    files = {"train": str(tmp_path / "train.tsv"), "valid": str(tmp_path / "valid.tsv"), "test": None}
    with pytest.raises(UserError, match="'fair' is none of the training labels bad, good"):
        text.load("sst2", "", files)


def test_empty_lines_are_not_learnt_from_and_very_long_ones_are_cut(tmp_path):
    (tmp_path / "train.tsv").write_text(f"sentence\tlabel\n \t1\n{'word ' * 5000}\t1\nb\t0\n")
    path = str(tmp_path / "train.tsv")
    data = text.load("sst2", "", {"train": path, "valid": path, "test": None})
    assert [len(phrase) for phrase in data.train.phrases] == [text.MOST_WORDS, 1]


def test_glue_is_found_below_the_data_folder_or_in_it(tmp_path):
    (tmp_path / "SST-2").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\ngood \t1\nbad \t0\n")
    for folder in (tmp_path, tmp_path / "SST-2"):
        data = text.load("sst2", folder, {})
        assert data.train == TextSplit([("good",), ("bad",)], [1, 0])
        assert data.classes == ("negative", "positive")


@pytest.mark.slow
def test_without_files_and_network_the_folder_and_the_offline_data_set_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text.socket, "create_connection", unreachable)
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"SST-2.*--dataset tiny"):
        text.load("sst2", tmp_path, {})


def unreachable(*_, **__):
    raise OSError("no network")


# The data sets, duplicates, the hold-out


def test_the_tiny_data_set_is_balanced_and_its_parts_share_no_phrase():
    data = text.load("tiny", "", {})
    assert len(data.train) + len(data.valid) >= 300
    for split in (data.train, data.valid):
        assert sum(split.labels) * 2 == len(split)
    assert not set(data.train.phrases) & set(data.valid.phrases)
    assert text.statistics(data.train)["duplicates"] == text.statistics(data.train)["contradictory"] == 0


def test_duplicates_and_contradictions_are_counted():
    split = TextSplit([("a",), ("a",), ("b",), ("b",), ("c", "d")], [0, 0, 0, 1, 1])
    assert text.statistics(split) == {"phrases": 5, "words": 6, "duplicates": 2, "contradictory": 1}


def hold_out(split: TextSplit, share: float) -> tuple[TextSplit, TextSplit]:
    """The rest of a split, and the sentences held out."""
    rest, held = sentences.held_out_rows(split.phrases, share)
    return split.rows(rest), split.rows(held)


def corpus_of_trees(count: int = 60) -> TextSplit:
    """Sentences of ten words of their own and one that all share, and their parts of one or three words."""
    phrases = []
    for number in range(count):
        sentence = (*(f"w{number}-{i}" for i in range(10)), "film")
        phrases += [sentence, *(sentence[i : i + 3] for i in range(0, 9, 2)), *((word,) for word in sentence)]
    phrases = list(dict.fromkeys(phrases))
    return TextSplit(phrases, [number % 2 for number in range(len(phrases))])


def test_the_hold_out_is_of_whole_sentences_and_shares_none_with_the_rest():
    rest, held = hold_out(corpus_of_trees(), 0.2)
    assert len(held) == 12
    assert all(len(phrase) == 11 for phrase in held.phrases)
    own = {word for phrase in held.phrases for word in phrase} - {"film"}
    assert not any(own & set(phrase) for phrase in rest.phrases)
    assert ("film",) in rest.phrases, "a phrase of other sentences, too, stays"
    assert len(rest) == 1 + 48 * 16


def test_sentences_that_share_a_run_of_words_are_held_out_together():
    shared = tuple(f"s{i}" for i in range(sentences.SHARED_RUN))
    pair = (("a", *shared), (*shared, "b"))
    split = TextSplit([*pair, *((f"x{i}", f"y{i}") for i in range(20))], [0, 1] * 11)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        rest, _ = hold_out(split, share)
        assert sum(phrase in pair for phrase in rest.phrases) in (0, 2)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=2 * sentences.BEGINNING).map(tuple)))
def test_the_sentences_of_a_phrase_are_all_those_that_it_is_a_part_of(phrases):
    owners, found = sentences._sentences(phrases)

    def is_part(part, whole):
        return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))

    for phrase in phrases:
        assert owners[phrase] == [n for n, sentence in enumerate(found) if is_part(phrase, sentence)]
    assert not any(is_part(a, b) for a, b in permutations(found, 2))


def test_very_long_phrases_are_held_out_too():
    long = [tuple(f"{number}-{i % 700}" for i in range(text.MOST_WORDS)) for number in range(20)]
    rest, held = hold_out(TextSplit(long, [0, 1] * 10), 0.5)
    assert (len(rest), len(held)) == (10, 10)


def test_the_hold_out_is_the_same_every_time():
    assert hold_out(corpus_of_trees(), 0.2) == hold_out(corpus_of_trees(), 0.2)


def test_a_hold_out_of_nothing_or_of_everything_is_refused():
    for share in (0.001, 0.9):
        with pytest.raises(UserError, match="leaves nothing"):
            hold_out(TextSplit([("a", "b"), ("c", "d")], [0, 1]), share)


def test_what_was_validated_on_is_tested_on_where_sentences_are_held_out(tmp_path):
    data = text.load("tiny", tmp_path, {}, holdout=0.2)
    assert data.test == text.load("tiny", tmp_path, {}).valid
    assert not set(data.train.phrases) & set(data.valid.phrases)
