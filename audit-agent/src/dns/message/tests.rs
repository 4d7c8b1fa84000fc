use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    super::wire::{Content, Encoder, Labels, QUERY, RESPONSE, labels},
    *,
};

/// What glibc sends for `getent ahosts www.example.com`.
const QUERY_OF_GLIBC: &[u8] =
    b"\x5b\x1f\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01";

fn text(message: &Message<'_>) -> Vec<String> {
    let one = |answer: Answer<'_>| {
        let data = match answer.data {
            Data::Address(address) => address.to_string(),
            Data::Target(name) => name.to_string(),
            Data::Service(service) => {
                let hints: Vec<String> = service.hints().map(|h| h.to_string()).collect();
                format!("{} {}", service.target, hints.join(","))
            }
            Data::Text(text) => format!("{:?}", text.strings().collect::<Vec<_>>()),
            Data::Other => "-".to_owned(),
        };
        format!(
            "{} {} {} {data}",
            answer.name, answer.ttl, answer.record_type
        )
    };
    message.answers().map(one).collect()
}

#[test]
fn a_query_is_read() {
    let message = Message::parse(QUERY_OF_GLIBC).expect("message");
    let question = message.question.expect("question");
    assert_eq!((message.id, message.response), (0x5b1f, false));
    assert_eq!(question.name.to_string(), "www.example.com");
    assert_eq!(question.record_type, RecordType::A);
    assert_eq!(message.answers().count(), 0);
}

#[test]
fn each_form_of_data_is_read() {
    let owner = labels("Www.Example.com");
    let contents = [
        Content::Target(RecordType::CNAME, labels("a.example.com")),
        Content::Address("192.0.2.1".parse().expect("address")),
        Content::Address("2001:db8::1".parse().expect("address")),
        Content::Target(RecordType::MX, labels("mail.example.com")),
        Content::Target(RecordType::SRV, labels("srv.example.com")),
        Content::Text(vec![b"v=spf1".to_vec(), Vec::new(), b" -all".to_vec()]),
        Content::Https(
            labels(""),
            vec![
                "192.0.2.9".parse().expect("address"),
                "2001:db8::9".parse().expect("address"),
            ],
        ),
        Content::Raw(RecordType(99), vec![1, 2, 3]),
    ];
    let mut encoder = Encoder::new(1, RESPONSE, true);
    encoder.question(&owner, RecordType(255));
    for content in &contents {
        encoder.answer(&owner, 300, content);
    }
    let message = Message::parse(&encoder.bytes).expect("message");
    assert_eq!(
        text(&message),
        [
            "www.example.com 300 CNAME a.example.com",
            "www.example.com 300 A 192.0.2.1",
            "www.example.com 300 AAAA 2001:db8::1",
            "www.example.com 300 MX mail.example.com",
            "www.example.com 300 SRV srv.example.com",
            "www.example.com 300 TXT [[118, 61, 115, 112, 102, 49], [], [32, 45, 97, 108, 108]]",
            "www.example.com 300 HTTPS . 192.0.2.9,2001:db8::9",
            "www.example.com 300 SPF -",
        ]
    );
    assert_eq!(
        (message.flaw, message.response_code),
        (None, ResponseCode::NO_ERROR)
    );
}

#[test]
fn the_extended_result_code_is_joined() {
    let mut encoder = Encoder::new(1, RESPONSE | 7, true);
    encoder.question(&labels("example"), RecordType::A).opt(1);
    let message = Message::parse(&encoder.bytes).expect("message");
    assert_eq!(message.response_code.to_string(), "BADCOOKIE");
    let cut = &encoder.bytes[..encoder.bytes.len() - 1];
    let message = Message::parse(cut).expect("message");
    assert_eq!(message.response_code.to_string(), "YXRRSET");
}

#[test]
fn answers_before_a_bad_one_are_told() {
    let owner = labels("example");
    let address = Content::Address("192.0.2.1".parse().expect("address"));
    let with = |bad: &Content| {
        let mut encoder = Encoder::new(1, RESPONSE, true);
        encoder.question(&owner, RecordType::A);
        encoder.answer(&owner, 1, &address).answer(&owner, 1, bad);
        encoder.bytes
    };
    let raw = |record_type, bytes: &[u8]| Content::Raw(record_type, bytes.to_vec());
    for bad in [
        raw(RecordType::A, b"\x01\x02\x03"),
        raw(RecordType::AAAA, b"\x01\x02\x03\x04"),
        raw(RecordType::CNAME, b"\x01a"),
        raw(RecordType::CNAME, b"\x01a\0\0"),
        raw(RecordType::MX, b"\x01"),
        raw(RecordType::HTTPS, b""),
    ] {
        let bytes = with(&bad);
        let message = Message::parse(&bytes).expect("message");
        assert_eq!(message.flaw, Some(Flaw::Data), "{bad:?}");
        assert_eq!((message.answers_told, message.answers().count()), (2, 1));
    }
    let whole = with(&address);
    let message = Message::parse(&whole[..whole.len() - 1]).expect("message");
    assert_eq!(
        (message.flaw, message.answers().count()),
        (Some(Flaw::Short), 1)
    );
}

#[test]
fn what_cannot_be_a_message_says_why() {
    let mut two = QUERY_OF_GLIBC.to_vec();
    two[5] = 2;
    assert_eq!(Message::parse(&two).err(), Some(Flaw::Questions));
    for end in 0..QUERY_OF_GLIBC.len() {
        assert_eq!(
            Message::parse(&QUERY_OF_GLIBC[..end]).err(),
            Some(Flaw::Short)
        );
    }
}

#[test]
fn answers_are_bounded() {
    let owner = labels("a");
    let mut encoder = Encoder::new(1, RESPONSE, true);
    encoder.question(&owner, RecordType::A);
    for _ in 0..=ANSWERS {
        encoder.answer(&owner, 1, &Content::Address(IpAddr::from([192, 0, 2, 1])));
    }
    let message = Message::parse(&encoder.bytes).expect("message");
    assert_eq!(message.flaw, Some(Flaw::Bound));
    assert_eq!(message.answers().count(), usize::from(ANSWERS));
}

pub fn any_labels() -> impl Strategy<Value = Labels> {
    let plain = "[a-zA-Z0-9_-]{1,20}".prop_map(String::into_bytes);
    let label = prop_oneof![
        4 => plain,
        1 => prop::collection::vec(any::<u8>(), 1..=63),
        // So that names share their ends.
        4 => prop::sample::select(vec![b"com".to_vec(), b"example".to_vec(), b"WWW".to_vec()]),
    ];
    prop::collection::vec(label, 0..8).prop_filter("at most 255 bytes", |labels| {
        labels.iter().map(|l| l.len() + 1).sum::<usize>() < 255
    })
}

pub fn any_content() -> impl Strategy<Value = Content> {
    let types = vec![
        RecordType::CNAME,
        RecordType::PTR,
        RecordType::NS,
        RecordType::DNAME,
        RecordType::MX,
        RecordType::SRV,
    ];
    prop_oneof![
        any::<IpAddr>().prop_map(Content::Address),
        (prop::sample::select(types), any_labels()).prop_map(|(t, n)| Content::Target(t, n)),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=255), 0..3)
            .prop_map(Content::Text),
        (any_labels(), prop::collection::vec(any::<IpAddr>(), 0..4))
            .prop_map(|(name, hints)| Content::Https(name, hints)),
        prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Content::Raw(RecordType(65_280), bytes)),
    ]
}

/// A message and what it says.
#[derive(Debug, Clone)]
pub struct Model {
    pub id: u16,
    pub flags: u16,
    pub asked: (Labels, RecordType),
    pub answers: Vec<(Labels, u32, Content)>,
    pub compress: bool,
}

impl Model {
    pub fn bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(self.id, self.flags, self.compress);
        encoder.question(&self.asked.0, self.asked.1);
        for (name, ttl, content) in &self.answers {
            encoder.answer(name, *ttl, content);
        }
        encoder.opt(0);
        encoder.bytes
    }
}

pub fn any_model() -> impl Strategy<Value = Model> {
    let answer = (any_labels(), any::<u32>(), any_content());
    (
        any::<u16>(),
        prop::sample::select(vec![RESPONSE, RESPONSE | 3, QUERY]),
        (any_labels(), any::<u16>().prop_map(RecordType)),
        prop::collection::vec(answer, 0..12),
        any::<bool>(),
    )
        .prop_map(|(id, flags, asked, answers, compress)| Model {
            id,
            flags,
            asked,
            answers,
            compress,
        })
}

fn raw(name: Name<'_>) -> Labels {
    name.labels().map(<[u8]>::to_vec).collect()
}

fn content(answer: &Answer<'_>) -> Option<Content> {
    Some(match answer.data {
        Data::Address(address) => Content::Address(address),
        Data::Target(name) => Content::Target(answer.record_type, raw(name)),
        Data::Service(service) => Content::Https(raw(service.target), service.hints().collect()),
        Data::Text(text) => Content::Text(text.strings().map(<[u8]>::to_vec).collect()),
        Data::Other => return None,
    })
}

/// The labels behind a presentation, by its documented rules alone.
fn unpresent(text: &str) -> Labels {
    if text == "." {
        return Vec::new();
    }
    let (mut labels, mut bytes) = (vec![Vec::new()], text.bytes());
    while let Some(byte) = bytes.next() {
        let last = labels.last_mut().expect("a label");
        match byte {
            b'.' => labels.push(Vec::new()),
            b'\\' => match bytes.next().expect("escaped") {
                digit @ b'0'..=b'9' => {
                    let digits = [
                        digit,
                        bytes.next().expect("digit"),
                        bytes.next().expect("digit"),
                    ];
                    let digits = std::str::from_utf8(&digits).expect("digits");
                    last.push(digits.parse().expect("a byte"));
                }
                other => last.push(other),
            },
            plain => last.push(plain),
        }
    }
    labels
}

proptest! {
    #[test]
    fn parsing_inverts_encoding(model in any_model()) {
        let bytes = model.bytes();
        let message = Message::parse(&bytes).expect("message");
        prop_assert_eq!(message.flaw, None);
        prop_assert_eq!(message.id, model.id);
        prop_assert_eq!(message.response_code.0, model.flags & 15);
        let question = message.question.expect("question");
        prop_assert_eq!(&raw(question.name), &model.asked.0);
        prop_assert_eq!(question.record_type, model.asked.1);
        prop_assert_eq!(message.answers().count(), model.answers.len());
        for (answer, (name, ttl, expected)) in message.answers().zip(&model.answers) {
            prop_assert_eq!(&raw(answer.name), name);
            prop_assert_eq!(answer.ttl, *ttl);
            match content(&answer) {
                Some(content) => prop_assert_eq!(&content, expected),
                None => prop_assert_eq!(answer.record_type, expected.record_type()),
            }
        }
    }

    #[test]
    fn a_presentation_is_the_name_in_lower_case(labels in any_labels()) {
        let mut encoder = Encoder::new(0, QUERY, false);
        encoder.question(&labels, RecordType::A);
        let message = Message::parse(&encoder.bytes).expect("message");
        let text = message.question.expect("question").name.to_string();
        prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
        let lower: Labels = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
        prop_assert_eq!(unpresent(&text), lower);
    }

    #[test]
    fn no_bytes_make_it_panic(
        model in any_model(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..24),
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut bytes = model.bytes();
        for (index, value) in mutations {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let end = cut.index(bytes.len() + 1);
        for bytes in [&bytes[..], &bytes[..end], &garbage] {
            if let Ok(message) = Message::parse(bytes) {
                prop_assert_eq!(message.answers().count(), usize::from(message.readable_answers()));
                prop_assert_eq!(
                    message.flaw.is_some(),
                    message.readable_answers() < message.answers_told
                );
                text(&message);
            }
        }
    }

    #[test]
    fn a_message_cut_anywhere_tells_the_same_as_far_as_it_goes(
        model in any_model(),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = model.bytes();
        let whole = text(&Message::parse(&bytes).expect("message"));
        if let Ok(message) = Message::parse(&bytes[..cut.index(bytes.len())]) {
            let part = text(&message);
            prop_assert_eq!(&part[..], &whole[..part.len()]);
        }
    }
}
