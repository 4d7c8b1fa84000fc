"""What is known of each batch number? Two containers that stay small where there are millions."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice


# The greatest number that a header can have.
MAX = (1 << 63) - 1


class Sound:
    """Of each sound batch the header's hash, its epoch, and the events before and after it."""

    WIDTH = 32

    def __init__(self) -> None:
        self._numbers = array("q")
        self._hashes = bytearray()
        self._epochs = array("q")
        self._before = array("q")
        self._after = array("q")

    def add(self, number: int, digest: bytes, epoch: int, before: int, count: int) -> None:
        at = bisect_left(self._numbers, number)
        self._numbers.insert(at, number)
        self._hashes[at * self.WIDTH : at * self.WIDTH] = digest
        self._epochs.insert(at, epoch)
        self._before.insert(at, before)
        self._after.insert(at, min(before + count, MAX))

    def _at(self, number: int) -> int | None:
        at = bisect_left(self._numbers, number)
        return at if self._numbers[at : at + 1] == array("q", [number]) else None

    def get(self, number: int) -> bytes | None:
        at = self._at(number) if number <= MAX else None
        return None if at is None else bytes(self._hashes[at * self.WIDTH : (at + 1) * self.WIDTH])

    def epoch(self, number: int) -> int | None:
        at = self._at(number)
        return None if at is None else self._epochs[at]

    def epoch_before(self, number: int) -> int:
        """That of the nearest batch before one that is not here; 0 where there is none."""
        at = bisect_left(self._numbers, number)
        return self._epochs[at - 1] if at else 0

    def epochs_around(self, number: int) -> tuple[int, int]:
        """Those of the nearest batches before and behind one that is not here, and not the last."""
        return self.epoch_before(number), self._epochs[bisect_left(self._numbers, number)]

    def events_between(self, first: int, last: int) -> int | None:
        """How many the batches of a range have, if those on both sides of it are here and agree."""
        before, behind = self._at(first - 1), self._at(last + 1)
        if behind is None or before is None and first > 1:
            return None
        events = self._before[behind] - (0 if before is None else self._after[before])
        return None if events < 0 else events

    @property
    def first(self) -> int:
        return self._numbers[0] if self._numbers else 1


class Ranges:
    """A set of numbers as disjoint ranges, in order, both ends included."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, first: int, last: int) -> None:
        begin = bisect_left(self._ranges, first - 1, key=lambda known: known[1])
        end = bisect_right(self._ranges, last + 1, key=lambda known: known[0])
        touched = [(first, last), *self._ranges[begin:end]]
        self._ranges[begin:end] = [(min(touched)[0], max(last for _, last in touched))]

    def rest_of(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What of a range is not in the set."""
        begin = bisect_left(self._ranges, first, key=lambda known: known[1])
        for known_first, known_last in islice(self._ranges, begin, None):
            if known_first > last:
                break
            if first < known_first:
                yield first, known_first - 1
            first = known_last + 1
        if first <= last:
            yield first, last

    def has_all(self, first: int, last: int) -> bool:
        return next(self.rest_of(first, last), None) is None
