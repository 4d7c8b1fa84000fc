//! What does a cgroup path say about container, runtime and pod?
//!
//! Innermost wins: of containers in containers, the last id in the path. Monitors of containers
//! (conmon) are no containers.

use audit_proto::{text::escape, v1::Container};

/// What a runtime puts before the id in a systemd scope.
const PREFIXES: [(&str, &str); 7] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("cri-containerd:", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("crio:", "cri-o"),
    ("libpod-", "podman"),
];

/// Lines of /proc/PID/cgroup, `hierarchy:controllers:path`.
pub fn hierarchies(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.splitn(3, |byte| *byte == b':').nth(2))
}

/// The cgroup v2 path of /proc/PID/cgroup.
pub fn unified(text: &[u8]) -> Option<&[u8]> {
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
}

/// What a path says; nothing for the root cgroup. A path without container keeps its `cgroup`,
/// which names the service.
pub fn container(path: &[u8]) -> Option<Container> {
    if path.is_empty() || path == b"/" {
        return None;
    }
    let text = escape(path).into_owned();
    let mut container = Container::default();
    let segments: Vec<&str> = text
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    for (at, segment) in segments.iter().enumerate().rev() {
        let parent = at.checked_sub(1).map_or("", |at| segments[at]);
        if let Some((id, runtime)) = identity(segment, parent) {
            container.id = id.to_owned();
            container.runtime = runtime.to_owned();
            break;
        }
    }
    if let Some(uid) = segments.iter().rev().find_map(|segment| pod_uid(segment)) {
        container.pod_uid = uid;
    }
    container.cgroup = text;
    Some(container)
}

/// As [`container`], of the cgroup that is a container's own, and not of one above or below it.
pub fn of_container_itself(path: &[u8]) -> Option<Container> {
    let of = container(path).filter(|container| !container.id.is_empty())?;
    let above = path.rsplitn(2, |byte| *byte == b'/').nth(1)?;
    let is_below = container(above).is_some_and(|above| above.id == of.id);
    (!is_below).then_some(of)
}

/// Id and runtime ("" when the path does not say).
fn identity<'a>(segment: &'a str, parent: &str) -> Option<(&'a str, &'static str)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    // "slice:cri-containerd:ID": a cgroupfs runtime that was given a systemd path.
    let name = match name.find(".slice:") {
        Some(at) => &name[at + ".slice:".len()..],
        None => name,
    };
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix)
            && is_id(id)
        {
            return Some((id, runtime));
        }
    }
    let runtime = if parent == "docker" { "docker" } else { "" };
    is_id(name).then_some((name, runtime))
}

fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `pod<uid>` (cgroupfs) or `kubepods-besteffort-pod<uid with underscores>.slice` (systemd).
fn pod_uid(segment: &str) -> Option<String> {
    let slice = segment.split_once(".slice").map(|(name, _)| name);
    let uid = match slice {
        Some(name) if name.starts_with("kubepods") || name.contains("-kubepods") => {
            &name[name.rfind("-pod")? + "-pod".len()..]
        }
        Some(_) => return None,
        None => segment.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let dashed = uid.len() == 36
        && uid.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    // Static pods have the hash of their manifest.
    let hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (dashed || hash).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f";
    const UID: &str = "a1b2c3d4-0000-4111-8222-333344445555";

    #[test]
    #[expect(clippy::too_many_lines, reason = "one table, a row per runtime")]
    fn real_paths_are_understood() {
        let under = UID.replace('-', "_");
        let hash = "0f".repeat(16);
        let table = [
            (format!("/docker/{ID}"), ID, "docker", ""),
            (format!("/system.slice/docker-{ID}.scope"), ID, "docker", ""),
            (format!("/docker/{ID}/init.scope"), ID, "docker", ""),
            (format!("/kubepods/besteffort/pod{UID}/{ID}"), ID, "", UID),
            (format!("/kubepods/pod{hash}/{ID}"), ID, "", hash.as_str()),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                ID,
                "containerd",
                UID,
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"
                ),
                ID,
                "containerd",
                UID,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope"),
                ID,
                "cri-o",
                UID,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-conmon-{ID}.scope"),
                "",
                "",
                UID,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice"),
                "",
                "",
                UID,
            ),
            (format!("/libpod_parent/libpod-{ID}"), ID, "podman", ""),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                ID,
                "podman",
                "",
            ),
            (
                format!("/machine.slice/libpod-conmon-{ID}.scope"),
                "",
                "",
                "",
            ),
            (
                format!(
                    "/docker/{}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope",
                    "0".repeat(64)
                ),
                ID,
                "containerd",
                UID,
            ),
            ("/default/t1".to_owned(), "", "", ""),
            ("/system.slice/rl-c2.scope".to_owned(), "", "", ""),
            ("/system.slice/sshd.service".to_owned(), "", "", ""),
            (format!("/system.slice/{}", "g".repeat(64)), "", "", ""),
            ("/user.slice/podman.slice".to_owned(), "", "", ""),
        ];
        for (path, id, runtime, pod) in table {
            let found = container(path.as_bytes()).expect("not the root");
            assert_eq!(
                (
                    found.id.as_str(),
                    found.runtime.as_str(),
                    found.pod_uid.as_str()
                ),
                (id, runtime, pod),
                "{path}"
            );
            assert_eq!(found.cgroup, path);
        }
        assert_eq!(container(b"/"), None);
    }

    #[test]
    fn a_container_has_one_cgroup_of_its_own() {
        let is_own = |path: &str| of_container_itself(path.as_bytes()).is_some();
        let inner = "9b".repeat(32);
        for (path, own) in [
            (format!("/docker/{ID}"), true),
            (format!("/docker/{ID}/init.scope"), false),
            (format!("/docker/{ID}/docker/{inner}"), true),
            (format!("/machine.slice/libpod-{ID}.scope"), true),
            (format!("/machine.slice/libpod-{ID}.scope/container"), false),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), false),
            (format!("/kubepods/pod{UID}"), false),
            ("/".to_owned(), false),
        ] {
            assert_eq!(is_own(&path), own, "{path}");
        }
    }

    #[test]
    fn lines_of_proc_are_split() {
        let text = b"9:name=systemd:/a:b\n0::/u/v\n";
        assert_eq!(unified(text), Some(b"/u/v".as_slice()));
        assert_eq!(
            hierarchies(text).collect::<Vec<_>>(),
            [b"/a:b".as_slice(), b"/u/v"]
        );
        assert_eq!(unified(b"4:memory:/x\n"), None);
    }
}
