"""Files of texts as other programs write them: the same rows in every form; no text is one line."""

import bz2
import gzip
import json
import lzma

import pytest
from fuzz import Damage, text_door

from lib.data import text_files
from lib.data.text_files import Columns
from lib.runtime.errors import UserError

ROWS = [("a gorgeous film", "1"), ('bleak, "dull"', "0"), ("café", "1")]
TSV = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
CSV = 'sentence,label\n"a gorgeous film",1\n"bleak, ""dull""",0\ncafé,1\n'
RECORDS = [{"sentence": text, "label": int(label)} for text, label in ROWS]
LINES = "\n".join(map(json.dumps, RECORDS))
ARRAY = json.dumps(RECORDS, indent=2)


def encoded(text: str) -> dict[str, bytes]:
    return {encoding: text.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")} | {
        "utf-16 of the other order": "\ufeff".encode("utf-16-be") + text.encode("utf-16-be"),
        "gzip": gzip.compress(text.encode()),
        "bzip2": bz2.compress(text.encode()),
        "xz": lzma.compress(text.encode()),
        "gzip of UTF-16": gzip.compress(text.encode("utf-16")),
    }


FORMS = {
    "a.tsv": TSV,
    "a.TSV": TSV,
    "a.csv": CSV,
    "a.CSV": CSV,
    "semicolons.csv": CSV.replace(",1", ";1").replace(",0", ";0").replace(",label", ";label"),
    "tabs.csv": CSV.replace(",1", "\t1").replace(",0", "\t0").replace(",label", "\tlabel"),
    "excel.csv": "sep=,\r\n" + CSV.replace("\n", "\r\n"),
    "quoted.csv": CSV.replace("sentence,label", '"sentence","label"'),
    "capitals.csv": CSV.replace("sentence,label", " Sentence ,LABEL"),
    "quoted.tsv": CSV.replace("sentence,label", '"sentence"\t"label"')
    .replace(",1", "\t1")
    .replace(",0", "\t0"),
    "a.jsonl": LINES,
    "a.ndjson": LINES + "\n\n",
    "lines.json": LINES,
    "array.json": ARRAY,
    "array.jsonl": json.dumps(RECORDS),
    "rows.json": json.dumps({"version": 1, "data": RECORDS}, indent=1),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_table_is_read_the_same_in_every_form(tmp_path, name):
    for form, content in encoded(FORMS[name]).items():
        packed = {"gzip": ".gz", "bzip2": ".BZ2", "xz": ".xz"}.get(form, "")
        path = tmp_path / f"{name}{packed}"
        path.write_bytes(content)
        assert [row[1:] for row in text_files.read_file(path)] == ROWS, form


def test_plain_lines_and_arrays_of_texts_are_read_in_every_form(tmp_path):
    texts = [text for text, _ in ROWS]
    for name, content in (
        ("a.txt", "\n".join(texts)),
        ("a", "\n".join(texts)),
        ("a.json", json.dumps(texts)),
    ):
        for form, written in encoded(content).items():
            (tmp_path / name).write_bytes(written)
            assert [row.text for row in text_files.read_file(tmp_path / name)] == texts, form


NO_TEXTS = {
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "a workbook": b"PK\x03\x04" + bytes(100),
    "a document": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "numbers": bytes(range(256)) * 20,
    "UTF-16 without a mark": "a gorgeous film\n".encode("utf-16-le"),
    "a Russian encoding": ("великолепный фильм " * 20).encode("cp1251"),
    "a NUL byte far behind": b"good film\n" * 2000 + b"bad\0film\n",
    "half a gzip file": gzip.compress(TSV.encode() * 99)[:60],
    "no gzip file": b"\x1f\x8b but text",
    "odd UTF-32": b"\xff\xfe\0\0" + b"\xff" * 9,
}


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl", ""])
@pytest.mark.parametrize("kind", NO_TEXTS)
def test_what_is_no_text_is_refused_by_its_name(tmp_path, kind, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(NO_TEXTS[kind])
    if kind == "odd UTF-32" and suffix in (".txt", ""):
        list(text_files.read_file(path))  # read as U+FFFD, like single bytes that are not UTF-8
        return
    with pytest.raises(UserError, match=path.name) as error:
        list(text_files.read_file(path))
    assert "\n" not in str(error.value)


def test_columns_are_chosen_by_name_and_said(tmp_path):
    (tmp_path / "a.csv").write_text("text,Comment,stars,label\na,b,5,0\n")
    read = lambda columns: [row[1:] for row in text_files.read_file(tmp_path / "a.csv", columns)]  # noqa: E731
    usual = Columns()
    assert read(usual) == [("a", "0")]
    assert usual.found == ("text", "label")
    chosen = Columns("comment", "stars")
    assert read(chosen) == [("b", "5")]
    assert chosen.found == ("Comment", "stars")
    with pytest.raises(UserError, match=r"no column 'words' for --text-column: there are 'text', 'Comment'"):
        read(Columns("words"))
    with pytest.raises(UserError, match=r"no column 'truth' for --label-column"):
        read(Columns("text", "truth"))
    assert read(Columns("words", "truth", are_required=False)) == [("a", "0")]


def test_a_label_of_minus_one_is_said_to_be_a_missing_one(sentiment, tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\n" + "good\t1\nbad\t-1\n" * 9)
    ended = sentiment("--train-file", "a.tsv", "--valid-file", "a.tsv")
    assert ended.status == 2
    assert ended.is_one_line_error()
    assert "-1" in ended.stderr


def test_the_log_names_the_columns_that_are_learnt_from(sentiment, tmp_path):
    rows = "".join(
        f"{number},{'good' if number % 2 else 'bad'} film {number},{number % 2}\n" for number in range(40)
    )
    (tmp_path / "a.csv").write_text("id,comment,stars\n" + rows)
    columns = ("--text-column", "comment", "--label-column", "stars", "--max-update", "2")
    ended = sentiment("--train-file", "a.csv", "--valid-file", "a.csv", *columns)
    assert ended.status == 0, ended.stderr
    assert "[DATA] text_column=comment label_column=stars" in ended.stdout
    # Its predictions are of files with the usual columns, too.
    (tmp_path / "b.csv").write_text("sentence\ngood\n")
    ended = sentiment("--predict-only", "--restore-file", "ckpts/lstm/checkpoint_best.pt", "--input", "b.csv")
    assert ended.status == 0, ended.stderr
    assert "text_column=sentence" in ended.stderr


def test_damaged_files_of_texts_are_read_or_one_line(tmp_path):
    text_door(tmp_path, Damage(1), 300)
