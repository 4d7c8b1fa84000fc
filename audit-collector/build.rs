//! Embeds the repository's rules, so that the program detects without any file beside it.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=../rules");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let mut paths: Vec<PathBuf> = Vec::new();
    if let Ok(entries) = fs::read_dir(manifest.join("../rules")) {
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yml") {
                paths.push(fs::canonicalize(path)?);
            }
        }
    }
    paths.sort();
    let mut text = String::from("pub static RULES: &[(&str, &str)] = &[\n");
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text += &format!(
            "    ({name:?}, include_str!({:?})),\n",
            path.display().to_string()
        );
    }
    text += "];\n";
    fs::write(out.join("rules.rs"), text)
}
