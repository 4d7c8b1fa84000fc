//! Every rule of docs/ledger.md about batches, with a record that it is about, and what it makes of that.

use audit_ledger::{Former, Frames, Key, Origin, Sealer, Summary, Verdict};
use audit_proto::{
    Message as _,
    v1::{Batch, Dropped, Lost},
};

use crate::record::{
    BEGAN, COUNT, FOREIGN, SECOND, changed, copy_of, events, history, history_of, public, range,
    resigned, rewritten, seed_of, signed, summary, telling,
};

use Verdict::{Complete, Incomplete, Tampered};

/// Batches as they are stored, and what is to be said of them.
pub struct Case {
    pub name: &'static str,
    /// Encoded, if they are batches.
    pub batches: Vec<Vec<u8>>,
    pub forks: Vec<Vec<u8>>,
    pub time: i64,
    pub whole: bool,
    pub verdict: Verdict,
    pub findings: Vec<(&'static str, i64)>,
}

fn case(name: &'static str, verdict: Verdict, batches: Vec<Batch>) -> Case {
    Case {
        name,
        batches: batches.iter().map(Batch::encode_to_vec).collect(),
        forks: Vec::new(),
        time: BEGAN + (COUNT + 1) * SECOND,
        whole: true,
        verdict,
        findings: Vec::new(),
    }
}

fn tampered(name: &'static str, findings: &[(&'static str, i64)], batches: Vec<Batch>) -> Case {
    Case {
        findings: findings.to_vec(),
        ..case(name, Tampered, batches)
    }
}

impl Case {
    fn beside(mut self, forks: &[Batch]) -> Self {
        self.forks = forks.iter().map(Batch::encode_to_vec).collect();
        self
    }

    /// So many seconds after the history's begin.
    fn at(mut self, seconds: i64) -> Self {
        self.time = BEGAN + seconds * SECOND;
        self
    }

    fn of_part(mut self) -> Self {
        self.whole = false;
        self
    }
}

pub fn all() -> Vec<Case> {
    let groups = [
        batches(),
        unreadable(),
        unsound(),
        numbers(),
        order(),
        two_ends(),
        keys(),
        next_keys(),
        gaps(),
        beginnings(),
        formers(),
        losses(),
        drops(),
        statements(),
        silence(),
        frames(),
        versions(),
        forks(),
    ];
    groups.into_iter().flatten().collect()
}

/// The last byte of a text in the header, which leaves the header readable.
fn other_host(batch: &mut Batch) {
    *batch = rewritten(batch, |header| header.host_id.replace_range(9..10, "b"));
}

fn other() -> Sealer {
    Sealer::begin(Key::new(1, FOREIGN), Origin::default(), None)
}

fn batches() -> Vec<Case> {
    vec![
        case("whole", Complete, history().0),
        case("nothing at all", Incomplete, Vec::new()),
        tampered(
            "changed events",
            &[("events changed", 7)],
            changed(|b, _| b[6].events = b[7].events.clone()),
        ),
        tampered(
            "changed header",
            &[("header changed", 5)],
            changed(|b, _| other_host(&mut b[4])),
        ),
        tampered(
            "signature of another batch",
            &[("header changed", 5)],
            changed(|b, _| b[4].signature = b[5].signature.clone()),
        ),
        tampered(
            "deleted in the middle",
            &[("deleted", 4)],
            changed(|b, _| drop(b.drain(3..9))),
        ),
        tampered(
            "deleted at the beginning",
            &[("deleted", 1)],
            changed(|b, _| drop(b.drain(..2))),
        ),
        case(
            "the same events in two batches, each sealed",
            Complete,
            changed(|b, sealer| b.push(sealer.seal(&events(12), summary(13)))),
        ),
    ]
}

fn unreadable() -> Vec<Case> {
    let with_header = |header: &'static [u8]| {
        changed(|b, _| {
            b[5].header = header.into();
        })
    };
    let mut no_batch = tampered(
        "no batch",
        &[("unreadable", 0), ("deleted", 6)],
        history().0,
    );
    no_batch.batches[5] = b"\xff\xff".to_vec();
    let mut wrong_type = tampered(
        "a batch with a field of another type",
        &[("unreadable", 0), ("deleted", 6)],
        history().0,
    );
    wrong_type.batches[5].extend(b"\x11\0\0\0\0\0\0\0\0");
    vec![
        no_batch,
        wrong_type,
        tampered(
            "no header",
            &[("unreadable", 0), ("deleted", 6)],
            with_header(b""),
        ),
        tampered(
            "a header that cannot be decoded",
            &[("unreadable", 0), ("deleted", 6)],
            with_header(b"\xff"),
        ),
        tampered(
            "a header with a text that is not UTF-8",
            &[("unreadable", 0), ("deleted", 6)],
            changed(|b, _| {
                let mut header = b[5].header.to_vec();
                let at = header.windows(8).position(|window| window == b"0badcafe");
                header[at.expect("the run")] = 0xff;
                b[5].header = header.into();
            }),
        ),
        tampered(
            "a header that cannot be decoded, of the last batch",
            &[("unreadable", 0)],
            changed(|b, _| b[11].header = b"\xff"[..].into()),
        ),
    ]
}

fn unsound() -> Vec<Case> {
    // One epoch for each batch.
    let quick = || history_of(6, 1).0;
    let mut behind_two = quick();
    other_host(&mut behind_two[2]);
    other_host(&mut behind_two[3]);
    vec![
        tampered(
            "changed header of batch 1",
            &[("header changed", 1)],
            changed(|b, _| other_host(&mut b[0])),
        ),
        tampered(
            "changed headers that had named the next keys",
            &[("header changed", 3), ("header changed", 4)],
            behind_two,
        ),
        tampered(
            "changed predecessor in a header",
            &[("header changed", 5)],
            changed(|b, _| b[4] = rewritten(&b[4], |header| header.previous_hash[0] ^= 1)),
        ),
        tampered(
            "changed number in a header",
            &[("deleted", 5), ("header changed", 5000)],
            changed(|b, _| b[4] = rewritten(&b[4], |header| header.batch = 5000)),
        ),
        tampered(
            "a header that nobody signed, beside the true one",
            &[("header changed", 5)],
            changed(|b, _| {
                let mut copy = b[4].clone();
                other_host(&mut copy);
                b.insert(5, copy);
            }),
        ),
        tampered(
            "a header that nobody signed, late, where the true one is deleted",
            &[("header changed", 5)],
            changed(|b, _| {
                let mut late = b.remove(4);
                other_host(&mut late);
                b.push(late);
            }),
        ),
        tampered(
            "deleted beside a changed header",
            &[("deleted", 4), ("header changed", 5), ("deleted", 6)],
            changed(|b, _| {
                other_host(&mut b[4]);
                b.remove(5);
                b.remove(3);
            }),
        ),
        tampered(
            "a header that names another agent",
            &[("header changed", 5), ("deleted", 5)],
            changed(|b, _| {
                b[4] = rewritten(&b[4], |header| header.agent_id = "0".repeat(32));
            }),
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let last = |change: &dyn Fn(&mut audit_proto::v1::BatchHeader)| {
        changed(|b, _| b[11] = resigned(&b[11], seed_of(3), change))
    };
    let first = |change: &dyn Fn(&mut audit_proto::v1::BatchHeader)| {
        changed(|b, _| {
            b.truncate(1);
            b[0] = resigned(&b[0], seed_of(1), change);
        })
    };
    vec![
        tampered(
            "a batch below 1",
            &[("header changed", 0)],
            last(&|header| header.batch = 0),
        ),
        tampered(
            "an epoch below 1",
            &[("header changed", 12)],
            last(&|header| header.epoch = i64::MIN),
        ),
        tampered(
            "fewer events than none",
            &[("header changed", 12)],
            last(&|header| header.event_count = -1),
        ),
        tampered(
            "events before it that are not there",
            &[("header changed", 12)],
            last(&|header| header.events_before += 1),
        ),
        tampered(
            "events before batch 1",
            &[("header changed", 1)],
            first(&|header| header.events_before = 1),
        ),
        tampered(
            "a batch before batch 1",
            &[("re-signed", 1)],
            first(&|header| header.previous_hash = vec![1; 32]),
        ),
        tampered(
            "batch 1 of epoch 2",
            &[("re-signed", 1)],
            first(&|header| header.epoch = 2),
        ),
        tampered(
            "the greatest numbers",
            &[("deleted", 13)],
            changed(|b, _| {
                let mut copy = resigned(&b[11], seed_of(3), |header| {
                    header.batch = i64::MAX;
                    header.events_before = i64::MAX;
                    header.next_within_ms = i64::MAX;
                });
                std::mem::swap(&mut b[11], &mut copy);
                b.insert(11, copy);
            }),
        ),
    ]
}

fn order() -> Vec<Case> {
    let twice_dropped = changed(|b, sealer| {
        let dropped = sealer.drop_events(&b[4], "the spool was full");
        b[4] = dropped.clone();
        b.insert(9, dropped);
    });
    vec![
        tampered(
            "reordered",
            &[("reordered", 6)],
            changed(|b, _| b.swap(5, 6)),
        ),
        tampered(
            "reordered, and told in the order of their numbers",
            &[("reordered", 3), ("reordered", 6)],
            changed(|b, _| {
                b.swap(5, 6);
                let moved = b.remove(2);
                b.push(moved);
            }),
        ),
        tampered(
            "reordered batch 1",
            &[("reordered", 1)],
            changed(|b, _| b.swap(0, 1)),
        ),
        tampered(
            "replayed",
            &[("replayed", 5)],
            changed(|b, _| b.insert(9, b[4].clone())),
        ),
        tampered(
            "replayed with its events and without",
            &[("replayed", 5)],
            changed(|b, sealer| {
                let dropped = sealer.drop_events(&b[4], "the spool was full");
                b.insert(5, dropped);
            }),
        ),
        tampered(
            "replayed without its events",
            &[("replayed", 5)],
            twice_dropped,
        ),
    ]
}

fn two_ends() -> Vec<Case> {
    let second = |number: usize| {
        let (batches, _) = history();
        let mut copy = copy_of(&batches[..number - 1], seed_of(3));
        copy.seal(&events(99), summary(number as i64))
    };
    let both = || {
        let (batches, _) = history();
        let mut copy = copy_of(&batches[..11], seed_of(3));
        let other = [100, 101].map(|at| copy.seal(&events(at), summary(at - 88)));
        (batches, other)
    };
    vec![
        tampered(
            "another batch of the same number",
            &[("forked", 12)],
            changed(|b, _| b.push(second(12))),
        ),
        tampered(
            "another predecessor than the one here",
            &[("forked", 13)],
            {
                let (mut batches, other) = both();
                batches.push(other[1].clone());
                batches
            },
        ),
        tampered(
            "late, and not the one that the next names",
            &[("reordered", 11), ("forked", 12)],
            changed(|b, _| {
                b.remove(10);
                b.push(second(11));
            }),
        ),
    ]
}

fn keys() -> Vec<Case> {
    let stolen = seed_of(4);
    vec![
        tampered(
            "signed again with the key of a later epoch",
            &[("re-signed", 3)],
            changed(|b, _| {
                b[2] = resigned(&b[2], stolen, |header| header.host_id.clear());
            }),
        ),
        tampered(
            "signed again with a key that the header names itself",
            &[("re-signed", 3)],
            changed(|b, _| {
                b[2] = resigned(&b[2], stolen, |header| header.public_key = public(stolen));
            }),
        ),
        tampered(
            "deleted, and then made late with the key of a later epoch",
            &[("re-signed", 3)],
            changed(|b, _| {
                let deleted = b.remove(2);
                let late = resigned(&deleted, seed_of(3), |header| {
                    header.epoch = 3;
                    header.public_key = public(seed_of(3));
                    header.next_public_key = public(seed_of(4));
                });
                b.push(late);
            }),
        ),
        tampered(
            "batch 1 of an agent by the key of another",
            &[("re-signed", 1)],
            changed(|b, _| {
                b.truncate(1);
                b[0] = resigned(&b[0], FOREIGN, |header| {
                    header.public_key = public(FOREIGN);
                });
            }),
        ),
    ]
}

fn next_keys() -> Vec<Case> {
    vec![
        tampered(
            "an epoch that begins with a key that nobody named",
            &[("re-signed", 12)],
            changed(|b, _| {
                b[11] = resigned(&b[11], FOREIGN, |header| {
                    header.epoch = 4;
                    header.public_key = public(FOREIGN);
                });
            }),
        ),
        tampered(
            "another next key within an epoch",
            &[("re-signed", 12)],
            changed(|b, _| {
                b[11] = resigned(&b[11], seed_of(3), |header| {
                    header.next_public_key = public(FOREIGN);
                });
            }),
        ),
        tampered(
            "more epochs than there can be batches between",
            &[("header changed", 5), ("re-signed", 6)],
            changed(|b, _| {
                b.truncate(6);
                other_host(&mut b[4]);
                b[5] = resigned(&b[5], FOREIGN, |header| {
                    header.epoch = 4;
                    header.public_key = public(FOREIGN);
                });
            }),
        ),
    ]
}

fn gaps() -> Vec<Case> {
    let lost = |from: usize, to: usize, told: &'static [&'static [(i64, i64)]]| {
        changed(move |b, sealer| {
            drop(b.drain(from..to));
            for (at, gaps) in (COUNT + 1..).zip(told) {
                let gaps = gaps.iter().map(|(first, last)| range(*first, *last));
                b.push(sealer.seal(&events(at), telling(at, gaps.collect())));
            }
        })
    };
    vec![
        case(
            "lost by the collector, as the agent says",
            Incomplete,
            lost(3, 7, &[&[(4, 7)]]),
        ),
        case(
            "lost by the collector, as the agent says bit by bit",
            Incomplete,
            lost(3, 7, &[&[(6, 7)], &[(4, 4), (5, 5)]]),
        ),
        tampered(
            "lost by the collector, and the agent says it of some",
            &[("deleted", 4)],
            lost(3, 7, &[&[(4, 6)]]),
        ),
        tampered(
            "lost by the collector, and the proof of the next key with it",
            &[("deleted", 4)],
            lost(3, 10, &[&[(4, 10)]]),
        ),
        case("told as lost, and here", Complete, lost(0, 0, &[&[(4, 7)]])),
        tampered(
            "told as lost before it was sealed",
            &[("deleted", 4)],
            lost(3, 7, &[&[(1, i64::MAX)]]),
        ),
        tampered(
            "told as lost by a header that is not sound",
            &[("deleted", 4), ("header changed", 13)],
            changed(|b, sealer| {
                drop(b.drain(3..7));
                let mut told = sealer.seal(&events(13), telling(13, vec![range(4, 7)]));
                other_host(&mut told);
                b.push(told);
            }),
        ),
        tampered(
            "told as lost, and one of them is late",
            &[("reordered", 5)],
            changed(|b, sealer| {
                let late = b[4].clone();
                drop(b.drain(3..7));
                b.push(sealer.seal(&events(13), telling(13, vec![range(4, 7)])));
                b.push(late);
            }),
        ),
    ]
}

fn beginnings() -> Vec<Case> {
    let from = |first: usize, gaps: &'static [(i64, i64)]| {
        changed(move |b, sealer| {
            drop(b.drain(..first - 1));
            let gaps = gaps.iter().map(|(first, last)| range(*first, *last));
            b.push(sealer.seal(&events(13), telling(13, gaps.collect())));
        })
    };
    vec![
        case(
            "goes on at a second collector",
            Incomplete,
            from(6, &[(1, 5)]),
        ),
        case(
            "goes on at a second collector, in epoch 1",
            Incomplete,
            from(3, &[(1, 2)]),
        ),
        tampered(
            "begins with an epoch 1 that is not the agent's",
            &[("deleted", 1), ("re-signed", 3)],
            {
                let batches = history().0;
                let foreign = resigned(&batches[2], FOREIGN, |header| {
                    header.public_key = public(FOREIGN);
                });
                vec![foreign, batches[3].clone()]
            },
        ),
        case("a part", Complete, from(6, &[])).of_part(),
        case(
            "a part that begins behind batches that nobody has",
            Incomplete,
            from(6, &[(4, 5)]),
        )
        .of_part(),
        case(
            "a part, long after batches that nobody has",
            Complete,
            from(6, &[(2, 3)]),
        )
        .of_part(),
        tampered("a part with a hole", &[("deleted", 8)], {
            let mut batches = from(6, &[]);
            batches.remove(2);
            batches
        })
        .of_part(),
        tampered(
            "a part with an earlier batch that is late",
            &[("reordered", 3), ("deleted", 4)],
            {
                let mut batches = from(6, &[]);
                batches.push(history().0.remove(2));
                batches
            },
        )
        .of_part(),
    ]
}

fn formers() -> Vec<Case> {
    let with = |kept: usize, batch: i64| {
        let (mut batches, sealer) = history();
        batches.truncate(kept);
        let former = Former {
            agent_id: sealer.agent_id().to_owned(),
            batch,
        };
        let mut next = Sealer::begin(Key::new(1, [8; 32]), Origin::default(), Some(former));
        batches.push(next.seal(&events(1), summary(COUNT)));
        batches
    };
    vec![
        case("takes the place of another", Complete, with(12, COUNT)),
        case(
            "takes the place of another, of which it knew more",
            Incomplete,
            with(12, COUNT + 2),
        ),
        case(
            "takes the place of another, of which nothing is here",
            Incomplete,
            with(0, COUNT),
        ),
        case(
            "takes the place of another, of which it knew nothing",
            Complete,
            with(0, 0),
        ),
        case(
            "a part that takes the place of another",
            Complete,
            with(0, COUNT),
        )
        .of_part(),
    ]
}

fn lost(place: &str, class: i32, count: Option<i64>) -> Lost {
    Lost {
        class,
        cpu: Some(1),
        count,
        place: place.to_owned(),
        ..Lost::default()
    }
}

fn losing(losses: Vec<Lost>) -> Vec<Batch> {
    changed(|b, sealer| {
        let summary = Summary {
            losses,
            ..summary(13)
        };
        b.push(sealer.seal(&events(13), summary));
    })
}

fn losses() -> Vec<Case> {
    let dropping = |losses: Vec<Lost>| {
        changed(|b, sealer| {
            b[5] = sealer.drop_events(&b[5], "the spool was full");
            let summary = Summary {
                losses,
                ..summary(13)
            };
            b.push(sealer.seal(&events(13), summary));
        })
    };
    vec![
        case(
            "lost events",
            Incomplete,
            losing(vec![lost("ring", 3, Some(5))]),
        ),
        case(
            "lost events of a class that is not known yet, and of none",
            Incomplete,
            losing(vec![lost("ring", 99, Some(5)), lost("", 0, Some(2))]),
        ),
        case(
            "lost events, nobody knows how many",
            Incomplete,
            losing(vec![lost("ring", 3, Some(5)), lost("ring", 3, None)]),
        ),
        case(
            "lost events, none or fewer",
            Incomplete,
            losing(vec![lost("ring", 3, Some(0)), lost("hook", 3, Some(-5))]),
        ),
        case(
            "lost by the spool, and no batch is dropped",
            Incomplete,
            losing(vec![lost("spool", 0, None)]),
        ),
        case(
            "lost by the spool, as the dropped batches tell",
            Incomplete,
            dropping(vec![lost("spool", 3, Some(2))]),
        ),
        case(
            "lost by the spool, more than the dropped batches tell",
            Incomplete,
            dropping(vec![lost("spool", 0, Some(7))]),
        ),
        case(
            "lost by the spool, of which nobody knows how much, beside dropped batches",
            Incomplete,
            dropping(vec![lost("spool", 0, None)]),
        ),
    ]
}

fn drops() -> Vec<Case> {
    let heartbeat = |drop: bool| {
        changed(|b, sealer| {
            let summary = Summary {
                classes: Vec::new(),
                ..summary(13)
            };
            let batch = sealer.seal(&Frames::default(), summary);
            b.push(match drop {
                true => sealer.drop_events(&batch, "the spool was full"),
                false => batch,
            });
        })
    };
    let counted = |classes: &'static [(i32, i64)]| {
        changed(|b, sealer| {
            let classes = classes.iter();
            let classes = classes.map(|(class, events)| audit_proto::v1::ClassCount {
                class: *class,
                events: *events,
            });
            let summary = Summary {
                classes: classes.collect(),
                ..summary(13)
            };
            let batch = sealer.seal(&events(13), summary);
            b.push(sealer.drop_events(&batch, "the spool was full"));
        })
    };
    vec![
        case(
            "dropped by the agent",
            Incomplete,
            changed(|b, sealer| {
                b[5] = sealer.drop_events(&b[5], "the spool was full");
            }),
        ),
        case("a batch of no events", Complete, heartbeat(false)),
        case("dropped, and had no events", Complete, heartbeat(true)),
        case("dropped without classes", Incomplete, counted(&[])),
        case(
            "dropped with more classes than events",
            Incomplete,
            counted(&[(3, 1), (2, 5), (1, 1)]),
        ),
        tampered(
            "dropped, and here",
            &[("events changed", 6)],
            changed(|b, sealer| {
                let events = b[5].events.clone();
                b[5] = sealer.drop_events(&b[5], "the spool was full");
                b[5].events = events;
            }),
        ),
        tampered(
            "taken away, and nobody says that they were dropped",
            &[("events changed", 6)],
            changed(|b, _| b[5].events = Default::default()),
        ),
    ]
}

fn statements() -> Vec<Case> {
    let dropped = |epoch: i64, seed: [u8; 32]| {
        changed(|b, _| {
            let key = Sealer::begin(Key::new(epoch, seed), Origin::default(), None);
            b[7] = key.drop_events(&b[7], "the spool was full");
        })
    };
    vec![
        tampered(
            "dropped by somebody else",
            &[("forged drop", 8)],
            dropped(1, FOREIGN),
        ),
        tampered(
            "dropped by somebody else, as if later",
            &[("forged drop", 8)],
            dropped(3, FOREIGN),
        ),
        case(
            "dropped with a key that the history has not reached",
            Incomplete,
            dropped(9, FOREIGN),
        ),
        tampered(
            "dropped with the key of an earlier epoch",
            &[("forged drop", 8)],
            dropped(1, seed_of(1)),
        ),
        tampered(
            "dropped for another reason than the one that was signed",
            &[("forged drop", 8)],
            changed(|b, sealer| {
                b[7] = sealer.drop_events(&b[7], "the spool was full");
                if let Some(dropped) = &mut b[7].dropped {
                    dropped.reason = "because".to_owned();
                }
            }),
        ),
        tampered(
            "an empty statement beside the events",
            &[("events changed", 8), ("forged drop", 8)],
            changed(|b, _| b[7].dropped = Some(Dropped::default())),
        ),
    ]
}

fn silence() -> Vec<Case> {
    let last = |next_within_ms: i64| {
        changed(|b, sealer| {
            let summary = Summary {
                next_within_ms,
                ..summary(13)
            };
            b.push(sealer.seal(&events(13), summary));
        })
    };
    let patience = 3 * 10 + 10;
    vec![
        case("ended in order", Complete, last(0)).at(1000),
        case("cut off at the end, or down", Incomplete, history().0).at(COUNT + 60),
        case("not silent yet", Complete, history().0).at(COUNT + patience),
        case("silent", Incomplete, history().0).at(COUNT + patience + 1),
        case(
            "a time of before the record's end, or a clock that is ahead",
            Incomplete,
            history().0,
        )
        .at(COUNT - patience - 1),
        case("less than a promise", Incomplete, last(-1)).at(13 + 11),
        case("a promise that is never broken", Complete, last(i64::MAX)).at(1_000_000),
        case(
            "a part that ends before a silence",
            Incomplete,
            changed(|b, _| drop(b.drain(..4))),
        )
        .at(COUNT + 60)
        .of_part(),
    ]
}

fn frames() -> Vec<Case> {
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    let found = &[("events changed", 7)];
    vec![
        tampered(
            "two frames",
            found,
            changed(|b, _| {
                let empty = other().seal(&Frames::default(), summary(1)).events;
                b[6].events = [&b[6].events[..], &empty].concat().into();
            }),
        ),
        tampered(
            "a frame that zstd skips, behind the events",
            found,
            changed(|b, _| b[6].events = [&b[6].events[..], skippable].concat().into()),
        ),
        tampered(
            "a frame that zstd skips, before the events",
            found,
            changed(|b, _| b[6].events = [skippable, &b[6].events[..]].concat().into()),
        ),
        tampered(
            "a frame that is cut",
            found,
            changed(|b, _| drop(b[6].events.split_off(9))),
        ),
        tampered(
            "no frame where there are no events",
            &[("events changed", 13)],
            changed(|b, sealer| {
                let mut empty = sealer.seal(&Frames::default(), summary(13));
                empty.events = Default::default();
                b.push(empty);
            }),
        ),
    ]
}

fn versions() -> Vec<Case> {
    // Field 23, a varint: signed, and who knows what it says.
    let later = changed(|b, _| {
        let header = [&b[11].header[..], b"\xb8\x01\x05"].concat();
        b[11] = signed(&b[11], header, seed_of(3));
    });
    let mut beside = case(
        "a field beside the header, which nobody signed",
        Complete,
        history().0,
    );
    // Fields 9 (bytes) and 10 (a group with a varint).
    beside.batches[5].extend(b"\x4a\x03abc\x53\x08\x01\x54");
    let mut again = case(
        "a field of a batch, twice: the last counts",
        Complete,
        history().0,
    );
    again.batches[5] = [&b"\x1a\x01x"[..], &again.batches[5]].concat();
    vec![
        case("a header of a later version", Incomplete, later),
        beside,
        again,
    ]
}

fn forks() -> Vec<Case> {
    let (batches, _) = history();
    let second = |number: usize| {
        let mut copy = copy_of(&batches[..number - 1], seed_of(3));
        copy.seal(&events(99), summary(number as i64))
    };
    let unsigned = rewritten(&batches[10], |header| header.host_id.clear());
    let foreign = resigned(&batches[10], FOREIGN, |header| {
        header.public_key = public(FOREIGN);
    });
    let whole = |name| case(name, Complete, batches.clone());
    let forked = |name| tampered(name, &[("forked", 12)], batches.clone());
    let mut no_batch = tampered(
        "beside it, what is no batch",
        &[("unreadable", 0)],
        batches.clone(),
    );
    no_batch.forks = vec![b"\xff".to_vec()];
    let of_nobody = other().seal(&events(1), summary(1));
    vec![
        forked("beside it, a second batch by the agent's key").beside(&[second(12)]),
        forked("beside it, the same second batch twice").beside(&[second(12), second(12)]),
        whole("beside it, the stored batch").beside(&[batches[10].clone()]),
        whole("beside it, a batch that nobody signed").beside(&[unsigned]),
        whole("beside it, a batch by another key").beside(&[foreign]),
        whole("beside it, a batch of an agent that is not here").beside(&[of_nobody]),
        no_batch,
    ]
}
