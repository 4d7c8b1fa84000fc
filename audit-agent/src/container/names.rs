//! What is a container called, of which image is it, in which pod? Its runtime's own files on this
//! host say so; no runtime is asked over a socket.
//!
//! Invariants: only what a file says that is named by the container's whole id, or that names it; a
//! container whose files come later than its events is searched for a while and then stays without
//! a name. Events that left without one are never changed: an `amendment` tells it.

use std::{
    collections::VecDeque,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use audit_proto::{text::escape, v1::Container};
use serde_json::Value;

/// When a container's files are looked for, after its start: most are there before it; those that a
/// runtime writes when all is done come within a second, and a busy host is slow.
const TRIES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];
/// Containers searched for at a time; a node runs a hundred or two, and starts them when it boots.
const SEARCHES: usize = 256;
/// Names remembered. When full they are forgotten, and later events leave without.
const KEPT: usize = 512;
/// Of one file; the largest are some ten KiB.
const FILE_BYTES: u64 = 1 << 20;
/// Of one name; beyond it, it is none.
const NAME_BYTES: usize = 512;
/// Directories looked into for a `*`.
const ENTRIES: usize = 64;

/// Where the usual runtimes keep it; `{id}` is the container's, `*` one directory of any name.
pub const STATE_FILES: [&str; 6] = [
    "/var/lib/docker/containers/{id}/config.v2.json",
    "/run/containerd/io.containerd.runtime.v2.task/*/{id}/config.json",
    "/var/lib/containers/storage/overlay-containers/containers.json",
    "/run/containers/storage/overlay-containers/{id}/userdata/config.json",
    "/run/runc/{id}/state.json",
    "/run/crun/{id}/status",
];

/// What files said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    pub name: String,
    pub image: String,
    pub pod_name: String,
    pub pod_namespace: String,
}

impl Names {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Puts them into `container`; the columns that this filled.
    pub fn fill(&self, container: &mut Container) -> Vec<String> {
        let places = [
            ("container_name", &mut container.name, &self.name),
            ("container_image", &mut container.image, &self.image),
            (
                "container_pod_name",
                &mut container.pod_name,
                &self.pod_name,
            ),
            (
                "container_pod_namespace",
                &mut container.pod_namespace,
                &self.pod_namespace,
            ),
        ];
        let mut filled = Vec::new();
        for (column, place, text) in places {
            if place.is_empty() && !text.is_empty() {
                place.clone_from(text);
                filled.push(column.to_owned());
            }
        }
        filled
    }
}

/// A container whose events leave without names.
#[derive(Debug)]
struct Search {
    container: Container,
    /// Of its `container` event.
    event_id: String,
    begun: Instant,
    tries: usize,
}

/// Names that came after events had left.
#[derive(Debug, PartialEq)]
pub struct Late {
    /// With its names.
    pub container: Container,
    /// Columns that were not known before.
    pub fields: Vec<String>,
    pub event_id: String,
    /// The file that said it.
    pub source: PathBuf,
}

/// The names of containers, by id.
#[derive(Debug)]
pub struct Register {
    patterns: Vec<String>,
    known: AHashMap<String, Arc<Names>>,
    searches: VecDeque<Search>,
    /// Nothing is due before.
    next: Option<Instant>,
    unsearched: u64,
}

impl Register {
    pub fn new(patterns: &[String]) -> Self {
        Self {
            patterns: patterns.to_vec(),
            known: AHashMap::new(),
            searches: VecDeque::new(),
            next: None,
            unsearched: 0,
        }
    }

    /// Containers that were not searched for, because too many were.
    pub fn unsearched(&self) -> u64 {
        self.unsearched
    }

    pub fn of(&self, id: &str) -> Option<&Arc<Names>> {
        self.known.get(id)
    }

    /// Looks for the names of a container that starts.
    pub fn look(&mut self, id: &str) {
        // One that starts again may be called otherwise.
        self.known.remove(id);
        if let Some((names, _)) = find(&self.patterns, id) {
            self.remember(id, names);
        }
    }

    /// Its `container` event left without names, as `event_id`.
    pub fn search(&mut self, container: &Container, event_id: &str, now: Instant) {
        if self.searches.len() >= SEARCHES {
            self.unsearched += 1;
            return;
        }
        self.searches.push_back(Search {
            container: container.clone(),
            event_id: event_id.to_owned(),
            begun: now,
            tries: 1,
        });
        self.plan();
    }

    /// The names that have come by now.
    pub fn late(&mut self, now: Instant) -> Vec<Late> {
        let mut found = Vec::new();
        if self.next.is_none_or(|next| now < next) {
            return found;
        }
        for mut search in std::mem::take(&mut self.searches) {
            if now < search.begun + TRIES[search.tries] {
                self.searches.push_back(search);
                continue;
            }
            let id = search.container.id.clone();
            if let Some((names, source)) = find(&self.patterns, &id) {
                let mut container = search.container;
                found.push(Late {
                    fields: names.fill(&mut container),
                    container,
                    event_id: search.event_id,
                    source,
                });
                self.remember(&id, names);
            } else if search.tries + 1 < TRIES.len() {
                search.tries += 1;
                self.searches.push_back(search);
            }
        }
        self.plan();
        found
    }

    fn plan(&mut self) {
        let due = |search: &Search| search.begun + TRIES[search.tries];
        self.next = self.searches.iter().map(due).min();
    }

    fn remember(&mut self, id: &str, names: Names) {
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        self.known.insert(id.to_owned(), Arc::new(names));
    }
}

/// The first file that says something about the container.
fn find(patterns: &[String], id: &str) -> Option<(Names, PathBuf)> {
    patterns
        .iter()
        .flat_map(|pattern| expand(pattern, id))
        .find_map(|path| {
            let names = names(&json(&path)?, id, true)?;
            (!names.is_empty()).then_some((names, path))
        })
}

/// The files that a pattern stands for.
fn expand(pattern: &str, id: &str) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if part == "*" {
            let entries = places.iter().filter_map(|place| place.read_dir().ok());
            let entries = entries.flatten().flatten().take(ENTRIES);
            places = entries.map(|entry| entry.path()).collect();
        } else {
            let part = part.replace("{id}", id);
            places.iter_mut().for_each(|place| place.push(&part));
        }
    }
    places
}

fn json(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What a file says of the container, whichever runtime's it is.
fn names(file: &Value, id: &str, with_bundle: bool) -> Option<Names> {
    // containers/storage (podman, CRI-O): all containers in one list.
    if let Some(list) = file.as_array() {
        let entry = list.iter().find(|entry| entry["id"] == id)?;
        let details: Value = serde_json::from_str(entry["metadata"].as_str()?).ok()?;
        return Some(Names {
            name: first([&entry["names"][0], &details["name"]]),
            image: first([&details["image-name"]]),
            pod_name: first([&details["pod-name"]]),
            pod_namespace: String::new(),
        });
    }
    // Docker: the name begins with a slash.
    if file["ID"] == id {
        let labels = &file["Config"]["Labels"];
        let name = first([&file["Name"]]);
        return Some(Names {
            name: name.strip_prefix('/').unwrap_or(&name).to_owned(),
            image: first([&file["Config"]["Image"]]),
            pod_name: first([&labels["io.kubernetes.pod.name"]]),
            pod_namespace: first([&labels["io.kubernetes.pod.namespace"]]),
        });
    }
    let notes = &file["annotations"];
    if notes.is_object() {
        return Some(Names {
            name: first([
                &notes["io.kubernetes.cri.container-name"],
                &notes["io.kubernetes.container.name"],
                &notes["nerdctl/name"],
            ]),
            image: first([
                &notes["io.kubernetes.cri.image-name"],
                &notes["io.kubernetes.cri-o.ImageName"],
            ]),
            pod_name: first([
                &notes["io.kubernetes.cri.sandbox-name"],
                &notes["io.kubernetes.pod.name"],
            ]),
            pod_namespace: first([
                &notes["io.kubernetes.cri.sandbox-namespace"],
                &notes["io.kubernetes.pod.namespace"],
            ]),
        });
    }
    // runc and crun: where the bundle is, whose configuration has the annotations.
    let bundle = bundle(file).filter(|_| with_bundle)?;
    names(&json(&bundle.join("config.json"))?, id, false)
}

fn bundle(state: &Value) -> Option<PathBuf> {
    if let Some(bundle) = state["bundle"].as_str() {
        return Some(PathBuf::from(bundle));
    }
    let labels = state["config"]["labels"].as_array()?;
    let mut labels = labels.iter().filter_map(Value::as_str);
    labels.find_map(|label| label.strip_prefix("bundle=").map(PathBuf::from))
}

/// The first that is a text, as the record has texts.
fn first<const N: usize>(values: [&Value; N]) -> String {
    let texts = values.iter().filter_map(|value| value.as_str());
    let mut texts = texts.filter(|text| !text.is_empty() && text.len() <= NAME_BYTES);
    texts
        .next()
        .map(|text| escape(text.as_bytes()).into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    const ID: &str = "3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f3f4cbb4f1bb8a52d1a1a6f2f8d0b7c9f";

    fn texts(file: &Value) -> Option<[String; 4]> {
        let Names {
            name,
            image,
            pod_name,
            pod_namespace,
        } = names(file, ID, true)?;
        Some([name, image, pod_name, pod_namespace])
    }

    #[test]
    fn each_runtime_is_understood() {
        let owned = |texts: [&str; 4]| Some(texts.map(str::to_owned));
        let docker = json!({
            "ID": ID, "Name": "/web", "Config": {"Image": "nginx:1", "Labels": {}},
        });
        assert_eq!(texts(&docker), owned(["web", "nginx:1", "", ""]));
        let containerd = json!({"annotations": {
            "io.kubernetes.cri.container-name": "c",
            "io.kubernetes.cri.image-name": "registry.k8s.io/pause:3.6",
            "io.kubernetes.cri.sandbox-name": "p",
            "io.kubernetes.cri.sandbox-namespace": "n",
        }});
        let expected = owned(["c", "registry.k8s.io/pause:3.6", "p", "n"]);
        assert_eq!(texts(&containerd), expected);
        let podman = json!([
            {"id": "other", "names": ["not-me"], "metadata": "{}"},
            {"id": ID, "names": ["mine"], "metadata": "{\"image-name\":\"i\",\"pod-name\":\"p\"}"},
        ]);
        assert_eq!(texts(&podman), owned(["mine", "i", "p", ""]));
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("config.json"), containerd.to_string()).expect("written");
        let bundle = dir.path().display().to_string();
        let runc = json!({"id": ID, "config": {"labels": [format!("bundle={bundle}")]}});
        assert_eq!(texts(&runc), expected);
        assert_eq!(texts(&json!({ "bundle": bundle })), expected);
    }

    #[test]
    fn what_is_of_another_container_or_no_text_says_nothing() {
        assert_eq!(texts(&json!({"ID": "other", "Name": "/web"})), None);
        assert_eq!(texts(&json!([{"id": "other", "metadata": "{}"}])), None);
        assert_eq!(texts(&json!(7)), None);
        let long = json!({"ID": ID, "Name": "n".repeat(NAME_BYTES + 1)});
        assert_eq!(names(&long, ID, true), Some(Names::default()));
    }

    #[test]
    fn names_that_come_late_are_told_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pattern = format!("{}/*/{{id}}.json", dir.path().display());
        let mut register = Register::new(&[pattern]);
        let now = Instant::now();
        let container = Container {
            id: ID.to_owned(),
            ..Container::default()
        };
        register.look(ID);
        assert_eq!(register.of(ID), None);
        register.search(&container, "the event", now);
        assert_eq!(register.late(now + TRIES[1]), []);
        let place = dir.path().join("moby");
        fs::create_dir(&place).expect("made");
        let file = place.join(format!("{ID}.json"));
        fs::write(&file, json!({"ID": ID, "Name": "/late"}).to_string()).expect("written");
        assert_eq!(register.late(now + TRIES[1]), [], "not due");
        let late = register.late(now + TRIES[2]);
        let [late] = late.as_slice() else {
            panic!("{late:?}")
        };
        assert_eq!(late.container.name, "late");
        assert_eq!(late.fields, ["container_name"]);
        assert_eq!((late.event_id.as_str(), &late.source), ("the event", &file));
        assert_eq!(register.late(now + TRIES[4]), []);
        assert_eq!(register.of(ID).expect("kept").name, "late");
    }

    #[test]
    fn a_container_without_files_is_given_up() {
        let mut register = Register::new(&["/no/such/{id}".to_owned()]);
        let now = Instant::now();
        for _ in 0..SEARCHES + 3 {
            register.search(&Container::default(), "", now);
        }
        assert_eq!(register.unsearched(), 3);
        for delay in TRIES {
            assert_eq!(register.late(now + delay), []);
        }
        assert!(register.searches.is_empty());
    }
}
