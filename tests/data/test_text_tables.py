"""Texts from JSON and tables: every form, empty ones counted, and advice that works."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from jepa.config.overrides import override_value
from jepa.data.sources import text_csv, text_lines
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError

ROWS = [
    {"id": n, "text": "" if n % 8 == 0 else f"line {n} of ข้อความ\nand more", "kind": n % 2 or 0.0} for n in range(40)
]
del ROWS[16]["text"]
ROWS[24]["text"] = None
TEXTS = sorted(row["text"] for row in ROWS if row.get("text"))


def write_json(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = path.name.removesuffix(".gz")
    text = json.dumps(rows) if kinds.endswith(".json") else "\n\n".join(map(json.dumps, rows)) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def all_texts(splits) -> list[str]:
    return sorted(split[n][0] for split in (splits.train, splits.test) for n in range(len(split)))


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.jsonl.gz", "x.json", "x.json.gz", "texts", "x.txt"])
def test_json_is_read_in_every_form(tmp_path, name):
    path = write_json(tmp_path / name, ROWS)
    lines = text_lines(root=str(path), text_column="text", test_fraction=0.2)
    assert (all_texts(lines), len(lines.test), lines.class_names) == (TEXTS, 7, None)
    assert lines.lines == ("5 empty texts left out",)
    table = text_csv(root=str(path), text_column="text", label_column="kind")
    assert table.class_names == ("0", "1")
    labels = dict(split[n] for split in (table.train, table.test) for n in range(len(split)))
    assert labels == {row["text"]: int(row["kind"]) for row in ROWS if row.get("text")}


def test_a_list_in_one_line_may_be_longer_than_a_text(tmp_path):
    rows = [{"text": f"{n} " + "word " * 2000} for n in range(120)]
    assert len(all_texts(text_lines(root=str(write_json(tmp_path / "x.json", rows)), text_column="text"))) == 120


def test_folders_of_json(tmp_path):
    for name, rows in (("a", ROWS[:20]), ("b", ROWS[20:])):
        write_json(tmp_path / "parts" / f"{name}.jsonl", rows)
        write_json(tmp_path / "named" / f"train-{name}.jsonl", rows)
    write_json(tmp_path / "named" / "test.jsonl.gz", ROWS[1:3])
    assert all_texts(text_lines(root=str(tmp_path / "parts"), text_column="text")) == TEXTS
    named = text_lines(root=str(tmp_path / "named"), text_column="text")
    assert (len(named.train), len(named.test), named.test[0][0]) == (35, 2, ROWS[1]["text"])
    (tmp_path / "parts" / "c.csv").write_text("text\nhello\n")
    with pytest.raises(DataError, match="tables of several kinds"):
        text_lines(root=str(tmp_path / "parts"), text_column="text")


def write_rows(path: Path, columns: tuple[str, ...] | None, **options) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerows([columns] if columns else [])
        writer.writerows([n, f"a text, that is number {n}"] for n in range(30))
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_json(folder / "x.jsonl", ROWS),
        lambda folder: write_json(folder / "x.json", ROWS),
        lambda folder: write_json(folder / "lines.txt", ROWS),
        lambda folder: write_json(folder / "sub" / "x.jsonl.gz", ROWS).parent,
        lambda folder: write_json(folder / "x.jsonl", [{"it's text": row["text"]} for row in ROWS if row.get("text")]),
        lambda folder: write_rows(folder / "x.csv", ("id", "body")),
        lambda folder: write_rows(folder / "x.csv", ("id", "the text, whole")),
        lambda folder: write_rows(folder / "x.csv", None),
        lambda folder: write_rows(folder / "x.tsv", ("id", "a b"), delimiter="\t"),
    ],
    ids=["jsonl", "list", "json in .txt", "folder", "quote", "csv", "comma", "no header", "tsv"],
)
def test_lines_say_how_a_table_is_read_and_that_works(tmp_path, write):
    root = write(tmp_path)
    with pytest.raises(DataError, match="its columns are") as error:
        text_lines(root=str(root))
    options = shlex.split(re.search(r"as in (data=text_lines .*)$", str(error.value))[1])[1:]
    assert override_value(options, "data.root") == str(root)
    column = override_value(options, "data.text_column")
    column = int(column) if column == "1" else column
    assert len(all_texts(text_lines(root=str(root), text_column=column))) in (30, 35)


@pytest.mark.parametrize(
    ("content", "column", "told"),
    [
        ('{"a": 1}\n{"a": "x"}\n', "text", r"data.text_column=text: the objects of .* have the keys a$"),
        ('{"a": 1}\n{"a": 2}\n', "a", r"data.text_column=a: .* has no texts there, but values of type int"),
        ('{"a": ""}\n{"a": null}\n', "a", r"there is no text in column a"),
        ("no json\n", "a", r"is no JSON with an object a line"),
        ('[{"a": "x"}, {"a":', "a", r"is damaged: it begins as a list of JSON"),
        ("", "a", r"is no JSON with an object a line"),
    ],
)
def test_mistakes_in_json_are_told(tmp_path, content, column, told):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=told):
        text_lines(root=str(tmp_path / "x.jsonl"), text_column=column)


def test_one_row_makes_no_class(tmp_path):
    """A quote that is not closed costs its row, a label that training has not makes a bad sample."""
    rows = [f"line {n},{n % 2}" for n in range(60)]
    rows[3], rows[30], rows[50] = '"line 3,1', '"two\nlines",1', 'a "quote" inside,0'
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows[4:40], "other,7"]))
    splits = text_csv(root=str(tmp_path), text_column="text", label_column="label")
    assert splits.class_names == ("0", "1")
    assert (len(splits.train), len(splits.test)) == (60, 37)
    assert splits.train[4] == ("line 4", 0)
    assert splits.train[30] == ("two\nlines", 1)
    for split, number, place in ((splits.train, 3, "train.csv, row 4"), (splits.test, 36, "test.csv, label '7'")):
        with pytest.raises(UnreadableSample, match=r"a quote in it opens|no label, or one that no") as error:
            split[number]
        assert str(error.value.name).endswith(place)
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows[4:10], "other,7"]))
    with pytest.raises(DataError, match="the classes 7 of the test split are not in train"):
        text_csv(root=str(tmp_path), text_column="text", label_column="label")


def test_splits_are_told_by_columns(tmp_path):
    rows = [{"set": "ab"[n % 2], "fold": n % 4, "text": f"line {n}", "kind": n % 3} for n in range(48)]
    write_json(tmp_path / "x.jsonl.gz", rows)
    lines = ["set,fold,text,kind", *(",".join(map(str, row.values())) for row in rows)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    (tmp_path / "y.csv").write_text("\n".join(lines[1:]))
    for name, columns in (("x.jsonl.gz", rows[0]), ("x.csv", rows[0]), ("y.csv", range(4))):
        which, fold, text, label = columns
        source = {"root": str(tmp_path / name), "text_column": text, "label_column": label}
        splits = text_csv(**source, train_rows={which: "b", fold: 1}, test_rows={which: "a", fold: 2})
        assert [splits.train[n][0] for n in range(12)] == [f"line {n}" for n in range(1, 48, 4)]
        assert [splits.test[n][0] for n in range(12)] == [f"line {n}" for n in range(2, 48, 4)]
        assert len(all_texts(text_csv(**source, train_rows={which: "a"}))) == 24
        for error, wrong, told in (
            (DataError, {"train_rows": {"other": 1}}, r"^data.source.train_rows.other: "),
            (DataError, {"train_rows": {fold: 5}}, r"^data.source.train_rows={.*: 5}: .* has no text in such a row"),
            (ValueError, {"test_rows": {fold: 2}}, "say data.source.train_rows as well"),
            (ValueError, {"train_rows": {which: "a"}, "test_rows": {which: "a", fold: 2}}, "may be among train_rows"),
        ):
            with pytest.raises(error, match=told):
                text_csv(**source, **wrong)


def test_labels_that_are_all_empty_are_none(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "some words,\n" * 20)
    splits = text_csv(root=str(tmp_path / "t.csv"), text_column="text", label_column="label")
    assert (splits.class_names, splits.train[0]) == (None, ("some words", None))
    assert [line.partition(": ")[2] for line in splits.lines] == [
        "no sample has a label, so this is data without labels"
    ]


def test_what_tells_of_the_data_is_no_data(tmp_path):
    write_json(tmp_path / "x.jsonl", ROWS)
    for name in ("README.txt", "LICENSE.txt"):
        (tmp_path / name).write_text("what this is\n" * 9)
    with pytest.raises(DataError, match=r"holds tables \(x.jsonl\), no lines: its columns are"):
        text_lines(root=str(tmp_path))
    (tmp_path / "corpus.txt").write_text("some words\n" * 9)
    assert text_lines(root=str(tmp_path)).lines == (f"data.root={tmp_path}: tables beside the text left out: x.jsonl",)
