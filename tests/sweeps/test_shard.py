"""Which batches are whose."""

from __future__ import annotations

import itertools

import pytest

from ilo_lightning.sweeps.shard import Shard


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_a_partition(count: int):
    for batch in range(20):
        assert sum(Shard(index, count).holds(batch) for index in range(1, count + 1)) == 1


def test_overlap_is_having_a_batch_in_common():
    shards = [Shard(i, n) for n in range(1, 7) for i in range(1, n + 1)]
    for a, b in itertools.product(shards, shards):
        common = any(a.holds(batch) and b.holds(batch) for batch in range(60))
        assert a.overlaps(b) == common


@pytest.mark.parametrize("text", ["2/4", "1/1", None])
def test_what_is_written_is_what_is_read(text: str | None):
    assert str(Shard.parse(text)) == (text or "1/1")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", "", "1.5/2", 3])
def test_what_is_no_shard(text: object):
    with pytest.raises(ValueError, match=r"data\.shard=.*expected i/n"):
        Shard.parse(text)
