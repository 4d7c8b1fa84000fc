use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    super::{
        chain::{CHAIN, Chain},
        message::{Message, RecordType},
        wire::{self, Content, Encoder, QUERY, RESPONSE, labels},
    },
    *,
};

fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}

fn learn(cache: &mut Cache, namespace: u32, bytes: &[u8], now_ns: u64) {
    let message = Message::parse(bytes).expect("message");
    cache.learn(namespace, &Chain::default().resolve(&message), now_ns);
}

fn name_of(cache: &mut Cache, namespace: u32, address: IpAddr, now_ns: u64) -> Option<String> {
    cache.name_of(namespace, address, now_ns).map(str::to_owned)
}

/// Counts everything again, the long way.
fn check(cache: &Cache) {
    let (mut entries, mut names_bytes) = (0, 0);
    for (namespace, space) in &cache.spaces {
        let (mut own, mut own_bytes) = (0, 0);
        for at in cache.slots.listed(&space.list) {
            let slot = cache.slots.get(at);
            assert_eq!(slot.namespace, *namespace);
            assert_eq!(cache.slots.find(slot.namespace, slot.address), Some(at));
            own += 1;
            assert!(own <= cache.slots.len(), "a list goes round");
            own_bytes += allocated(slot.name.len());
        }
        assert_eq!((own, own_bytes), (space.entries, space.names_bytes));
        assert!(own <= cache.limits.entries / NAMESPACE_PART);
        assert!(own_bytes <= cache.limits.names_bytes / NAMESPACE_PART);
        entries += own;
        names_bytes += own_bytes;
    }
    assert_eq!(
        (entries, names_bytes),
        (cache.slots.len(), cache.names_bytes)
    );
    assert!(entries <= cache.limits.entries && names_bytes <= cache.limits.names_bytes);
    assert!(cache.spaces.len() <= cache.limits.namespaces);
    cache.slots.check(cache.limits.entries);
}

#[test]
fn an_address_has_the_name_that_was_asked() {
    let mut cache = Cache::default();
    let (four, six) = (
        address(0xc000_0201),
        "2001:db8::1".parse().expect("address"),
    );
    let chain = ["Www.Example.com", "cdn.example.net", "e7.edge.example"];
    learn(&mut cache, 1, &wire::addresses(&chain, 60, &[four, six]), 0);
    for address in [four, six] {
        assert_eq!(
            name_of(&mut cache, 1, address, 1),
            Some("www.example.com".into())
        );
        assert_eq!(
            name_of(&mut cache, 2, address, 1),
            None,
            "another namespace"
        );
    }
    let mapped = "::ffff:192.0.2.1".parse().expect("address");
    assert_eq!(
        name_of(&mut cache, 1, mapped, 1),
        Some("www.example.com".into())
    );
    assert_eq!(name_of(&mut cache, 1, address(7), 1), None);
    // The latest answer counts.
    learn(
        &mut cache,
        1,
        &wire::addresses(&["other.example"], 60, &[four]),
        2,
    );
    assert_eq!(
        name_of(&mut cache, 1, four, 3),
        Some("other.example".into())
    );
    cache.forget(1);
    assert_eq!(name_of(&mut cache, 1, four, 3), None);
    check(&cache);
}

#[test]
fn an_entry_outlives_a_short_ttl_and_not_a_long_one() {
    let mut cache = Cache::default();
    for (number, ttl, usable_ns) in [
        (1, 0, USABLE_AT_LEAST_NS),
        (2, 5, USABLE_AT_LEAST_NS),
        (3, 3600, 3600 * SECOND_NS),
        (4, u32::MAX >> 1, USABLE_AT_MOST_NS),
        (5, u32::MAX, USABLE_AT_LEAST_NS),
    ] {
        let bytes = wire::addresses(&["a.example"], ttl, &[address(number)]);
        learn(&mut cache, 1, &bytes, 1000);
        let last_ns = 1000 + usable_ns;
        assert!(
            name_of(&mut cache, 1, address(number), last_ns).is_some(),
            "{ttl}"
        );
        assert!(
            name_of(&mut cache, 1, address(number), last_ns + 1).is_none(),
            "{ttl}"
        );
    }
    assert_eq!((cache.counters().expired, cache.counters().entries), (5, 0));
    // A new answer with a shorter TTL does not shorten what an older one promised.
    for ttl in [7200, 1] {
        learn(
            &mut cache,
            1,
            &wire::addresses(&["a.example"], ttl, &[address(1)]),
            0,
        );
    }
    assert!(name_of(&mut cache, 1, address(1), 7200 * SECOND_NS).is_some());
}

#[test]
fn only_answers_to_the_question_are_learned() {
    let (asked, other) = (labels("asked.example"), labels("other.example"));
    let one = |number| Content::Address(address(number));
    let cname = |target: &str| Content::Target(RecordType::CNAME, labels(target));
    let mut encoder = Encoder::new(1, RESPONSE, true);
    encoder.question(&asked, RecordType::A);
    // In an unusual order, with a stranger, and with a loop behind it.
    encoder.answer(&labels("c.example"), 1, &one(1));
    encoder.answer(&labels("b.example"), 1, &cname("c.example"));
    encoder.answer(&other, 1, &one(2));
    encoder.answer(&asked, 1, &cname("b.example"));
    encoder.answer(&labels("c.example"), 1, &cname("asked.example"));
    encoder.answer(&asked, 1, &one(0));
    encoder.answer(&asked, 1, &one(0x7f00_0001));
    let mut cache = Cache::default();
    learn(&mut cache, 1, &encoder.bytes, 0);
    assert_eq!(
        name_of(&mut cache, 1, address(1), 0),
        Some("asked.example".into())
    );
    assert_eq!(name_of(&mut cache, 1, address(2), 0), None);
    let counters = cache.counters();
    assert_eq!(
        (counters.learned, counters.unrelated, counters.unspecific),
        (1, 1, 2)
    );

    for flags in [QUERY, RESPONSE | 3, RESPONSE | 0x0800] {
        let mut encoder = Encoder::new(1, flags, true);
        encoder
            .question(&asked, RecordType::A)
            .answer(&asked, 1, &one(3));
        learn(&mut cache, 1, &encoder.bytes, 0);
    }
    let mut unasked = Encoder::new(1, RESPONSE, true);
    learn(&mut cache, 1, &unasked.answer(&asked, 1, &one(3)).bytes, 0);
    assert_eq!(name_of(&mut cache, 1, address(3), 0), None);
}

#[test]
fn a_chain_is_followed_as_far_as_its_bound() {
    for (cnames, found) in [(CHAIN, true), (CHAIN + 1, false)] {
        let names: Vec<String> = (0..=cnames).map(|n| format!("n{n}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut cache = Cache::default();
        learn(&mut cache, 1, &wire::addresses(&names, 1, &[address(9)]), 0);
        assert_eq!(name_of(&mut cache, 1, address(9), 0).is_some(), found);
    }
}

#[test]
fn hints_of_a_service_are_learned_as_far_as_the_bound() {
    let asked = labels("web.example");
    let mut encoder = Encoder::new(1, RESPONSE, true);
    encoder.question(&asked, RecordType::HTTPS);
    let hints: Vec<IpAddr> = (1..=200).map(address).collect();
    encoder.answer(&asked, 1, &Content::Https(labels(""), hints));
    let mut cache = Cache::default();
    learn(&mut cache, 1, &encoder.bytes, 0);
    let counters = cache.counters();
    assert_eq!((counters.entries, counters.over_bound), (128, 72));
    assert_eq!(
        name_of(&mut cache, 1, address(1), 0),
        Some("web.example".into())
    );
}

#[test]
fn a_flood_in_one_namespace_costs_another_nothing() {
    let mut cache = Cache::default();
    let kept: Vec<IpAddr> = (1..=1000).map(address).collect();
    for (at, chunk) in kept.chunks(100).enumerate() {
        let name = format!("kept{at}.example");
        learn(&mut cache, 1, &wire::addresses(&[&name], 1, chunk), 0);
    }
    let long = vec!["x".repeat(63); 3].join(".");
    for flood in 0..2000_u32 {
        let name = format!("f{flood}.{long}");
        let found: Vec<IpAddr> = (0..100)
            .map(|n| address((1 << 24) + flood * 100 + n))
            .collect();
        // Three namespaces flood, and one address is looked up all the time.
        learn(
            &mut cache,
            2 + flood % 3,
            &wire::addresses(&[&name], 1, &found),
            1,
        );
    }
    check(&cache);
    for (at, address) in kept.iter().enumerate() {
        let name = Some(format!("kept{}.example", at / 100));
        assert_eq!(name_of(&mut cache, 1, *address, 2), name);
    }
    let counters = cache.counters();
    assert!(counters.evicted > 190_000, "{counters:?}");
    assert_eq!(counters.entries + counters.evicted, counters.learned);
}

#[test]
fn the_longest_unused_gives_way() {
    let limits = Limits {
        entries: 8,
        names_bytes: 1 << 20,
        namespaces: 2,
    };
    let mut cache = Cache::new(limits);
    for number in 1..=4 {
        learn(
            &mut cache,
            1,
            &wire::addresses(&["a.example"], 1, &[address(number)]),
            0,
        );
    }
    assert!(name_of(&mut cache, 1, address(1), 0).is_some());
    learn(
        &mut cache,
        1,
        &wire::addresses(&["a.example"], 1, &[address(3)]),
        0,
    );
    for number in 5..=6 {
        learn(
            &mut cache,
            1,
            &wire::addresses(&["a.example"], 1, &[address(number)]),
            0,
        );
    }
    let left: Vec<u32> = (1..=6)
        .filter(|number| cache.name_of(1, address(*number), 0).is_some())
        .collect();
    assert_eq!(left, [1, 3, 5, 6], "half of the cache is one namespace's");
    check(&cache);
}

#[test]
fn a_namespace_too_many_waits_for_an_idle_one() {
    let limits = Limits {
        entries: 64,
        names_bytes: 1 << 20,
        namespaces: 3,
    };
    let mut cache = Cache::new(limits);
    let bytes = wire::addresses(&["a.example"], 1, &[address(1)]);
    for namespace in 1..=4 {
        learn(&mut cache, namespace, &bytes, u64::from(namespace));
    }
    assert_eq!(
        (cache.counters().refused, cache.counters().namespaces),
        (1, 3)
    );
    assert!(
        name_of(&mut cache, 1, address(1), IDLE_NS - 1).is_some(),
        "used"
    );
    learn(&mut cache, 4, &bytes, IDLE_NS + 2);
    assert_eq!((cache.counters().refused, cache.counters().evicted), (1, 1));
    let left: Vec<u32> = (1..=4)
        .filter(|namespace| cache.name_of(*namespace, address(1), IDLE_NS).is_some())
        .collect();
    assert_eq!(left, [1, 3, 4], "the longest idle left");
    check(&cache);
}

proptest! {
    /// Against a model without bounds: whatever the cache tells is what was last answered, and
    /// the bounds and accounts hold after any history.
    #[test]
    fn it_tells_the_last_answer_or_nothing(
        steps in prop::collection::vec((0..4_u32, 0..40_u32, 0..12_usize, 0..16_u8), 1..400),
    ) {
        let limits = Limits { entries: 24, names_bytes: 1536, namespaces: 3 };
        let mut cache = Cache::new(limits);
        let mut model: HashMap<(u32, u32), String> = HashMap::new();
        for (step, (namespace, number, name, action)) in steps.into_iter().enumerate() {
            let now_ns = step as u64 * SECOND_NS;
            if action == 0 {
                cache.forget(namespace);
                model.retain(|(of, _), _| *of != namespace);
            } else if action < 6 {
                if let Some(told) = name_of(&mut cache, namespace, address(number + 1), now_ns) {
                    prop_assert_eq!(Some(&told), model.get(&(namespace, number)));
                }
            } else {
                let name = format!("{}.example", "n".repeat(1 + 5 * name));
                let bytes = wire::addresses(&[&name], 1, &[address(number + 1)]);
                learn(&mut cache, namespace, &bytes, now_ns);
                model.insert((namespace, number), name);
            }
            check(&cache);
        }
    }
}
