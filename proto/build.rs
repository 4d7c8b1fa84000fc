//! Compiles the public contract, without protoc, and derives the event's columns from it.

#[path = "build/cells.rs"]
mod cells;
#[path = "build/columns.rs"]
mod columns;

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};

const FILES: [&str; 5] = [
    "audit/v1/event.proto",
    "audit/v1/ingest.proto",
    "audit/v1/ledger.proto",
    "audit/v1/collector.proto",
    "audit/v1/pki.proto",
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=audit");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is set by cargo")?);

    let descriptors = protox::Compiler::new(["."])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?
        .file_descriptor_set();
    let (schema, event) = (columns::Schema::new(&descriptors), ".audit.v1.Event");
    fs::write(out.join("columns.rs"), columns::generate(&schema, event)?)?;
    fs::write(out.join("cells.rs"), cells::generate(&schema, event)?)?;
    fs::write(out.join("steps.rs"), cells::steps(&schema, event)?)?;
    // Comments stay out of what reflection serves: they triple it.
    let mut served = descriptors.clone();
    for file in &mut served.file {
        file.source_code_info = None;
    }
    fs::write(
        out.join("descriptors.bin"),
        protox::prost::Message::encode_to_vec(&served),
    )?;
    tonic_prost_build::configure()
        .bytes(".audit.v1.Batch")
        .compile_fds(descriptors)?;
    Ok(())
}
