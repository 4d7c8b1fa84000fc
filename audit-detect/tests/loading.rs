//! What the report says about rules that are wrong or cannot fire, and that nothing else suffers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use audit_detect::{Report, RuleSet, Source};

const GOOD: &str = "title: good\nlogsource: {product: linux, category: process_creation}\n\
                    detection: {s: {Image: /x}, condition: s}\n";

fn load(text: &str) -> Report {
    let source = |file: &str, text: &str| Source {
        file: PathBuf::from(file),
        text: text.to_owned(),
    };
    let (rules, report) = RuleSet::compile(&[source("bad.yml", text), source("good.yml", GOOD)]);
    assert!(
        rules.iter().any(|info| info.rule.title == "good"),
        "the good rule must survive"
    );
    report
}

#[track_caller]
fn broken(text: &str, line: usize, problem: &str, fix: &str) {
    let report = load(text);
    let found = report
        .broken
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    let start = format!("bad.yml:{line}: ");
    assert!(found.starts_with(&start), "{start:?}: {found}");
    assert!(found.contains(problem) && found.contains(fix), "{found}");
}

#[test]
fn errors_name_file_line_and_remedy() {
    let head = "title: t\nlogsource: {product: linux, category: process_creation}\ndetection:\n";
    broken("title: t\n  bad: [\n", 2, "YAML", "repair the YAML there");
    broken(
        "# licence\n---\nid: x\nlogsource: {}\n",
        3,
        "'title'",
        "add it",
    );
    broken(
        "title: t\nlogsource: {product: linux}\n",
        1,
        "'detection'",
        "add it",
    );
    broken(
        &format!("{head}  s: {{Image: a}}\n"),
        1,
        "'condition'",
        "add it",
    );
    broken(
        &format!("{head}  s:\n    Image|contians: a\n  condition: s\n"),
        5,
        "Unknown modifier 'contians'",
        "use contains",
    );
    broken(
        &format!("{head}  s: {{Image: a}}\n  condition: s and filter\n"),
        5,
        "names \"filter\"",
        "use one of: s",
    );
    broken(
        &format!("{head}  s: {{Image: a}}\n  condition: s and and\n"),
        5,
        "",
        "combine names",
    );
    broken(
        &format!("{head}  s:\n    Image|re: 'a(b'\n  condition: s\n"),
        5,
        "regular expression \"a(b\" cannot be used: error: unclosed group",
        "repair it",
    );
    broken(
        &format!("{head}  s:\n    Image|cidr: 10.0.0.0\n  condition: s\n"),
        5,
        "not a network",
        "10.0.0.0/8",
    );
    broken(
        &format!("{head}  s:\n    Image|gt: many\n  condition: s\n"),
        5,
        "not a number",
        "need a number",
    );
    broken(
        &format!("{head}  s: {{Image: a}}\n  f: {{Nothing: null}}\n  condition: s or f\n"),
        1,
        "matches every event",
        "name a field",
    );
    broken("- a list\n", 1, "not a YAML mapping", "specification");
}

#[test]
fn a_wrong_level_is_told_and_the_rule_still_works() {
    let report = load(&format!("{GOOD}level: hihg\n").replace("good", "odd"));
    assert_eq!(report.loaded, 2);
    assert!(
        report.broken[0]
            .to_string()
            .starts_with("bad.yml:4: invalid level: 'hihg'")
    );
}

#[test]
fn a_second_rule_with_the_same_id_is_refused() {
    let one = GOOD.replace("good", "one") + "id: 5f2e6a0e-3f0a-4d58-9d35-0a3f0b8e7c11\n";
    let report = load(&format!("{one}---\n{one}"));
    assert_eq!(report.loaded, 2);
    assert!(
        report.broken[0]
            .to_string()
            .contains("give it an id of its own")
    );
}

#[track_caller]
fn idle(text: &str, why: &str) {
    let report = load(text);
    assert!(report.is_sound(), "{:?}", report.broken);
    let found: Vec<_> = report.idle.iter().map(ToString::to_string).collect();
    assert!(
        found.len() == 1 && found[0].contains(why),
        "{why}: {found:?}"
    );
}

#[test]
fn rules_that_cannot_fire_say_why() {
    let rule = |source: &str, detection: &str| {
        format!("title: t\nlogsource: {{{source}}}\ndetection: {{s: {detection}, condition: s}}\n")
    };
    let exec = "product: linux, category: process_creation";
    idle(
        &rule("product: windows, category: process_creation", "{Image: a}"),
        "product=windows",
    );
    idle(
        &rule("product: linux, service: auditd", "{Image: a}"),
        "service=auditd is not collected",
    );
    idle(
        &rule(exec, "{Hashes: a, Image: b}"),
        "no event here has the field Hashes",
    );
    idle(
        &rule(exec, "{Image|expand: '%a%'}"),
        "modifier expand is not supported",
    );
    idle(
        "title: c\ncorrelation: {type: event_count, rules: [a], group-by: [User], timespan: 5m, \
         condition: {gte: 10}}\n",
        "correlation is not supported",
    );
}

#[test]
fn a_field_nobody_has_disables_only_its_part() {
    let report = load(
        "title: t\nlogsource: {product: linux, category: process_creation}\n\
         detection: {s: [{Hashes: a}, {Image: b}], condition: s}\n",
    );
    assert_eq!((report.loaded, report.idle.len()), (2, 0));
    assert_eq!(report.inert[0].field, "Hashes");
}

#[test]
fn paths_that_cannot_be_read_are_told() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loading");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("deep/tests")).expect("folders");
    fs::write(dir.join("deep/good.yml"), GOOD).expect("write");
    fs::write(dir.join("deep/tests/good.yml"), "samples: []").expect("write");
    fs::write(dir.join("notes.txt"), "not a rule").expect("write");
    fs::write(dir.join("binary.yml"), [0xff, 0xfe, 0x00]).expect("write");
    fs::write(dir.join("huge.yml"), vec![b'#'; (1 << 20) + 1]).expect("write");
    std::os::unix::fs::symlink(&dir, dir.join("loop")).expect("link");
    let (_, report) = RuleSet::load(&[dir.as_path(), Path::new("/nonexistent/rules")]);
    let told = report
        .broken
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    for wanted in [
        "binary.yml: cannot be read",
        "huge.yml: cannot be read: 1048577 bytes",
        "nested too deeply",
        "/nonexistent/rules: cannot be read",
    ] {
        assert!(told.contains(wanted), "{wanted} not in:\n{told}");
    }
    assert!(!told.contains("notes.txt"));
}
