//! Does the source keep the boundaries that `ARCHITECTURE.md` promises?

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// What of this workspace each crate may depend on (dev-dependencies aside).
const MAY_DEPEND_ON: [(&str, &[&str]); 12] = [
    ("audit-common", &[]),
    ("audit-ebpf", &["audit-common"]),
    ("proto", &[]),
    ("audit-config", &[]),
    ("audit-pki", &[]),
    ("audit-wal", &[]),
    ("audit-columns", &["audit-proto"]),
    ("audit-ledger", &["audit-proto"]),
    ("audit-detect", &["audit-columns", "audit-proto"]),
    (
        "audit-agent",
        &[
            "audit-common",
            "audit-config",
            "audit-ledger",
            "audit-pki",
            "audit-proto",
            "audit-wal",
        ],
    ),
    (
        "audit-collector",
        &[
            "audit-columns",
            "audit-config",
            "audit-detect",
            "audit-ledger",
            "audit-pki",
            "audit-proto",
            "audit-wal",
        ],
    ),
    (
        "audit-cli",
        &[
            "audit-agent",
            "audit-collector",
            "audit-config",
            "audit-detect",
            "audit-ledger",
            "audit-pki",
            "audit-proto",
            "audit-wal",
        ],
    ),
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn crates_depend_only_on_what_the_map_allows() -> Result<()> {
    for (folder, allowed) in MAY_DEPEND_ON {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        let (_, after) = manifest
            .split_once("\n[dependencies]\n")
            .with_context(|| format!("{folder} has no dependencies"))?;
        let dependencies = after.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines().filter(|l| l.starts_with("audit-")) {
            let name = line.split(['.', ' ']).next().unwrap_or_default();
            ensure!(
                allowed.contains(&name),
                "{folder} depends on {name}, which ARCHITECTURE.md does not allow"
            );
        }
    }
    Ok(())
}

/// Source files below `folder` in whose code (comments aside) `word` occurs, but for unit tests.
fn mentioning(folder: &str, word: &str) -> Result<BTreeSet<String>> {
    let source = root().join(folder).join("src");
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&source)?.display().to_string();
            let text = fs::read_to_string(&path)?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let said = code
                .lines()
                .any(|line| !line.trim_start().starts_with("//") && says(line, word));
            if said && !name.ends_with("tests.rs") {
                found.insert(name);
            }
        }
    }
    ensure!(!found.is_empty(), "nothing in {folder} says {word}");
    Ok(found)
}

/// `word`, not as the end of a longer one.
fn says(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric()))
}

fn only(folder: &str, word: &str, places: &[&str]) -> Result<()> {
    for file in mentioning(folder, word)? {
        ensure!(
            places.iter().any(|place| file.starts_with(place)),
            "{folder}/src/{file} says {word}, which belongs in {places:?}"
        );
    }
    Ok(())
}

/// The crates of this workspace that ship (so not `tests` and `xtask`) and depend on `name`.
fn dependents(name: &str) -> Result<BTreeSet<&'static str>> {
    let mut found = BTreeSet::new();
    for (folder, _) in MAY_DEPEND_ON {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        let depends = manifest
            .lines()
            .any(|line| line.split(['.', ' ']).next() == Some(name));
        if depends {
            found.insert(folder);
        }
    }
    Ok(found)
}

#[test]
fn only_the_probe_touches_aya() -> Result<()> {
    ensure!(dependents("aya")? == BTreeSet::from(["audit-agent"]));
    only("audit-agent", "aya::", &["probe"])
}

#[test]
fn only_the_wire_touches_tonic() -> Result<()> {
    let may = BTreeSet::from(["proto", "audit-agent", "audit-collector", "audit-cli"]);
    let found = dependents("tonic")?;
    ensure!(
        found == may,
        "tonic is a dependency of {found:?}, not of {may:?}"
    );
    only("audit-agent", "tonic::", &["server", "ship"])?;
    only(
        "audit-collector",
        "tonic::",
        &[
            "access",
            "export",
            "filter",
            "identity",
            "ingest",
            "pipeline",
            "query",
            "server",
            "service",
            "tail",
            "transport",
        ],
    )
}

#[test]
fn the_store_has_no_code_per_kind_of_event() -> Result<()> {
    for file in mentioning("audit-collector", "Kind::")? {
        let detection = file.starts_with("detect");
        ensure!(
            detection,
            "{file} names kinds of events; columns come from the descriptor"
        );
    }
    Ok(())
}
