//! The index and a naive reading of the specification agree on random events made of what the
//! rules themselves look for. The naive evaluator knows no index: it walks the parsed rule and
//! compares texts with plain string functions.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use audit_columns::{RowsBuilder, View};
use audit_detect::RuleSet;
use audit_proto::{
    Message as _,
    v1::{Event, File, Kind, Parent, Process},
};
use proptest::prelude::*;
use rsigma_parser::{
    ConditionExpr, Detection, DetectionItem, Detections, Modifier, Quantifier, SigmaRule,
    SigmaString, SigmaValue, SpecialChar, StringPart,
};

/// Rules that use what the packs do not.
const EXTRA: &str = r#"
title: Extra
id: 0b0a3f6e-3a5f-4a39-8f0b-6a2f8c4ad3a1
logsource: {product: linux, category: process_creation}
detection:
    glob: {CommandLine: '*cur?l*-O*'}
    cased: {CommandLine|contains|cased: 'XMRig'}
    unicode: {Image|endswith: '/ÜBER'}
    escaped: {CommandLine|contains: 'a\*b\\'}
    null_parent: {ParentImage: null, CommandLine|contains: 'sh'}
    number: {process_euid: 0, process_pid|gte: 100}
    several: {CommandLine|contains|all: ['curl', '-o ']}
    condition: 1 of several or glob or cased or unicode or escaped or (null_parent and not number)
---
title: Counted
id: 2dcb4c42-b08e-4f50-9a3b-0c2f51c1f6b0
logsource: {product: linux, category: process_creation}
detection:
    a: {CommandLine|contains: 'curl'}
    b: {CommandLine|startswith: 'sh'}
    c: {Image|endswith: '/curl'}
    keywords: ['xmrig', 'stratum*tcp']
    condition: 2 of them and not keywords
"#;

struct Corpus {
    rules: Vec<SigmaRule>,
    set: RuleSet,
    literals: Vec<String>,
    /// By rule: (field, literal).
    by_rule: Vec<Vec<(String, String)>>,
}

fn rule_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            rule_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "yml") {
            found.push(path);
        }
    }
}

/// Our pack, SigmaHQ's Linux rules where they are beside the workspace, and the extra ones.
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rule_files(&here.join("../rules"), &mut files);
    let sigmahq = here.join("../../shared/sigma/rules/linux/process_creation");
    if sigmahq.is_dir() {
        rule_files(&sigmahq, &mut files);
    }
    let extra = Path::new(env!("CARGO_TARGET_TMPDIR")).join("extra.yml");
    std::fs::write(&extra, EXTRA).expect("write");
    files.push(extra);
    let (set, report) = RuleSet::load(&files);
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    let mut rules = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("rule");
        let found = rsigma_parser::parse_sigma_yaml(&text).expect("rule").rules;
        // Process rules only: for them the log source is trivially "kind is exec".
        rules.extend(found.into_iter().filter(|rule| {
            rule.logsource.category.as_deref() == Some("process_creation")
                && set
                    .iter()
                    .any(|info| Some(&info.rule.id) == rule.id.as_ref())
        }));
    }
    assert!(rules.len() >= 15);
    let mut by_rule = Vec::new();
    for rule in &rules {
        let mut literals = Vec::new();
        for detection in rule.detection.named.values() {
            collect(detection, &mut literals);
        }
        literals.sort();
        by_rule.push(literals);
    }
    let literals = by_rule
        .iter()
        .flatten()
        .map(|(_, literal)| literal.clone())
        .collect();
    Corpus {
        rules,
        set,
        literals,
        by_rule,
    }
});

fn collect(detection: &Detection, literals: &mut Vec<(String, String)>) {
    let mut add = |field: &str, value: &SigmaValue| {
        let SigmaValue::String(text) = value else {
            return;
        };
        for part in &text.parts {
            if let StringPart::Plain(plain) = part {
                literals.push((field.to_owned(), plain.clone()));
            }
        }
    };
    match detection {
        Detection::AllOf(items) => {
            for item in items {
                let field = item.field.name.as_deref().unwrap_or("CommandLine");
                item.values.iter().for_each(|value| add(field, value));
            }
        }
        Detection::Keywords(values) => values.iter().for_each(|v| add("CommandLine", v)),
        Detection::AnyOf(parts) | Detection::And(parts) => {
            parts.iter().for_each(|part| collect(part, literals));
        }
        _ => {}
    }
}

// The naive evaluator.

fn text_of(stored: &str) -> String {
    stored.replace("\\\\", "\\")
}

fn field(event: &Event, name: &str) -> Vec<String> {
    let process = event.process.clone().unwrap_or_default();
    let parent = event.parent.clone().unwrap_or_default();
    let number = |n: Option<i64>| n.map(|n| n.to_string()).unwrap_or_default();
    let flag = |b: Option<bool>| b.map(|b| b.to_string()).unwrap_or_default();
    let found = match name {
        "Image" => {
            let absolute = process.exe_invoked.starts_with('/');
            vec![
                process.exe,
                if absolute {
                    process.exe_invoked
                } else {
                    String::new()
                },
            ]
        }
        "CommandLine" => vec![process.argv.join(" ")],
        "ParentImage" => vec![parent.exe],
        "ParentCommandLine" => vec![parent.argv.join(" ")],
        "User" if process.effective_user.is_empty() => vec![number(process.euid)],
        "User" => vec![process.effective_user],
        "LogonId" => vec![number(process.uid)],
        "CurrentDirectory" => vec![process.cwd],
        "process_exe" => vec![process.exe],
        "process_euid" => vec![number(process.euid)],
        "process_pid" => vec![number(process.pid)],
        "process_exe_memfd" => vec![flag(process.exe_memfd)],
        "process_exe_deleted" => vec![flag(process.exe_deleted)],
        other => panic!("the naive evaluator does not know {other}"),
    };
    found
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| text_of(text))
        .collect()
}

fn everything(event: &Event) -> Vec<String> {
    let mut all = Vec::new();
    for at in 0..audit_proto::columns::COLUMNS.len() {
        match audit_proto::columns::get(event, at) {
            Some(audit_proto::columns::Value::Text(text)) => all.push(text_of(&text)),
            Some(audit_proto::columns::Value::TextList(list)) => {
                all.extend(list.iter().map(|text| text_of(text)));
            }
            _ => {}
        }
    }
    all.extend(field(event, "CommandLine"));
    all.extend(field(event, "ParentCommandLine"));
    all
}

fn glob(parts: &[StringPart], text: &str) -> bool {
    match parts {
        [] => text.is_empty(),
        [StringPart::Plain(plain), rest @ ..] => text
            .strip_prefix(plain.as_str())
            .is_some_and(|tail| glob(rest, tail)),
        [StringPart::Special(SpecialChar::WildcardSingle), rest @ ..] => {
            let mut chars = text.chars();
            chars.next().is_some() && glob(rest, chars.as_str())
        }
        [StringPart::Special(SpecialChar::WildcardMulti), rest @ ..] => {
            let starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            starts.into_iter().any(|at| glob(rest, &text[at..]))
        }
    }
}

fn lower(parts: &[StringPart]) -> Vec<StringPart> {
    parts
        .iter()
        .map(|part| match part {
            StringPart::Plain(text) => {
                StringPart::Plain(text.chars().flat_map(char::to_lowercase).collect())
            }
            special @ StringPart::Special(_) => special.clone(),
        })
        .collect()
}

fn value(modifiers: &[Modifier], wanted: &SigmaValue, found: &[String]) -> bool {
    let has = |m| modifiers.contains(&m);
    let text = match wanted {
        SigmaValue::Null => return found.is_empty(),
        SigmaValue::String(text) => text.clone(),
        other => SigmaString::from_raw(&other.to_string()),
    };
    if has(Modifier::Re) {
        let flags = if has(Modifier::IgnoreCase) {
            "(?i)"
        } else {
            ""
        };
        let regex = regex::Regex::new(&format!("{flags}{}", text.original)).expect("regex");
        return found.iter().any(|f| regex.is_match(f));
    }
    if has(Modifier::Gte) {
        let bound: i64 = text.original.parse().expect("number");
        return found
            .iter()
            .any(|f| f.parse::<i64>().is_ok_and(|f| f >= bound));
    }
    let many = StringPart::Special(SpecialChar::WildcardMulti);
    let mut parts = text.parts;
    if has(Modifier::Contains) || has(Modifier::EndsWith) {
        parts.insert(0, many.clone());
    }
    if has(Modifier::Contains) || has(Modifier::StartsWith) {
        parts.push(many);
    }
    if has(Modifier::Cased) {
        return found.iter().any(|f| glob(&parts, f));
    }
    let parts = lower(&parts);
    found
        .iter()
        .map(|f| f.chars().flat_map(char::to_lowercase).collect::<String>())
        .any(|f| glob(&parts, &f))
}

fn item(event: &Event, item: &DetectionItem) -> bool {
    let found = field(event, item.field.name.as_deref().expect("named"));
    let holds = |wanted: &SigmaValue| value(&item.field.modifiers, wanted, &found);
    match item.field.modifiers.contains(&Modifier::All) {
        true => item.values.iter().all(holds),
        false => item.values.iter().any(holds),
    }
}

fn detection(event: &Event, asked: &Detection) -> bool {
    match asked {
        Detection::AllOf(items) => items.iter().all(|i| item(event, i)),
        Detection::AnyOf(parts) => parts.iter().any(|part| detection(event, part)),
        Detection::And(parts) => parts.iter().all(|part| detection(event, part)),
        Detection::Keywords(values) => {
            let all = everything(event);
            values
                .iter()
                .any(|wanted| value(&[Modifier::Contains], wanted, &all))
        }
        other => panic!("the naive evaluator does not know {other:?}"),
    }
}

fn condition(event: &Event, asked: &ConditionExpr, all: &Detections) -> bool {
    match asked {
        ConditionExpr::And(parts) => parts.iter().all(|part| condition(event, part, all)),
        ConditionExpr::Or(parts) => parts.iter().any(|part| condition(event, part, all)),
        ConditionExpr::Not(inner) => !condition(event, inner, all),
        ConditionExpr::Identifier(name) => detection(event, &all.named[name]),
        ConditionExpr::Selector {
            quantifier,
            pattern,
        } => {
            let chosen: Vec<_> = all
                .named
                .iter()
                .filter(|(name, _)| pattern.matches_detection_name(name))
                .collect();
            let true_ones = chosen.iter().filter(|(_, d)| detection(event, d)).count();
            match quantifier {
                Quantifier::Any => true_ones >= 1,
                Quantifier::All => true_ones == chosen.len(),
                Quantifier::Count(n) => true_ones as u64 >= *n,
            }
        }
    }
}

fn naive(event: &Event) -> Vec<String> {
    let all = |rule: &&SigmaRule| {
        rule.detection
            .conditions
            .iter()
            .any(|c| condition(event, c, &rule.detection))
    };
    let mut ids: Vec<_> = CORPUS
        .rules
        .iter()
        .filter(all)
        .map(|rule| rule.id.clone().expect("id"))
        .collect();
    ids.sort();
    ids
}

// Random events.

fn fragment() -> impl Strategy<Value = String> {
    let literal = (0..CORPUS.literals.len()).prop_map(|at| CORPUS.literals[at].clone());
    prop_oneof![
        8 => literal.clone(),
        2 => literal.clone().prop_map(|text| text.to_uppercase()),
        2 => literal.prop_map(|text| text.chars().skip(1).collect()),
        1 => "[ a-zÜé/\\\\*?-]{0,6}",
        1 => Just("curxl -O XMRig xmrig".to_owned()),
    ]
}

fn text(pieces: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(fragment(), 0..pieces)
        .prop_map(|parts| audit_proto::text::escape(parts.concat().as_bytes()).into_owned())
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        text(3),
        text(2).prop_map(|text| format!("/usr/bin/{text}")),
        Just("/opt/über".to_owned()),
        Just(String::new()),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let argv = || prop::collection::vec(text(4), 0..5);
    let process = (
        path(),
        path(),
        argv(),
        text(2),
        0i64..3,
        prop::option::of(any::<bool>()),
    );
    (process, path(), argv()).prop_map(|(process, parent_exe, parent_argv)| {
        let (exe, exe_invoked, argv, cwd, euid, exe_memfd) = process;
        let process = Process {
            exe,
            exe_invoked,
            argv,
            cwd,
            pid: Some(99 + euid),
            uid: Some(euid),
            euid: Some(euid),
            effective_user: if euid == 0 {
                "root".into()
            } else {
                String::new()
            },
            exe_memfd,
            ..Process::default()
        };
        let parent = Parent {
            exe: parent_exe,
            argv: parent_argv,
            ..Parent::default()
        };
        Event {
            kind: Kind::Exec as i32,
            process: Some(process),
            parent: Some(parent),
            ..Event::default()
        }
    })
}

/// An event made of one rule's own literals, so that it nearly matches or does.
fn near() -> impl Strategy<Value = Event> {
    let rules = 0..CORPUS.by_rule.len();
    (
        rules,
        prop::collection::vec(any::<bool>(), 64),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(rule, keep, first)| {
            let literals = &CORPUS.by_rule[rule];
            let of = |wanted: &str| {
                let of_field = literals.iter().filter(|(field, _)| field == wanted);
                let kept = of_field.zip(&keep).filter(|(_, keep)| **keep);
                kept.map(|((_, literal), _)| literal.clone())
                    .collect::<Vec<_>>()
            };
            let one = |all: Vec<String>| match all.len() {
                0 => String::new(),
                n => format!("/usr/bin{}", all[first.index(n)]),
            };
            let process = Process {
                exe: one(of("Image")),
                exe_invoked: one(of("Image")),
                argv: of("CommandLine"),
                cwd: of("CurrentDirectory").concat(),
                uid: Some(0),
                euid: Some(0),
                effective_user: "root".into(),
                ..Process::default()
            };
            let parent_exe = one(of("ParentImage"));
            let argv = of("ParentCommandLine");
            Event {
                kind: Kind::Exec as i32,
                process: Some(process),
                parent: Some(Parent {
                    exe: parent_exe,
                    argv,
                    ..Parent::default()
                }),
                ..Event::default()
            }
        })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![event(), near()]
}

/// What matches the event.
fn indexed(event: &Event, scratch: &mut audit_detect::Scratch) -> Vec<String> {
    let mut matched = Vec::new();
    CORPUS.set.evaluate(event, scratch, &mut matched);
    let ours = |at: &&usize| CORPUS.set.info(**at).bucket == audit_detect::Bucket::ProcessCreation;
    let mut ids: Vec<_> = matched
        .iter()
        .filter(ours)
        .map(|at| CORPUS.set.rule(*at).id.clone())
        .collect();
    ids.sort();
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Several events share the scratch, so that nothing of one may leak into the next.
    #[test]
    fn index_and_naive_evaluator_agree(events in prop::collection::vec(any_event(), 1..6)) {
        let mut scratch = CORPUS.set.scratch();
        for event in &events {
            prop_assert_eq!(indexed(event, &mut scratch), naive(event), "{:?}", event);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A part is scanned once for the rows that share it; each combination of parts is a row here.
    #[test]
    fn rows_match_as_their_events(events in prop::collection::vec(any_event(), 1..6)) {
        let mixed: Vec<Event> = events.iter().flat_map(|one| events.iter().map(|other| Event {
            process: other.process.clone(),
            ..one.clone()
        })).collect();
        let encoded: Vec<Vec<u8>> = mixed.iter().map(Event::encode_to_vec).collect();
        let mut builder = RowsBuilder::new(mixed.len());
        builder.push_encoded(encoded.iter().map(Vec::as_slice)).expect("events");
        let rows = builder.finish();
        let (mut scratch, mut of_row, mut of_event) = (CORPUS.set.scratch(), Vec::new(), Vec::new());
        // Twice, so that what is kept of other rows would show.
        for _ in 0..2 {
            scratch.begin_rows();
            let mut view = View::new(&rows);
            for (at, event) in mixed.iter().enumerate().rev() {
                view.set_row(at);
                CORPUS.set.evaluate_row(&view, &mut scratch, &mut of_row);
                CORPUS.set.evaluate(event, &mut scratch, &mut of_event);
                prop_assert_eq!(&of_row, &of_event, "{:?}", event);
            }
        }
    }
}

/// The property would hold trivially if random events matched nothing.
#[test]
fn random_events_do_match() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut scratch = CORPUS.set.scratch();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3000 {
        let tree = any_event().new_tree(&mut runner).expect("event");
        seen.extend(indexed(
            &proptest::strategy::ValueTree::current(&tree),
            &mut scratch,
        ));
    }
    assert!(
        seen.len() * 2 > CORPUS.rules.len(),
        "{} of {}",
        seen.len(),
        CORPUS.rules.len()
    );
}

#[test]
fn other_kinds_match_no_process_rule() {
    let mut scratch = CORPUS.set.scratch();
    let event = Event {
        kind: Kind::Open as i32,
        process: Some(Process {
            argv: vec!["curl -O XMRig".into()],
            ..Process::default()
        }),
        file: Some(File {
            path: "/x".into(),
            access: "read".into(),
            ..File::default()
        }),
        ..Event::default()
    };
    assert_eq!(indexed(&event, &mut scratch), Vec::<String>::new());
}
