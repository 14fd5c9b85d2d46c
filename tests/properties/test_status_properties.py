"""Whatever a run writes into its status.json is read back."""

from __future__ import annotations

import itertools
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from jepa.utils.read_data import printable
from jepa.utils.run_status import State, Status, read_status, write_status

count = st.integers(0, 2**53)
seconds = st.floats(0, 9e9)
text = st.text(st.characters(exclude_categories=["Cs"])).map(printable)
numbers = itertools.count()

statuses = st.builds(
    Status,
    state=st.sampled_from([state for state in get_args(State) if state != "damaged"]),  # which is never written
    reason=st.none() | text,
    overrides=st.lists(text, max_size=4),
    step=st.none() | count,
    max_steps=st.none() | count,
    samples_per_second=st.none() | seconds,
    train_seconds=st.none() | seconds,
    verdict=st.none() | st.sampled_from(["healthy", "total collapse", "diverged"]),
    objective=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    settled=st.booleans(),
    host=st.none() | text,
    pid=st.none() | st.integers(1, 2**22),
    pid_created=st.none() | seconds,
    job=st.none() | st.sampled_from(["17", "17_3"]),
    starts=count,
    started=st.none() | seconds,
    updated=st.none() | seconds,
)


@given(statuses)
def test_what_is_written_is_read(tmp_path, status):
    folder = tmp_path / f"{next(numbers)}"
    write_status(folder, status)
    assert read_status(folder) == status
