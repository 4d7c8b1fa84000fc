//! Every rule of docs/ledger.md about the files of an export, with a folder that it is about.

use std::collections::BTreeMap;

use audit_ledger::{Batches, Report, Verdict, Verifier, batch_files};
use audit_proto::{Message as _, v1::Batch};
use serde_json::{Value, json};

use crate::{
    Contents, losses,
    record::{BEGAN, COUNT, SECOND, history},
    told,
};

type Files = BTreeMap<String, Vec<u8>>;

/// A folder, and the exit status that is to come of it.
pub struct Export {
    pub name: &'static str,
    pub files: Files,
    pub status: u8,
}

fn framed(batches: &[Batch]) -> Vec<u8> {
    let entry = |batch: &Batch| {
        let encoded = batch.encode_to_vec();
        [&(encoded.len() as u32).to_le_bytes()[..], &encoded].concat()
    };
    batches.iter().flat_map(entry).collect()
}

/// Batches 1 to 5 and the others, each in a file.
fn folder() -> Files {
    let (batches, _) = history();
    let about = json!({
        "time": BEGAN + (COUNT + 1) * SECOND, "whole": true, "unreadable": [],
    });
    Files::from([
        ("batches-00000001".to_owned(), framed(&batches[..5])),
        ("batches-00000002".to_owned(), framed(&batches[5..])),
        ("export.json".to_owned(), about.to_string().into_bytes()),
        ("forks".to_owned(), Vec::new()),
    ])
}

fn export(name: &'static str, status: u8, change: impl FnOnce(&mut Files)) -> Export {
    let mut files = folder();
    change(&mut files);
    Export {
        name,
        files,
        status,
    }
}

fn file<'a>(files: &'a mut Files, name: &str) -> &'a mut Vec<u8> {
    files.get_mut(name).expect("a file")
}

fn about(files: &mut Files, text: &str) {
    *file(files, "export.json") = text.as_bytes().to_vec();
}

const FIRST: &str = "batches-00000001";
const SECOND_FILE: &str = "batches-00000002";

fn batch_files_cases() -> Vec<Export> {
    vec![
        export("whole", 0, |_| {}),
        export("a file is not there, and a later one is", 2, |files| {
            files.remove(FIRST);
        }),
        export("files of other names", 0, |files| {
            let bytes = b"\xff\xff\xff\xff".to_vec();
            for name in [
                "batches-1",
                "batches-000000003",
                "batches-00000003~",
                "batches-0000000a",
                "notes",
            ] {
                files.insert(name.to_owned(), bytes.clone());
            }
        }),
        export("a file without batches", 0, |files| {
            files.insert("batches-00000003".to_owned(), Vec::new());
        }),
        export("cut within a batch", 2, |files| {
            file(files, SECOND_FILE).pop();
        }),
        export("cut within a length", 2, |files| {
            file(files, SECOND_FILE).extend(b"\x05\0");
        }),
        export("a batch that would be too long", 2, |files| {
            file(files, SECOND_FILE).extend(b"\x01\0\0\x01");
        }),
        export("no batch between others", 2, |files| {
            let batches = std::mem::take(file(files, SECOND_FILE));
            *file(files, SECOND_FILE) = [b"\x02\0\0\0\xff\xff", &batches[..]].concat();
        }),
        export("a batch of no bytes", 2, |files| {
            file(files, SECOND_FILE).extend(b"\0\0\0\0");
        }),
        export("no batches", 3, |files| {
            files.remove(FIRST);
            files.remove(SECOND_FILE);
        }),
    ]
}

pub fn all() -> Vec<Export> {
    let time = BEGAN + (COUNT + 1) * SECOND;
    let with = |members: &str| format!("{{\"time\": {time}, {members}}}");
    let (twice, other) = (
        with(r#""whole": false, "whole": true, "unreadable": []"#),
        with(r#""whole": 1, "unreadable": []"#),
    );
    let told = with(r#""whole": true, "unreadable": ["a disk"]"#);
    let no_text = with(r#""whole": true, "unreadable": [5]"#);
    let more = with(r#""whole": true, "unreadable": [], "of": {"host": "web"}"#);
    let mut all = batch_files_cases();
    all.extend([
        export("forks are not there", 2, |files| {
            files.remove("forks");
        }),
        export("forks are cut", 2, |files| {
            file(files, "forks").extend(b"\x05\0\0\0a");
        }),
        export("forks are of the record", 0, |files| {
            *file(files, "forks") = file(files, FIRST).clone();
        }),
        export("the collector could not read something", 2, |files| {
            about(files, &told);
        }),
        export("nothing is here but what cannot be read", 2, |files| {
            files.remove(FIRST);
            files.remove(SECOND_FILE);
            about(files, &told);
        }),
        export("export.json is not there", 3, |files| {
            files.remove("export.json");
        }),
        export("export.json says more", 0, |files| about(files, &more)),
        export("export.json says a thing twice", 3, |files| {
            about(files, &twice);
        }),
        export("export.json says a thing of another type", 3, |files| {
            about(files, &other);
        }),
        export("export.json has a reason that is no text", 3, |files| {
            about(files, &no_text);
        }),
    ]);
    all
}

#[derive(serde::Deserialize)]
struct About {
    time: i64,
    whole: bool,
    unreadable: Vec<String>,
}

fn read(verifier: &mut Verifier, bytes: &[u8], each: impl Fn(&mut Verifier, &Batch)) {
    for batch in Batches::new(bytes) {
        match batch {
            Ok(batch) => each(verifier, &batch),
            Err(error) => verifier.unreadable(error.to_string()),
        }
    }
}

/// As `hostaudit verify --export` does it.
pub fn verify(export: &Export) -> (u8, Report) {
    let files = &export.files;
    let text = files.get("export.json").map_or(&[][..], Vec::as_slice);
    let Ok(about) = serde_json::from_slice::<About>(text) else {
        return (3, Report::default());
    };
    let mut verifier = match about.whole {
        true => Verifier::new(),
        false => Verifier::of_part(),
    };
    let (names, absent) = batch_files(files.keys().map(String::as_str));
    let told = about.unreadable.into_iter().chain(absent);
    told.for_each(|what| verifier.unreadable(what));
    for name in names {
        read(&mut verifier, &files[&name], Verifier::batch);
    }
    match files.get("forks") {
        Some(bytes) => read(&mut verifier, bytes, Verifier::fork),
        None => verifier.unreadable("forks: not there".to_owned()),
    }
    let report = verifier.finish(about.time);
    let status = match report.verdict() {
        Verdict::Complete => 0,
        Verdict::Incomplete if report.batches() == 0 => 3,
        Verdict::Incomplete => 1,
        Verdict::Tampered => 2,
    };
    (status, report)
}

pub fn vector(export: &Export, contents: &mut Contents) -> Value {
    let (status, report) = verify(export);
    let files = export.files.iter();
    let files: BTreeMap<&str, usize> = files
        .map(|(name, bytes)| (&name[..], contents.place(bytes)))
        .collect();
    json!({
        "name": export.name, "files": files, "status": status, "events": report.events(),
        "findings": told(&report), "losses": losses(&report),
    })
}
