//! Programs that start, fail to start, and end.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::PermissionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};
use rustix::fs::MemfdFlags;

use super::{Workload, list, ours, quoted, system};

const TRUE: &str = "/bin/true";

/// The program that /bin/true is, through its links.
fn resolved(path: &str) -> Result<String> {
    let path = Path::new(path).canonicalize()?;
    Ok(quoted(path))
}

/// Arguments that formats, limits and shells trip over.
pub fn arguments(work: &mut Workload) -> Result<()> {
    let long = "x".repeat(100 << 10);
    let many: Vec<OsString> = (0..200).map(|n| format!("argument-{n}").into()).collect();
    let cases: [(&str, Vec<OsString>); 8] = [
        ("no arguments", vec![]),
        ("empty arguments", vec!["".into(), "".into()]),
        ("200 arguments", many),
        ("100 KiB", vec![long.into(), "after".into()]),
        (
            "bytes that are not UTF-8",
            vec![OsStr::from_bytes(b"\xff\xfe\\x41").to_owned()],
        ),
        ("newlines and tabs", vec!["a\nb\tc\r\n".into()]),
        ("quotes", vec!["it's \"so\"".into(), "$HOME `id`".into()]),
        ("controls", vec!["\x1b[31mred\x07".into()]),
    ];
    let (exe, cwd) = (resolved(TRUE)?, quoted(std::env::current_dir()?));
    for (what, arguments) in cases {
        let mut child = Command::new(TRUE).args(&arguments).spawn()?;
        let pid = child.id();
        child.wait()?;
        let argv =
            list(std::iter::once(OsStr::new(TRUE)).chain(arguments.iter().map(AsRef::as_ref)));
        work.once(
            what,
            format!(
                "kind = 'exec' and process_pid = {pid} and process_argv = {argv} \
                 and process_exe = {exe} and process_exe_invoked = '{TRUE}' \
                 and process_cwd = {cwd} and process_argv_truncated_bytes is null \
                 and parent_pid = {} and process_tid = {pid}",
                std::process::id()
            ),
        );
        work.number(
            format!("{what}: no other exec of that process"),
            format!("kind = 'exec' and process_pid = {pid}"),
            1,
        );
    }
    for name in ["another name", ""] {
        let mut child = Command::new(TRUE).arg0(name).arg("renamed").spawn()?;
        let pid = child.id();
        child.wait()?;
        let argv = list([name, "renamed"]);
        work.once(
            format!("argv[0] is {name:?}"),
            format!(
                "kind = 'exec' and process_pid = {pid} and process_argv = {argv} \
                 and process_exe = {exe}"
            ),
        );
    }
    Ok(())
}

/// Programs that are not simply a file with a path.
pub fn programs(work: &mut Workload) -> Result<()> {
    script(work)?;
    memfd(work)?;
    failures(work)
}

fn script(work: &mut Workload) -> Result<()> {
    let path = work.path("script");
    fs::write(&path, "#!/bin/sh -u\nexit 3\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let mut child = Command::new(&path).arg("word").spawn()?;
    let pid = child.id();
    ensure!(child.wait()?.code() == Some(3));
    let argv = list([
        OsStr::new("/bin/sh"),
        OsStr::new("-u"),
        path.as_os_str(),
        OsStr::new("word"),
    ]);
    let (exe, path) = (resolved("/bin/sh")?, quoted(&path));
    work.once(
        "a script with #!",
        format!(
            "kind = 'exec' and process_pid = {pid} and process_argv = {argv} \
             and process_exe = {exe} and process_script = {path}"
        ),
    );
    work.once(
        "the script's exit",
        format!("kind = 'exit' and process_pid = {pid} and exit_code = 3"),
    );
    Ok(())
}

fn memfd(work: &mut Workload) -> Result<()> {
    let file = rustix::fs::memfd_create("hidden one", MemfdFlags::empty())?;
    let mut file = fs::File::from(file);
    file.write_all(&fs::read(TRUE)?)?;
    let arguments = [c"fileless", c"argument"];
    let mut command = Command::new(TRUE);
    #[expect(unsafe_code, reason = "the child must not run /bin/true but the file")]
    // SAFETY: between fork and exec one system call is made, on memory that was there before.
    unsafe {
        command.pre_exec(move || Err(system::exec_file(file.as_fd(), &arguments)));
    }
    let mut child = command.spawn()?;
    let pid = child.id();
    ensure!(child.wait()?.success());
    work.once(
        "a program from a memfd",
        format!(
            "kind = 'exec' and process_pid = {pid} \
             and process_argv = ['fileless', 'argument'] and process_exe_memfd \
             and process_exe like '%memfd:hidden one%'"
        ),
    );
    Ok(())
}

fn failures(work: &mut Workload) -> Result<()> {
    let garbage = work.path("garbage");
    fs::write(&garbage, "\0\x01\x02 no program")?;
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755))?;
    let plain = work.path("plain");
    fs::write(&plain, "not executable")?;
    let beyond = work.path("plain/beyond");
    for (path, error) in [
        (work.path("absent"), "ENOENT"),
        (plain, "EACCES"),
        (garbage, "ENOEXEC"),
        (beyond, "ENOTDIR"),
    ] {
        ensure!(Command::new(&path).arg("in vain").spawn().is_err());
        let argv = list([path.as_os_str(), OsStr::new("in vain")]);
        work.once(
            format!("exec that fails with {error}"),
            format!(
                "kind = 'exec_failed' and file_path = {} and result_error = '{error}' \
                 and target_process_argv = {argv}",
                quoted(&path)
            ),
        );
    }
    Ok(())
}

/// Forks, credentials and ends.
pub fn lives(work: &mut Workload) -> Result<()> {
    let mut child = Command::new("/bin/sh").args(["-c", "exit 42"]).spawn()?;
    let pid = child.id();
    ensure!(child.wait()?.code() == Some(42));
    work.once(
        "an exit code",
        format!("kind = 'exit' and process_pid = {pid} and exit_code = 42 and exit_signal is null"),
    );
    work.once(
        "the fork before it",
        format!(
            "kind = 'fork' and {} and target_process_pid = {pid}",
            ours()
        ),
    );
    work.answer(
        "fork, exec and exit name the same process",
        format!(
            "select count(distinct case kind when 'fork' then target_process_exec_id \
             else process_exec_id end) from events where (process_pid = {pid} \
             and kind in ('exec', 'exit')) or (kind = 'fork' and target_process_pid = {pid})"
        ),
        1,
    );
    work.answer(
        "its parent is this process",
        format!(
            "select count(*) from events child join events fork \
             on child.parent_exec_id = fork.process_exec_id where child.kind = 'exec' \
             and child.process_pid = {pid} and fork.kind = 'fork' \
             and fork.target_process_pid = {pid}"
        ),
        1,
    );

    let mut child = Command::new("/bin/sleep").arg("100").spawn()?;
    let pid = child.id();
    child.kill()?;
    ensure!(child.wait()?.signal() == Some(9));
    work.once(
        "an end by a signal",
        format!("kind = 'exit' and process_pid = {pid} and exit_signal = 9 and exit_code is null"),
    );

    let mut child = Command::new(TRUE)
        .arg("nobody")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::null())
        .spawn()?;
    let pid = child.id();
    child.wait()?;
    work.once(
        "credentials of the moment",
        format!(
            "kind = 'exec' and process_pid = {pid} and process_uid = 65534 \
             and process_euid = 65534 and process_suid = 65534 and process_fsuid = 65534 \
             and process_gid = 65534 and process_egid = 65534 and process_user = 'nobody' \
             and process_capabilities_effective = 0"
        ),
    );
    Ok(())
}

/// Many threads that start programs, and a thread that becomes one.
pub fn threads(work: &mut Workload) -> Result<()> {
    const THREADS: u64 = 16;
    const EACH: u64 = 20;
    let directory = quoted(&work.directory);
    let cwd = work.directory.clone();
    let failed: usize = std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..THREADS)
            .map(|thread| {
                let cwd = &cwd;
                scope.spawn(move || {
                    (0..EACH)
                        .filter(|n| {
                            let status = Command::new(TRUE)
                                .current_dir(cwd)
                                .args(["of a thread", &format!("{thread}-{n}")])
                                .status();
                            !status.is_ok_and(|status| status.success())
                        })
                        .count()
                })
            })
            .collect();
        spawned.into_iter().map(|t| t.join().unwrap_or(1)).sum()
    });
    ensure!(failed == 0, "{failed} programs did not run");
    let here = format!("process_argv[2] = 'of a thread' and process_cwd = {directory}");
    let number = (THREADS * EACH) as i64;
    let runs = format!(
        "kind = 'exec' and parent_pid = {} and {here}",
        std::process::id()
    );
    work.number("execs from many threads", &runs, number);
    work.answer(
        "each of them once",
        format!("select count(distinct process_argv[3]) from events where {runs}"),
        number,
    );
    work.number(
        "their exits",
        format!(
            "kind = 'exit' and exit_code = 0 and process_pid in \
             (select process_pid from events where {runs}) \
             and process_exec_id in (select process_exec_id from events where {runs})"
        ),
        number,
    );
    work.number(
        "their forks",
        format!(
            "kind = 'fork' and {} and target_process_exec_id in \
             (select process_exec_id from events where {runs})",
            ours()
        ),
        number,
    );
    becomes(work)
}

/// A thread that is not the first calls execve: the kernel ends the others, and the process goes on.
fn becomes(work: &mut Workload) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["exec-from-thread", "."])
        .spawn()?;
    let pid = child.id();
    ensure!(child.wait()?.success());
    work.once(
        "exec from a second thread",
        format!(
            "kind = 'exec' and process_pid = {pid} and process_tid = {pid} \
             and process_argv = ['{TRUE}', 'from a second thread']"
        ),
    );
    work.once(
        "one exit of it",
        format!("kind = 'exit' and process_pid = {pid}"),
    );
    Ok(())
}

/// What `becomes` starts.
pub fn exec_from_thread() -> Result<()> {
    let idle: Vec<_> = (0..3)
        .map(|_| std::thread::spawn(std::thread::park))
        .collect();
    let execs = std::thread::spawn(|| Command::new(TRUE).arg("from a second thread").exec());
    let error = execs.join();
    drop(idle);
    anyhow::bail!("execve returned: {error:?}");
}
