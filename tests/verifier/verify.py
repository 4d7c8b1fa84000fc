#!/usr/bin/env python3
"""Are these batches whole, and as the agents sealed them?

An independent check of hostaudit's sealed batches, written from docs/ledger.md and the messages in
proto/audit/v1 alone, so that nobody has to believe the collector's own `hostaudit verify`.

    verify.py export DIR     exit 0: complete, 1: incomplete, 2: TAMPERED, 3: DIR is no export
    verify.py vectors FILE   exit 0: every value is reproduced, 1: one is not, 3: FILE is no vectors

Two rules are behind every check. A header that is not signed by its agent proves nothing: it is told
itself, and nothing that it says is used. And memory stays small: batches are read one by one, and of
each one only the hash of its header (32 bytes) is kept.
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import json
import re
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MAX_HEADER_BYTES = 64 << 10
MAX_EVENT_BYTES = 64 << 20
# The format bounds a batch's parts; what zstd adds to incompressible events is well below 1 MiB.
MAX_BATCH_BYTES = MAX_EVENT_BYTES + MAX_HEADER_BYTES + (1 << 20)
MAX_WINDOW_BYTES = 128 << 20
# Input per step: a block of zstd can stand for 128 KiB with 4 bytes, so a step stays below 32 MiB.
DECOMPRESS_STEP_BYTES = 1 << 10

SEAL_CONTEXT = b"hostaudit batch 1\0"
DROPPED_CONTEXT = b"hostaudit dropped 1\0"
SEED_CONTEXT = b"hostaudit seed 1\0"
AGENT_CONTEXT = b"hostaudit agent 1\0"

SILENCE_FACTOR = 3
SILENCE_GRACE_MS = 10_000

# An export where everything is wrong must not fill the memory with findings, nor the evening with
# tries of keys.
MAX_FINDINGS = 10_000
MAX_KEY_TRIES = 200_000

CLASS_NAMES = {1: "process", 2: "network", 3: "file", 4: "flow", 5: "agent"}


class Malformed(Exception):
    """Bytes that are not what their place in the format demands."""


class Unusable(Exception):
    """A folder or file that is not what the command line says it is."""


# ---------------------------------------------------------------- Protocol Buffers, the wire format

VARINT, FIXED_64, DELIMITED, FIXED_32 = 0, 1, 2, 5


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where the next byte is."""
    value = 0
    for position in range(10):
        if at + position >= len(data):
            raise Malformed("a varint is cut off")
        byte = data[at + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + position + 1
    raise Malformed("a varint has more than 64 bits")


def take(data: memoryview, at: int, length: int) -> tuple[memoryview, int]:
    """`length` bytes from `at`, and where the next byte is."""
    if length > len(data) - at:
        raise Malformed("a field is longer than its message")
    return data[at : at + length], at + length


class Message:
    """The fields of one encoded message by number; which of them it knows is the caller's business."""

    def __init__(self, encoded: bytes | memoryview) -> None:
        self._fields: dict[int, list[tuple[int, int | memoryview]]] = {}
        data = memoryview(encoded)
        at = 0
        while at < len(data):
            tag, at = read_varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number < 1 << 29:
                raise Malformed("a field has no valid number")
            value, at = self._read(data, at, wire)
            self._fields.setdefault(number, []).append((wire, value))

    @staticmethod
    def _read(data: memoryview, at: int, wire: int) -> tuple[int | memoryview, int]:
        if wire == VARINT:
            return read_varint(data, at)
        if wire == DELIMITED:
            length, at = read_varint(data, at)
            return take(data, at, length)
        if wire in (FIXED_64, FIXED_32):
            return take(data, at, 8 if wire == FIXED_64 else 4)
        raise Malformed(f"wire type {wire} is not in use")

    def _values(self, number: int, wire: int) -> list[Any]:
        found = self._fields.get(number, [])
        if any(got != wire for got, _ in found):
            raise Malformed(f"field {number} has another type")
        return [value for _, value in found]

    def optional_int64(self, number: int) -> int | None:
        """Signed, the last one where there are several; None where it is absent."""
        values = self._values(number, VARINT)
        if not values:
            return None
        value: int = values[-1]
        return value - (1 << 64) if value >> 63 else value

    def int64(self, number: int) -> int:
        """As `optional_int64`, 0 where it is absent."""
        return self.optional_int64(number) or 0

    def count(self, number: int) -> int:
        """An int64 that cannot be negative in this format."""
        value = self.int64(number)
        if value < 0:
            raise Malformed(f"field {number} is negative")
        return value

    def data(self, number: int) -> bytes:
        """The last one where there are several; empty where it is absent."""
        values = self._values(number, DELIMITED)
        return bytes(values[-1]) if values else b""

    def text(self, number: int) -> str:
        """As `data`, UTF-8."""
        try:
            return self.data(number).decode()
        except UnicodeDecodeError:
            raise Malformed(f"field {number} is not UTF-8") from None

    def messages(self, number: int) -> list[Message]:
        """A repeated message."""
        return [Message(value) for value in self._values(number, DELIMITED)]

    def message(self, number: int) -> Message | None:
        """One message. Protocol Buffers merges several: the same as if their bytes were joined."""
        values = self._values(number, DELIMITED)
        return Message(b"".join(values)) if values else None


# ---------------------------------------------------------------- the messages of ledger.proto


@dataclass(frozen=True, slots=True)
class Dropped:
    """The agent's statement that it dropped a batch's events."""

    epoch: int
    public_key: bytes
    signature: bytes

    @classmethod
    def decode(cls, message: Message) -> Dropped:
        return cls(message.int64(1), message.data(2), message.data(3))


@dataclass(frozen=True, slots=True)
class Batch:
    """A sealed batch as it was shipped; `header` stays encoded, for these bytes are signed."""

    header: bytes
    events: bytes
    signature: bytes
    dropped: Dropped | None

    @classmethod
    def decode(cls, encoded: bytes) -> Batch:
        message = Message(encoded)
        dropped = message.message(4)
        return cls(
            message.data(1),
            message.data(2),
            message.data(3),
            Dropped.decode(dropped) if dropped else None,
        )


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that were lost before they could be sealed; `count` is None where nobody knows."""

    class_name: str
    place: str
    count: int | None


@dataclass(frozen=True, slots=True)
class Header:
    """What the verdict needs of a BatchHeader."""

    agent_id: str
    batch: int
    previous_hash: bytes
    host_id: str
    sealed_time: int
    event_count: int
    event_bytes: int
    root: bytes
    epoch: int
    public_key: bytes
    next_public_key: bytes
    classes: Sequence[tuple[str, int]]
    losses: Sequence[Lost]
    next_within_ms: int
    events_before: int
    gaps: Sequence[tuple[int, int]]
    former_agent_id: str
    former_batch: int

    @property
    def events_after(self) -> int:
        """What `events_before` of the next batch must be."""
        return self.events_before + self.event_count

    @classmethod
    def decode(cls, encoded: bytes) -> Header:
        if len(encoded) > MAX_HEADER_BYTES:
            raise Malformed("the header is longer than 64 KiB")
        message = Message(encoded)
        header = cls(
            agent_id=message.text(1),
            batch=message.count(2),
            previous_hash=message.data(3),
            host_id=message.text(4),
            sealed_time=message.int64(7),
            event_count=message.count(8),
            event_bytes=message.count(9),
            root=message.data(12),
            epoch=message.count(13),
            public_key=message.data(14),
            next_public_key=message.data(15),
            classes=[(class_name(m.int64(1)), m.count(2)) for m in message.messages(16)],
            losses=[decode_lost(m) for m in message.messages(17)],
            next_within_ms=message.count(18),
            events_before=message.count(19),
            gaps=[(m.int64(1), m.int64(2)) for m in message.messages(20)],
            former_agent_id=message.text(21),
            former_batch=message.count(22),
        )
        if header.batch == 0 or header.epoch == 0:
            raise Malformed("batches and epochs count from 1")
        return header


def decode_lost(message: Message) -> Lost:
    return Lost(class_name(message.int64(1)), message.text(6), message.optional_int64(5))


def class_name(number: int) -> str:
    """A class of a later version has no name here, but its events count all the same."""
    return CLASS_NAMES.get(number, f"class {number}")


# ---------------------------------------------------------------- hashes and keys


def sha256(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


class MerkleTree:
    """RFC 6962's tree hash, leaf by leaf: kept are only the roots of whole subtrees, great to small."""

    def __init__(self) -> None:
        self.leaves = 0
        self._subtrees: list[bytes] = []

    def add(self, event: bytes | memoryview) -> None:
        node = sha256(b"\0", event)
        # Each trailing one of the count is a subtree as great as the one that `node` is by then.
        count = self.leaves
        while count & 1:
            node = sha256(b"\1", self._subtrees.pop(), node)
            count >>= 1
        self._subtrees.append(node)
        self.leaves += 1

    def root(self) -> bytes:
        if not self._subtrees:
            return sha256(b"")
        node = self._subtrees[-1]
        for left in reversed(self._subtrees[:-1]):
            node = sha256(b"\1", left, node)
        return node


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def agent_id_of(first_public_key: bytes) -> str:
    return sha256(AGENT_CONTEXT, first_public_key)[:16].hex()


def next_seed(seed: bytes) -> bytes:
    return sha256(SEED_CONTEXT, seed)


def public_key_of(seed: bytes) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


# ---------------------------------------------------------------- a batch's events


def decompress(frame: bytes, limit: int) -> bytes:
    """The content of exactly one zstd frame of at most `limit` bytes; a bomb ends at the limit."""
    if not frame:
        return b""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
    content = bytearray()
    for at in range(0, len(frame), DECOMPRESS_STEP_BYTES):
        if decompressor.eof:
            raise Malformed("bytes follow the zstd frame")
        try:
            content += decompressor.decompress(frame[at : at + DECOMPRESS_STEP_BYTES])
        except zstandard.ZstdError:
            raise Malformed("they are no zstd frame") from None
        if len(content) > limit:
            raise Malformed("they are longer than the header says")
    if not decompressor.eof:
        raise Malformed("the zstd frame is cut off")
    if decompressor.unused_data:
        raise Malformed("bytes follow the zstd frame")
    return bytes(content)


def check_events(batch: Batch, header: Header) -> None:
    """Raises Malformed, with what is wrong, unless the events are those that the header seals."""
    if header.event_bytes > MAX_EVENT_BYTES:
        raise Malformed("more than 64 MiB")
    content = memoryview(decompress(batch.events, header.event_bytes))
    if len(content) != header.event_bytes:
        raise Malformed("they are shorter than the header says")
    tree = MerkleTree()
    at = 0
    while at < len(content):
        length, at = read_varint(content, at)
        event, at = take(content, at, length)
        tree.add(event)
    if tree.leaves != header.event_count:
        raise Malformed(f"{tree.leaves} instead of {header.event_count}")
    if tree.root() != header.root:
        raise Malformed("they have another root")


# ---------------------------------------------------------------- small containers


class Digests:
    """32 bytes for each of many numbers that mostly ascend without a gap: runs of them, end to end."""

    WIDTH = 32

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._runs: list[bytearray] = []
        self._late: dict[int, bytes] = {}

    def add(self, number: int, digest: bytes) -> None:
        if self._firsts and number < self._end(-1):
            self._late[number] = digest
        elif self._firsts and number == self._end(-1):
            self._runs[-1] += digest
        else:
            self._firsts.append(number)
            self._runs.append(bytearray(digest))

    def get(self, number: int) -> bytes | None:
        run = bisect_right(self._firsts, number) - 1
        if run >= 0 and number < self._end(run):
            at = (number - self._firsts[run]) * self.WIDTH
            return bytes(self._runs[run][at : at + self.WIDTH])
        return self._late.get(number)

    def values(self) -> Iterator[bytes]:
        for run in self._runs:
            for at in range(0, len(run), self.WIDTH):
                yield bytes(run[at : at + self.WIDTH])
        yield from self._late.values()

    def holes(self, start: int | None) -> Iterator[tuple[int, int]]:
        """Ranges of numbers that are not here, from `start` (None: from the first that is) to the last."""
        late = Ranges()
        for number in self._late:
            late.add(number, number)
        expected = start
        for run, first in enumerate(self._firsts):
            if expected is not None:
                yield from late.rest_of(expected, first - 1)
            expected = self._end(run)

    def __len__(self) -> int:
        return sum(map(len, self._runs)) // self.WIDTH + len(self._late)

    def _end(self, run: int) -> int:
        return self._firsts[run] + len(self._runs[run]) // self.WIDTH


class Ranges:
    """A set of numbers as disjoint ranges, in order, both ends included."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, first: int, last: int) -> None:
        if first > last:
            return
        begin = bisect_left(self._ranges, first - 1, key=lambda known: known[1])
        end = bisect_right(self._ranges, last + 1, key=lambda known: known[0])
        touched = self._ranges[begin:end]
        if touched:
            first, last = min(first, touched[0][0]), max(last, touched[-1][1])
        self._ranges[begin:end] = [(first, last)]

    def rest_of(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """What of a range is not in the set."""
        begin = bisect_left(self._ranges, first, key=lambda known: known[1])
        for covered_first, covered_last in self._ranges[begin:]:
            if covered_first > last:
                break
            if first < covered_first:
                yield first, covered_first - 1
            first = covered_last + 1
        if first <= last:
            yield first, last

    def numbers(self) -> Iterator[int]:
        for first, last in self._ranges:
            yield from range(first, last + 1)


# ---------------------------------------------------------------- the verdict on one history


class Tampering(enum.Enum):
    """What was done to a batch, by its name in docs/ledger.md."""

    EVENTS_CHANGED = "events changed"
    HEADER_CHANGED = "header changed"
    RESIGNED = "re-signed"
    DELETED = "deleted"
    REORDERED = "reordered"
    REPLAYED = "replayed"
    FORKED = "forked"
    FORGED_DROP = "forged drop"


@dataclass(slots=True)
class Finding:
    """One tampering. `batch` is the number as its header says, of a deleted range the first; 0 is unknown."""

    tampering: Tampering
    batch: int
    detail: str


@dataclass(slots=True)
class Missing:
    """What is not here, and not by tampering; added up."""

    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Keys of `lost` where some count is unknown: so many at least.
    lost_unknown: set[tuple[str, str]] = field(default_factory=set)
    dropped_batches: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    gone_batches: int = 0

    def add_losses(self, losses: Sequence[Lost]) -> None:
        for loss in losses:
            key = (loss.class_name, loss.place)
            self.lost[key] += loss.count or 0
            if loss.count is None:
                self.lost_unknown.add(key)

    def add_dropped(self, classes: Sequence[tuple[str, int]]) -> None:
        self.dropped_batches += 1
        for name, events in classes:
            self.dropped[name] += events

    def reasons(self) -> Iterator[str]:
        if self.lost:
            places = ", ".join(f"{name} {self._lost_at(name, place)}" for name, place in sorted(self.lost))
            at_least = "at least " if self.lost_unknown else ""
            yield f"{at_least}{self.lost.total()} events lost ({places})"
        if self.dropped_batches:
            classes = ", ".join(f"{name} {count}" for name, count in sorted(self.dropped.items()))
            yield f"the events of {self.dropped_batches} batches dropped ({classes or 'none'})"
        if self.gone_batches:
            yield f"{self.gone_batches} batches that the collector had are gone"

    def _lost_at(self, name: str, place: str) -> str:
        at_least = "at least " if (name, place) in self.lost_unknown else ""
        return f"{at_least}{self.lost[name, place]} in {quoted(place)}"


@dataclass(slots=True)
class BadSignature:
    """Kept until all keys of the history are known: one of them may have made it."""

    finding: Finding
    signed: bytes
    signature: bytes


class History:
    """Checks the batches of one agent, in the order in which they were stored.

    `_trusted` is the last header, by number, that is the agent's own. Only such headers teach keys,
    losses and gaps. `_hashes` has also those that merely stand in the place of the next batch: its
    number is then not missing, but the batch after it will name another predecessor.
    """

    def __init__(self, agent_id: str, whole: bool) -> None:
        self.agent_id = agent_id
        self.findings: list[Finding] = []
        self.findings_omitted = 0
        self.missing = Missing()
        self.notes: list[str] = []
        self.events = 0
        self.silent_since: int | None = None
        self._whole = whole
        self._hashes = Digests()
        self._keys = Digests()
        self._trusted: Header | None = None
        self._last = 0
        self._events_after_last = 0
        # What a batch says its predecessor is, where that was not here by then.
        self._named: dict[int, bytes] = {}
        self._gaps = Ranges()
        self._bad_signatures: list[BadSignature] = []
        # Statements of dropped events whose epoch the history has not reached.
        self._unproven_drops: dict[tuple[int, bytes], Ranges] = {}

    # -- batches

    def add(self, batch: Batch, header: Header) -> None:
        """Takes the next stored batch."""
        digest = sha256(batch.header)
        known = self._hashes.get(header.batch)
        late = known is None and header.batch < self._last
        goes_on = known is None and not late
        if not self._is_authentic(batch, header, digest, goes_on):
            if header.batch == self._last + 1:
                self._enter(header, digest)
            return
        if goes_on:
            self._check_link(header)
            self._enter(header, digest)
            self._trust(header)
        elif late:
            self.find(Tampering.REORDERED, header.batch, f"it comes after batch {self._last}")
            self._check_late_link(header, digest)
            self._hashes.add(header.batch, digest)
        else:
            self._find_second(known, digest, header.batch)
        intact = self._check_content(batch, header, digest)
        if known is None:
            self._account(batch, header, intact)

    def add_fork(self, batch: Batch, header: Header) -> None:
        """Takes a batch that the collector refused because it had another one with this number."""
        digest = sha256(batch.header)
        if self._is_authentic(batch, header, digest, goes_on=False):
            self._find_second(self._hashes.get(header.batch), digest, header.batch)
            self._check_content(batch, header, digest)

    def _find_second(self, known: bytes | None, digest: bytes, number: int) -> None:
        if known == digest:
            self.find(Tampering.REPLAYED, number, "it is there twice")
        else:
            self.find(Tampering.FORKED, number, "another header has this number")

    def _enter(self, header: Header, digest: bytes) -> None:
        self._hashes.add(header.batch, digest)
        self._last = header.batch
        self._events_after_last = header.events_after

    def _trust(self, header: Header) -> None:
        if header.epoch > 1 and self._keys.get(header.epoch) is None:
            self.notes.append(
                f"nothing proves the key of epoch {header.epoch}: what named it is not here (batch {header.batch})"
            )
        for epoch, key in ((header.epoch, header.public_key), (header.epoch + 1, header.next_public_key)):
            if self._keys.get(epoch) is None:
                self._keys.add(epoch, key)
                self._settle_drops(epoch, key)
        if header.former_agent_id:
            self.notes.append(
                f"takes the place of {quoted(header.former_agent_id)}, known to it up to batch {header.former_batch}"
            )
        self._trusted = header

    def _account(self, batch: Batch, header: Header, intact: bool) -> None:
        """Adds up what a batch has and lacks; only once for each number."""
        self.missing.add_losses(header.losses)
        for first, last in header.gaps:
            self._gaps.add(max(first, 1), min(last, header.batch - 1))
        if has_dropped(batch):
            self.missing.add_dropped(header.classes)
        elif intact:
            self.events += header.event_count

    # -- checks of one batch

    def _is_authentic(self, batch: Batch, header: Header, digest: bytes, goes_on: bool) -> bool:
        """Whether the agent itself signed this header, with the key of its epoch."""
        signed = SEAL_CONTEXT + digest
        if not is_signed(signed, batch.signature, header.public_key):
            finding = self.find(Tampering.HEADER_CHANGED, header.batch, "the signature is not of header and key")
            if len(self.findings) < MAX_FINDINGS:
                self._bad_signatures.append(BadSignature(finding, signed, batch.signature))
            return False
        wrong = self._wrong_key(header, goes_on)
        if wrong:
            self.find(Tampering.RESIGNED, header.batch, wrong)
        return not wrong

    def _wrong_key(self, header: Header, goes_on: bool) -> str | None:
        """Why the header's keys cannot be those of its epoch, as far as the history has told them."""
        if len(header.next_public_key) != Digests.WIDTH:
            return "its next key is no key"
        if header.epoch == 1 and agent_id_of(header.public_key) != self.agent_id:
            return "the agent's id is of another first key"
        if self._keys.get(header.epoch) not in (None, header.public_key):
            return f"epoch {header.epoch} has another key"
        if self._keys.get(header.epoch + 1) not in (None, header.next_public_key):
            return f"epoch {header.epoch + 1} has another key than it names"
        if not goes_on:
            return None
        if not self._epoch_follows(header):
            return f"epoch {header.epoch} cannot be that of this batch"
        # Only missing batches may have named a key unseen. Where the batch before is here and is not the
        # agent's own, a forger would otherwise be believed from his next epoch on.
        named = header.epoch == 1 or self._keys.get(header.epoch) is not None
        if not named and header.batch == self._last + 1:
            return f"no batch of the agent names the key of epoch {header.epoch}"
        return None

    def _epoch_follows(self, header: Header) -> bool:
        """An epoch never falls, and grows at most by one from batch to batch, also where some are missing."""
        epoch, batch = (self._trusted.epoch, self._trusted.batch) if self._trusted else (0, 0)
        return 0 <= header.epoch - epoch <= header.batch - batch

    def _check_link(self, header: Header) -> None:
        """Whether a batch that goes on does so from the one before it."""
        number = header.batch
        if number == self._last + 1:
            before = self._hashes.get(self._last) or b""
            if header.previous_hash != before:
                self.find(Tampering.FORKED, number, "it names another predecessor than the one that is here")
            elif header.events_before != self._events_after_last:
                self.find(
                    Tampering.HEADER_CHANGED,
                    number,
                    f"{header.events_before} events before it, and not {self._events_after_last}",
                )
            return
        self._named[number - 1] = header.previous_hash
        if self._trusted and header.events_before < self._trusted.events_after:
            self.find(Tampering.HEADER_CHANGED, number, "fewer events before it than at an earlier batch")

    def _check_late_link(self, header: Header, digest: bytes) -> None:
        before = self._hashes.get(header.batch - 1)
        if before is not None and header.previous_hash != before:
            self.find(Tampering.FORKED, header.batch, "it names another predecessor than the one that is here")
        elif before is None and header.batch > 1:
            self._named[header.batch - 1] = header.previous_hash
        if self._named.pop(header.batch, digest) != digest:
            self.find(Tampering.FORKED, header.batch + 1, "it names another predecessor than the one that is here")

    def _check_content(self, batch: Batch, header: Header, digest: bytes) -> bool:
        """Whether the events are those that were sealed; or the agent itself says that it dropped them."""
        if batch.dropped:
            self._check_drop(batch.dropped, header, digest)
        if has_dropped(batch):
            return False
        try:
            check_events(batch, header)
        except Malformed as error:
            self.find(Tampering.EVENTS_CHANGED, header.batch, str(error))
            return False
        return True

    def _check_drop(self, dropped: Dropped, header: Header, digest: bytes) -> None:
        if dropped.epoch < header.epoch:
            self.find(Tampering.FORGED_DROP, header.batch, "it is of an epoch before the batch")
        elif not is_signed(DROPPED_CONTEXT + digest, dropped.signature, dropped.public_key):
            self.find(Tampering.FORGED_DROP, header.batch, "the signature is not of header and key")
        elif self._keys.get(dropped.epoch) is None:
            waiting = self._unproven_drops.setdefault((dropped.epoch, dropped.public_key), Ranges())
            waiting.add(header.batch, header.batch)
        elif self._keys.get(dropped.epoch) != dropped.public_key:
            self.find(Tampering.FORGED_DROP, header.batch, f"epoch {dropped.epoch} has another key")

    def _settle_drops(self, epoch: int, key: bytes) -> None:
        """The history has reached an epoch: statements in its name must have its key."""
        for claim in [claim for claim in self._unproven_drops if claim[0] == epoch]:
            batches = self._unproven_drops.pop(claim)
            if claim[1] != key:
                for number in batches.numbers():
                    self.find(Tampering.FORGED_DROP, number, f"epoch {epoch} has another key")

    def find(self, tampering: Tampering, batch: int, detail: str) -> Finding:
        finding = Finding(tampering, batch, detail)
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.findings_omitted += 1
        return finding

    # -- the end

    def close(self, time: int) -> None:
        """Settles what only the whole history tells, at `time` (microseconds since the Unix epoch)."""
        self._find_resigned()
        self._find_deleted()
        self._find_silence(time)
        for epoch, _ in self._unproven_drops:
            self.notes.append(f"nothing proves the drops of epoch {epoch}: the history does not reach it")
        self.findings.sort(key=lambda finding: finding.batch)

    def _find_resigned(self) -> None:
        """Tells headers that somebody with another epoch's key has signed from those that were just changed."""
        tries = 0
        for bad in self._bad_signatures:
            for key in self._keys.values():
                tries += 1
                if tries > MAX_KEY_TRIES:
                    return
                if is_signed(bad.signed, bad.signature, key):
                    bad.finding.tampering = Tampering.RESIGNED
                    bad.finding.detail = "the signature is of another epoch's key"
                    break

    def _find_deleted(self) -> None:
        for first, last in self._hashes.holes(1 if self._whole else None):
            gone = last - first + 1
            for deleted_first, deleted_last in self._gaps.rest_of(first, last):
                count = deleted_last - deleted_first + 1
                gone -= count
                self.find(Tampering.DELETED, deleted_first, f"{count} missing, up to {deleted_last}")
            self.missing.gone_batches += gone

    def _find_silence(self, time: int) -> None:
        last = self._trusted
        if last is None or last.next_within_ms == 0:
            return
        patience_ms = SILENCE_FACTOR * last.next_within_ms + SILENCE_GRACE_MS
        if time - last.sealed_time > patience_ms * 1000:
            self.silent_since = last.sealed_time

    def reasons(self) -> Iterator[str]:
        """Why the history is incomplete."""
        yield from self.missing.reasons()
        if self.silent_since is not None:
            yield f"silent since {timestamp(self.silent_since)}"

    def summary(self) -> str:
        if self._trusted is None:
            return f"agent {quoted(self.agent_id)}: no batch that it signed"
        return (
            f"agent {quoted(self.agent_id)} of host {quoted(self._trusted.host_id)}: {len(self._hashes)} batches"
            f" up to {self._last}, {self.events} events, epoch {self._trusted.epoch},"
            f" sealed last {timestamp(self._trusted.sealed_time)}"
        )


def has_dropped(batch: Batch) -> bool:
    return batch.dropped is not None and not batch.events


# ---------------------------------------------------------------- the verdict on all of them


class Verdict(enum.IntEnum):
    """The values are the exit codes."""

    COMPLETE = 0
    INCOMPLETE = 1
    TAMPERED = 2


class Ledger:
    """All histories of an export, each batch given to its own."""

    UNKNOWN_AGENT = "unknown"

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._histories: dict[str, History] = {}
        # Why it is incomplete beyond what the histories tell.
        self.reasons: list[str] = []

    def add(self, encoded: bytes, fork: bool = False) -> None:
        try:
            batch = Batch.decode(encoded)
            header = Header.decode(batch.header)
        except Malformed as error:
            history = self._history(self.UNKNOWN_AGENT)
            history.find(Tampering.HEADER_CHANGED, 0, f"it cannot be read: {error}")
            return
        history = self._history(header.agent_id)
        if fork:
            history.add_fork(batch, header)
        else:
            history.add(batch, header)

    def close(self, time: int) -> None:
        for history in self._histories.values():
            history.close(time)

    def _history(self, agent_id: str) -> History:
        if agent_id not in self._histories:
            self._histories[agent_id] = History(agent_id, self._whole)
        return self._histories[agent_id]

    @property
    def events(self) -> int:
        return sum(history.events for history in self._histories.values())

    def findings(self) -> list[Finding]:
        return [finding for history in self._histories.values() for finding in history.findings]

    def _incomplete(self) -> list[str]:
        told = (
            f"agent {quoted(history.agent_id)}: {reason}"
            for history in self._histories.values()
            for reason in history.reasons()
        )
        return [*self.reasons, *told]

    def verdict(self) -> Verdict:
        if self.findings():
            return Verdict.TAMPERED
        return Verdict.INCOMPLETE if self._incomplete() else Verdict.COMPLETE

    def lines(self) -> Iterator[str]:
        """The verdict in one line, then what it rests on."""
        findings, incomplete = self.findings(), self._incomplete()
        match self.verdict():
            case Verdict.TAMPERED:
                kinds = Counter(finding.tampering.value for finding in findings)
                yield "TAMPERED: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            case Verdict.INCOMPLETE:
                yield "incomplete: " + "; ".join(incomplete)
            case Verdict.COMPLETE:
                yield f"complete, {self.events} events"
        for history in self._histories.values():
            yield history.summary()
            for finding in history.findings:
                yield f"  batch {finding.batch}: {finding.tampering.value}: {finding.detail}"
            if history.findings_omitted:
                yield f"  and {history.findings_omitted} findings more"
            yield from (f"  {reason}" for reason in history.reasons())
            yield from (f"  note: {note}" for note in history.notes)


def quoted(text: str) -> str:
    """Text from a batch, with nothing in it that a terminal obeys."""
    return text.encode("unicode_escape").decode() or "(none)"


def timestamp(time: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=time)
    except OverflowError:
        return f"{time} microseconds"
    return moment.isoformat()


# ---------------------------------------------------------------- an export


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """export.json."""

    time: int
    whole: bool
    unreadable: list[str]

    @classmethod
    def read(cls, folder: Path) -> ExportInfo:
        content = read_json(folder / "export.json")
        time, whole = content.get("time"), content.get("whole")
        unreadable = content.get("unreadable", [])
        if type(time) is not int or type(whole) is not bool or not isinstance(unreadable, list):
            raise Unusable(f"{folder / 'export.json'}: time, whole or unreadable is missing or no such thing")
        return cls(time, whole, [str(reason) for reason in unreadable])


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise Unusable(f"{path}: no JSON object")
    return content


def read_framed(path: Path) -> Iterator[bytes]:
    """The batches of one file, each after its length; one at a time."""
    try:
        with path.open("rb") as file:
            while prefix := file.read(4):
                yield read_frame(file, prefix)
    except (OSError, Malformed) as error:
        raise Unusable(f"{path}: {error}") from None


def read_frame(file: BinaryIO, prefix: bytes) -> bytes:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 4 or length > MAX_BATCH_BYTES:
        raise Malformed(f"no length of a batch at byte {file.tell() - len(prefix)}")
    encoded = file.read(length)
    if len(encoded) < length:
        raise Malformed("it ends within a batch; was the export interrupted?")
    return encoded


def batch_files(folder: Path) -> list[tuple[int, Path]]:
    """The files of batches by number."""
    try:
        named = [(re.fullmatch(r"batches-(\d{8,})", path.name), path) for path in folder.iterdir()]
    except OSError as error:
        raise Unusable(str(error)) from None
    return sorted((int(match[1]), path) for match, path in named if match)


def verify_export(folder: Path) -> int:
    info = ExportInfo.read(folder)
    ledger = Ledger(info.whole)
    expected = 1
    for number, path in batch_files(folder):
        if number != expected:
            # What was in it may have been a whole history, which no other batch misses.
            ledger.reasons.append(f"the folder has no batches-{expected:08} but has {path.name}")
        expected = number + 1
        for encoded in read_framed(path):
            ledger.add(encoded)
    if (folder / "forks").exists():
        for encoded in read_framed(folder / "forks"):
            ledger.add(encoded, fork=True)
    ledger.reasons += [f"the collector could not read back: {quoted(reason)}" for reason in info.unreadable]
    ledger.close(info.time)
    for line in ledger.lines():
        print(line)
    print(f"as of {timestamp(info.time)}{'' if info.whole else ', a part: histories may begin anywhere'}")
    return ledger.verdict()


# ---------------------------------------------------------------- test vectors


class Vectors:
    """Recomputes each value of ledger-vectors.json and counts those that differ."""

    def __init__(self) -> None:
        self.checked = 0
        self.differences = 0

    def _compare(self, what: str, expected: object, found: object) -> None:
        self.checked += 1
        if expected != found:
            self.differences += 1
            print(f"{what}: expected {expected}, found {found}")

    def check(self, content: dict[str, Any]) -> None:
        for index, vector in enumerate(content["roots"]):
            self._check_root(f"roots[{index}]", vector)
        for index, vector in enumerate(content["keys"]):
            self._check_keys(f"keys[{index}]", vector)
        for vector in content["histories"]:
            self._check_history(f"history {vector['name']!r}", vector)

    def _check_root(self, what: str, vector: dict[str, Any]) -> None:
        tree = MerkleTree()
        for event in vector["events"]:
            tree.add(bytes.fromhex(event))
        self._compare(f"{what}.root", vector["root"], tree.root().hex())

    def _check_keys(self, what: str, vector: dict[str, Any]) -> None:
        seed, epoch = bytes.fromhex(vector["seed"]), 1
        self._compare(f"{what}.agent_id", vector["agent_id"], agent_id_of(public_key_of(seed)))
        for expected in sorted(vector["epochs"], key=lambda entry: entry["epoch"]):
            while epoch < expected["epoch"]:
                seed, epoch = next_seed(seed), epoch + 1
            where = f"{what} epoch {epoch}"
            self._compare(f"{where}: epoch", expected["epoch"], epoch)
            self._compare(f"{where}: public_key", expected["public_key"], public_key_of(seed).hex())
            self._compare(
                f"{where}: next_public_key", expected["next_public_key"], public_key_of(next_seed(seed)).hex()
            )

    def _check_history(self, what: str, vector: dict[str, Any]) -> None:
        ledger = Ledger(whole=True)
        for encoded in vector["batches"]:
            ledger.add(bytes.fromhex(encoded))
        ledger.close(vector["time"])
        self._compare(f"{what}: verdict", vector["verdict"], ledger.verdict().name.lower())
        self._compare(f"{what}: events", vector["events"], ledger.events)
        expected = sorted((finding["tampering"], finding["batch"]) for finding in vector["findings"])
        found = sorted((finding.tampering.value, finding.batch) for finding in ledger.findings())
        self._compare(f"{what}: findings", expected, found)


def verify_vectors(path: Path) -> int:
    content = read_json(path)
    vectors = Vectors()
    try:
        vectors.check(content)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"{path}: not as docs/ledger.md describes vectors: {error!r}") from None
    print(f"{vectors.checked - vectors.differences} of {vectors.checked} values reproduced")
    return 1 if vectors.differences else 0


# ---------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """argparse ends with 2 on a wrong command line, which would say TAMPERED here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(3, f"{self.prog}: {message}\n")


def main() -> int:
    parser = Parser(description="Check hostaudit's sealed batches without any of hostaudit.")
    commands = parser.add_subparsers(required=True)
    export = commands.add_parser("export", help="the folder that `hostaudit export DIR` wrote")
    export.set_defaults(run=verify_export)
    vectors = commands.add_parser("vectors", help="docs/ledger-vectors.json")
    vectors.set_defaults(run=verify_vectors)
    for command in (export, vectors):
        command.add_argument("path", type=Path)
    arguments = parser.parse_args()
    run: Callable[[Path], int] = arguments.run
    try:
        return run(arguments.path)
    except Unusable as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
