use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::request::Request;

pub fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = Authority::create(&dir.path().join("ca"), SystemTime::now()).expect("made");
    (dir, authority)
}

fn csr() -> Vec<u8> {
    Request::new().expect("request").csr
}

fn for_agents(name: Option<&str>) -> TokenGrant {
    TokenGrant {
        role: Role::Agent,
        name: name.map(str::to_owned),
        hosts: Vec::new(),
        lifetime: DAY,
        uses: 1,
    }
}

fn hour() -> Duration {
    Duration::from_secs(3600)
}

#[test]
fn an_authority_is_made_once_and_its_key_is_for_its_owner() {
    let (dir, authority) = authority();
    let ca = dir.path().join("ca");
    let error = Authority::create(&ca, SystemTime::now())
        .err()
        .expect("twice");
    assert!(matches!(error, AuthorityError::Exists(_)), "{error}");
    let opened = Authority::open(&ca).expect("opens");
    assert_eq!(opened.fingerprint(), authority.fingerprint());
    for (name, mode) in [
        (CA_KEY, 0o600),
        (ISSUED, 0o600),
        (CA, 0o644),
        (REVOKED, 0o644),
    ] {
        let found = fs::metadata(ca.join(name)).expect(name).mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    let error = Authority::open(dir.path()).err().expect("none");
    assert!(error.to_string().contains("hostaudit pki init"), "{error}");
}

#[test]
fn a_key_of_another_authority_is_found_out() {
    let ((dir, _one), (other, _two)) = (authority(), authority());
    let key = |dir: &tempfile::TempDir| dir.path().join("ca").join(CA_KEY);
    fs::copy(key(&other), key(&dir)).expect("copied");
    let error = Authority::open(&dir.path().join("ca"))
        .err()
        .expect("refused");
    assert!(error.to_string().contains("not the key"), "{error}");
}

#[test]
fn what_a_request_asks_for_beside_a_key_is_ignored() {
    let (_dir, authority) = authority();
    let mut params = CertificateParams::new(vec!["collector.example".to_owned()]).expect("names");
    let uri = "hostaudit://admin/mallory".try_into().expect("text");
    params.subject_alt_names.push(SanType::URI(uri));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("key");
    let csr = params.serialize_request(&key).expect("request");
    let now = SystemTime::now();
    let token = authority
        .token(&for_agents(None), hour(), now)
        .expect("token");
    let chain = authority
        .enroll(&token.secret, "h1", csr.der(), now)
        .expect("enrolled");
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).expect("parses");
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().expect("one").expect("there");
    assert!(usage.value.client_auth && !usage.value.server_auth);
    let certificate = Certificate::of_der(&chain[0]).expect("ours");
    assert_eq!(certificate.peer.to_string(), "hostaudit://agent/h1");
    assert!(certificate.hosts.is_empty());
}

#[test]
fn a_token_works_once_and_not_after_its_time_and_only_where_it_was_made() {
    let ((dir, authority), (_other, another)) = (authority(), authority());
    let now = SystemTime::now();
    let token = authority
        .token(&for_agents(None), hour(), now)
        .expect("token");
    let kept = fs::read_dir(dir.path().join("ca/tokens")).expect("tokens");
    let names: Vec<_> = kept.map(|file| file.expect("file").file_name()).collect();
    assert_eq!(
        names,
        [token.secret.hash().as_str()],
        "the secret itself is not kept"
    );

    let join = |secret, name: &str, at| authority.enroll(secret, name, &csr(), at);
    let refused = another.enroll(&token.secret, "a", &csr(), now).err();
    assert!(matches!(refused, Some(AuthorityError::TokenUnknown)));
    let refused = join(&token.secret, "a", now + hour() + hour()).err();
    assert!(matches!(refused, Some(AuthorityError::TokenExpired)));
    let refused = authority
        .enroll(&token.secret, "a", b"no request", now)
        .err();
    assert!(
        matches!(refused, Some(AuthorityError::Request(_))),
        "and the token is left"
    );
    let refused = join(&token.secret, "no name", now).err();
    assert!(
        matches!(refused, Some(AuthorityError::Peer(_))),
        "and the token is left"
    );
    join(&token.secret, "a", now).expect("once");
    let refused = join(&token.secret, "b", now).err();
    assert!(matches!(refused, Some(AuthorityError::TokenUsed)));
}

#[test]
fn a_token_of_some_uses_lets_so_many_join_and_nobody_who_was_revoked() {
    let (_dir, authority) = authority();
    let now = SystemTime::now();
    let of_fleet = TokenGrant {
        uses: 3,
        ..for_agents(None)
    };
    let token = authority.token(&of_fleet, hour(), now).expect("token");
    let join = |name: &str| authority.enroll(&token.secret, name, &csr(), now);
    join("a").expect("first");
    assert!(matches!(join("a"), Err(AuthorityError::NameTaken(_))));
    let revoked = authority.revoke(&Which::Name("a".to_owned()), now);
    assert_eq!(revoked.expect("revoked").len(), 1);
    assert!(matches!(join("a"), Err(AuthorityError::NameRevoked(_))));
    join("b").expect("second");
    join("c").expect("third: the refused are not counted");
    assert!(matches!(join("d"), Err(AuthorityError::TokenUsed)));
    let single = authority
        .token(&for_agents(None), hour(), now)
        .expect("token");
    let back = authority.enroll(&single.secret, "a", &csr(), now);
    back.expect("somebody made a token for it");
}

#[test]
fn of_hosts_that_race_for_one_token_one_joins() {
    let (dir, authority) = authority();
    let now = SystemTime::now();
    let token = authority
        .token(&for_agents(None), hour(), now)
        .expect("token");
    let joined = std::thread::scope(|scope| {
        let race = |at: usize| {
            let (path, secret) = (dir.path().join("ca"), token.secret.clone());
            scope.spawn(move || {
                let authority = Authority::open(&path).expect("opens");
                authority
                    .enroll(&secret, &format!("h{at}"), &csr(), now)
                    .is_ok()
            })
        };
        let racers: Vec<_> = (0..8).map(race).collect();
        let ended = racers.into_iter().map(|racer| racer.join().expect("ends"));
        ended.filter(|joined| *joined).count()
    });
    assert_eq!(joined, 1);
    assert_eq!(authority.issued().expect("list").len(), 1);
}

#[test]
fn a_name_that_is_in_use_is_given_again_only_by_a_token_that_names_it() {
    let (_dir, authority) = authority();
    let now = SystemTime::now();
    let join = |named: Option<&str>, asks: &str| {
        let token = authority
            .token(&for_agents(named), hour(), now)
            .expect("token");
        authority.enroll(&token.secret, asks, &csr(), now)
    };
    join(None, "h1").expect("new");
    let refused = join(None, "h1").err();
    assert!(matches!(refused, Some(AuthorityError::NameTaken(_))));
    let chain = join(Some("h1"), "ignored").expect("named");
    let certificate = Certificate::of_der(&chain[0]).expect("ours");
    assert_eq!(certificate.peer.name(), "h1");
    let revoked = authority
        .revoke(&Which::Name("h1".to_owned()), now)
        .expect("revoked");
    assert_eq!(revoked.len(), 2);
    join(None, "h1").expect("free again");
}

#[test]
fn rotation_says_the_same_for_another_key_and_not_for_what_is_revoked_or_over() {
    let (_dir, authority) = authority();
    let now = SystemTime::now();
    let grant = Grant {
        peer: Peer::new(Role::Collector, "c").expect("peer"),
        hosts: vec!["c.example".to_owned()],
        lifetime: DAY,
    };
    let first = authority.issue(&csr(), &grant, now).expect("issued");
    let first = Certificate::of_der(&first[0]).expect("ours");
    let later = now + DAY / 2;
    let second = authority.rotate(&first, &csr(), later).expect("rotated");
    let second = Certificate::of_der(&second[0]).expect("ours");
    assert_eq!((&second.peer, &second.hosts), (&first.peer, &first.hosts));
    assert_eq!(second.validity.lifetime(), first.validity.lifetime());
    assert_ne!(second.serial, first.serial);
    assert!(second.validity.not_after_s > first.validity.not_after_s);

    let refused = authority.rotate(&first, &csr(), now + DAY * 2).err();
    assert!(matches!(refused, Some(AuthorityError::Expired)));
    let which = Which::Serial(first.serial.to_uppercase());
    assert_eq!(authority.revoke(&which, now).expect("revoked").len(), 1);
    let refused = authority.rotate(&first, &csr(), later).err();
    assert!(matches!(refused, Some(AuthorityError::Revoked)));
    authority
        .rotate(&second, &csr(), later)
        .expect("the other one stays");
    let none = authority
        .revoke(&Which::Name("nobody".to_owned()), now)
        .err();
    assert!(matches!(none, Some(AuthorityError::NothingToRevoke)));
}

#[test]
fn no_certificate_outlives_its_authority_and_the_list_drops_what_is_long_over() {
    let (_dir, authority) = authority();
    let now = SystemTime::now();
    let grant = |days| Grant {
        peer: Peer::new(Role::Reader, "r").expect("peer"),
        hosts: Vec::new(),
        lifetime: DAY * days,
    };
    let chain = authority
        .issue(&csr(), &grant(100_000), now)
        .expect("issued");
    let certificate = Certificate::of_der(&chain[0]).expect("ours");
    assert_eq!(
        certificate.validity.not_after_s,
        authority.validity.not_after_s
    );
    authority.issue(&csr(), &grant(1), now).expect("issued");
    assert_eq!(authority.issued().expect("list").len(), 2);
    authority
        .issue(&csr(), &grant(1), now + KEPT + DAY * 2)
        .expect("issued");
    assert_eq!(authority.issued().expect("list").len(), 2);
}

#[test]
fn hosts_are_names_or_addresses() {
    for good in ["a", "a.example", "*.example", "10.0.0.1", "::1"] {
        assert!(san(good).is_ok(), "{good}");
    }
    for bad in ["", "a b", "https://a", "a:1", "[::1]", "ä"] {
        assert!(matches!(san(bad), Err(AuthorityError::Host(_))), "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
    ) {
        proptest::prop_assert!(read_request(&bytes).is_err());
    }
}

#[test]
fn a_request_that_was_cut_or_changed_is_refused() {
    let whole = csr();
    assert!(read_request(&whole).is_ok());
    // In front of it are tag and length, behind it what signs it.
    let signed = 3..3 + 2 + usize::from(whole[4]);
    for at in 0..whole.len() {
        assert!(read_request(&whole[..at]).is_err(), "cut at {at}");
        let mut changed = whole.clone();
        changed[at] ^= 0x01;
        let accepted = read_request(&changed).is_ok();
        assert!(!(accepted && signed.contains(&at)), "changed at {at}");
    }
    assert!(read_request(&vec![0x30; MAX_CSR_BYTES + 1]).is_err());
}
