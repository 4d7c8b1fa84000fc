//! Does the record say in which container something happened? A real container of runc, gone before
//! anyone could look at it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
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
        spec["mounts"]
            .as_array_mut()
            .context("mounts")?
            .push(json!({ "destination": "/made", "type": "tmpfs", "source": "tmpfs" }));
        Ok(Self { directory, spec })
    }

    fn run(&self, cgroup: &str, id: &str, script: &str) -> Result<Output> {
        let mut spec = self.spec.clone();
        spec["process"]["args"] = json!([BUSYBOX, "sh", "-c", script]);
        spec["linux"]["cgroupsPath"] = json!(format!("{cgroup}/{id}"));
        let path = self.directory.path();
        fs::write(path.join("config.json"), serde_json::to_vec(&spec)?)?;
        let mut command = Command::new("runc");
        command.arg("--root").arg(path.join("state"));
        command.args(["run", "--bundle"]).arg(path).arg(id);
        ran(&mut command)
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
