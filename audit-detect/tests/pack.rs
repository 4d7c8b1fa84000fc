//! The rules of this repository: complete, silent on daily work, and each able to fail its test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use audit_detect::{RuleSet, samples};

fn rules_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../rules")
}

#[test]
fn every_rule_passes_its_samples() {
    let outcome = samples::run(&rules_dir());
    for result in outcome.failed() {
        eprintln!(
            "{}: {:?} fired {:?}",
            result.file.display(),
            result.name,
            result.fired
        );
    }
    for broken in &outcome.report.broken {
        eprintln!("{broken}");
    }
    for idle in &outcome.report.idle {
        eprintln!("{idle}");
    }
    eprintln!("{:#?}", outcome.problems);
    assert!(outcome.passed());
    assert!(
        outcome.report.inert.is_empty(),
        "{:#?}",
        outcome.report.inert
    );
    assert!(outcome.report.loaded >= 18, "{}", outcome.report.loaded);
}

#[test]
fn every_rule_says_what_an_alert_needs() {
    let (rules, _) = RuleSet::load(&[rules_dir()]);
    let mut ids = BTreeSet::new();
    for info in rules.iter() {
        let rule = &info.rule;
        let name = info.file.display();
        assert_eq!(rule.author, "hostaudit", "{name}");
        assert!(
            ids.insert(rule.id.clone()) && rule.id.len() == 36,
            "{name}: id {:?}",
            rule.id
        );
        assert_eq!(rule.id.as_bytes()[14], b'4', "{name}: not a random UUID");
        assert!(
            rule.tags.iter().any(|tag| tag.starts_with("attack.t")),
            "{name}: no technique"
        );
        assert!(
            !rule.level.is_empty() && !rule.description.is_empty(),
            "{name}"
        );
        assert!(
            !info.false_positives.is_empty(),
            "{name}: no falsepositives"
        );
        let text = fs::read_to_string(&info.file).expect("rule");
        assert!(
            text.starts_with("# SPDX-License-Identifier:"),
            "{name}: no licence line"
        );
    }
}

/// Copies the pack, lets `spoil` change it, and runs the samples.
fn spoiled(name: &str, spoil: impl Fn(&Path)) -> samples::Outcome {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    for folder in ["", "tests"] {
        fs::create_dir_all(dir.join(folder)).expect("folder");
        for entry in fs::read_dir(rules_dir().join(folder)).expect("rules") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let to = dir.join(folder).join(path.file_name().expect("name"));
                fs::copy(&path, to).expect("copy");
            }
        }
    }
    spoil(&dir);
    samples::run(&dir)
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("file");
    assert!(text.contains(from), "{} has no {from:?}", file.display());
    fs::write(file, text.replace(from, to)).expect("write");
}

#[test]
fn the_test_of_every_rule_can_fail() {
    let (rules, _) = RuleSet::load(&[rules_dir()]);
    let files: Vec<_> = rules.iter().map(|info| info.file.clone()).collect();
    let outcome = spoiled("swapped", |dir| {
        for file in &files {
            let samples = dir.join("tests").join(file.file_name().expect("name"));
            replace(&samples, "expect: no-match", "expect: later");
            replace(&samples, "expect: match", "expect: no-match");
            replace(&samples, "expect: later", "expect: match");
        }
    });
    for file in &files {
        let stem = file.file_stem();
        let own = || {
            outcome
                .results
                .iter()
                .filter(|r| r.file.file_stem() == stem)
        };
        assert!(own().count() >= 2, "{}", file.display());
        assert!(own().all(|result| !result.passed()), "{}", file.display());
    }
}

#[test]
fn a_changed_positive_sample_is_red() {
    let outcome = spoiled("changed", |dir| {
        replace(
            &dir.join("tests/fileless_exec.yml"),
            "memfd: true",
            "memfd: false",
        );
    });
    assert_eq!(outcome.failed().count(), 1);
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let outcome = spoiled("missing", |dir| {
        let tests = dir.join("tests");
        fs::remove_file(tests.join("fileless_exec.yml")).expect("remove");
        fs::write(tests.join("nobody.yml"), "samples: []\n").expect("write");
        replace(
            &tests.join("crypto_miner.yml"),
            "expect: no-match",
            "expect: match",
        );
        replace(
            &tests.join("sudoers_written.yml"),
            "file_path:",
            "file_paht:",
        );
        replace(
            &tests.join("persistence_cron.yml"),
            "kind: open",
            "kind: opne",
        );
    });
    let text = outcome.problems.join("\n");
    for wanted in [
        "fileless_exec.yml has no samples",
        "no loaded rule file nobody.yml",
        "crypto_miner.yml: no sample with `expect: no-match`",
        "\"file_paht\" is not a column",
        "persistence_cron.yml: column \"kind\" cannot be",
    ] {
        assert!(text.contains(wanted), "{wanted} not in:\n{text}");
    }
    assert!(!outcome.passed());
}

#[test]
fn a_rule_that_fires_on_daily_work_is_red() {
    let outcome = spoiled("noisy", |dir| {
        replace(&dir.join("crypto_miner.yml"), "- /xmrig", "- /curl");
    });
    assert!(
        outcome.failed().any(|r| r.file.ends_with("ordinary.yml")),
        "curl is daily work"
    );
}
