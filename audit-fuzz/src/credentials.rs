//! With which files does TLS begin, if somebody has changed one?
//!
//! Guarantee: any content of a certificate's, a key's, an authority's or a revocation list's file loads
//! or is an error that names a file; what the list revokes is told in hexadecimal.
//!
//! Input: which file, and whether its content is given in DER, to be written as PEM; then the content.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use audit_pki::{
    Authority, CA_FILE, CERTIFICATE_FILE, ClientFiles, Credentials, KEY_FILE, Peer, Role,
    ServerFiles,
    authority::{Grant, REVOKED},
    request::Request,
};
use tempfile::TempDir;

use crate::input::Input;

const NAMES: [&str; 4] = [CERTIFICATE_FILE, KEY_FILE, CA_FILE, REVOKED];
const LABELS: [&str; 4] = ["CERTIFICATE", "PRIVATE KEY", "CERTIFICATE", "X509 CRL"];

/// A directory of credentials, and what its files hold.
struct Files {
    dir: TempDir,
    whole: [Vec<u8>; 4],
}

thread_local! {
    static FILES: Files = files();
}

fn files() -> Files {
    let (dir, ca) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, ca) = (dir.expect("a directory"), ca.expect("a directory"));
    let authority = Authority::create(ca.path(), SystemTime::now()).expect("an authority");
    let request = Request::new().expect("a key");
    let grant = Grant {
        peer: Peer::new(Role::Collector, "c").expect("a name"),
        hosts: vec!["localhost".to_owned()],
        lifetime: Duration::from_secs(3600),
    };
    let chain = authority.issue(&request.csr, &grant, SystemTime::now());
    let chain = chain.expect("issued");
    request.keep(&chain, None, dir.path()).expect("kept");
    let list = ca.path().join(REVOKED);
    std::fs::copy(list, dir.path().join(REVOKED)).expect("copied");
    let read = |name| std::fs::read(dir.path().join(name)).expect("written");
    Files {
        whole: NAMES.map(read),
        dir,
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let which = usize::from(choice % 4);
    let content = match choice & 4 {
        0 => input.rest().to_vec(),
        _ => pem(LABELS[which], input.rest()),
    };
    FILES.with(|files| {
        let path = files.dir.path().join(NAMES[which]);
        std::fs::write(&path, &content).expect("written");
        load(files.dir.path());
        std::fs::write(&path, &files.whole[which]).expect("written");
    });
}

fn load(dir: &Path) {
    let server = ServerFiles {
        certificate: dir.join(CERTIFICATE_FILE),
        key: dir.join(KEY_FILE),
        clients_ca: dir.join(CA_FILE),
        revoked: Some(dir.join(REVOKED)),
        joining: true,
    };
    match server.load() {
        Ok(tls) => {
            let is_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            assert!(tls.revoked.iter().all(|serial| serial.bytes().all(is_hex)));
            let _ = tls.validity.is_ending(SystemTime::now());
        }
        Err(error) => {
            let named = error.to_string();
            assert!(named.contains(&*dir.to_string_lossy()), "{named}");
        }
    }
    let client = ClientFiles::within(dir);
    let _ = client.validity();
    let _ = Credentials::Files(client).load();
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n").into_bytes();
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let mut word = [0; 4];
            word[1..=three.len()].copy_from_slice(three);
            let word = u32::from_be_bytes(word);
            let digit = |at: usize| DIGITS[(word >> (18 - 6 * at)) as usize & 63];
            let known = three.len() + 1;
            text.extend((0..4).map(|at| if at < known { digit(at) } else { b'=' }));
        }
        text.push(b'\n');
    }
    text.extend(format!("-----END {label}-----\n").bytes());
    text
}
