use audit_proto::v1::{
    Class, Container, Endpoint, Exit, File, Host, Kind, Lost, Parent, Process, Result as Outcome,
    Rule, Shed, Socket,
};
use jiff::tz::TimeZone;

use super::*;
use crate::display::{ASCII, UNICODE};

fn compact(width: Option<usize>) -> Compact {
    let clock = Clock {
        now: "2026-05-02T10:00:00Z".parse().expect("a time"),
        zone: TimeZone::UTC,
    };
    Compact::new(Palette::OFF, UNICODE, width, clock)
}

fn event(kind: Kind, process: &str, pid: i64) -> Event {
    Event {
        time: 1_777_716_000_123_456,
        kind: kind.into(),
        host: Some(Host {
            name: "web".to_owned(),
            ..Default::default()
        }),
        process: Some(Process {
            name: process.to_owned(),
            pid: Some(pid),
            uid: Some(0),
            euid: Some(0),
            effective_user: "root".to_owned(),
            login_user: "alice".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn exec(argv: &[&str]) -> Event {
    let mut e = event(Kind::Exec, "curl", 4242);
    if let Some(p) = &mut e.process {
        p.exe = "/usr/bin/curl".to_owned();
        p.argv = argv.iter().map(|&a| a.to_owned()).collect();
    }
    e.parent = Some(Parent {
        pid: Some(7),
        name: "bash".to_owned(),
        ..Default::default()
    });
    e
}

#[test]
fn an_exec_reads_as_time_host_who_process_and_command() {
    assert_eq!(
        compact(None).event(&exec(&["curl", "-s", "http://example.org/"])),
        "10:00:00.123 web  root(alice) curl[4242]   exec    curl -s http://example.org/ ← bash[7]"
    );
}

#[test]
fn each_kind_says_what_was_done_to_what() {
    let objects: Vec<(Event, &str)> = vec![
        (open("create", "/etc/cron.d/x"), "open+   /etc/cron.d/x"),
        (open("truncate", "/a"), "trunc   /a"),
        (open("write", "/a"), "write   /a"),
        (open("read", "/etc/shadow"), "read    /etc/shadow"),
        (
            connect("127.0.0.1", 443, "ECONNREFUSED"),
            "connect tcp 127.0.0.1:443 = ECONNREFUSED",
        ),
        (connect("::1", 80, ""), "connect tcp [::1]:80"),
        (rename(), "rename  /a -> /b"),
        (exit(Some(1), None), "exit    1 (0.3 s)"),
        (exit(None, Some(9)), "exit    signal 9 KILL (0.3 s)"),
        (closed("/a", 1536), "close   /a 1.5 KiB written"),
        (container("start"), "ctr+    web nginx:1"),
        (container("stop"), "ctr-    web nginx:1"),
        (lost(), "LOST    1,234 file events on cpu 1 at ring: full"),
    ];
    for (e, expected) in objects {
        let line = compact(None).event(&e);
        assert!(
            line.ends_with(expected),
            "{line:?} does not end with {expected:?}"
        );
    }
}

fn open(access: &str, path: &str) -> Event {
    let mut e = event(Kind::Open, "sh", 1);
    e.file = Some(File {
        path: path.to_owned(),
        access: access.to_owned(),
        ..Default::default()
    });
    e
}

fn closed(path: &str, written: i64) -> Event {
    let mut e = open("write", path);
    e.kind = Kind::CloseWrite.into();
    if let Some(file) = &mut e.file {
        file.bytes_written = Some(written);
    }
    e
}

fn container(action: &str) -> Event {
    let mut e = event(Kind::Container, "", 0);
    e.process = None;
    e.container = Some(Container {
        action: action.to_owned(),
        name: "web".to_owned(),
        image: "nginx:1".to_owned(),
        ..Default::default()
    });
    e
}

fn connect(address: &str, port: i64, error: &str) -> Event {
    let mut e = event(Kind::Connect, "sh", 1);
    e.socket = Some(Socket {
        protocol: "tcp".to_owned(),
        direction: "out".to_owned(),
        peer: Some(Endpoint {
            address: address.to_owned(),
            port: Some(port),
            ..Default::default()
        }),
        ..Default::default()
    });
    e.result = Some(Outcome {
        value: None,
        error: error.to_owned(),
    });
    e
}

fn rename() -> Event {
    let mut e = open("", "/a");
    e.kind = Kind::Rename.into();
    e.target_file = Some(File {
        path: "/b".to_owned(),
        ..Default::default()
    });
    e
}

fn exit(code: Option<i64>, signal: Option<i64>) -> Event {
    let mut e = event(Kind::Exit, "sh", 1);
    e.exit = Some(Exit {
        code,
        signal,
        duration_ns: Some(310_000_000),
        ..Default::default()
    });
    e
}

fn lost() -> Event {
    let mut e = event(Kind::Lost, "", 0);
    e.process = None;
    e.lost = Some(Lost {
        class: Class::File.into(),
        cpu: Some(1),
        count: Some(1234),
        place: "ring".to_owned(),
        cause: "full".to_owned(),
        ..Default::default()
    });
    e
}

#[test]
fn what_a_budget_shed_names_the_cgroup_and_the_sample() {
    let mut e = event(Kind::Shed, "", 0);
    e.process = None;
    e.shed = Some(Shed {
        class: Class::File.into(),
        cgroup: "/system.slice/a.service".to_owned(),
        count: Some(1234),
        sampled: Some(12),
        ..Default::default()
    });
    let text = compact(None).event(&e);
    for part in [
        "SHED",
        "1,234 file events",
        "/system.slice/a.service",
        "another 12",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one event whose every text is hostile"
)]
fn a_hostile_text_stays_one_line_without_escapes() {
    let nasty = "x\n12:00:00 forged\x1b[2J\r\u{9b}31m\u{202e}\u{2028}";
    let mut e = exec(&["curl", nasty]);
    e.host = Some(Host {
        name: nasty.to_owned(),
        ..Default::default()
    });
    e.container = Some(Container {
        id: nasty.to_owned(),
        pod_uid: nasty.to_owned(),
        runtime: nasty.to_owned(),
        cgroup: nasty.to_owned(),
        ..Default::default()
    });
    e.file = Some(File {
        path: nasty.to_owned(),
        ..Default::default()
    });
    e.target_file = e.file.clone();
    e.result = Some(Outcome {
        value: None,
        error: nasty.to_owned(),
    });
    e.lost = Some(Lost {
        place: nasty.to_owned(),
        cause: nasty.to_owned(),
        ..Default::default()
    });
    e.agent = Some(audit_proto::v1::Agent {
        action: nasty.to_owned(),
        detail: nasty.to_owned(),
        ..Default::default()
    });
    e.socket = Some(Socket {
        protocol: nasty.to_owned(),
        peer: Some(Endpoint {
            address: nasty.to_owned(),
            port: None,
            name: nasty.to_owned(),
        }),
        ..Default::default()
    });
    e.dns = Some(audit_proto::v1::Dns {
        query_name: nasty.to_owned(),
        query_type: nasty.to_owned(),
        response_code: nasty.to_owned(),
        answers: vec![nasty.to_owned()],
        response: Some(true),
        ..Default::default()
    });
    if let (Some(p), Some(parent)) = (&mut e.process, &mut e.parent) {
        for text in [
            &mut p.name,
            &mut p.exe,
            &mut p.user,
            &mut p.effective_user,
            &mut p.login_user,
            &mut parent.name,
        ] {
            nasty.clone_into(text);
        }
    }
    for kind in [0, 1, 2, 3, 4, 20, 21, 22, 26, 40, 42, 43, 90, 91, 92, 77] {
        e.kind = kind;
        let alert = Alert {
            rule: Some(Rule {
                title: nasty.to_owned(),
                level: nasty.to_owned(),
                ..Default::default()
            }),
            event: Some(e.clone()),
            ..Default::default()
        };
        let mut compact = compact(None);
        for line in [compact.event(&e), compact.alert(&alert)] {
            assert!(
                !line
                    .chars()
                    .any(|c| c.is_control() || c == '\u{202e}' || c == '\u{2028}'),
                "{kind}: {line:?}"
            );
        }
    }
}

#[test]
fn a_line_never_exceeds_the_terminal() {
    let long = "漢é x".repeat(3000);
    let mut e = exec(&["curl", &long, &long]);
    e.container = Some(Container {
        id: "f".repeat(64),
        runtime: "docker".to_owned(),
        ..Default::default()
    });
    for glyphs in [UNICODE, ASCII] {
        for columns in 1..200 {
            let mut compact = compact(Some(columns));
            compact.glyphs = glyphs;
            let line = compact.event(&e);
            assert!(display::width(&line) <= columns, "{columns}: {line}");
        }
    }
    let line = compact(Some(120)).event(&e);
    assert!(
        line.contains('…') && line.ends_with("← bash[7] docker:ffffffffffff"),
        "{line}"
    );
}

#[test]
fn columns_stay_aligned_once_they_grew() {
    let mut compact = compact(None);
    let first = compact.event(&exec(&["curl"]));
    let mut small = exec(&["curl"]);
    if let Some(p) = &mut small.process {
        p.name = "x".to_owned();
        p.pid = Some(1);
        p.login_user.clear();
    }
    let second = compact.event(&small);
    assert_eq!(first.find("exec"), second.find("exec"), "{first}\n{second}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let mut plain = compact(None);
    let mut colored = compact(None);
    colored.palette = Palette::ON;
    for e in [exec(&["curl"]), lost(), exit(Some(1), None)] {
        let text = colored.event(&e);
        assert!(text.contains("\x1b["));
        let mut stripped = text;
        while let Some(at) = stripped.find('\x1b') {
            let end = stripped[at..].find('m').expect("an escape ends in m") + at;
            stripped.replace_range(at..=end, "");
        }
        assert_eq!(stripped.trim_end(), plain.event(&e));
    }
}

#[test]
fn a_program_hidden_by_its_first_argument_is_named() {
    let line = compact(None).event(&exec(&["[kworker]", "x"]));
    assert!(line.contains("/usr/bin/curl '[kworker]' x"), "{line}");
}

#[test]
fn a_dns_message_tells_what_was_asked_and_what_came_back() {
    let mut e = connect("192.0.2.53", 53, "");
    e.kind = Kind::Dns.into();
    e.result = None;
    let mut dns = audit_proto::v1::Dns {
        query_name: "www.example".to_owned(),
        query_type: "A".to_owned(),
        response: Some(false),
        ..Default::default()
    };
    e.dns = Some(dns.clone());
    let line = compact(None).event(&e);
    assert!(
        line.contains("ask     A www.example → 192.0.2.53:53"),
        "{line}"
    );

    dns.response = Some(true);
    dns.response_code = "NOERROR".to_owned();
    dns.answers = vec!["web.example".to_owned(), "192.0.2.7".to_owned()];
    dns.answers_omitted = Some(2);
    e.dns = Some(dns.clone());
    let line = compact(None).event(&e);
    let told = "answer  A www.example = web.example 192.0.2.7 (+2 not recorded)";
    assert!(line.contains(told), "{line}");

    dns.response_code = "NXDOMAIN".to_owned();
    dns.answers.clear();
    dns.answers_omitted = None;
    e.dns = Some(dns);
    let line = compact(None).event(&e);
    assert!(line.contains("www.example = NXDOMAIN"), "{line}");
}

#[test]
fn a_connection_names_its_peer() {
    let mut e = connect("192.0.2.7", 443, "");
    let peer = e
        .socket
        .as_mut()
        .and_then(|s| s.peer.as_mut())
        .expect("peer");
    peer.name = "www.example".to_owned();
    let line = compact(None).event(&e);
    assert!(line.contains("192.0.2.7:443 (www.example)"), "{line}");
}

#[test]
fn a_kind_of_a_later_version_prints_its_objects() {
    let mut e = open("", "/mnt");
    e.kind = 77;
    let line = compact(None).event(&e);
    assert!(line.ends_with("event   77 file_path=/mnt"), "{line}");
}

#[test]
fn an_alert_leads_with_level_and_title() {
    let alert = Alert {
        time: 1_777_716_000_123_456,
        rule: Some(Rule {
            level: "high".to_owned(),
            title: "Shell over network".to_owned(),
            ..Default::default()
        }),
        event: Some(exec(&["curl", "x"])),
        ..Default::default()
    };
    let line = compact(None).alert(&alert);
    assert_eq!(
        line,
        "10:00:00.123 HIGH     web  root(alice) curl[4242]   Shell over network: exec curl x ← bash[7]"
    );
}
