//! The whole of it: what real servers and the system's resolver say, and what it costs.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use proptest::{strategy::ValueTree as _, test_runner::TestRunner};

use super::{
    message::{Answer, Data, RecordType},
    name::Name,
    stream::Piece,
    summary::Summary,
    wire::{self, Content, Encoder, RESPONSE, labels},
    *,
};

/// Messages as hexadecimal text with what they say; see the folder's README.
fn corpus() -> Vec<(PathBuf, Vec<u8>, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/dns");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("corpus") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "hex") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let (mut bytes, mut says) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Some(told) = line.strip_prefix("> ") {
                says.push(told.to_owned());
            } else if !line.starts_with('#') {
                bytes.extend(unhex(line).unwrap_or_else(|| panic!("{path:?}: {line}")));
            }
        }
        found.push((path, bytes, says));
    }
    found.sort();
    found
}

fn unhex(line: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = line
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// What a message says, as the corpus has it.
fn says(bytes: &[u8]) -> Vec<String> {
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(flaw) => return vec![format!("refused: {flaw}")],
    };
    let mut lines = vec![format!("{:?}", Summary::of(&message))];
    lines.extend(message.flaw.map(|flaw| format!("flaw: {flaw}")));
    let mut chain = Chain::default();
    let resolution = chain.resolve(&message);
    if !resolution.addresses.is_empty() {
        let learned = resolution.addresses.iter();
        lines.push(learned.fold("learned:".to_owned(), |line, (address, ttl)| {
            format!("{line} {address}/{ttl}")
        }));
    }
    if resolution.unrelated + resolution.over_bound > 0 {
        let (unrelated, over_bound) = (resolution.unrelated, resolution.over_bound);
        lines.push(format!(
            "not learned: {unrelated} unrelated, {over_bound} over the bound"
        ));
    }
    lines
}

#[test]
fn the_corpus_says_what_it_said() {
    let corpus = corpus();
    assert!(corpus.len() >= 20, "only {} messages", corpus.len());
    let mut wrong = String::new();
    for (path, bytes, expected) in corpus {
        let said = says(&bytes);
        if said != expected {
            writeln!(wrong, "{} says", path.display()).expect("text");
            said.iter()
                .for_each(|line| writeln!(wrong, "> {line}").expect("text"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every cut, and at every byte some other values: nothing panics, and the bounds hold.
#[test]
fn the_corpus_may_be_damaged_anywhere() {
    let mut names = Names::default();
    let mut read = 0_u64;
    let mut take = |bytes: &[u8]| {
        if let Ok(message) = names.datagram(1, Way::Received, bytes, 0) {
            let summary = Summary::of(&message);
            let text: usize = summary.answers.iter().map(String::len).sum();
            assert!(text <= summary::ANSWERS_BYTES);
        }
        read += 1;
    };
    for (_, mut bytes, _) in corpus() {
        for end in 0..bytes.len() {
            take(&bytes[..end]);
        }
        for at in 0..bytes.len() {
            let was = bytes[at];
            for value in [
                0,
                1,
                0x3f,
                0x40,
                0x80,
                0xc0,
                0xff,
                was ^ 1,
                was.wrapping_add(1),
            ] {
                bytes[at] = value;
                take(&bytes);
            }
            bytes[at] = was;
        }
    }
    let counters = names.counters();
    assert_eq!(
        counters.malformed + counters.queries + counters.responses,
        read
    );
    assert!(counters.malformed > 0 && counters.flawed > 0 && counters.cache.learned > 0);
}

#[test]
fn what_a_server_on_this_host_sends_is_not_learned() {
    let address: IpAddr = "192.0.2.1".parse().expect("address");
    let bytes = wire::addresses(&["a.example"], 60, &[address]);
    let mut names = Names::default();
    names.datagram(1, Way::Sent, &bytes, 0).expect("message");
    assert_eq!(names.name_of(1, address, 0), None);
    names
        .datagram(1, Way::Received, &bytes, 0)
        .expect("message");
    assert_eq!(names.name_of(1, address, 0), Some("a.example"));
    names.ended(1);
    assert_eq!(names.name_of(1, address, 0), None);
    assert_eq!(
        names.datagram(1, Way::Received, b"GET / HTTP/1", 0).err(),
        Some(Flaw::Questions)
    );
    let counters = names.counters();
    assert_eq!((counters.responses, counters.malformed), (2, 1));
}

#[test]
fn answers_by_tcp_are_learned_as_well() {
    let addresses: Vec<IpAddr> = (1..=100_u8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let bytes = wire::addresses(&["many.example"], 60, &addresses);
    let stream = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let mut names = Names::default();
    let mut told = Vec::new();
    for (at, part) in stream.chunks(700).enumerate() {
        let piece = Piece::whole(Some(5 + 700 * at as u32), part);
        names.piece((1, Way::Received), 77, &piece, 0, |message| {
            told.push(Summary::of(message));
        });
    }
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].answers.len(), 100);
    assert_eq!(names.name_of(1, addresses[99], 0), Some("many.example"));
}

#[test]
fn a_summary_is_bounded_and_counts_what_it_leaves_out() {
    let owner = labels("t.example");
    let mut encoder = Encoder::new(9, RESPONSE, true);
    encoder.question(&owner, RecordType::TXT);
    // The second would fit but for its escapes.
    let text = Content::Text(vec![vec![b'\\'; 200]; 11]);
    for _ in 0..4 {
        encoder.answer(&owner, 1, &text);
    }
    encoder.answer(&owner, 1, &Content::Raw(RecordType(46), vec![1]));
    encoder.answer(&owner, 1, &Content::Address(IpAddr::from([192, 0, 2, 1])));
    let message = Message::parse(&encoder.bytes).expect("message");
    let summary = Summary::of(&message);
    assert_eq!(summary.answers, ["\\\\".repeat(2200), "192.0.2.1".into()]);
    assert_eq!((summary.answers_omitted, summary.id), (4, 9));
    assert_eq!(
        (summary.query_type.as_str(), summary.response_code.as_str()),
        ("TXT", "NOERROR")
    );

    let mut cut = encoder.bytes;
    cut.truncate(2300);
    let message = Message::parse(&cut).expect("message");
    assert_eq!(
        Summary::of(&message).answers_omitted,
        5,
        "five are not readable"
    );
}

/// A message as glibc's ns_parserr and dn_expand read it, one line each: `refused`, or question
/// and answers.
const GLIBC: &str = r"
import ctypes, sys
lib = ctypes.CDLL('libresolv.so.2')
class Rr(ctypes.Structure):
    _fields_ = [('name', ctypes.c_char * 1025), ('type', ctypes.c_uint16), ('class_', ctypes.c_uint16),
                ('ttl', ctypes.c_uint32), ('length', ctypes.c_uint16), ('data', ctypes.c_void_p)]
def told(message):
    buffer = ctypes.create_string_buffer(message, max(len(message), 1))
    begin = ctypes.addressof(buffer)
    handle = ctypes.create_string_buffer(256)
    if lib.ns_initparse(buffer, len(message), handle) < 0:
        return ['refused']
    rr, out = Rr(), []
    def name(at):
        text = ctypes.create_string_buffer(1025)
        took = lib.dn_expand(ctypes.c_void_p(begin), ctypes.c_void_p(begin + len(message)),
                             ctypes.c_void_p(at), text, 1025)
        return None if took < 0 else (text.value.decode().lower() or '.', took)
    if lib.ns_parserr(handle, 0, 0, ctypes.byref(rr)) < 0:
        return ['refused']
    out.append('%s %d' % (rr.name.decode().lower() or '.', rr.type))
    answers = int.from_bytes(message[6:8], 'big')
    for n in range(answers):
        if lib.ns_parserr(handle, 1, n, ctypes.byref(rr)) < 0:
            return ['refused']
        data = ctypes.string_at(rr.data, rr.length) if rr.length else b''
        skip = {2: 0, 5: 0, 12: 0, 39: 0, 15: 2, 33: 6, 64: 2, 65: 2}.get(rr.type)
        if rr.class_ != 1:
            said = '-'
        elif rr.type in (1, 28):
            said = data.hex()
        elif skip is not None:
            target = name(rr.data + skip) if rr.length > skip else None
            if target is None:
                return ['refused']
            said = target[0]
        else:
            said = '-'
        out.append('%s %d %d %s' % (rr.name.decode().lower() or '.', rr.type, rr.ttl, said))
    return out
for line in sys.stdin:
    print('|'.join(told(bytes.fromhex(line.strip()))))
";

/// The same, as we read it; none where we refuse any part that glibc reads.
fn ours(bytes: &[u8]) -> Option<String> {
    let message = Message::parse(bytes).ok()?;
    if message.flaw.is_some() {
        return None;
    }
    let question = message.question?;
    // dn_expand says "" for the root, ns_parserr says ".".
    let name = |name: Name<'_>| name.to_string();
    let mut text = format!("{} {}", name(question.name), question.record_type.0);
    for Answer {
        name: owner,
        record_type,
        ttl,
        data,
        ..
    } in message.answers()
    {
        let said = match data {
            Data::Address(IpAddr::V4(address)) => hex(&address.octets()),
            Data::Address(IpAddr::V6(address)) => hex(&address.octets()),
            Data::Target(target) => name(target),
            Data::Service(service) => name(service.target),
            Data::Text(_) | Data::Other => "-".to_owned(),
        };
        write!(text, "|{} {} {ttl} {said}", name(owner), record_type.0).expect("text");
    }
    Some(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// glibc's reading of each message; none where python3 or glibc's resolver is not to be had.
fn glibc(messages: &[Vec<u8>]) -> Option<Vec<String>> {
    let script = ["-c", GLIBC];
    let mut child = Command::new("python3")
        .args(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().expect("stdin");
    let lines: String = messages.iter().map(|message| hex(message) + "\n").collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("output");
    // A broken pipe of the writer is a python that could not begin.
    let written = writer.join().expect("writer");
    if !output.status.success() || written.is_err() {
        return None;
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Some(text.lines().map(str::to_owned).collect())
}

/// Whole and damaged messages: what both read, both read alike; what glibc reads and we refuse is
/// refused for a reason that is meant.
#[test]
fn glibc_reads_the_same() {
    let mut runner = TestRunner::deterministic();
    let mut messages: Vec<Vec<u8>> = corpus().into_iter().map(|(_, bytes, _)| bytes).collect();
    let models = message::tests::any_model();
    for round in 0..1500_u32 {
        let tree = proptest::strategy::Strategy::new_tree(&models, &mut runner).expect("model");
        let mut bytes = tree.current().bytes();
        messages.push(bytes.clone());
        for change in 0..3 {
            let random = round.wrapping_mul(2_654_435_761).rotate_left(change * 9);
            let at = 12 + random as usize % (bytes.len() - 12);
            bytes[at] = (random >> 13) as u8;
        }
        messages.push(bytes);
    }
    let Some(theirs) = glibc(&messages) else {
        eprintln!(
            "SKIPPED: glibc's parser is asked through python3 and libresolv.so.2, which are not here"
        );
        return;
    };
    assert_eq!(theirs.len(), messages.len());
    let (mut same, mut stricter, mut laxer) = (0, 0, 0);
    for (bytes, theirs) in messages.iter().zip(&theirs) {
        match ours(bytes) {
            None if theirs == "refused" => same += 1,
            None => {
                assert!(
                    is_meant(bytes),
                    "refused, but glibc reads {theirs}\n{}",
                    hex(bytes)
                );
                stricter += 1;
            }
            // glibc also reads the sections behind the answers, which we leave alone.
            Some(_) if theirs == "refused" => laxer += 1,
            Some(ours) => {
                assert_eq!(&ours, theirs, "{}", hex(bytes));
                same += 1;
            }
        }
    }
    println!("glibc: {same} alike, {stricter} only glibc reads, {laxer} only we read");
    assert!(same > messages.len() * 3 / 4);
}

/// We refuse what glibc reads only for these: pointers that do not lead backwards, data that do
/// not have their type's form, and a second question or more answers than are used.
fn is_meant(bytes: &[u8]) -> bool {
    let flaw = match Message::parse(bytes) {
        Ok(message) if message.question.is_none() => return true,
        Ok(message) => message.flaw,
        Err(flaw) => Some(flaw),
    };
    matches!(
        flaw,
        Some(Flaw::Pointer | Flaw::Data | Flaw::Questions | Flaw::Bound)
    )
}

fn rate(what: &str, bytes: &[u8], mut take: impl FnMut(&[u8])) -> f64 {
    let rounds = 20_000;
    let begun = Instant::now();
    for _ in 0..rounds {
        take(std::hint::black_box(bytes));
    }
    let each_ns = begun.elapsed().as_nanos() as f64 / f64::from(rounds);
    println!("{what}: {each_ns:.0} ns, {:.0} messages/s", 1e9 / each_ns);
    each_ns
}

/// Printed with --nocapture. The limits are far above what it takes, so that only an attacker's
/// message that costs without measure fails.
#[test]
fn the_cost_of_a_message_is_bounded() {
    let four: Vec<IpAddr> = (1..=4_u8).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let chain = [
        "www.example.com",
        "www.example.com.cdn.example.net",
        "e7.g.edge.example",
    ];
    let usual = wire::addresses(&chain, 60, &four);
    rate("parse, 2 CNAMEs and 4 addresses", &usual, |bytes| {
        let _ = std::hint::black_box(Message::parse(bytes));
    });
    let mut names = Names::default();
    rate("parse and learn again", &usual, |bytes| {
        let _ = names.datagram(1, Way::Received, bytes, 0);
    });
    rate("parse and write for the event", &usual, |bytes| {
        let _ = std::hint::black_box(Message::parse(bytes).map(|m| Summary::of(&m)));
    });
    let mut number = 0_u32;
    rate("parse, learn 4 new addresses, evict 4", &usual, |bytes| {
        let mut bytes = bytes.to_vec();
        // The second byte of the question's name makes it another one.
        number += 1;
        bytes[13..16].copy_from_slice(&[
            b'a' + (number % 26) as u8,
            b'a' + (number / 26 % 26) as u8,
            b'0' + (number / 676 % 10) as u8,
        ]);
        let _ = names.datagram(2 + number % 300, Way::Received, &bytes, 0);
    });
    for (labels, flaw) in [(31, None), (126, Some(Flaw::Bound))] {
        let bytes = worst(labels);
        let message = Message::parse(&bytes).expect("message");
        assert_eq!(message.flaw, flaw);
        let what = format!("128 CNAMEs, names of {labels} labels behind a pointer each");
        let worst_ns = rate(&what, &bytes, |bytes| {
            let _ = names.datagram(1, Way::Received, bytes, 0);
        });
        assert!(worst_ns < 1e6, "{worst_ns} ns");
    }
}

/// Names whose labels are reached by a pointer each, as every answer's owner and target.
fn worst(name_labels: u32) -> Vec<u8> {
    let mut bytes = Encoder::new(1, RESPONSE, false)
        .question(&labels("a"), RecordType::A)
        .bytes
        .clone();
    let mut at = 12_u16;
    let mut data = Vec::new();
    let first = bytes.len() as u16 + 12;
    for _ in 0..name_labels {
        let place = first + data.len() as u16;
        data.extend_from_slice(b"\x01a");
        data.extend_from_slice(&(0xc000 | at).to_be_bytes());
        at = place;
    }
    let mut answer = |record_type: u16, data: &[u8]| {
        let owner = if record_type == 5 {
            0xc000 | at
        } else {
            0xc00c
        };
        bytes.extend_from_slice(&u16::to_be_bytes(owner));
        bytes.extend_from_slice(&record_type.to_be_bytes());
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 9]);
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes[7] += 1;
    };
    answer(65_280, &data);
    for _ in 0..127 {
        answer(5, &(0xc000 | at).to_be_bytes());
    }
    bytes
}
