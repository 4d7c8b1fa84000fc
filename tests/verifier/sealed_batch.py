"""What are the bytes of a sealed batch, and do they belong together?

Decodes the messages of ledger.proto by hand and has what docs/ledger.md says of a single batch: the
hashes, the keys and the events. What one batch means for another is told by verify.py.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_HEADER_BYTES = 64 << 10
# The greatest number of a field of a header; what has greater ones is of a later version.
LAST_HEADER_FIELD = 22
MAX_GROUPS = 100
MAX_EVENT_BYTES = 64 << 20
MAX_EVENTS = 1 << 16
# What a frame makes its reader allocate beyond its content.
MAX_WINDOW_BYTES = 128 << 20
FRAME = b"\x28\xb5\x2f\xfd"

T = TypeVar("T")


class Malformed(Exception):
    """Bytes that are not what their place in the format demands."""


# ---------------------------------------------------------------- Protocol Buffers, the wire format


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at`, and where the next byte is."""
    value = 0
    for position, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80 and value < 1 << 64:
            return value, at + position + 1
    raise Malformed("a varint is cut off, or has more than 64 bits")


def take(data: memoryview, at: int, length: int) -> tuple[memoryview, int]:
    """`length` bytes from `at`, and where the next byte is."""
    if length > len(data) - at:
        raise Malformed("a part is longer than what it is a part of")
    return data[at : at + length], at + length


def read_delimited(data: memoryview, at: int) -> tuple[memoryview, int]:
    """The bytes after their length at `at`, and where the next byte is."""
    return take(data, *reversed(read_varint(data, at)))


def wire_field(data: memoryview, at: int, groups: int) -> tuple[int, int, int | memoryview | None, int]:
    """Number, wire type and value of the field at `at`, and where the next byte is; the ledger has no
    values of fixed width, and no groups."""
    tag, at = read_varint(data, at)
    number, wire = tag >> 3, tag & 7
    value: int | memoryview | None = None
    if not 0 < number < 1 << 29 or groups > MAX_GROUPS:
        raise Malformed("a field has no number, or is too deep")
    match wire:
        case 0:
            value, at = read_varint(data, at)
        case 1 | 5:
            _, at = take(data, at, 8 if wire == 1 else 4)
        case 2:
            value, at = read_delimited(data, at)
        case 3:
            inner = (0, 0)
            while inner != (number, 4):
                if inner[1] == 4:
                    raise Malformed("a group ends that has not begun")
                *inner, _, at = wire_field(data, at, groups + 1)
                inner = tuple(inner)
        case 6 | 7:
            raise Malformed(f"wire type {wire} is not in use")
    return number, wire, value, at


def wire_fields(encoded: bytes) -> Iterator[tuple[int, int | memoryview | None]]:
    """Number and value of each field."""
    data, at = memoryview(encoded), 0
    while at < len(data):
        number, wire, value, at = wire_field(data, at, 0)
        if wire == 4:
            raise Malformed("a group ends that has not begun")
        yield number, value


def last_of(values: list[Any], kind: type[T]) -> T | None:
    """Where a field is there several times, the last one counts."""
    if any(not isinstance(value, kind) for value in values):
        raise Malformed("a field has another type")
    return values[-1] if values else None


def optional_int64(values: list[Any]) -> int | None:
    value = last_of(values, int)
    return value - (1 << 64) if value and value >> 63 else value


def int64(values: list[Any]) -> int:
    return optional_int64(values) or 0


def int32(values: list[Any]) -> int:
    """What does not fit is cut, as everywhere in Protocol Buffers."""
    return ((int64(values) + (1 << 31)) & 0xFFFF_FFFF) - (1 << 31)


def octets(values: list[Any]) -> bytes:
    return bytes(last_of(values, memoryview) or b"")


def text(values: list[Any]) -> str:
    try:
        return octets(values).decode()
    except UnicodeDecodeError:
        raise Malformed("a text is not UTF-8") from None


def each(kind: type[T]) -> Callable[[list[Any]], list[T]]:
    return lambda values: [decode(kind, octets([value])) for value in values]


def one(kind: type[T]) -> Callable[[list[Any]], T | None]:
    """A message; several of them are one, that has the fields of all."""
    return lambda values: decode(kind, b"".join(octets([v]) for v in values)) if values else None


def at(number: int, read: Callable[[list[Any]], Any]) -> Any:
    """A field of a message: its number, and how its values are read."""
    return field(metadata={"number": number, "read": read})


def decode(kind: type[T], encoded: bytes) -> T:
    """The message in `encoded`; fields that `kind` does not have are skipped."""
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for number, value in wire_fields(encoded):
        found[number].append(value)
    of: Any = kind
    return kind(**{f.name: f.metadata["read"](found[f.metadata["number"]]) for f in fields(of)})


# ---------------------------------------------------------------- the messages of ledger.proto


@dataclass(frozen=True)
class Dropped:
    """The agent's statement that it dropped a batch's events."""

    epoch: int = at(1, int64)
    public_key: bytes = at(2, octets)
    signature: bytes = at(3, octets)
    reason: str = at(4, text)

    def is_signed(self, digest: bytes) -> bool:
        return is_signed(b"hostaudit dropped 1\0" + digest + self.reason.encode(), self.signature, self.public_key)


@dataclass(frozen=True)
class ClassCount:
    class_number: int = at(1, int32)
    events: int = at(2, int64)


@dataclass(frozen=True)
class Lost:
    class_number: int = at(1, int32)
    cpu: int = at(2, int32)
    first_sequence: int = at(3, int64)
    last_sequence: int = at(4, int64)
    count: int | None = at(5, optional_int64)
    place: str = at(6, text)
    cause: str = at(7, text)


@dataclass(frozen=True)
class BatchRange:
    first: int = at(1, int64)
    last: int = at(2, int64)


@dataclass(frozen=True)
class Header:
    """A BatchHeader: all of it, for one field that cannot be read is enough to refuse it."""

    agent_id: str = at(1, text)
    batch: int = at(2, int64)
    previous_hash: bytes = at(3, octets)
    host_id: str = at(4, text)
    boot_id: str = at(5, text)
    run: str = at(6, text)
    sealed_time: int = at(7, int64)
    event_count: int = at(8, int32)
    event_bytes: int = at(9, int64)
    first_time: int = at(10, int64)
    last_time: int = at(11, int64)
    root: bytes = at(12, octets)
    epoch: int = at(13, int64)
    public_key: bytes = at(14, octets)
    next_public_key: bytes = at(15, octets)
    classes: list[ClassCount] = at(16, each(ClassCount))
    losses: list[Lost] = at(17, each(Lost))
    next_within_ms: int = at(18, int64)
    events_before: int = at(19, int64)
    gaps: list[BatchRange] = at(20, each(BatchRange))
    former_agent_id: str = at(21, text)
    former_batch: int = at(22, int64)

    @property
    def keys(self) -> dict[int, bytes]:
        """The public keys that it tells, by epoch."""
        return {self.epoch: self.public_key, self.epoch + 1: self.next_public_key}


@dataclass(frozen=True)
class Seal:
    """The hash of a header and its signature."""

    digest: bytes
    signature: bytes

    def is_by(self, public_key: bytes) -> bool:
        return is_signed(b"hostaudit batch 1\0" + self.digest, self.signature, public_key)


@dataclass(frozen=True)
class Batch:
    """A sealed batch as it was shipped; its header stays encoded, for these bytes are signed."""

    encoded_header: bytes = at(1, octets)
    events: bytes = at(2, octets)
    signature: bytes = at(3, octets)
    dropped: Dropped | None = at(4, one(Dropped))

    @cached_property
    def header(self) -> Header:
        if not self.encoded_header:
            raise Malformed("it has no header")
        if len(self.encoded_header) > MAX_HEADER_BYTES:
            raise Malformed("a header is longer than 64 KiB")
        return decode(Header, self.encoded_header)

    @property
    def is_of_later_version(self) -> bool:
        return any(number > LAST_HEADER_FIELD for number, _ in wire_fields(self.encoded_header))

    @cached_property
    def seal(self) -> Seal:
        return Seal(sha256(self.encoded_header), self.signature)


# ---------------------------------------------------------------- hashes, keys, events


def sha256(*parts: bytes | memoryview) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def merkle_tree(events: Iterable[bytes | memoryview]) -> tuple[int, bytes]:
    """How many they are, and RFC 6962's tree hash; kept are only the roots of whole subtrees."""
    subtrees: list[bytes] = []
    count = 0
    for event in events:
        node = sha256(b"\0", event)
        # Each trailing one of the count is a subtree as great as the one that `node` is by then.
        for _ in range((~count & count + 1).bit_length() - 1):
            node = sha256(b"\1", subtrees.pop(), node)
        subtrees.append(node)
        count += 1
    root = subtrees.pop() if subtrees else sha256()
    while subtrees:
        root = sha256(b"\1", subtrees.pop(), root)
    return count, root


def small_order() -> frozenset[bytes]:
    """The encodings of the eight points that sign anything for anybody, with those of greater numbers
    than their coordinates need (RFC 8032 lets a verifier refuse them)."""
    prime, of_order_8 = 2**255 - 19, 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    ys = [0, 1, prime - 1, prime, prime + 1, of_order_8, prime - of_order_8]
    return frozenset((y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1))


SMALL_ORDER = small_order()


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    if public_key in SMALL_ORDER or signature[:32] in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def agent_id_of(first_public_key: bytes) -> str:
    return sha256(b"hostaudit agent 1\0", first_public_key)[:16].hex()


def next_seed(seed: bytes) -> bytes:
    return sha256(b"hostaudit seed 1\0", seed)


def public_key_of(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def decompress(frame: bytes, limit: int) -> bytes:
    """The content of exactly one zstd frame of at most `limit` bytes; a bomb ends at the limit."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        # A size that the frame itself names is allocated in full: it must not be believed unseen.
        if not frame.startswith(FRAME):
            raise Malformed("they are no zstd frame")
        if zstandard.frame_content_size(frame) > limit:
            raise Malformed("they are longer than the header says")
        return decompressor.decompress(frame, max_output_size=max(limit, 1), allow_extra_data=False)
    except zstandard.ZstdError:
        raise Malformed("they are not one zstd frame of the length that the header says") from None


def split_events(content: bytes) -> Iterator[memoryview]:
    data, at = memoryview(content), 0
    while at < len(data):
        event, at = read_delimited(data, at)
        yield event


def check_events(batch: Batch) -> None:
    """Raises Malformed, with what is wrong, unless the events are those that the header seals."""
    header = batch.header
    if not 0 <= header.event_bytes <= MAX_EVENT_BYTES:
        raise Malformed("more than 64 MiB")
    if not 0 <= header.event_count <= MAX_EVENTS:
        raise Malformed("more than 65,536 events")
    content = decompress(batch.events, header.event_bytes)
    if len(content) != header.event_bytes:
        raise Malformed("they are shorter than the header says")
    if merkle_tree(split_events(content)) != (header.event_count, header.root):
        raise Malformed("they have another count or root")
