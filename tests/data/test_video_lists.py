"""Lists of videos: tables with a header, and lines as the published code reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import write_image

from jepa.data.sources import Splits, video_folder
from jepa.utils.errors import DataError

CLIPS = [f"{name}/clip {number}" for name in "ab" for number in range(3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six clips as folders of frames, with spaces in their names."""
    folder = tmp_path_factory.mktemp("clips")
    for clip in CLIPS:
        write_image(folder / clip / "0.png", size=(8, 8))
    return folder


def read(root: Path, lines: list[str], **given) -> Splits:
    file = root / "list.csv"
    file.write_text("\n".join(lines))
    return video_folder(root=str(root), csv=str(file), **given)


def found(splits: Splits) -> dict[str, int | None]:
    """Clip -> label."""
    samples = [(part.describe(n), part[n][1]) for part in (splits.train, splits.test) for n in range(len(part))]
    return dict(sorted(samples))


@pytest.mark.parametrize(
    "form",
    [
        '"{clip}" {label}',
        "{clip} {label}",
        '"{clip}",{label}',
        "{clip}, {label}",
        "{clip};{label}",
        "{clip}\t{label}",
        "{clip}::{label}",
        '"{clip}"::{label}',
        '"{root}/{clip}" {label}',
        "{root}/{clip} {label}",
        '"{clip}" class {label}',
        "{clip}::class {label}",
        "{clip} -{label}",
        '"{clip}"',
        "{clip}",
        "{root}/{clip}",
        "{clip}::",
        '"{clip}" 0',
        "{clip} 0",
        "{clip}::-1",
        'path label|"{clip}" {label}',
        "path,label|{clip},{label}",
        "path,label|{clip},0",
        "path,label|{clip},",
        "label\tpath|{label}\t{clip}",
        "path::label|{clip}::{label}",
        "path|{clip}",
    ],
)
def test_every_form_of_list(root, form):
    """Of a line, or of a header and a line; numbers at the end of a clip's name are no labels."""
    line = form.rpartition("|")[2]
    lines = [line.format(clip=clip, root=root, label=n // 3) for n, clip in enumerate(CLIPS)]
    splits = read(root, [*form.split("|")[:-1], lines[0], "", *lines[1:]])
    labels = found(splits)
    assert list(labels) == [str(root / clip) for clip in CLIPS]
    if "{label}" in line:
        classes = 1 if "-{label}" in line else 0  # -1 comes before 0
        assert list(labels.values()) == [classes] * 3 + [1 - classes] * 3
        assert len(splits.class_names) == 2
        assert not splits.lines
    else:
        assert set(labels.values()) == {None}
        assert splits.class_names is None
        alike = line.endswith(("0", "1"))
        assert len(splits.lines) == alike
        assert all("all labels are alike" in each for each in splits.lines)


def test_columns_and_splits(root):
    rows = [
        f"{clip[0]},{clip[2:]},{'run' if n < 3 else 'walk'},{'val' if n % 3 else 'train'}"
        for n, clip in enumerate(CLIPS)
    ]
    given = {"csv_path": "{folder}/{clip}", "csv_label": "kind", "csv_split": "part"}
    lines = ["folder,clip,kind,part", *rows]
    splits = read(root, lines, **given)
    assert (len(splits.train), len(splits.test), splits.class_names) == (2, 4, ("run", "walk"))
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    for changes, message in [
        ({"csv_path": "path"}, "has the columns folder, clip, kind, part, but data.csv_path=path asks for 'path'"),
        ({"csv_label": "class"}, "has no column 'class'"),
        ({"csv_path": "clip"}, "none of its first 6 videos exists, the first is"),
    ]:
        with pytest.raises(DataError, match=message):
            read(root, lines, **{**given, **changes})
    with pytest.raises(DataError, match="there is no file"):
        video_folder(root=str(root), csv="absent.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["", "  "], "is empty"),
        (["path,label"], "has a header and no rows"),
        (["path,label,split", "a,b,training"], "line 2: the split is 'training', expected train or one of"),
        (["path,label", "a,b", "", "c,"], "line 4: the label is empty"),
        (["a/clip 0,0", "a/clip 1,1", "absent.mp4"], "line 3 has no label and line 1 has one: .* in quotes"),
        (["video,kind", *(f"{clip},0" for clip in CLIPS)], "has the columns video, kind, but .*data.csv_path=video"),
        (["absent.mp4", "absent too.mp4"], "has the columns absent.mp4, but .* a list without a header lines of"),
        (["absent.mp4 0", "other.mp4 1"], "none of its first 2 videos exists, the first is .*absent.mp4:"),
    ],
)
def test_lists_that_do_not_fit(root, lines, message):
    with pytest.raises(DataError, match=message):
        read(root, lines)
