#!/usr/bin/env python3
"""Are these batches whole, and as the agents sealed them?

An independent check of hostaudit's sealed batches, written from docs/ledger.md and the messages in
proto/audit/v1 alone, so that nobody has to believe the collector's own `hostaudit verify`.

    verify.py export DIR     exit 0: complete, 1: incomplete, 2: TAMPERED, 3: it could not be found out
    verify.py vectors FILE   exit 0: every value is reproduced, 1: one is not, 3: FILE is no vectors

Two rules are behind every check. A header that its agent did not sign proves nothing: it is told
itself, and nothing that it says is used. And memory stays small: batches are read one by one, and of
each one only its number, the hash of its header and its place are kept.
"""

from __future__ import annotations

import enum
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any

from numbered import Ranges, Sound
from sealed_batch import Batch, Dropped, Header, Malformed, Seal, agent_id_of, check_events, decode
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
    """What was done to a batch, by its name in docs/ledger.md."""

    EVENTS_CHANGED = "events changed"
    HEADER_CHANGED = "header changed"
    RESIGNED = "re-signed"
    DELETED = "deleted"
    REORDERED = "reordered"
    REPLAYED = "replayed"
    FORKED = "forked"
    FORGED_DROP = "forged drop"
    UNREADABLE = "unreadable"


class Unsound(Exception):
    """A batch whose header is not the agent's own."""

    def __init__(self, tampering: Tampering, detail: str) -> None:
        super().__init__(detail)
        self.tampering = tampering


@dataclass
class Finding:
    """One tampering. `batch` is the number as its header says, of a deleted range the first, and 0 where
    nobody can tell."""

    tampering: Tampering
    batch: int
    detail: str


class Losses:
    """How many events are missing by class and place, and not by tampering; None where nobody knows."""

    def __init__(self) -> None:
        self._lost: dict[tuple[int, str], int | None] = {}
        # The spool's losses that the headers tell, which the dropped batches here mostly account for.
        self._told_of_spool: int | None = None
        self._is_spool_unknown = False
        self._dropped = 0

    def add(self, class_number: int, place: str, count: int | None) -> None:
        known = self._lost.get((class_number, place), 0)
        self._lost[class_number, place] = None if count is None or known is None else known + count

    def add_told(self, header: Header) -> None:
        for loss in header.losses:
            count = loss.count if loss.count is not None and loss.count >= 0 else None
            if loss.place == "spool":
                self._told_of_spool = (self._told_of_spool or 0) + (count or 0)
                self._is_spool_unknown |= count is None
            else:
                self.add(loss.class_number, loss.place, count)

    def add_dropped(self, header: Header) -> None:
        """All of a batch's events, by class as far as its header tells."""
        rest = header.event_count
        for counted in [*header.classes, None]:
            events = rest if counted is None else min(max(counted.events, 0), rest)
            if events > 0:
                self.add(counted.class_number if counted else 0, "spool", events)
                self._dropped += events
            rest -= events

    def close(self) -> None:
        if self._told_of_spool is None:
            return
        rest = self._told_of_spool - self._dropped
        if self._is_spool_unknown or rest > 0 or not self._dropped:
            self.add(0, "spool", None if self._is_spool_unknown else rest)

    def __iter__(self) -> Iterator[tuple[int, str, int | None]]:
        return ((*key, count) for key, count in sorted(self._lost.items()))

    def reasons(self) -> Iterator[str]:
        for class_number, place, count in self:
            number = "an unknown number of" if count is None else str(count)
            yield f"{number} {class_name(class_number)}events lost in {quoted(place)}"


def class_name(number: int) -> str:
    """A class of a later version has no name here, but its events count all the same."""
    return CLASS_NAMES.get(number, f"class {number}") + " " if number else ""


class Keys:
    """The public keys of one history by epoch."""

    def __init__(self, agent_id: str) -> None:
        self.known: dict[int, bytes] = {}
        self._agent_id = agent_id

    def check(self, header: Header, epochs: tuple[int, int] | None) -> None:
        """Whether the header's keys are those that the history lets follow: of one of these epochs, where
        something is known of them."""
        if header.batch == 1 and (header.epoch != 1 or header.previous_hash):
            raise Unsound(Tampering.RESIGNED, "batch 1 is not of epoch 1, or names a predecessor")
        if header.epoch == 1 and agent_id_of(header.public_key) != self._agent_id:
            raise Unsound(Tampering.RESIGNED, "the agent's id is of another first key")
        if any(self.contradict(epoch, key) for epoch, key in header.keys.items()):
            raise Unsound(Tampering.RESIGNED, f"epoch {header.epoch} or the next has another key")
        if epochs and not epochs[0] <= header.epoch <= epochs[1]:
            raise Unsound(Tampering.RESIGNED, f"epoch {header.epoch} is not one of {epochs[0]} to {epochs[1]}")

    def learn(self, header: Header) -> None:
        self.known |= header.keys

    def contradict(self, epoch: int, key: bytes) -> bool:
        return self.known.get(epoch, key) != key


# ---------------------------------------------------------------- the verdict on one history


class History:
    """Checks the batches of one agent, in the order in which they were stored."""

    def __init__(self, agent_id: str, whole: bool) -> None:
        self.agent_id = agent_id
        self.findings: list[Finding] = []
        self.losses = Losses()
        # What else keeps it from being complete.
        self.lacking: list[str] = []
        self.events = 0
        # Batches that were met, sound or not.
        self.batches = 0
        self.silent_since: int | None = None
        # Of batch 1: the history that it takes the place of, and that one's last batch.
        self.former: tuple[str, int] | None = None
        self._whole = whole
        self._keys = Keys(agent_id)
        self._sound = Sound()
        # Numbers that are not missing: of sound batches, and of those that were told as unsound.
        self._passed = Ranges()
        # Numbers that nobody has any more, as the agent says.
        self._gaps = Ranges()
        # The sound header with the greatest number.
        self._newest: Header | None = None
        self._events_after_newest = 0
        # What a batch says its predecessor is, where that was not here by then.
        self._named: dict[int, bytes] = {}
        # Statements of dropped events, by the epoch and key that signed them.
        self._drops: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
        # Kept until all keys are known: one of them may have made the signature.
        self._bad_signatures: list[tuple[Finding, Seal]] = []
        self._told_forks: set[bytes] = set()

    @property
    def last(self) -> int:
        return self._newest.batch if self._newest else 0

    def add(self, batch: Batch) -> None:
        """Takes the next stored batch."""
        header = batch.header
        try:
            self._check_header(batch)
            known = self._sound.get(header.batch)
            if known == batch.seal.digest:
                self._find(Tampering.REPLAYED, header.batch, "it is there twice")
            elif known:
                self._find(Tampering.FORKED, header.batch, "another header has this number")
            else:
                self._check_sum(header)
                self._enter(batch)
                self._account(batch)
        except Unsound as unsound:
            self._pass_over(batch, unsound)

    def add_fork(self, batch: Batch) -> None:
        """Takes a batch that was refused; only after all others, for anybody may send such things."""
        header, digest = batch.header, batch.seal.digest
        is_of_its_epoch = self._keys.known.get(header.epoch) == header.public_key
        is_known = self._sound.get(header.batch) == digest or digest in self._told_forks
        if is_of_its_epoch and not is_known and batch.seal.is_by(header.public_key):
            self._told_forks.add(digest)
            self._find(Tampering.FORKED, header.batch, "another one was refused")

    def _enter(self, batch: Batch) -> None:
        """Gives a sound batch its place in the chain."""
        header = batch.header
        number, digest = header.batch, batch.seal.digest
        if number < self.last and not self._passed.has_all(number, number):
            self._find(Tampering.REORDERED, number, f"it comes after batch {self.last}")
        self._check_links(header, digest)
        self._sound.add(number, digest, header.epoch, header.events_before, header.event_count)
        self._passed.add(number, number)
        self._keys.learn(header)
        self.batches += 1
        if number > self.last:
            self._newest = header
            self._events_after_newest = header.events_before + header.event_count
        if number == 1 and header.former_agent_id:
            self.former = (header.former_agent_id, header.former_batch)

    def _account(self, batch: Batch) -> None:
        """Adds up what a sound batch has and lacks."""
        header = batch.header
        self.losses.add_told(header)
        for gap in header.gaps:
            if 1 <= gap.first <= gap.last < header.batch:
                self._gaps.add(gap.first, gap.last)
        if batch.is_of_later_version and not self.lacking:
            self.lacking.append(f"batch {header.batch} is of a later version: who knows what it says")
        if batch.dropped:
            self._check_drop(batch, batch.dropped)
            self.losses.add_dropped(header)
            return
        try:
            check_events(batch)
        except Malformed as error:
            self._find(Tampering.EVENTS_CHANGED, header.batch, str(error))
        else:
            self.events += header.event_count

    def _pass_over(self, batch: Batch, unsound: Unsound) -> None:
        """Tells an unsound batch, and that its number is not missing; nothing else of it counts."""
        number = batch.header.batch
        finding = self._find(unsound.tampering, number, str(unsound))
        self._passed.add(number, number)
        self.batches += 1
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
        if min(header.batch, header.epoch) < 1 or min(header.event_count, header.events_before) < 0:
            raise Unsound(Tampering.HEADER_CHANGED, "batches and epochs count from 1, events from 0")
        if not batch.seal.is_by(header.public_key):
            raise Unsound(Tampering.HEADER_CHANGED, "the signature is not of header and key")
        self._keys.check(header, self._epochs_at(header.batch))

    def _epochs_at(self, number: int) -> tuple[int, int] | None:
        """The epochs that a batch of this number can be of, if any is known: each batch may begin one."""
        if self._newest is None:
            return None
        if number > self.last:
            return self._newest.epoch, self._newest.epoch + number - self.last
        # A number that is there comes again, or is another one's.
        return None if self._sound.get(number) else self._sound.epochs_around(number)

    def _check_sum(self, header: Header) -> None:
        """Whether `events_before` is the sum, or behind a gap no less; a fork has a sum of its own."""
        if header.batch < self.last or self._names_another(header):
            return
        difference = header.events_before - self._events_after_newest
        if difference < 0 or difference and header.batch == self.last + 1:
            detail = f"{header.events_before} events before it, and not {self._events_after_newest}"
            raise Unsound(Tampering.HEADER_CHANGED, detail)

    def _check_drop(self, batch: Batch, dropped: Dropped) -> None:
        number = batch.header.batch
        if batch.events:
            self._find(Tampering.EVENTS_CHANGED, number, "they are here, and were dropped")
        if dropped.epoch < batch.header.epoch:
            self._find(Tampering.FORGED_DROP, number, "it is of an epoch before the batch")
        elif not dropped.is_signed(batch.seal.digest):
            self._find(Tampering.FORGED_DROP, number, "the signature is not of header, reason and key")
        else:
            self._drops[dropped.epoch, dropped.public_key].append(number)

    def _names_another(self, header: Header) -> bool:
        """Whether the header names another predecessor than the one that is here, if one is."""
        return self._sound.get(header.batch - 1) not in (None, header.previous_hash)

    def _check_links(self, header: Header, digest: bytes) -> None:
        detail = "it names another predecessor than the one that is here"
        if self._names_another(header):
            self._find(Tampering.FORKED, header.batch, detail)
        elif self._sound.get(header.batch - 1) is None:
            self._named[header.batch - 1] = header.previous_hash
        if self._named.pop(header.batch, digest) != digest:
            self._find(Tampering.FORKED, header.batch + 1, detail)

    # -- the end

    def close(self, time: int, former_last: int) -> None:
        """Settles what only the whole export tells: `time` in microseconds since the Unix epoch, and the
        last batch that is here of the history whose place this one takes."""
        self._find_resigned()
        self._find_missing()
        self._find_forged_drops()
        self.losses.close()
        self._find_silence(time)
        if self._whole and self.former and former_last < self.former[1]:
            agent_id, batch = self.former
            detail = f"batches {former_last + 1} to {batch} of agent {quoted(agent_id)}"
            self.lacking.append(f"it takes the place of what is not here: {detail}")
        self.findings.sort(key=lambda finding: (finding.batch, finding.tampering.value))

    def _find_resigned(self) -> None:
        """Tells headers that another epoch's key has signed from those that were just changed."""
        tries = product(self._bad_signatures, self._keys.known.values())
        for (finding, seal), key in islice(tries, MAX_KEY_TRIES):
            if seal.is_by(key):
                finding.tampering = Tampering.RESIGNED
                finding.detail = "the signature is of another epoch's key"

    def _find_missing(self) -> None:
        begin = 1 if self._whole else self._sound.first
        if begin > 1 and self._gaps.has_all(begin - 1, begin - 1):
            # What is before a part is elsewhere, unless nobody has it.
            self.losses.add(0, "collector", None)
        for first, last in self._passed.rest_of(begin, self.last):
            is_beginning = first < self._sound.first
            behind = self._sound.epoch(last + 1)
            before = self._sound.epoch_before(first)
            is_proven = behind is None or behind <= before + 1
            if not self._gaps.has_all(first, last):
                self._find(Tampering.DELETED, first, f"missing up to {last}")
            elif is_proven or is_beginning:
                self.losses.add(0, "collector", self._sound.events_between(first, last))
                if not is_proven:
                    self.lacking.append(f"nothing proves that the key of batch {last + 1} is the agent's")
            else:
                detail = f"missing up to {last}, and the proof of the next key"
                self._find(Tampering.DELETED, first, detail)

    def _find_forged_drops(self) -> None:
        for (epoch, key), batches in self._drops.items():
            for number in batches if self._keys.contradict(epoch, key) else []:
                self._find(Tampering.FORGED_DROP, number, f"epoch {epoch} has another key")

    def _find_silence(self, time: int) -> None:
        """A clock that is far ahead, or a time of before the record's end, tells as little as silence."""
        newest = self._newest
        if newest and newest.next_within_ms:
            patience_ms = SILENCE_FACTOR * max(newest.next_within_ms, 0) + SILENCE_GRACE_MS
            if abs(time - newest.sealed_time) > patience_ms * 1000:
                self.silent_since = newest.sealed_time

    def reasons(self) -> Iterator[str]:
        """Why the history is incomplete."""
        yield from self.losses.reasons()
        yield from self.lacking
        if self.silent_since is not None:
            yield f"silent since {timestamp(self.silent_since)}"

    def lines(self) -> Iterator[str]:
        host = quoted(self._newest.host_id) if self._newest else "(no batch that it signed)"
        yield f"agent {quoted(self.agent_id)} of host {host}: {self.events} events, up to batch {self.last}"
        yield from (f"  batch {f.batch}: {f.tampering.value}: {f.detail}" for f in self.findings)
        if len(self.findings) == MAX_FINDINGS:
            yield "  what was found beyond these is not told"
        yield from (f"  {reason}" for reason in self.reasons())
        for epoch in sorted({epoch for epoch, _ in self._drops} - self._keys.known.keys()):
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
        for history in self._histories.values():
            former = self._histories.get(history.former[0]) if history.former else None
            history.close(time, former.last if former else 0)
        self._histories = dict(sorted(self._histories.items()))

    @property
    def events(self) -> int:
        return sum(history.events for history in self._histories.values())

    @property
    def is_empty(self) -> bool:
        return not self.unreadable and not any(history.batches for history in self._histories.values())

    def findings(self) -> list[Finding]:
        """What nobody could read, then those of each history."""
        of_store = [Finding(Tampering.UNREADABLE, 0, reason) for reason in self.unreadable]
        return of_store + [finding for history in self._histories.values() for finding in history.findings]

    def losses(self) -> list[tuple[int, str, int | None]]:
        return [loss for history in self._histories.values() for loss in history.losses]

    def _reasons(self) -> list[str]:
        if self.is_empty:
            return ["there is no batch"]
        histories = self._histories.values()
        return [f"{history.agent_id}: {reason}" for history in histories for reason in history.reasons()]

    def verdict(self) -> Verdict:
        if self.findings():
            return Verdict.TAMPERED
        return Verdict.INCOMPLETE if self._reasons() else Verdict.COMPLETE

    def lines(self) -> Iterator[str]:
        """The verdict in one line, then what it rests on."""
        match self.verdict():
            case Verdict.TAMPERED:
                kinds = Counter(finding.tampering.value for finding in self.findings())
                yield "TAMPERED: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
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


def no_twins(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two members of one name counts, two readers may see differently."""
    if len(dict(members)) < len(members):
        raise ValueError("a member is there twice")
    return dict(members)


def read_json(path: Path, **kinds: type) -> list[Any]:
    """These members of a JSON object, if they are of these types."""
    try:
        content = json.loads(path.read_bytes().decode(), object_pairs_hook=no_twins)
        members = [content[name] for name in kinds]
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise Unusable(f"{path}: {error!r}") from None
    if [type(member) for member in members] != [*kinds.values()]:
        raise Unusable(f"{path}: {', '.join(kinds)} are not of their types")
    return members


def batch_file(number: int) -> str:
    return f"batches-{number:08}"


def batch_files(folder: Path, ledger: Ledger) -> Iterator[Path]:
    """The files of batches in order; tells those that are not there although a later one is."""
    named = [re.fullmatch(r"batches-([0-9]{8,19})", path.name) for path in folder.iterdir()]
    numbers = sorted(int(match[1]) for match in named if match)
    numbers = [number for number in numbers if number and (folder / batch_file(number)).exists()]
    for before, number in pairwise([0, *numbers]):
        if number > before + 1:
            ledger.tell_unreadable(f"{batch_file(before + 1)} to {batch_file(number - 1)}: not there")
        yield folder / batch_file(number)


def add_file(ledger: Ledger, path: Path, fork: bool = False) -> None:
    """Adds the batches of one file, one at a time; tells the part that cannot be read."""
    try:
        with path.open("rb") as file:
            while prefix := file.read(4):
                length = int.from_bytes(prefix, "little")
                if len(prefix) < 4 or length > MAX_BATCH_BYTES:
                    raise Malformed("it ends within a length, or a batch is longer than 16 MiB")
                encoded = file.read(length)
                if len(encoded) < length:
                    raise Malformed("it ends within a batch")
                ledger.add(encoded, fork)
    except (OSError, Malformed) as error:
        ledger.tell_unreadable(f"{path.name}: {error}")


def read_export(folder: Path) -> tuple[Ledger, int, bool]:
    time, whole, unreadable = read_json(folder / "export.json", time=int, whole=bool, unreadable=list)
    if not all(isinstance(reason, str) for reason in unreadable) or not -(1 << 63) <= time < 1 << 63:
        raise Unusable(f"{folder}: export.json has a time or a reason that is none")
    ledger = Ledger(whole)
    for reason in unreadable:
        ledger.tell_unreadable(f"by the collector: {reason}")
    for path in batch_files(folder, ledger):
        add_file(ledger, path)
    add_file(ledger, folder / "forks", fork=True)
    ledger.close(time)
    if ledger.is_empty:
        raise Unusable(f"{folder}: there is no batch to check")
    return ledger, time, whole


def verify_export(folder: Path) -> int:
    ledger, time, whole = read_export(folder)
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


def compare_ledger(vector: dict[str, Any], ledger: Ledger) -> Iterator[Compared]:
    yield f"{vector['name']}: events", vector["events"], ledger.events
    expected = [(finding["tampering"], finding["batch"]) for finding in vector["findings"]]
    found = [(finding.tampering.value, finding.batch) for finding in ledger.findings()]
    yield f"{vector['name']}: findings", expected, found
    lost = [(loss["class"], loss["place"], loss["count"]) for loss in vector["losses"]]
    yield f"{vector['name']}: losses", lost, ledger.losses()


def compare_history(vector: dict[str, Any], contents: list[bytes]) -> Iterator[Compared]:
    ledger = Ledger(vector["whole"])
    for place in vector["batches"]:
        ledger.add(contents[place])
    for place in vector["forks"]:
        ledger.add(contents[place], fork=True)
    ledger.close(vector["time"])
    yield f"{vector['name']}: verdict", vector["verdict"], ledger.verdict().name.lower()
    yield from compare_ledger(vector, ledger)


def compare_export(vector: dict[str, Any], contents: list[bytes]) -> Iterator[Compared]:
    with tempfile.TemporaryDirectory() as folder:
        for name, place in vector["files"].items():
            (Path(folder) / name).write_bytes(contents[place])
        try:
            ledger, _, _ = read_export(Path(folder))
        except Unusable:
            ledger = None
    yield f"{vector['name']}: exit status", vector["status"], ledger.verdict() if ledger else 3
    if ledger:
        yield from compare_ledger(vector, ledger)


def verify_vectors(path: Path) -> int:
    roots, keys, contents, histories, exports = read_json(
        path, roots=list, keys=list, contents=list, histories=list, exports=list)
    try:
        contents = [bytes.fromhex(content) for content in contents]
        values = [v for vector in roots for v in compare_root(vector)]
        values += [v for vector in keys for v in compare_keys(vector)]
        values += [v for vector in histories for v in compare_history(vector, contents)]
        values += [v for vector in exports for v in compare_export(vector, contents)]
    except (IndexError, KeyError, TypeError, ValueError) as error:
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
    except Exception as error:  # Python's own exit status for it is 1, which is a verdict here.
        print(f"verify.py: {error!r}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
