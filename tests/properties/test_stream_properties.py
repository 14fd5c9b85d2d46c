"""Whatever the sizes, the sample stream is one sequence, which ranks, steps and restarts merely cut up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.data.stream import SampleOrder, fixed_order
from jepa.utils.errors import UserError

num_samples = st.integers(1, 60)
batch_size = st.integers(1, 90)
seed = st.integers(0, 2**40)


@given(num_samples, batch_size, seed)
def test_every_epoch_is_a_permutation(n, size, seed):
    order = SampleOrder(num_samples=n, batch_size=size, seed=seed)
    requests = [order.request(step) for step in range(-(-3 * n // size))]
    counters = [counter for request in requests for counter in request.counters]
    indices = [index for request in requests for index in request.indices]
    assert counters == list(range(len(requests) * size))
    for epoch in range(3):
        assert sorted(indices[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(num_samples, st.integers(1, 8), st.integers(1, 12), seed, st.permutations(range(6)))
def test_ranks_and_restarts_cut_up_the_same_sequence(n, world_size, share, seed, steps):
    settings = {"num_samples": n, "batch_size": world_size * share, "seed": seed}
    alone = SampleOrder(**settings)
    whole = [alone.request(step) for step in range(6)]
    restarted = SampleOrder(**settings)
    for step in steps:  # in any order, as after a restart
        parts = [restarted.request(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [i for part in parts for i in part.indices] == list(whole[step].indices)
        assert [c for part in parts for c in part.counters] == list(whole[step].counters)


@given(num_samples, batch_size, st.integers(2, 12))
def test_a_batch_that_cannot_be_shared_is_refused(n, size, world_size):
    order = SampleOrder(num_samples=n, batch_size=size, seed=0)
    if size % world_size:
        with pytest.raises(UserError, match=rf"data.batch_size={size} cannot be shared by {world_size} ranks"):
            order.request(0, world_size=world_size)
    else:
        assert len(order.request(0, world_size=world_size).indices) == size // world_size


@given(num_samples, batch_size, st.none() | st.integers(1, 90))
def test_measuring_takes_each_sample_once_and_always_the_same(n, size, limit):
    requests = list(fixed_order(n, batch_size=size, limit=limit))
    indices = [index for request in requests for index in request.indices]
    assert all(0 < len(request.indices) <= size for request in requests)
    assert indices == sorted(set(indices))
    assert len(indices) == (n if limit is None else min(limit, n))
    assert 0 <= indices[0] <= indices[-1] < n
    assert [request.indices for request in fixed_order(n, batch_size=3, limit=limit)] == [
        indices[start : start + 3] for start in range(0, len(indices), 3)
    ]
