//! With which inputs does fuzzing begin? With whole ones, from the published vectors and from what the
//! crates make; the keys among them were made for that and have signed nothing else. To write them anew:
//! `HOSTAUDIT_WRITE_SEEDS=1 cargo test -p audit-fuzz --test seeds`.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use audit_fuzz::{TARGETS, folder};
use audit_ledger::{Frames, Key, Origin, Sealer, Summary};
use audit_pki::{
    Authority, Peer, Role, Token,
    authority::{Grant, REVOKED, Which},
    request::Request,
};
use audit_proto::{
    Message as _,
    columns::{self, ColumnType, OwnedValue},
    text::escape,
    totals::{ClassTotals, FilterTotal},
    v1::{Batch, DeliverRequest, EnrollRequest, Event, Hello, deliver_request::Message},
};
use serde_json::Value;

/// Of a target: name and content.
type Seeds = Vec<(String, Vec<u8>)>;

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16);
    digits
        .map(|pair| byte(pair).expect("hexadecimal"))
        .collect()
}

/// The first and the last batch of each published history, which is where they differ most.
fn vectors() -> Vec<Batch> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ledger-vectors.json");
    let text = fs::read(path).expect("docs/ledger-vectors.json");
    let all: Value = serde_json::from_slice(&text).expect("JSON");
    let contents = all["contents"].as_array().expect("contents");
    let mut found: Vec<Batch> = Vec::new();
    for history in all["histories"].as_array().expect("histories") {
        let batches = history["batches"].as_array().expect("batches");
        let some = [batches.first(), batches.get(5), batches.last()];
        for place in some.into_iter().flatten() {
            let place = place.as_u64().expect("a place") as usize;
            let bytes = unhex(contents[place].as_str().expect("hexadecimal"));
            // Some of the vectors are of batches that cannot be read.
            let Ok(batch) = Batch::decode(&bytes[..]) else {
                continue;
            };
            if !found.contains(&batch) {
                found.push(batch);
            }
        }
    }
    found
}

fn numbered(seeds: Vec<Vec<u8>>) -> Seeds {
    let named = |(at, bytes)| (format!("{at}"), bytes);
    seeds.into_iter().enumerate().map(named).collect()
}

fn with(first: &[u8], rest: &[u8]) -> Vec<u8> {
    [first, rest].concat()
}

fn batch() -> Seeds {
    let whole = vectors()
        .into_iter()
        .map(|b| with(&[0], &b.encode_to_vec()));
    let framed = [
        &b"\x01\x66\x00\x01a"[..],
        b"\x01\x65\x80\x00",
        b"\x01\x67\x02ab\x00\x03abc",
    ];
    // Events of no bytes.
    let many = with(&[1, 255, 0, 16, 0, 0, 0, 0, 0, 0], &[0; 1 << 12]);
    numbered(
        whole
            .chain(framed.map(<[u8]>::to_vec))
            .chain([many])
            .collect(),
    )
}

/// As `history` reads them: agent, what to do, and what that asks for.
fn history() -> Seeds {
    let honest = [0, 3, 1, 2, 0].repeat(6);
    let evolving = [0, 3, 0, 1, 0].repeat(6);
    let changes = (0..18).map(|field| {
        with(
            &with(&[0], &honest[..10]),
            &[0, 5, 1, 1, field, 103, 103, 0],
        )
    });
    let mut seeds = vec![
        with(&[0], &honest),
        with(&[0], &evolving),
        with(&[3], &honest),
    ];
    seeds.push(with(
        &with(&[0], &honest),
        &[0, 0, 1, 0, 2, 3, 0, 1, 2, 1, 0],
    ));
    seeds.extend(changes);
    numbered(seeds)
}

fn tampering() -> Seeds {
    let mut seeds: Vec<Vec<u8>> = (0..3).map(|which| vec![which]).collect();
    seeds.extend((0..8).map(|how| vec![0, 2, 3, how, 40, 0, 1, 9]));
    seeds.extend(
        (0..5).flat_map(|part| [6, 7].map(|how| vec![1, 2, 3, how, 1, part, 9, 0, 2, 1, 1])),
    );
    numbered(seeds)
}

/// Every column set.
fn event() -> Event {
    let mut event = Event::default();
    for (at, column) in columns::COLUMNS.iter().enumerate() {
        let value = match column.ty {
            ColumnType::Int | ColumnType::Time => OwnedValue::Int(at as i64),
            ColumnType::Bool => OwnedValue::Bool(true),
            ColumnType::Text => OwnedValue::Text("é".to_owned()),
            ColumnType::TextList => {
                OwnedValue::TextList(vec!["file seen=1 sent=1".to_owned(), String::new()])
            }
            ColumnType::Enum => OwnedValue::Text(column.values[0].to_owned()),
        };
        columns::set(&mut event, at, value).expect("of its type");
    }
    event
}

fn deliver() -> Seeds {
    let hello = Hello {
        host_id: "0123456789abcdef".to_owned(),
        agent_id: "00".repeat(16),
        first_batch: 1,
        ..Hello::default()
    };
    let event = event().encode_to_vec();
    let half = &event[..event.len().min(200)];
    let small = Event {
        time: 5,
        kind: 3,
        ..Event::default()
    }
    .encode_to_vec();
    let mut sealer = Sealer::begin(Key::new(1, [3; 32]), Origin::default(), None);
    let sealed = sealer.seal(&Frames::from_iter([&event, &small]), Summary::default());
    let first = vectors().swap_remove(0);
    let messages = [
        Message::Hello(hello),
        Message::Batch(sealed),
        Message::Batch(first),
    ];
    let requests = messages.map(|message| DeliverRequest {
        message: Some(message),
    });
    let mut seeds: Vec<Vec<u8>> = requests
        .map(|request| with(&[0], &request.encode_to_vec()))
        .into();
    let framed = |event: &[u8]| with(&[event.len() as u8], event);
    seeds.push(with(
        &[1],
        &[framed(&small), framed(half), framed(&[]), framed(&small)].concat(),
    ));
    // Piece by piece, so that each object is met.
    let pieces = event_pieces(&event);
    seeds.extend(pieces.chunks(4).map(|some| {
        with(
            &[1],
            &some.iter().flat_map(|p| framed(p)).collect::<Vec<_>>(),
        )
    }));
    numbered(seeds)
}

/// Events that each have one column.
fn event_pieces(whole: &[u8]) -> Vec<Vec<u8>> {
    let whole = Event::decode(whole).expect("encoded here");
    let of = |at| {
        let mut event = Event::default();
        columns::set(&mut event, at, columns::get(&whole, at)?.into_owned())?;
        Some(event.encode_to_vec()).filter(|bytes| bytes.len() < 256)
    };
    (0..columns::COLUMNS.len()).filter_map(of).collect()
}

fn wal_segments() -> Seeds {
    // Each: whether the name is odd, how it is written, lost headers, pieces.
    let frames = |first: u8| {
        with(
            &[0, 0, first, 6],
            &[3, 9, 1, 4, 200, 2, 5, 0, 3, 3, 255, 4, 6, 7, 5, 1, 8],
        )
    };
    let holes = [
        0, 0, 0, 5, 3, 9, 1, 2, 102, 101, 9, 1, 3, 9, 2, 0, 4, 1, 2, 3, 4, 1, 30,
    ];
    numbered(vec![
        with(&[0], &frames(0)),
        with(&[2], &[frames(0), frames(1), frames(2)].concat()),
        with(&[1], &[frames(3), frames(0)].concat()),
        with(&[0], &holes),
        with(&[1], &with(&holes, &frames(0))),
    ])
}

fn wal_damage() -> Seeds {
    let records = |many: usize| [0, 100, 7, 0, 3, 9, 9].repeat(many);
    let whole = |many: usize| with(&[3 * many as u8], &records(many));
    let reopened = with(&[18], &[records(5), vec![0, 9, 9, 14, 0, 9, 9, 9]].concat());
    let damage = |how: &[u8]| with(&whole(14), how);
    numbered(vec![
        whole(2),
        whole(18),
        reopened,
        with(&[17], &[records(5), vec![15, 4], records(1)].concat()),
        damage(&[0, 2, 16, 40, 0, 3]),
        damage(&[0, 2, 16, 40, 1, 0, 200]),
        damage(&[1, 2, 16, 16, 2, 0, 200, 18, 0]),
        damage(&[0, 2, 16, 90, 3, 0, 8]),
        damage(&[1, 2, 17, 0, 4]),
        damage(&[0, 0]),
        damage(&[0, 1, 1, 16, 16, 8, 0]),
    ])
}

/// Certificates and requests of all kinds; of new keys each time.
struct Made {
    chains: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    files: Vec<(u8, Vec<u8>)>,
}

fn greedy_request() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = ["admin.example".to_owned(), "10.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    let uri = "hostaudit://admin/root".try_into().expect("a URI");
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params
        .serialize_request(&key)
        .expect("signed")
        .der()
        .to_vec()
}

fn made() -> Made {
    let dir = tempfile::tempdir().expect("a directory");
    let now = SystemTime::now();
    let authority = Authority::create(dir.path(), now).expect("an authority");
    let mut made = Made {
        chains: Vec::new(),
        requests: vec![greedy_request()],
        files: Vec::new(),
    };
    for role in Role::ALL {
        let request = Request::new().expect("a key");
        let grant = Grant {
            peer: Peer::new(role, "x").expect("a name"),
            hosts: vec![
                "a.example".to_owned(),
                "127.0.0.1".to_owned(),
                "::1".to_owned(),
            ],
            lifetime: Duration::from_secs(3600),
        };
        let chain = authority.issue(&request.csr, &grant, now).expect("issued");
        made.chains.push(chain[0].to_vec());
        if role == Role::Agent {
            made.chains.push(chain[1].to_vec());
            made.requests.push(request.csr.clone());
            let kept = dir.path().join("kept");
            request.keep(&chain, None, &kept).expect("kept");
            for (which, name) in (0..).zip(["cert.pem", "key.pem", "ca.pem"]) {
                made.files
                    .push((which, fs::read(kept.join(name)).expect("written")));
            }
        }
    }
    let list = dir.path().join(REVOKED);
    made.files.push((3, fs::read(&list).expect("published")));
    authority
        .revoke(&Which::Name("x".to_owned()), now)
        .expect("revoked");
    made.files.push((3, fs::read(&list).expect("published")));
    made
}

fn of_pki() -> [(&'static str, Seeds); 3] {
    let made = made();
    let enroll = |name: &str| {
        let asked = EnrollRequest {
            secret: vec![7; 16],
            name: name.to_owned(),
            signing_request: made.requests[0].clone(),
        };
        asked.encode_to_vec()
    };
    let asked = [enroll("host-1"), enroll("../x"), enroll("")];
    let requests = made.requests.iter().cloned().chain(asked);
    let mut files: Vec<Vec<u8>> = made
        .files
        .iter()
        .map(|(which, text)| with(&[*which], text))
        .collect();
    files.extend(
        made.chains
            .iter()
            .flat_map(|der| [4, 6].map(|which| with(&[which], der))),
    );
    [
        ("certificate", numbered(made.chains.clone())),
        ("request", numbered(requests.collect())),
        ("credentials", numbered(files)),
    ]
}

fn text() -> Seeds {
    let token = Token {
        secret: audit_pki::token::Secret::from_bytes(&[0xa5; 16]).expect("16 bytes"),
        authority: audit_pki::Fingerprint([0x5a; 32]),
    };
    let rule = FilterTotal {
        rule: "noise".to_owned(),
        hidden: 7,
    };
    let totals = ClassTotals {
        class: "file".to_owned(),
        seen: 15,
        sent: -1,
        ..ClassTotals::default()
    };
    let mut texts: Vec<String> = Role::ALL
        .map(|role| Peer::new(role, "a.b-c_d@e").expect("a name").to_string())
        .into();
    texts.extend([token.to_string(), totals.to_string(), rule.to_string()]);
    texts.push(escape(b"a\xff\\b\n").into_owned());
    let filters =
        "kind=exec|fork, process_uid>=0,!container_id,process_exe^=/a\\,b|\\|,x<<=::/0,y~=a{1\\,2}";
    texts.push(filters.to_owned());
    texts.push("0123456789abcdef".to_owned());
    numbered(texts.into_iter().map(String::into_bytes).collect())
}

#[test]
fn seeds_are_inputs_of_targets_that_there_are() {
    let mut all = vec![
        ("batch", batch()),
        ("history", history()),
        ("tampering", tampering()),
        ("deliver", deliver()),
        ("wal_segments", wal_segments()),
        ("wal_damage", wal_damage()),
        ("text", text()),
    ];
    all.extend(of_pki());
    assert_eq!(all.len(), TARGETS.len());
    let write = std::env::var_os("HOSTAUDIT_WRITE_SEEDS").is_some();
    for (target, seeds) in all {
        let (_, run) = TARGETS
            .into_iter()
            .find(|(name, _)| *name == target)
            .expect("a target");
        for (name, bytes) in seeds {
            if write {
                let folder = folder("corpus", target);
                fs::create_dir_all(&folder).expect("made");
                fs::write(folder.join(format!("seed-{name}")), &bytes).expect("written");
            }
            run(&bytes);
        }
    }
}
