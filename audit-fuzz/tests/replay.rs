//! Does every input that is kept still pass? What fuzzing has reached, and what once broke something.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use audit_fuzz::{TARGETS, folder};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Of a corpus; more is to be minimised.
const MAX_CORPUS_BYTES: u64 = 256 << 10;
/// The format allows 64 MiB of events. What takes much more for a small input fails here.
const MAX_MEMORY_BYTES: u64 = 1 << 30;

fn files(kind: &str, target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder(kind, target)).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_kept_input_keeps_the_guarantees_in_little_memory() {
    let limit = Rlimit {
        current: Some(MAX_MEMORY_BYTES),
        maximum: None,
    };
    setrlimit(Resource::As, limit).expect("a lower limit");
    let mut broken = Vec::new();
    for (target, run) in TARGETS {
        for path in ["corpus", "crashes"]
            .iter()
            .flat_map(|kind| files(kind, target))
        {
            let bytes = fs::read(&path).expect("readable");
            // The panic itself has been printed; this says of which file it was.
            if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_a_small_corpus_with_seeds_and_a_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(programs.join("Cargo.toml")).expect("a manifest");
    for (target, _) in TARGETS {
        let paths = files("corpus", target);
        let size = |path: &PathBuf| fs::metadata(path).expect("there").len();
        assert!(
            paths.iter().map(size).sum::<u64>() <= MAX_CORPUS_BYTES,
            "{target}"
        );
        let is_seed = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("seed-"))
        };
        assert!(paths.iter().any(is_seed), "{target} has no seeds");
        let line = format!("path = \"fuzz_targets/{target}.rs\"");
        assert!(
            manifest.contains(&line),
            "{target} is not in fuzz/Cargo.toml"
        );
    }
}

#[test]
fn no_inputs_are_kept_for_a_target_that_is_gone() {
    let known: BTreeSet<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
    for kind in ["corpus", "crashes"] {
        let above = folder(kind, "");
        for entry in fs::read_dir(&above).into_iter().flatten() {
            let name = entry.expect("an entry").file_name();
            assert!(
                name.to_str().is_some_and(|name| known.contains(name)),
                "{kind}: {name:?}"
            );
        }
    }
}
