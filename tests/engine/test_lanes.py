"""The queue of groups: who waits, and how many rows that is."""

import torch

from robench.engine.lanes import Queue


def test_rows_that_wait_are_those_of_the_groups_behind():
    queue = Queue(torch.tensor([5, 3, 9, 1, 7]), {0, 1, 3}, ranks=2, size=2)
    assert queue.total == sum(group.size for _, group in queue.groups)
    seen = []
    while queue:
        assert queue.waiting == queue.total - sum(group.size for _, group in seen)
        seen.append(queue.pop())
    assert queue.waiting == 0
    assert [rank for rank, _ in seen] == sorted(rank for rank, _ in seen)
    # A run that is resumed starts behind the groups that were begun.
    queue.next = 1
    assert queue.waiting == queue.total - seen[0][1].size
