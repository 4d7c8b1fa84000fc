"""What is known of each batch number? Two containers that stay small where there are millions."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice


class Hashes:
    """The header hash of each number: 40 bytes for each."""

    WIDTH = 32

    def __init__(self) -> None:
        self._numbers = array("q")
        self._hashes = bytearray()

    def add(self, number: int, digest: bytes) -> None:
        at = bisect_left(self._numbers, number)
        self._numbers.insert(at, number)
        self._hashes[at * self.WIDTH : at * self.WIDTH] = digest

    def get(self, number: int) -> bytes | None:
        at = bisect_left(self._numbers, number)
        if self._numbers[at : at + 1] != array("q", [number]):
            return None
        return bytes(self._hashes[at * self.WIDTH : (at + 1) * self.WIDTH])


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
