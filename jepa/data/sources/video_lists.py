"""Lists of videos: tables with a header, and lines as the published V-JEPA code reads them."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jepa.data.sources.splits import Listed, check_inside
from jepa.utils.errors import DataError

LOOKED_AT = 50  # entries of a list of which at least one must exist; to look at all of a large one would take minutes
QUOTED = re.compile(r'(?P<path>"(?:[^"]|"")+")(?:[ ,;]+(?P<label>.+))?')
PLAIN = re.compile(r"(?P<path>.+?)(?: +|[,;] *)(?P<label>-?[0-9]+)")
"""Of a list without a header: a path, in quotes where it holds what separates, and a label."""
Numbered = list[tuple[int, tuple[str, str | None]]]
"""(line, (path, class)); the class is None where there are no labels."""


def read_list(
    root: str | None, name: str, columns: Mapping[str, str], *, test_names: Sequence[str], allow_outside: bool
) -> tuple[Listed, Listed | None]:
    """The training and test videos of a list; None for the test videos where it has no column of splits.

    columns: `path` (a column or a pattern of columns), `label` and `split`, as `video_folder` takes them, separated as
    in the header by comma, semicolon, tab, space or `::`. Without the column of the path there is no header, and lines
    are a path and a label, separated likewise, or a path alone.
    Raises DataError for a list that is missing or fits none of these, and paths outside unless allow_outside.
    """
    where = f"data.csv={name}"
    file = Path(name) if root is None or os.path.isfile(name) else Path(root, name)
    if not file.is_file():
        raise DataError(f"{where}: there is no file {file}")
    base = file.parent if root is None else Path(root)
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").lstrip().split("\n")]
        if all("::" in line for line in lines if line):
            lines = [line.replace("::", "\t") for line in lines]  # as readers of tables take one character
        header, rows = _table(lines)
    except (OSError, ValueError, MemoryError, csv.Error) as error:
        raise DataError(f"{where} is no list that can be read ({type(error).__name__}: {error})") from error
    if not header:
        raise DataError(f"{where} is empty")
    pattern = columns["path"] if "{" in columns["path"] else f"{{{columns['path']}}}"
    try:
        pattern.format_map(dict.fromkeys(header, ""))
        if not rows:
            raise DataError(f"{where} has a header and no rows")
        train, test = _from_table(rows, pattern, columns, base, where, test_names)
    except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        train, test = _without_header([(n, line) for n, line in enumerate(lines, 1) if line], base, where), None
        if train is None:
            raise DataError(
                f"{where} has the columns {', '.join(header)}, but data.csv_path={columns['path']} asks for {error}: "
                f"give the column of the path, such as data.csv_path={header[0]}, or a pattern of columns in braces; "
                f"and of a list without a header lines of a path below {base} and a number"
            ) from None
    _check_paths(sorted([*train, *(test or [])], key=lambda each: each[0]), where, base, allow_outside)
    return [video for _, video in train], None if test is None else [video for _, video in test]


def _table(lines: Sequence[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a table, separated by what stands in its first line most often, and its rows by their lines."""
    separator = max(",;\t", key=lines[0].count)
    if separator not in lines[0]:
        separator = " " if " " in lines[0] else "\t"
    reader = csv.DictReader(lines, restval="", delimiter=separator)
    return [column for column in reader.fieldnames or () if column], [(reader.line_num, row) for row in reader]


def _from_table(
    rows: Sequence[tuple[int, Mapping[str, str]]],
    pattern: str,
    columns: Mapping[str, str],
    base: Path,
    where: str,
    test_names: Sequence[str],
) -> tuple[Numbered, Numbered | None]:
    label, split = columns["label"], columns["split"]
    names = [name for name in rows[0][1] if name]
    if label != "label" and label not in names:
        raise DataError(f"{where} has no column {label!r} (data.csv_label); it has {', '.join(names)}")
    labelled = any(row.get(label) for _, row in rows)
    train, test = [], []
    for number, row in rows:
        side = row[split] if split in names else "train"
        if side not in ("train", *test_names):
            expected = f"train or one of {list(test_names)}"
            raise DataError(f"{where}, line {number}: the split is {side!r}, expected {expected}")
        if labelled and not row[label]:
            raise DataError(f"{where}, line {number}: the label is empty")
        video = (str(base / pattern.format_map(row)), row[label] if labelled else None)
        (train if side == "train" else test).append((number, video))
    return train, test if split in names else None


def _without_header(lines: Sequence[tuple[int, str]], base: Path, where: str) -> Numbered | None:
    """The videos of lines of a path, perhaps a label; None for other lines. What exists tells whether 5 is a label."""
    both = [(number, _path_and_label(line, base)) for number, line in lines]
    alone: Numbered = [(number, (str(base / _unquoted(line)), None)) for number, line in lines]
    unlabelled = [number for number, (_, label) in both if label is None]
    if not unlabelled and (_any_exists(both) or not _any_exists(alone)):
        return both
    doubtful = [path for path, (_, (_, label)) in zip(alone, both) if label is not None]
    if _any_exists(doubtful or alone):
        return alone
    if not doubtful or unlabelled == [lines[0][0]]:
        return None
    raise DataError(
        f"{where}: line {unlabelled[0]} has no label and line {doubtful[0][0]} has one: give one to each video or to "
        'none, and put paths that hold spaces or commas in quotes, as in "my clips/1.mp4" 0'
    )


def _path_and_label(line: str, base: Path) -> tuple[str, str | None]:
    if "\t" in line:
        path, _, label = line.rpartition("\t")
    elif match := QUOTED.fullmatch(line) or PLAIN.fullmatch(line):
        path, label = match["path"], match["label"]
    else:
        path, label = line, None
    return str(base / _unquoted(path)), _unquoted(label) if label else None


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 2 and text[0] == text[-1] == '"' else text


def _any_exists(videos: Numbered) -> bool:
    return any(os.path.exists(path) for _, (path, _) in videos[:LOOKED_AT])


def _check_paths(videos: Numbered, where: str, base: Path, allow_outside: bool) -> None:
    if not allow_outside:
        check_inside(((f"{where}, line {number}", path) for number, (path, _) in videos), base)
    if not _any_exists(videos):
        none = f"none of its first {min(len(videos), LOOKED_AT)} videos exists, the first is {videos[0][1][0]}"
        raise DataError(f"{where}: {none}: its paths are taken from {base} (data.root), by the pattern data.csv_path")
