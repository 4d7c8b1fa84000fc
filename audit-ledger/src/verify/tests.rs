use audit_proto::{
    Message as _,
    v1::{BatchHeader, BatchRange, ClassCount, Lost},
};

use super::*;
use crate::{Frames, Key, Origin, Past, Sealer, Summary};

const SECOND: i64 = 1_000_000;

fn origin(host: &str) -> Origin {
    Origin {
        host_id: host.to_owned(),
        boot_id: "boot".to_owned(),
        run: "run".to_owned(),
    }
}

fn summary(at: i64) -> Summary {
    Summary {
        sealed_time: at * SECOND,
        first_time: at * SECOND - 9,
        last_time: at * SECOND - 1,
        classes: vec![ClassCount {
            class: 3,
            events: 2,
        }],
        next_within_ms: 10_000,
        ..Summary::default()
    }
}

fn events(at: i64) -> Frames {
    Frames::from_iter([format!("{at} a"), format!("{at} b")])
}

/// Batches 1 to `count`, each second one, with a new key after every fourth.
fn history(seed: u8, count: i64) -> (Vec<Batch>, Sealer) {
    let mut sealer = Sealer::begin(Key::new(1, [seed; 32]), origin("host"), None);
    let mut batches = Vec::new();
    for at in 1..=count {
        batches.push(sealer.seal(&events(at), summary(at)));
        if at % 4 == 0 {
            assert!(sealer.may_evolve());
            sealer.evolve();
            assert!(
                !sealer.may_evolve(),
                "its successor is named by no header yet"
            );
        }
    }
    (batches, sealer)
}

fn verify(batches: &[Batch]) -> Report {
    verify_at(batches, 12 * SECOND)
}

fn verify_at(batches: &[Batch], now: i64) -> Report {
    let mut verifier = Verifier::new();
    batches.iter().for_each(|batch| verifier.batch(batch));
    verifier.finish(now)
}

fn found(report: &Report) -> Vec<(Tampering, i64)> {
    let histories = report.histories.iter().flat_map(|h| &h.findings);
    histories
        .chain(&report.findings)
        .map(|finding| (finding.tampering, finding.batch))
        .collect()
}

/// `change`s the header, and signs it with `key` if there is one.
fn changed(batch: &Batch, key: Option<&Key>, change: impl Fn(&mut BatchHeader)) -> Batch {
    let mut fields = batch::header(batch).expect("header").fields;
    change(&mut fields);
    let header = fields.encode_to_vec();
    let signature = match key {
        Some(key) => key.sign_batch(&crate::hash(&header)).to_vec().into(),
        None => batch.signature.clone(),
    };
    Batch {
        header: header.into(),
        signature,
        ..batch.clone()
    }
}

#[test]
fn a_whole_history_is_complete() {
    let (batches, _) = history(1, 12);
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Complete, "{report:?}");
    assert_eq!((report.batches(), report.events()), (12, 24));
}

#[test]
fn changed_events_are_found_where_they_are() {
    let (mut batches, _) = history(1, 12);
    batches[6].events = batches[7].events.clone();
    assert_eq!(found(&verify(&batches)), [(Tampering::EventsChanged, 7)]);
}

#[test]
fn a_changed_header_is_found_and_its_followers_are_not_blamed() {
    let (mut batches, _) = history(1, 12);
    for at in [3, 4, 8] {
        let whole = batches[at].clone();
        batches[at] = changed(&whole, None, |header| header.first_time += 1);
        let expected = [(Tampering::HeaderChanged, at as i64 + 1)];
        assert_eq!(found(&verify(&batches)), expected);
        batches[at] = whole;
    }
}

#[test]
fn deleted_batches_are_found_with_their_events() {
    let (mut batches, _) = history(1, 12);
    batches.drain(3..9);
    let report = verify(&batches);
    assert_eq!(found(&report), [(Tampering::Deleted, 4)]);
    let what = &report.histories[0].findings[0].what;
    assert!(
        what.starts_with("batches 4 to 9 (12 events) are missing"),
        "{what}"
    );
    batches.drain(..2);
    assert_eq!(
        found(&verify(&batches)),
        [(Tampering::Deleted, 1), (Tampering::Deleted, 4)]
    );
}

#[test]
fn reordered_batches_are_found_and_not_called_missing() {
    let (mut batches, _) = history(1, 12);
    batches.swap(5, 6);
    assert_eq!(found(&verify(&batches)), [(Tampering::Reordered, 6)]);
    let moved = batches.remove(2);
    batches.push(moved);
    let both = [(Tampering::Reordered, 3), (Tampering::Reordered, 6)];
    assert_eq!(found(&verify(&batches)), both);
}

#[test]
fn a_replayed_batch_is_found_and_not_counted_twice() {
    let (mut batches, _) = history(1, 12);
    batches.insert(9, batches[4].clone());
    let report = verify(&batches);
    assert_eq!(found(&report), [(Tampering::Replayed, 5)]);
    assert_eq!((report.batches(), report.events()), (12, 24));
}

#[test]
fn what_is_there_twice_counts_once_whatever_its_second_copy_holds() {
    let (mut batches, sealer) = history(1, 6);
    let mut other = batches[2].clone();
    other.events = batches[3].events.clone();
    let dropped = sealer.drop_events(&batches[3], "full");
    batches.extend([other, dropped]);
    let report = verify(&batches);
    assert_eq!((report.batches(), report.events()), (6, 12));
    let replayed = (Tampering::Replayed, 3);
    assert!(found(&report).contains(&replayed), "{:?}", found(&report));
}

#[test]
fn a_late_batch_that_nobody_signed_is_changed_and_counts_for_nothing() {
    let (mut batches, _) = history(1, 6);
    let missing = batches.remove(2);
    batches.push(changed(&missing, None, |header| header.event_count = 99));
    let report = verify(&batches);
    assert_eq!(found(&report), [(Tampering::HeaderChanged, 3)]);
    assert_eq!(report.events(), 10);
}

#[test]
fn a_history_does_not_begin_with_fewer_than_no_events() {
    let (batches, mut sealer) = history(1, 1);
    let key = Key::new(1, [1; 32]);
    let first = changed(&batches[0], Some(&key), |header| header.event_count = -1);
    sealer.evolve();
    let dropped = sealer.drop_events(&first, "full");
    assert_eq!(found(&verify(&[dropped])), [(Tampering::HeaderChanged, 1)]);
}

#[test]
fn numbers_at_the_ends_of_their_types_are_told_and_nothing_overflows() {
    let (batches, _) = history(1, 1);
    let key = Key::new(1, [1; 32]);
    let ends = [i64::MIN, -1, 0, i64::MAX - 1, i64::MAX];
    let set: [fn(&mut BatchHeader, i64); 5] = [
        |header, end| header.epoch = end,
        |header, end| header.batch = end,
        |header, end| header.events_before = end,
        |header, end| header.next_within_ms = end,
        |header, end| header.sealed_time = end,
    ];
    for set in set {
        for (one, other) in ends.into_iter().flat_map(|a| ends.map(|b| (a, b))) {
            let end = |end: i64, number: i64| {
                changed(&batches[0], Some(&key), |header| {
                    header.batch = number;
                    set(header, end);
                })
            };
            let report = verify_at(&[end(one, 2), end(other, 4)], i64::MAX);
            assert_ne!(report.verdict(), Verdict::Complete);
            assert_eq!(verify_at(&[end(one, 2)], i64::MIN).batches(), 1);
        }
    }
}

#[test]
fn a_tail_that_was_cut_off_is_told_by_the_missing_heartbeat() {
    let (batches, mut sealer) = history(1, 12);
    let later = 12 + 3 * 10 + 11;
    let report = verify_at(&batches, later * SECOND);
    assert!(report.histories[0].is_silent);
    assert_eq!(report.verdict(), Verdict::Incomplete);
    let mut ended = batches;
    ended.push(sealer.seal(
        &Frames::default(),
        Summary {
            next_within_ms: 0,
            ..summary(13)
        },
    ));
    assert_eq!(
        verify_at(&ended, later * SECOND).verdict(),
        Verdict::Complete
    );
}

#[test]
fn two_histories_of_one_agent_are_found() {
    let (mut batches, _) = history(1, 12);
    // The same key and the same past, and another batch 12: a copied virtual machine.
    let mut sealer = Sealer::resume(
        Key::new(3, *history(1, 11).1.key().seed()),
        origin("host"),
        Past::of(&batch::header(&batches[10]).expect("header")),
    );
    let other = sealer.seal(&events(99), summary(12));
    batches.push(other.clone());
    assert_eq!(found(&verify(&batches)), [(Tampering::Forked, 12)]);

    // Beside the record, as the collector keeps it.
    batches.pop();
    let mut verifier = Verifier::new();
    batches.iter().for_each(|batch| verifier.batch(batch));
    verifier.fork(&other);
    let report = verifier.finish(12 * SECOND);
    assert_eq!(found(&report), [(Tampering::Forked, 12)]);

    // And goes on there.
    batches[11] = sealer.seal(&events(100), summary(13));
    assert_eq!(
        found(&verify(&batches)),
        [(Tampering::Deleted, 12)],
        "the other end is not here"
    );
}

#[test]
fn the_past_signed_again_with_the_key_of_today_is_found() {
    let (batches, sealer) = history(1, 12);
    let stolen = sealer.key();
    let rewrite = |header: &mut BatchHeader| header.host_id = "elsewhere".to_owned();

    let mut naive = batches.clone();
    naive[2] = changed(&batches[2], Some(stolen), rewrite);
    let report = verify(&naive);
    assert_eq!(found(&report), [(Tampering::Resigned, 3)]);
    assert!(
        report.histories[0].findings[0].what.contains("epoch 4"),
        "{report:?}"
    );

    // It says whose key it is, and the batches behind it are signed again too.
    let mut thorough = batches.clone();
    let mut previous = Vec::new();
    for (at, batch) in thorough.iter_mut().enumerate().skip(2) {
        *batch = changed(batch, Some(stolen), |header| {
            header.public_key = stolen.public().to_vec();
            if at > 2 {
                header.previous_hash.clone_from(&previous);
            }
        });
        previous = batch::header(batch).expect("header").hash.to_vec();
    }
    let report = verify(&thorough);
    assert_eq!(found(&report)[0], (Tampering::Resigned, 3));
}

#[test]
fn a_history_made_of_nothing_cannot_have_the_agents_name() {
    let (batches, _) = history(1, 4);
    let name = batch::header(&batches[0]).expect("header").fields.agent_id;
    let forger = Key::new(1, [9; 32]);
    let forged = changed(&batches[0], Some(&forger), |header| {
        header.agent_id.clone_from(&name);
        header.public_key = forger.public().to_vec();
    });
    assert_eq!(found(&verify(&[forged])), [(Tampering::Resigned, 1)]);
}

#[test]
fn losses_are_added_up_by_class_and_place() {
    let mut sealer = Sealer::begin(Key::new(1, [1; 32]), origin("host"), None);
    let lost = |class, count| Lost {
        class,
        count,
        place: "ring".to_owned(),
        ..Lost::default()
    };
    let with = |at, losses| Summary {
        losses,
        ..summary(at)
    };
    let batches = [
        sealer.seal(
            &events(1),
            with(1, vec![lost(3, Some(5)), lost(1, Some(1))]),
        ),
        sealer.seal(&events(2), with(2, vec![lost(3, Some(7))])),
        sealer.seal(&events(3), with(3, vec![lost(1, None)])),
    ];
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Incomplete);
    let told: Vec<(i32, Option<i64>)> = report.histories[0]
        .losses
        .iter()
        .map(|loss| (loss.class, loss.count))
        .collect();
    assert_eq!(told, [(1, None), (3, Some(12))]);
}

#[test]
fn events_that_the_agent_dropped_are_lost_and_those_that_others_dropped_are_tampering() {
    let (mut batches, sealer) = history(1, 12);
    batches[5] = sealer.drop_events(&batches[5], "the spool was full");
    let report = verify(&batches);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
    let loss = &report.histories[0].losses[0];
    assert_eq!(
        (loss.class, loss.count, &loss.place[..]),
        (3, Some(2), "spool")
    );

    let forger = Sealer::begin(Key::new(1, [9; 32]), origin("host"), None);
    batches[7] = forger.drop_events(&batches[7], "the spool was full");
    assert_eq!(found(&verify(&batches)), [(Tampering::ForgedDrop, 8)]);

    let mut emptied = batches.clone();
    emptied[7] = Batch {
        events: bytes::Bytes::new(),
        dropped: None,
        ..batches[7].clone()
    };
    let report = verify(&emptied);
    assert!(report.verdict() == Verdict::Tampered, "{report:?}");
}

#[test]
fn what_the_collector_lost_is_no_tampering_once_the_agent_says_so() {
    let without = |from: usize, to: usize| {
        let (batches, mut sealer) = history(1, 12);
        let left = batches[..from].iter().chain(&batches[to..]);
        let mut kept: Vec<Batch> = left.cloned().collect();
        let first = from as i64 + 1;
        assert_eq!(found(&verify(&kept)), [(Tampering::Deleted, first)]);
        let gaps = vec![BatchRange {
            first_batch: first,
            last_batch: to as i64,
        }];
        kept.push(sealer.seal(
            &events(13),
            Summary {
                gaps,
                ..summary(13)
            },
        ));
        verify(&kept)
    };
    let report = without(3, 7);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
    let loss = &report.histories[0].losses[0];
    assert_eq!((loss.count, &loss.place[..]), (Some(8), "collector"));
    // Whoever has no key of this history could have said that of so much.
    let report = without(3, 9);
    assert_eq!(found(&report), [(Tampering::Deleted, 4)]);
}

#[test]
fn a_history_that_takes_the_place_of_another_names_its_end() {
    let (batches, _) = history(1, 12);
    let former = |batch| {
        let agent_id = batch::header(&batches[0]).expect("header").fields.agent_id;
        Some(Former { agent_id, batch })
    };
    let successor = |batch| {
        let mut sealer = Sealer::begin(Key::new(1, [2; 32]), origin("host"), former(batch));
        sealer.seal(&events(1), summary(500))
    };
    let mut all = batches.clone();
    all.push(successor(12));
    let report = verify_at(&all, 500 * SECOND);
    assert_eq!(
        report.verdict(),
        Verdict::Incomplete,
        "its tail may be gone"
    );
    assert!(found(&report).is_empty(), "{report:?}");
    assert!(
        report
            .histories
            .iter()
            .all(|history| history.lacking.is_empty())
    );
    // A history that its collector refused for good, or that went on from an old image of its disk, has
    // batches that never arrive: nobody tampered with it.
    for here in [12, 0] {
        let mut all = batches[..here].to_vec();
        all.push(successor(14));
        let report = verify_at(&all, 500 * SECOND);
        assert!(found(&report).is_empty(), "{report:?}");
        let lacking = |history: &History| history.lacking.len();
        assert_eq!(report.histories.iter().map(lacking).sum::<usize>(), 1);
        assert_eq!(report.verdict(), Verdict::Incomplete);
    }
}

#[test]
fn of_a_part_only_the_beginning_may_be_elsewhere() {
    let (batches, _) = history(1, 12);
    let part = |batches: &[Batch]| {
        let mut verifier = Verifier::of_part();
        batches.iter().for_each(|batch| verifier.batch(batch));
        verifier.finish(12 * SECOND)
    };
    assert_eq!(part(&batches[4..]).verdict(), Verdict::Complete);
    let mut holed = batches[4..].to_vec();
    holed.remove(3);
    assert_eq!(found(&part(&holed)), [(Tampering::Deleted, 8)]);
}

#[test]
fn a_time_that_was_set_back_to_hide_a_missing_tail_leaves_the_other_histories_in_the_future() {
    let (cut, _) = history(1, 12);
    let (other, _) = history(2, 100);
    let both = [&cut[..], &other[..]].concat();
    assert_eq!(
        verify_at(&both, 100 * SECOND).verdict(),
        Verdict::Incomplete
    );
    let report = verify_at(&both, 13 * SECOND);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:?}");
    assert!(report.histories.iter().any(|history| history.is_silent));
}

mod any_change {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever one byte becomes, and wherever it is: no verdict but "TAMPERED".
        #[test]
        fn of_one_byte_is_found(at in 0_usize..6, place: prop::sample::Index, bit in 0_u8..8, part in 0..3) {
            let (mut batches, _) = history(1, 6);
            let batch = &mut batches[at];
            let bytes = match part {
                0 => &mut batch.header,
                1 => &mut batch.events,
                _ => &mut batch.signature,
            };
            let mut changed = bytes.to_vec();
            let place = place.index(changed.len());
            changed[place] ^= 1 << bit;
            *bytes = changed.into();
            let before = batches[at].clone();
            let report = verify(&batches);
            // zstd leaves bits unused; then the events are the same.
            let same = part == 1 && batch::header(&before)
                .and_then(|header| batch::open(&before, &header.fields))
                .is_ok();
            prop_assert!(same || report.verdict() == Verdict::Tampered, "{report:?}");
        }

        /// Batches of histories left out, repeated and moved: complete only when nothing was done.
        #[test]
        fn of_order_or_number_is_found(order in prop::collection::vec(0_usize..6, 0..12)) {
            let (batches, _) = history(1, 6);
            let given: Vec<Batch> = order.iter().map(|at| batches[*at].clone()).collect();
            let report = verify_at(&given, 6 * SECOND);
            let whole = !order.is_empty() && order.iter().copied().eq(0..order.len());
            prop_assert_eq!(report.verdict() == Verdict::Complete, whole, "{:?}", report);
        }

        /// Taken away between batches that are here, and then told in whatever way by who has the key.
        #[test]
        fn by_who_has_the_key_leaves_what_is_missing_told(
            from in 0_usize..11,
            count in 1_usize..11,
            gaps in prop::collection::vec((0_i64..15, 0_i64..15), 0..4),
            drop: bool,
        ) {
            let (mut batches, mut sealer) = history(1, 12);
            let to = (from + count).min(11);
            if drop {
                for batch in &mut batches[from..to] {
                    *batch = sealer.drop_events(batch, "the spool was full");
                }
            } else {
                batches.drain(from..to);
            }
            let range = |(first_batch, last_batch): &(i64, i64)| BatchRange {
                first_batch: *first_batch,
                last_batch: *last_batch,
            };
            let gaps = gaps.iter().map(range).collect();
            batches.push(sealer.seal(&events(13), Summary { gaps, ..summary(13) }));
            let report = verify(&batches);
            prop_assert!(report.verdict() != Verdict::Complete, "{report:?}");
        }

        #[test]
        fn arbitrary_batches_do_no_harm(batches: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>) {
            let mut verifier = Verifier::new();
            let any = !batches.is_empty();
            for (header, events, signature) in batches {
                verifier.batch(&Batch {
                    header: header.into(),
                    events: events.into(),
                    signature: signature.into(),
                    dropped: None,
                });
            }
            prop_assert_eq!(verifier.finish(0).verdict() == Verdict::Tampered, any);
        }
    }
}
