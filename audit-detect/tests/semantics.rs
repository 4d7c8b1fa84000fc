//! One small rule per clause of the Sigma specification, asked of events written as columns.

use std::{collections::BTreeMap, path::PathBuf};

use audit_detect::{Report, RuleSet, Source, samples};
use audit_proto::v1::Event;

fn compile(text: &str) -> (RuleSet, Report) {
    RuleSet::compile(&[Source {
        file: PathBuf::from("rule.yml"),
        text: text.to_owned(),
    }])
}

fn event(yaml: &str) -> Event {
    let row: BTreeMap<String, yaml_serde::Value> = yaml_serde::from_str(yaml).expect("yaml");
    samples::event(&row).expect("event")
}

/// Whether a rule with this detection (of any event) matches.
fn matches(detection: &str, columns: &str) -> bool {
    let text = format!(
        "title: t\nlogsource: {{service: hostaudit}}\ndetection: {{{detection}, condition: s}}\n"
    );
    let (rules, report) = compile(&text);
    assert!(report.is_sound(), "{:?}", report.broken);
    assert_eq!(report.loaded, 1, "{:?}", report.idle);
    let mut matched = Vec::new();
    rules.evaluate(&event(columns), &mut rules.scratch(), &mut matched);
    !matched.is_empty()
}

#[track_caller]
fn check(detection: &str, cases: &[(&str, bool)]) {
    for (columns, expected) in cases {
        assert_eq!(
            matches(detection, columns),
            *expected,
            "{detection} on {columns}"
        );
    }
}

#[test]
fn comparison_ignores_case_unless_cased() {
    check(
        "s: {process_exe: /BIN/Sh}",
        &[
            ("process_exe: /bin/sh", true),
            ("process_exe: /bin/sh2", false),
            ("process_exe: x/bin/sh", false),
        ],
    );
    check(
        "s: {process_exe|endswith: ÜBER}",
        &[("process_exe: /x/über", true)],
    );
    check(
        "s: {process_exe|contains|cased: Sh}",
        &[
            ("process_exe: /bin/Sh", true),
            ("process_exe: /bin/sh", false),
        ],
    );
}

#[test]
fn wildcards_and_escapes() {
    check(
        "s: {process_exe: '/bin/?sh*'}",
        &[
            ("process_exe: /bin/bash2", false),
            ("process_exe: /bin/zsh-5", true),
            ("process_exe: /bin/sh", false),
        ],
    );
    check(
        r"s: {process_exe: '/a\*b'}",
        &[("process_exe: /a*b", true), ("process_exe: /axb", false)],
    );
    // A backslash of the host is two in the event and one to the rule.
    check(
        r"s: {process_exe|contains: 'a\\b'}",
        &[(r"process_exe: '/a\\b'", true), ("process_exe: /ab", false)],
    );
    check(
        r"s: {process_exe|re: '^/a\\b$'}",
        &[(r"process_exe: '/a\\b'", true)],
    );
    check(
        r"s: {process_exe: '\x41'}",
        &[(r"process_exe: '\x41'", true)],
    );
    check(
        "s: {process_exe: '*'}",
        &[("process_exe: a", true), ("process_pid: 1", false)],
    );
}

#[test]
fn lists_are_or_and_all_is_and() {
    check(
        "s: {process_exe|contains: [a, b]}",
        &[("process_exe: xb", true), ("process_exe: x", false)],
    );
    check(
        "s: {process_exe|contains|all: [a, b]}",
        &[("process_exe: ba", true), ("process_exe: b", false)],
    );
    check(
        "s: [{process_exe: a}, {process_pid: 1, process_uid: 2}]",
        &[
            ("process_exe: a", true),
            ("{process_pid: 1, process_uid: 2}", true),
            ("process_pid: 1", false),
        ],
    );
    check(
        "s: {process_argv: -x}",
        &[
            ("process_argv: [a, -x]", true),
            ("process_argv: [a -x]", false),
        ],
    );
}

#[test]
fn keywords_search_every_text() {
    check(
        "s: [needle, other*thing]",
        &[
            ("host_name: a-NEEDLE-b", true),
            ("process_argv: [x, other some thing]", true),
            ("process_argv: [other, thing]", true),
            ("process_exe: thing other", false),
            ("process_pid: 7", false),
        ],
    );
    check(
        "s: {'|all': [one, two]}",
        &[
            ("{process_exe: one, process_cwd: two}", true),
            ("process_exe: one", false),
        ],
    );
}

#[test]
fn null_exists_and_empty() {
    for absent in [
        "s: {process_exe: null}",
        "s: {process_exe|exists: false}",
        "s: {process_exe: ''}",
    ] {
        check(
            absent,
            &[("process_pid: 1", true), ("process_exe: a", false)],
        );
    }
    check(
        "s: {process_pid|exists: true}",
        &[("process_pid: 0", true), ("process_exe: a", false)],
    );
    // Of a field that events cannot have, null is always true and the rest decides.
    check(
        "s: {NoSuchField: null, process_pid: 1}",
        &[("process_pid: 1", true)],
    );
}

#[test]
fn numbers_and_flags() {
    check(
        "s: {process_pid|gt: 9, process_pid|lte: 20}",
        &[
            ("process_pid: 10", true),
            ("process_pid: 9", false),
            ("process_pid: 21", false),
            ("process_uid: 10", false),
        ],
    );
    check(
        "s: {process_pid|lt: -1.5}",
        &[("process_pid: -2", true), ("process_pid: -1", false)],
    );
    check(
        "s: {process_pid|gte: 9007199254740993}",
        &[
            ("process_pid: 9007199254740993", true),
            ("process_pid: 9007199254740992", false),
        ],
    );
    check(
        "s: {process_exe_memfd: true}",
        &[
            ("process_exe_memfd: true", true),
            ("process_exe_memfd: false", false),
        ],
    );
    check(
        "s: {process_pid|neq: 4}",
        &[("process_pid: 5", true), ("process_pid: 4", false)],
    );
}

#[test]
fn regular_expressions_and_their_flags() {
    check(
        "s: {process_exe|re: 'a.c'}",
        &[
            ("process_exe: xabcx", true),
            ("process_exe: ABC", false),
            ("process_exe: \"a\\nc\"", false),
        ],
    );
    check(
        "s: {process_exe|re|i: 'a.c'}",
        &[("process_exe: ABC", true)],
    );
    check(
        "s: {process_exe|re|s: 'a.c'}",
        &[("process_exe: \"a\\nc\"", true)],
    );
    check(
        "s: {process_exe|re: '^b'}",
        &[("process_exe: \"a\\nb\"", false)],
    );
    check(
        "s: {process_exe|re|m: '^b'}",
        &[("process_exe: \"a\\nb\"", true)],
    );
}

#[test]
fn networks() {
    check(
        "s: {DestinationIp|cidr: [10.0.0.0/8, 'fe80::/10']}",
        &[
            ("{kind: connect, socket_peer_address: 10.1.2.3}", true),
            ("{kind: connect, socket_peer_address: 'fe80::1'}", true),
            ("{kind: connect, socket_peer_address: 11.1.2.3}", false),
        ],
    );
}

#[test]
fn encodings() {
    // base64 of "x/bin/sh" is eC9iaW4vc2g=.
    check(
        "s: {CommandLine|base64offset|contains: /bin/sh}",
        &[
            ("process_argv: [echo, eC9iaW4vc2g=]", true),
            ("process_argv: [echo, L2Jpbi9zaA==]", true),
            ("process_argv: [echo, L2Jpbi9jcA==]", false),
        ],
    );
    check(
        "s: {CommandLine|base64|contains: foobar}",
        &[("process_argv: [Zm9vYmFy]", true)],
    );
    // base64 of UTF-16LE "id".
    check(
        "s: {CommandLine|wide|base64|contains: id}",
        &[
            ("process_argv: [aQBkAA==]", true),
            ("process_argv: [aWQ=]", false),
        ],
    );
    check(
        "s: {CommandLine|windash|contains: ' -f '}",
        &[
            ("process_argv: [x, /f, y]", true),
            ("process_argv: [x, –f, y]", true),
            ("process_argv: [x, +f, y]", false),
        ],
    );
}

#[test]
fn one_field_against_another() {
    check(
        "s: {process_exe|fieldref: parent_exe}",
        &[
            ("{process_exe: /A, parent_exe: /a}", true),
            ("{process_exe: /a, parent_exe: /b}", false),
            ("process_exe: /a", false),
        ],
    );
    check(
        "s: {process_exe|fieldref|startswith: process_cwd}",
        &[
            ("{process_exe: /tmp/x, process_cwd: /tmp}", true),
            ("{process_exe: /bin/x, process_cwd: /tmp}", false),
        ],
    );
}

#[test]
fn sysmon_fields() {
    let image = "s: {Image: /bin/sh}";
    check(
        image,
        &[
            (
                "{process_exe: /usr/bin/dash, process_exe_invoked: /bin/sh}",
                true,
            ),
            (
                "{process_exe: /usr/bin/dash, process_exe_invoked: bin/sh}",
                false,
            ),
        ],
    );
    check(
        "s: {CommandLine: 'a  b'}",
        &[("process_argv: [a, '', b]", true)],
    );
    check(
        "s: {User: root}",
        &[
            ("process_effective_user: root", true),
            ("process_user: root", false),
        ],
    );
    check("s: {User: 17}", &[("process_euid: 17", true)]);
    check(
        "s: {TargetFilename: /b}",
        &[
            ("{kind: rename, file_path: /a, target_file_path: /b}", true),
            ("{kind: open, file_path: /b}", true),
            ("{kind: rename, file_path: /b, target_file_path: /a}", false),
        ],
    );
    let inbound = "{kind: accept, socket_peer_address: 10.0.0.1, socket_local_address: 10.0.0.2, \
                   socket_local_port: 22}";
    check(
        "s: {Initiated: 'false', DestinationIp: 10.0.0.2, SourceIp: 10.0.0.1}",
        &[(inbound, true)],
    );
    check("s: {DestinationPort: [22]}", &[(inbound, true)]);
}

fn fired(rules: &RuleSet, columns: &str) -> Vec<String> {
    let mut matched = Vec::new();
    rules.evaluate(&event(columns), &mut rules.scratch(), &mut matched);
    matched
        .iter()
        .map(|at| rules.rule(*at).title.clone())
        .collect()
}

#[test]
fn conditions_and_every_match_is_reported() {
    let (rules, report) = compile(
        "title: one\nlogsource: {service: hostaudit}\ndetection:\n  sel_a: {process_exe: a}\n  \
         sel_b: {process_uid: 0}\n  filter: {process_pid: 1}\n  condition: 1 of sel_* and not filter\n\
         ---\ntitle: all\nlogsource: {service: hostaudit}\ndetection:\n  sel_a: {process_exe: a}\n  \
         sel_b: {process_uid: 0}\n  _hidden: {process_pid: 9}\n  condition: all of them\n",
    );
    assert!(report.is_sound(), "{:?}", report.broken);
    assert_eq!(
        fired(&rules, "{process_exe: a, process_uid: 0}"),
        ["one", "all"]
    );
    assert_eq!(fired(&rules, "process_uid: 0"), ["one"]);
    assert_eq!(
        fired(&rules, "{process_uid: 0, process_pid: 1}"),
        Vec::<String>::new()
    );
}

#[test]
fn buckets_hold_the_events_they_name() {
    let rule = |category: &str| {
        format!(
            "title: {category}\nlogsource: {{product: linux, category: {category}}}\ndetection: \
             {{s: {{process_pid: 1}}, condition: s}}\n---\n"
        )
    };
    let categories = [
        "process_creation",
        "file_event",
        "file_access",
        "file_change",
        "file_delete",
        "file_rename",
        "network_connection",
        "dns_query",
    ];
    let (rules, report) = compile(&categories.map(rule).concat());
    assert_eq!(report.loaded, categories.len(), "{report:?}");
    for (columns, expected) in [
        ("kind: exec", &["process_creation"][..]),
        ("kind: exec_failed", &[]),
        (
            "kind: open, file_access: create",
            &["file_event", "file_access"],
        ),
        (
            "kind: open, file_access: truncate",
            &["file_event", "file_access", "file_change"],
        ),
        (
            "kind: open, file_access: write",
            &["file_access", "file_change"],
        ),
        ("kind: open, file_access: read", &["file_access"]),
        ("kind: open, file_access: create, result_error: EACCES", &[]),
        ("kind: rename", &["file_event", "file_rename"]),
        ("kind: unlink", &["file_delete"]),
        (
            "kind: connect, result_error: ECONNREFUSED",
            &["network_connection"],
        ),
        ("kind: connect, socket_outcome: true", &[]),
        ("kind: accept", &["network_connection"]),
        ("kind: bind", &[]),
        ("kind: dns, dns_response: false", &["dns_query"]),
        ("kind: dns, dns_response: true", &["dns_query"]),
    ] {
        let found = fired(&rules, &format!("{{{columns}, process_pid: 1}}"));
        assert_eq!(found, expected, "{columns}");
    }
}

#[test]
fn names_are_those_that_were_asked() {
    check(
        "s: {DestinationHostname|endswith: .tunnel.test, Initiated: 'true'}",
        &[
            ("{kind: connect, socket_peer_name: a.Tunnel.test}", true),
            ("{kind: connect, socket_peer_name: tunnel.test}", false),
            ("{kind: connect, socket_peer_address: '192.0.2.7'}", false),
        ],
    );
    for (name, answers) in [("QueryName", "QueryResults"), ("query", "answer")] {
        check(
            &format!("s: {{{name}|endswith: .test, {answers}: '192.0.2.7'}}"),
            &[
                (
                    "{kind: dns, dns_query_name: a.test, dns_answers: [b.test, '192.0.2.7']}",
                    true,
                ),
                (
                    "{kind: dns, dns_query_name: a.test, dns_answers: [b.test]}",
                    false,
                ),
                ("{kind: dns, dns_query_name: a.test}", false),
            ],
        );
    }
    check(
        "s: {record_type: TXT}",
        &[
            ("{kind: dns, dns_query_type: TXT}", true),
            ("kind: dns", false),
        ],
    );
}

#[test]
fn filters_narrow_the_rules_they_name() {
    let text = "title: noisy\nid: 11111111-1111-4111-8111-111111111111\nlogsource: {service: hostaudit}\n\
         detection: {s: {process_exe: a}, condition: s}\n---\n\
         title: other\nlogsource: {service: hostaudit}\n\
         detection: {s: {process_exe: a}, condition: s}\n---\n\
         title: quiet\nlogsource: {service: hostaudit}\nfilter:\n  rules: [11111111-1111-4111-8111-111111111111]\n  \
         known: {process_user: ci}\n  condition: not known\n---\n\
         title: aimless\nlogsource: {service: hostaudit}\nfilter:\n  rules: [nobody]\n  \
         known: {process_user: ci}\n  condition: not known\n";
    let (rules, report) = compile(text);
    assert!(report.is_sound(), "{:?}", report.broken);
    assert_eq!(report.filters, 1);
    assert_eq!(report.idle.len(), 1, "{:?}", report.idle);
    assert_eq!(report.idle[0].title, "aimless");
    assert_eq!(
        fired(&rules, "{process_exe: a, process_user: dev}"),
        ["noisy", "other"]
    );
    assert_eq!(
        fired(&rules, "{process_exe: a, process_user: ci}"),
        ["other"]
    );
}
