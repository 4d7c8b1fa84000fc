//! Does the record say in which container something happened? A real container of runc, gone before
//! anyone could look at it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, stack};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";

fn missing() -> Option<String> {
    if let Some(reason) = stack::missing_for_live_tests() {
        return Some(reason.to_owned());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some("no busybox: apt-get install busybox-static".to_owned());
    }
    let runc = Command::new("runc").arg("--version").output();
    (!runc.is_ok_and(|output| output.status.success()))
        .then(|| "no runc: apt-get install runc".to_owned())
}

/// A bundle whose one program is busybox, with an own network and a writable /made.
struct Bundle {
    directory: tempfile::TempDir,
    spec: Value,
}

impl Bundle {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("hostaudit-bundle-")
            .tempdir()?;
        let path = directory.path();
        fs::create_dir_all(path.join("rootfs/bin"))?;
        fs::copy(BUSYBOX, path.join("rootfs/bin/busybox"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        ran(Command::new("runc").arg("spec").current_dir(path))?;
        let mut spec: Value = serde_json::from_slice(&fs::read(path.join("config.json"))?)?;
        spec["process"]["terminal"] = json!(false);
        spec["root"]["readonly"] = json!(false);
        spec["mounts"]
            .as_array_mut()
            .context("mounts")?
            .push(json!({ "destination": "/made", "type": "tmpfs", "source": "tmpfs" }));
        Ok(Self { directory, spec })
    }

    fn run(&self, cgroup: &str, id: &str, script: &str) -> Result<Output> {
        ran(&mut self.command(cgroup, id, script)?)
    }

    fn command(&self, cgroup: &str, id: &str, script: &str) -> Result<Command> {
        let mut spec = self.spec.clone();
        spec["process"]["args"] = json!([BUSYBOX, "sh", "-c", script]);
        spec["linux"]["cgroupsPath"] = json!(format!("{cgroup}/{id}"));
        let path = self.directory.path();
        fs::write(path.join("config.json"), serde_json::to_vec(&spec)?)?;
        let mut command = Command::new("runc");
        command.arg("--root").arg(path.join("state"));
        command.args(["run", "--bundle"]).arg(path).arg(id);
        Ok(command)
    }
}

fn ran(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// The parents that runc makes stay behind; a test leaves nothing.
struct Cgroups(&'static str);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        for hierarchy in hierarchies.flatten() {
            let mut place = hierarchy.path().join(self.0);
            // Fails where others use it, as it should.
            while fs::remove_dir(&place).is_ok() && place.pop() && place != hierarchy.path() {}
        }
    }
}

#[test]
fn what_a_short_container_did_carries_its_id() -> Result<()> {
    if let Some(reason) = missing() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let mut stack = Stack::start(Options::default())?;
    let bundle = Bundle::new()?;
    let uid = "a1b2c3d4-0000-4111-8222-333344445555";
    let docker = "da".repeat(32);
    let pod = "9b".repeat(32);
    let _gone = [
        Cgroups("docker"),
        Cgroups("kubepods/besteffort/poda1b2c3d4-0000-4111-8222-333344445555"),
    ];
    let script = "/bin/busybox true from-inside; /bin/busybox touch /made/mark";
    bundle.run("/docker", &docker, script)?;
    bundle.run(&format!("/kubepods/besteffort/pod{uid}"), &pod, script)?;
    stack.barrier()?;

    for (id, expected) in [
        (
            &docker,
            "container_runtime = 'docker' and container_pod_uid is null",
        ),
        (
            &pod,
            "container_pod_uid = 'a1b2c3d4-0000-4111-8222-333344445555'",
        ),
    ] {
        for action in [
            "kind = 'exec' and process_argv = ['/bin/busybox', 'true', 'from-inside'] \
             and process_exe = '/bin/busybox'",
            "kind = 'open' and file_access = 'create' and file_path = '/made/mark'",
        ] {
            let found = stack.number(&format!(
                "select count(*) from events where container_id = '{id}' and {expected} and {action}"
            ))?;
            if found != 1 {
                let seen = stack.query(&format!(
                    "select kind, process_argv, file_path, container_id, container_runtime, \
                     container_cgroup from events where container_cgroup like '%{id}%' \
                     or process_argv[3] = 'from-inside'"
                ))?;
                anyhow::bail!("{found} events, not 1: {expected} and {action}\n{seen:#?}");
            }
        }
    }
    let outside = stack.number(
        "select count(*) from events where container_id is not null and process_name = 'audit-agent'",
    )?;
    ensure!(outside == 0, "{outside} events of the host in a container");
    Ok(())
}

/// Waits until the answer is that number.
fn until(stack: &mut Stack, what: &str, sql: &str, number: i64) -> Result<()> {
    let begun = Instant::now();
    loop {
        let found = stack.number(sql)?;
        if found == number {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "{what}: {found}, not {number}: {sql}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn docker_state(id: &str, name: &str) -> Vec<u8> {
    let state = json!({ "ID": id, "Name": format!("/{name}"), "Config": { "Image": "img:1" } });
    state.to_string().into_bytes()
}

/// How many events of a container there are.
fn of(id: &str, condition: &str) -> String {
    format!("select count(*) from events where container_id = '{id}' and {condition}")
}

/// What there is to know of a container whose name was there before it, and of one that got it late.
fn expected(early: &str, late: &str, file: &Path, root: &Path) -> Vec<(&'static str, String, i64)> {
    let started = "kind = 'container' and container_action = 'start'";
    let stopped = "kind = 'container' and container_action = 'stop'";
    let early_name = "container_name = 'early' and container_image = 'img:1'";
    let name = "container_name = 'late' and container_image = 'img:1'";
    let changes = format!("from events where kind = 'container' and container_id = '{late}'");
    let amended = format!(
        "kind = 'amendment' and {name} and amendment_subject = 'container' \
         and amendment_fields = ['container_name', 'container_image'] \
         and amendment_source = '{}' \
         and amendment_event_id = (select id {changes} and container_action = 'start')",
        file.display()
    );
    let outside = format!(
        "process_name = 'busybox' and boot_time_ns not between \
         (select min(boot_time_ns) {changes}) and (select max(boot_time_ns) {changes})"
    );
    let nameless = "container_name is null";
    let here = format!(
        "kind = 'open' and file_path = '/bin/here' and file_host_path = '{}'",
        root.join("bin/here").display()
    );
    let elsewhere = "file_host_path is null";
    let second = "kind = 'open' and file_path = '/made/second'";
    let pending = "select count(*) from events where container_state = 'pending'";
    let row =
        |what, id, conditions: &[&str], number| (what, of(id, &conditions.join(" and ")), number);
    vec![
        row("a start with its name", early, &[started, early_name], 1),
        row("nothing is amended", early, &["kind = 'amendment'"], 0),
        row("nothing is nameless", early, &[nameless], 0),
        row("a start without a name", late, &[started, nameless], 1),
        row(
            "nobody starts it",
            late,
            &[started, "process_pid is null"],
            1,
        ),
        row("a stop with its name", late, &[stopped, name], 1),
        row("both, and no more", late, &["kind = 'container'"], 2),
        row("an amendment of that start", late, &[&amended], 1),
        row("a later event with its name", late, &[second, name], 1),
        row("a file of the host's disk", late, &[&here], 1),
        row("a file of its own tmpfs", late, &[second, elsewhere], 1),
        row("nothing of its program outside", late, &[&outside], 0),
        ("nothing pending", pending.to_owned(), 0),
    ]
}

#[test]
fn containers_start_and_stop_and_names_that_come_late_are_amended() -> Result<()> {
    if let Some(reason) = missing() {
        eprintln!("SKIPPED: {reason}");
        return Ok(());
    }
    let files = tempfile::tempdir()?;
    let pattern = files.path().join("{id}.json").display().to_string();
    let mut stack = Stack::start(Options {
        agent: vec![format!("containers.state_files=[\"{pattern}\"]")],
        ..Options::default()
    })?;
    let bundle = Bundle::new()?;
    let _gone = [Cgroups("docker")];
    let (early, late) = ("e1".repeat(32), "1a".repeat(32));
    let file = |id: &str| files.path().join(format!("{id}.json"));
    fs::write(file(&early), docker_state(&early, "early"))?;
    bundle.run("/docker", &early, "/bin/busybox touch /made/mark")?;

    // The agent reads the mounts of a container some hundredths of a second after they were made.
    let script = "/bin/busybox sleep 1; /bin/busybox touch /bin/here; /bin/busybox touch /made/first; \
        while [ ! -e /go ]; do /bin/busybox sleep 0.1; done; /bin/busybox touch /made/second";
    let mut command = bundle.command("/docker", &late, script)?;
    let mut running = command.stdout(Stdio::null()).spawn()?;
    let first = "kind = 'open' and file_path = '/made/first' and container_name is null";
    until(
        &mut stack,
        "the container's first file",
        &of(&late, first),
        1,
    )?;
    fs::write(file(&late), docker_state(&late, "late"))?;
    let amended = of(&late, "kind = 'amendment'");
    until(&mut stack, "an amendment", &amended, 1)?;
    fs::write(bundle.directory.path().join("rootfs/go"), "")?;
    ensure!(running.wait()?.success(), "runc");
    stack.barrier()?;

    let root = bundle.directory.path().canonicalize()?.join("rootfs");
    for (what, sql, number) in expected(&early, &late, &file(&late), &root) {
        let found = stack.number(&sql).with_context(|| what.to_owned())?;
        if found != number {
            let rows = stack.query(&format!(
                "select kind, boot_time_ns, container_action, container_name, container_state, process_name, \
                 file_path, amendment_fields, amendment_event_id from events \
                 where container_id = '{late}' order by boot_time_ns"
            ))?;
            anyhow::bail!("{what}: {found}, not {number}: {sql}\n{rows:#?}");
        }
    }
    Ok(())
}
