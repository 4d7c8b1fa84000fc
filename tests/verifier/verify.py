#!/usr/bin/env python3
"""Are these batches whole, and as the agents sealed them?

An independent check of hostaudit's sealed batches, written from docs/ledger.md and the messages in
proto/audit/v1 alone, so that nobody has to believe the collector's own `hostaudit verify`.

    verify.py export DIR     exit 0: complete, 1: incomplete, 2: TAMPERED, 3: DIR is no export
    verify.py vectors FILE   exit 0: every value is reproduced, 1: one is not, 3: FILE is no vectors

Two rules are behind every check. A header that its agent did not sign proves nothing: it is told
itself, and nothing that it says is used. And memory stays small: batches are read one by one, and of
each one only its number and the hash of its header are kept.
"""

from __future__ import annotations

import enum
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice, product
from pathlib import Path
from typing import Any

from numbered import Hashes, Ranges
from sealed_batch import Batch, Header, Malformed, Seal, agent_id_of, check_events, decode
from sealed_batch import merkle_tree, next_seed, public_key_of

MAX_BATCH_BYTES = 16 << 20

SILENCE_FACTOR = 3
SILENCE_GRACE_MS = 10_000

# A history where everything is wrong must fill neither the memory with findings nor the evening with
# tries of keys.
MAX_FINDINGS = 10_000
MAX_KEY_TRIES = 200_000

CLASS_NAMES = {1: "process", 2: "network", 3: "file", 4: "flow", 5: "agent"}

class Unusable(Exception):
    """A folder or file that is not what the command line says it is."""


# ---------------------------------------------------------------- what one history tells


class Tampering(enum.Enum):
    """What was done to a batch, by its name in docs/ledger.md; "unreadable" is told of the store."""

    EVENTS_CHANGED = "events changed"
    HEADER_CHANGED = "header changed"
    RESIGNED = "re-signed"
    DELETED = "deleted"
    REORDERED = "reordered"
    REPLAYED = "replayed"
    FORKED = "forked"
    FORGED_DROP = "forged drop"


class Unsound(Exception):
    """A batch whose header, or whose statement of dropped events, is not the agent's own."""

    def __init__(self, tampering: Tampering, detail: str) -> None:
        super().__init__(detail)
        self.tampering = tampering


@dataclass
class Finding:
    """One tampering. `batch` is the number as its header says, of a deleted range the first."""

    tampering: Tampering
    batch: int
    detail: str


class Missing:
    """What is not here, and not by tampering; added up."""

    def __init__(self) -> None:
        self.gaps = Ranges()
        self._told_gaps = 0
        self._lost: Counter[tuple[str, str]] = Counter()
        # Keys of `_lost` where some count is unknown: so many at least.
        self._unknown: set[tuple[str, str]] = set()
        self._dropped_batches = 0
        self._dropped: Counter[str] = Counter()

    def add(self, header: Header, dropped: bool) -> None:
        for loss in header.losses:
            key = (class_name(loss.class_number), loss.place)
            self._lost[key] += loss.count or 0
            if loss.count is None:
                self._unknown.add(key)
        for gap in header.gaps:
            if 1 <= gap.first <= gap.last < header.batch:
                self._told_gaps += 1
                self.gaps.add(gap.first, gap.last)
        if dropped:
            self._dropped_batches += 1
            self._dropped.update({class_name(c.class_number): c.events for c in header.classes})

    def reasons(self) -> Iterator[str]:
        """Why the history is incomplete."""
        for (name, place), count in sorted(self._lost.items()):
            if place != "spool" or not self._dropped_batches:
                at_least = "at least " if (name, place) in self._unknown else ""
                yield f"{at_least}{count} {name} events lost in {quoted(place)}"
        if self._dropped_batches:
            classes = ", ".join(f"{name} {count}" for name, count in sorted(self._dropped.items()))
            yield f"the events of {self._dropped_batches} batches dropped ({classes or 'none'})"
        if self._told_gaps:
            yield f"{self._told_gaps} gaps: batches that nobody has any more, as the agent says"


def class_name(number: int) -> str:
    """A class of a later version has no name here, but its events count all the same."""
    return CLASS_NAMES.get(number, f"class {number}")


class Keys:
    """The public keys of one history by epoch, and which of them a batch here has named."""

    def __init__(self, agent_id: str) -> None:
        self.known: dict[int, bytes] = {}
        self._epoch = 0
        self._agent_id = agent_id
        self._epochs = Ranges()

    def check(self, header: Header, goes_on: bool, behind_gap: bool) -> None:
        """Whether the header's keys are those that the history lets follow."""
        if header.batch == 1 and (header.epoch != 1 or header.previous_hash):
            raise Unsound(Tampering.RESIGNED, "batch 1 is not of epoch 1, or names a predecessor")
        if header.epoch == 1 and agent_id_of(header.public_key) != self._agent_id:
            raise Unsound(Tampering.RESIGNED, "the agent's id is of another first key")
        if any(self.contradict(epoch, key) for epoch, key in header.keys.items()):
            raise Unsound(Tampering.RESIGNED, f"epoch {header.epoch} or the next has another key")
        # Only batches that are missing may have named a key unseen, and their absence is told.
        if goes_on and (header.epoch < self._epoch or header.epoch > self._epoch + 1 and not behind_gap):
            raise Unsound(Tampering.RESIGNED, f"epoch {header.epoch} does not follow epoch {self._epoch}")

    def learn(self, header: Header) -> None:
        self.known |= header.keys
        self._epoch = max(self._epoch, header.epoch)
        self._epochs.add(header.epoch, header.epoch)

    def contradict(self, epoch: int, key: bytes) -> bool:
        return self.known.get(epoch, key) != key

    def is_proven(self, epoch: int) -> bool:
        """Whether a batch here names its key; that of epoch 1 is in the agent's id."""
        return epoch == 1 or self._epochs.has_all(epoch - 1, epoch - 1)


# ---------------------------------------------------------------- the verdict on one history


class History:
    """Checks the batches of one agent, in the order in which they were stored."""

    def __init__(self, agent_id: str, whole: bool) -> None:
        self.agent_id = agent_id
        self.findings: list[Finding] = []
        self.missing = Missing()
        self.events = 0
        self.silent_since: int | None = None
        # Of batch 1: the history that it takes the place of, and that one's last batch.
        self.former: tuple[str, int] | None = None
        self._start = 1 if whole else None
        self._keys = Keys(agent_id)
        self._hashes = Hashes()
        # Numbers that are not missing: of sound batches, and of those that were told as unsound.
        self._passed = Ranges()
        # The sound header with the greatest number.
        self._newest: Header | None = None
        self._events_after_newest = 0
        # What a batch says its predecessor is, where that was not here by then.
        self._named: dict[int, bytes] = {}
        # Epochs of batches that came when nothing had named their key.
        self._unproven: dict[int, int] = {}
        # Statements of dropped events whose epoch the history has not reached, by it and key.
        self._unproven_drops: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        # Kept until all keys are known: one of them may have made the signature.
        self._bad_signatures: list[tuple[Finding, Seal]] = []

    @property
    def last(self) -> int:
        return self._newest.batch if self._newest else 0

    def add(self, batch: Batch) -> None:
        """Takes the next stored batch."""
        header = batch.header
        try:
            self._check_header(batch)
            known = self._hashes.get(header.batch)
            if known == batch.seal.digest:
                self._find(Tampering.REPLAYED, header.batch, "it is there twice")
            elif known:
                self._find(Tampering.FORKED, header.batch, "another header has this number")
            else:
                self._learn_keys(header)
                self._check_sum(header)
                self._check_drop(batch)
                self._enter(batch)
                self._account(batch)
        except Unsound as unsound:
            self._pass_over(batch, unsound)

    def add_fork(self, batch: Batch) -> None:
        """Takes a batch that was refused; only after all others, for anybody may send such things."""
        header = batch.header
        is_of_its_epoch = self._keys.known.get(header.epoch) == header.public_key
        is_stored = self._hashes.get(header.batch) == batch.seal.digest
        if is_of_its_epoch and not is_stored and batch.seal.is_by(header.public_key):
            self._find(Tampering.FORKED, header.batch, "another one was refused")

    def _enter(self, batch: Batch) -> None:
        """Gives a sound batch its place in the chain."""
        header = batch.header
        if header.batch < self.last and not self._passed.has_all(header.batch, header.batch):
            self._find(Tampering.REORDERED, header.batch, f"it comes after batch {self.last}")
        self._check_links(header, batch.seal.digest)
        self._hashes.add(header.batch, batch.seal.digest)
        self._passed.add(header.batch, header.batch)
        self._start = self._start or header.batch
        if header.batch > self.last:
            self._newest = header
            self._events_after_newest = header.events_before + header.event_count
        if header.batch == 1 and header.former_agent_id:
            self.former = (header.former_agent_id, header.former_batch)

    def _account(self, batch: Batch) -> None:
        """Adds up what a sound batch has and lacks."""
        dropped = bool(batch.dropped) and not batch.events
        self.missing.add(batch.header, dropped)
        if dropped:
            return
        try:
            check_events(batch)
        except Malformed as error:
            self._find(Tampering.EVENTS_CHANGED, batch.header.batch, str(error))
        else:
            self.events += batch.header.event_count

    def _pass_over(self, batch: Batch, unsound: Unsound) -> None:
        """Tells an unsound batch, and that its number is not missing; nothing else of it counts."""
        number = batch.header.batch
        finding = self._find(unsound.tampering, number, str(unsound))
        self._passed.add(number, number)
        if not batch.seal.is_by(batch.header.public_key) and len(self._bad_signatures) < MAX_FINDINGS:
            self._bad_signatures.append((finding, batch.seal))

    def _find(self, tampering: Tampering, batch: int, detail: str) -> Finding:
        finding = Finding(tampering, batch, detail)
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        return finding

    # -- checks of one batch

    def _check_header(self, batch: Batch) -> None:
        """Whether the agent itself signed this header, with the key of its epoch."""
        header = batch.header
        if header.batch < 1 or header.epoch < 1:
            raise Unsound(Tampering.HEADER_CHANGED, "batches and epochs count from 1")
        if not batch.seal.is_by(header.public_key):
            raise Unsound(Tampering.HEADER_CHANGED, "the signature is not of header and key")
        behind_gap = not self._passed.has_all(self.last + 1, header.batch - 1)
        self._keys.check(header, header.batch > self.last, behind_gap)

    def _learn_keys(self, header: Header) -> None:
        if not self._keys.is_proven(header.epoch):
            self._unproven[header.batch] = header.epoch
        self._keys.learn(header)
        for epoch, key in [claim for claim in self._unproven_drops if claim[0] in header.keys]:
            batches = self._unproven_drops.pop((epoch, key))
            if self._keys.contradict(epoch, key):
                for number in batches:
                    self._find(Tampering.FORGED_DROP, number, f"epoch {epoch} has another key")

    def _check_sum(self, header: Header) -> None:
        """Whether `events_before` is the sum, or behind a gap no less; a fork has a sum of its own."""
        if header.batch < self.last or self._names_another(header):
            return
        difference = header.events_before - self._events_after_newest
        if difference < 0 or difference and header.batch == self.last + 1:
            detail = f"{header.events_before} events before it, and not {self._events_after_newest}"
            raise Unsound(Tampering.HEADER_CHANGED, detail)

    def _check_drop(self, batch: Batch) -> None:
        for dropped in batch.dropped:
            if dropped.epoch < batch.header.epoch:
                raise Unsound(Tampering.FORGED_DROP, "it is of an epoch before the batch")
            if not dropped.is_signed(batch.seal.digest):
                raise Unsound(Tampering.FORGED_DROP, "the signature is not of header, reason and key")
            if self._keys.contradict(dropped.epoch, dropped.public_key):
                raise Unsound(Tampering.FORGED_DROP, f"epoch {dropped.epoch} has another key")
            if dropped.epoch not in self._keys.known:
                self._unproven_drops[dropped.epoch, dropped.public_key].append(batch.header.batch)

    def _names_another(self, header: Header) -> bool:
        """Whether the header names another predecessor than the one that is here, if one is."""
        return self._hashes.get(header.batch - 1) not in (None, header.previous_hash)

    def _check_links(self, header: Header, digest: bytes) -> None:
        detail = "it names another predecessor than the one that is here"
        if self._names_another(header):
            self._find(Tampering.FORKED, header.batch, detail)
        elif self._hashes.get(header.batch - 1) is None:
            self._named[header.batch - 1] = header.previous_hash
        if self._named.pop(header.batch, digest) != digest:
            self._find(Tampering.FORKED, header.batch + 1, detail)

    # -- the end

    def close(self, time: int, named_last: int) -> None:
        """Settles what only the whole export tells: `time` in microseconds since the Unix epoch, and
        the last batch that a history which took the place of this one knows of."""
        self._find_resigned()
        self._find_deleted(max(self.last, named_last))
        self._find_silence(time)
        self.findings.sort(key=lambda finding: finding.batch)

    def _find_resigned(self) -> None:
        """Tells headers that another epoch's key has signed from those that were just changed."""
        tries = product(self._bad_signatures, self._keys.known.values())
        for (finding, seal), key in islice(tries, MAX_KEY_TRIES):
            if seal.is_by(key):
                finding.tampering = Tampering.RESIGNED
                finding.detail = "the signature is of another epoch's key"

    def _find_deleted(self, end: int) -> None:
        for first, last in self._passed.rest_of(self._start or 1, end):
            if not self.missing.gaps.has_all(first, last):
                self._find(Tampering.DELETED, first, f"missing up to {last}")
            elif not self._keys.is_proven(self._unproven.get(last + 1, 1)):
                self._find(Tampering.DELETED, first, f"missing up to {last}, and the proof of the next key")

    def _find_silence(self, time: int) -> None:
        newest = self._newest
        if newest and newest.next_within_ms:
            patience_ms = SILENCE_FACTOR * newest.next_within_ms + SILENCE_GRACE_MS
            if time - newest.sealed_time > patience_ms * 1000:
                self.silent_since = newest.sealed_time

    def reasons(self) -> Iterator[str]:
        """Why the history is incomplete."""
        yield from self.missing.reasons()
        if self.silent_since is not None:
            yield f"silent since {timestamp(self.silent_since)}"

    def lines(self) -> Iterator[str]:
        host = quoted(self._newest.host_id) if self._newest else "(no batch that it signed)"
        yield f"agent {quoted(self.agent_id)} of host {host}: {self.events} events, up to batch {self.last}"
        yield from (f"  batch {f.batch}: {f.tampering.value}: {f.detail}" for f in self.findings)
        if len(self.findings) == MAX_FINDINGS:
            yield "  what was found beyond these is not told"
        yield from (f"  {reason}" for reason in self.reasons())
        for epoch, _ in self._unproven_drops:
            yield f"  note: nothing proves the drops of epoch {epoch}, which the history does not reach"
        if self.former:
            yield f"  note: takes the place of {quoted(self.former[0])} after its batch {self.former[1]}"


# ---------------------------------------------------------------- the verdict on all of them


class Verdict(enum.IntEnum):
    """The values are the exit codes."""

    COMPLETE = 0
    INCOMPLETE = 1
    TAMPERED = 2


class Ledger:
    """All histories of an export, each batch given to its own."""

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._histories: dict[str, History] = {}
        # What nobody could read; whose it was is unknown.
        self.unreadable: list[str] = []

    def add(self, encoded: bytes, fork: bool = False) -> None:
        try:
            batch = decode(Batch, encoded)
            agent_id = batch.header.agent_id
        except Malformed as error:
            self.tell_unreadable(f"a batch: {error}")
            return
        if fork:
            if agent_id in self._histories:
                self._histories[agent_id].add_fork(batch)
            return
        if agent_id not in self._histories:
            self._histories[agent_id] = History(agent_id, self._whole)
        self._histories[agent_id].add(batch)

    def tell_unreadable(self, what: str) -> None:
        if len(self.unreadable) < MAX_FINDINGS:
            self.unreadable.append(what)

    def close(self, time: int) -> None:
        named: Counter[str] = Counter()
        for history in self._histories.values():
            # A part ends where it ends, also where another history goes on for it.
            if history.former and self._whole:
                agent_id, batch = history.former
                named[agent_id] = max(named[agent_id], batch)
        for history in self._histories.values():
            history.close(time, named[history.agent_id])

    @property
    def events(self) -> int:
        return sum(history.events for history in self._histories.values())

    def findings(self) -> list[Finding]:
        return [finding for history in self._histories.values() for finding in history.findings]

    def _reasons(self) -> list[str]:
        histories = self._histories.values()
        return [f"{history.agent_id}: {reason}" for history in histories for reason in history.reasons()]

    def verdict(self) -> Verdict:
        if self.unreadable or self.findings():
            return Verdict.TAMPERED
        return Verdict.INCOMPLETE if self._reasons() else Verdict.COMPLETE

    def lines(self) -> Iterator[str]:
        """The verdict in one line, then what it rests on."""
        match self.verdict():
            case Verdict.TAMPERED:
                kinds = Counter(finding.tampering.value for finding in self.findings())
                kinds["unreadable"] = len(self.unreadable)
                yield "TAMPERED: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
            case Verdict.INCOMPLETE:
                yield "incomplete: " + quoted("; ".join(self._reasons()))
            case Verdict.COMPLETE:
                yield f"complete, {self.events} events"
        yield from (f"unreadable: {quoted(reason)}" for reason in self.unreadable)
        for history in self._histories.values():
            yield from history.lines()


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


def read_json(path: Path, **kinds: type) -> list[Any]:
    """These members of a JSON object, if they are of these types."""
    try:
        content = json.loads(path.read_bytes())
        members = [content[name] for name in kinds]
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise Unusable(f"{path}: {error!r}") from None
    if [type(member) for member in members] != [*kinds.values()]:
        raise Unusable(f"{path}: {', '.join(kinds)} are not of their types")
    return members


def batch_files(folder: Path) -> Iterator[Path]:
    """The files of batches in order; also those that are not there although a later one is."""
    named = (re.fullmatch(r"batches-(\d{8,})", path.name) for path in folder.iterdir())
    for number in range(1, max((int(match[1]) for match in named if match), default=0) + 1):
        yield folder / f"batches-{number:08}"


def add_file(ledger: Ledger, path: Path, fork: bool = False) -> None:
    """Adds the batches of one file, one at a time; tells the part that cannot be read."""
    try:
        with path.open("rb") as file:
            while prefix := file.read(4):
                length = int.from_bytes(prefix, "little")
                encoded = file.read(length) if length <= MAX_BATCH_BYTES else b""
                if len(prefix) < 4 or len(encoded) < length:
                    raise Malformed("it ends within a batch, or one is longer than 16 MiB")
                ledger.add(encoded, fork)
    except (OSError, Malformed) as error:
        ledger.tell_unreadable(f"{path.name}: {error}")


def verify_export(folder: Path) -> int:
    time, whole, unreadable = read_json(folder / "export.json", time=int, whole=bool, unreadable=list)
    ledger = Ledger(whole)
    for reason in unreadable:
        ledger.tell_unreadable(f"by the collector: {reason}")
    for path in batch_files(folder):
        add_file(ledger, path)
    if (folder / "forks").exists():
        add_file(ledger, folder / "forks", fork=True)
    ledger.close(time)
    for line in ledger.lines():
        print(line)
    print(f"as of {timestamp(time)}{'' if whole else ', a part: histories may begin anywhere'}")
    return ledger.verdict()


# ---------------------------------------------------------------- test vectors

# What a value is of, the value, and what comes out here.
Compared = tuple[str, object, object]


def compare_root(vector: dict[str, Any]) -> Iterator[Compared]:
    _, root = merkle_tree(bytes.fromhex(event) for event in vector["events"])
    yield f"root of {len(vector['events'])} events", vector["root"], root.hex()


def compare_keys(vector: dict[str, Any]) -> Iterator[Compared]:
    seed = bytes.fromhex(vector["seed"])
    yield "agent_id", vector["agent_id"], agent_id_of(public_key_of(seed))
    for epoch, expected in enumerate(vector["epochs"], start=1):
        yield "epoch", expected["epoch"], epoch
        yield f"key of epoch {epoch}", expected["public_key"], public_key_of(seed).hex()
        seed = next_seed(seed)
        yield f"key after epoch {epoch}", expected["next_public_key"], public_key_of(seed).hex()


def compare_history(vector: dict[str, Any]) -> Iterator[Compared]:
    ledger = Ledger(whole=True)
    for encoded in vector["batches"]:
        ledger.add(bytes.fromhex(encoded))
    ledger.close(vector["time"])
    yield f"{vector['name']}: verdict", vector["verdict"], ledger.verdict().name.lower()
    yield f"{vector['name']}: events", vector["events"], ledger.events
    expected = sorted((finding["tampering"], finding["batch"]) for finding in vector["findings"])
    found = sorted((finding.tampering.value, finding.batch) for finding in ledger.findings())
    yield f"{vector['name']}: findings", expected, found


def verify_vectors(path: Path) -> int:
    parts = read_json(path, roots=list, keys=list, histories=list)
    compares = (compare_root, compare_keys, compare_history)
    try:
        values = [v for compare, part in zip(compares, parts) for vector in part for v in compare(vector)]
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"{path}: not as docs/ledger.md describes vectors: {error!r}") from None
    different = [value for value in values if value[1] != value[2]]
    for what, expected, found in different:
        print(f"{what}: expected {expected}, found {found}")
    print(f"{len(values) - len(different)} of {len(values)} values reproduced")
    return 1 if different or not values else 0


# ---------------------------------------------------------------- command line


def main() -> int:
    commands = {"export": verify_export, "vectors": verify_vectors}
    if len(sys.argv) != 3 or sys.argv[1] not in commands:
        print(__doc__, file=sys.stderr)
        return 3
    try:
        return commands[sys.argv[1]](Path(sys.argv[2]))
    except Unusable as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
