use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

fn args(name: &str, number: u16) -> Args {
    Args {
        name: name.to_owned(),
        number,
        class: Class::File,
        call: Vec::new(),
        tracepoint: None,
        means: None,
    }
}

fn by_call(name: &str, number: u16, call: &str) -> Args {
    Args {
        call: vec![call.to_owned()],
        ..args(name, number)
    }
}

fn refusal(args: &Args) -> String {
    let mut tree = Tree::new(cargo::root());
    let refused = Kind::new(args).and_then(|kind| places::write(&kind, &mut tree));
    format!("{:#}", refused.expect_err("taken"))
}

#[test]
fn what_is_taken_is_refused_by_naming_who_has_it() {
    let free = "chroot=161,51,61";
    for (args, who) in [
        (by_call("chroot", 40, free), "number 40 is `open`"),
        (
            by_call("open", 70, free),
            "`open` is there already, as number 40",
        ),
        (by_call("chroot", 91, free), "number 91 is KIND_HEARTBEAT"),
        (
            by_call("removal", 70, "rmdir=84,0,40"),
            "rmdir is a row of UNLINK",
        ),
        (
            by_call("files", 70, free),
            "tests/src/workload/files.rs is there already",
        ),
        (by_call("Chroot", 70, free), "no name of a kind"),
        (by_call("chroot", 0x8001, free), "not a number of a kind"),
    ] {
        let told = refusal(&args);
        assert!(told.contains(who), "{who:?} is not in {told:?}");
    }
    let taken = Args {
        tracepoint: Some("sched_process_exec".to_owned()),
        ..args("run", 70)
    };
    assert!(refusal(&taken).contains("has a program already"));
}

/// What a build of the agent reads, without what was built.
const SOURCES: [&str; 19] = [
    "Cargo.toml",
    "Cargo.lock",
    "audit-common",
    "audit-ebpf",
    "proto",
    "audit-config",
    "audit-wal",
    "audit-columns",
    "audit-ledger",
    "audit-detect",
    "audit-pki",
    "audit-agent",
    "audit-collector",
    "audit-cli",
    "audit-fuzz",
    "xtask",
    "tests",
    "rules",
    "deploy",
];

fn run(program: &str, arguments: &[&str], inputs: &[PathBuf]) {
    let status = Command::new(program).args(arguments).args(inputs).status();
    assert!(status.expect(program).success(), "{program} {arguments:?}");
}

fn copy_of_the_tree() -> PathBuf {
    let copy = cargo::target().join("new-event-tree");
    let _ = fs::remove_dir_all(&copy);
    let built = copy.join("target/debug");
    fs::create_dir_all(&built).expect("created");
    let sources = SOURCES.map(|name| cargo::root().join(name));
    let into = |place: &Path| format!("--target-directory={}", place.display());
    run("cp", &["--archive", &into(&copy)], &sources);
    // Dependencies that are built already, by hard links; of this tree's own packages nothing, for
    // cargo would write into files that it shares.
    let parts = ["deps", "build", ".fingerprint"];
    let parts = parts.map(|part| cargo::target().join("debug").join(part));
    run("cp", &["--archive", "--link", &into(&built)], &parts);
    let own = [
        "audit*",
        "libaudit*",
        "xtask*",
        "hostaudit*",
        "workload*",
        "bench*",
    ];
    for name in own {
        let arguments = ["-mindepth", "2", "-maxdepth", "2", "-name", name];
        let mut find = Command::new("find");
        find.arg(&built)
            .args(arguments)
            .args(["-exec", "rm", "-rf", "{}", "+"]);
        assert!(find.status().expect("find").success());
    }
    copy
}

/// One kind by a call and one by a tracepoint, in a copy of this tree; then the copy's own tests.
#[test]
fn new_kinds_compile_and_their_records_decode() {
    let copy = copy_of_the_tree();
    let by_tracepoint = Args {
        tracepoint: Some("mark_victim".to_owned()),
        class: Class::Process,
        ..args("oom_kill", 17)
    };
    for args in [by_call("chroot", 50, "chroot=161,51,61"), by_tracepoint] {
        let kind = Kind::new(&args).expect("a kind");
        let mut tree = Tree::new(&copy);
        let left = places::write(&kind, &mut tree).expect("written");
        assert!(
            left.iter()
                .any(|step| step.contains("DESCRIBE") || step.contains("means"))
        );
        assert!(tree.save().expect("saved").len() >= 5);
    }
    passes(
        &copy,
        &[
            "--package=audit-agent",
            "--package=audit-cli",
            "--lib",
            "decode::",
        ],
    );
    passes(
        &copy,
        &[
            "--package=audit-agent",
            "--package=audit-cli",
            "--lib",
            "calls::",
        ],
    );
    let _ = fs::remove_dir_all(&copy);
}

fn passes(copy: &Path, arguments: &[&str]) {
    let output = cargo::cargo()
        .args(["test", "--quiet", "--offline"])
        .args(arguments)
        .current_dir(copy)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("cargo");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{text}");
    assert!(
        text.contains(" passed") && !text.contains("\n0 passed"),
        "{text}"
    );
}
