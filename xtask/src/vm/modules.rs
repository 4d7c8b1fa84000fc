//! Which modules does a kernel need to reach its disk, and in which order? Read from the modules
//! themselves, because packages bring no index of them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// What the guest needs; a name that is no module is built in, or not of this kernel.
const WANTED: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    // ext4 asks for this by the name of an algorithm, which no dependency says.
    "crc32c_generic",
    "crc32c_cryptoapi",
    "ext4",
    "overlay",
];

/// A module, ready to be inserted.
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// Each after those that it depends on.
pub fn load_order(directory: &Path, busybox: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    collect(&directory.join("kernel"), &mut files)?;
    ensure!(
        !files.is_empty(),
        "no modules below {}",
        directory.display()
    );
    let mut found = Vec::new();
    for name in WANTED {
        add(name, &files, busybox, &mut found)?;
    }
    Ok(found)
}

fn add(
    name: &str,
    files: &HashMap<String, PathBuf>,
    busybox: &Path,
    found: &mut Vec<Module>,
) -> Result<()> {
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let content = content(path, busybox)?;
    for dependency in dependencies(&content) {
        add(&dependency, files, busybox, found)?;
    }
    found.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .flatten()
    {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, files)?;
        } else if let Some((stem, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            // The kernel knows no dashes in names of modules.
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn content(path: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let mut command = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => return Ok(fs::read(path)?),
        Some("xz") => {
            let mut command = Command::new(busybox);
            command.args(["xz", "-dc"]);
            command
        }
        Some("zst") => {
            let mut command = Command::new("zstd");
            command.arg("-qdc");
            command
        }
        _ => bail!("{} is packed in an unknown way", path.display()),
    };
    let output = command
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// From the section .modinfo: texts that end with NUL, one of them `depends=NAME,NAME`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let texts = module.windows(KEY.len()).enumerate();
    let found = texts
        .filter(|(_, window)| *window == KEY)
        .find_map(|(at, _)| {
            let rest = &module[at + KEY.len()..];
            let end = rest.iter().position(|byte| *byte == 0)?;
            let text = std::str::from_utf8(&rest[..end]).ok()?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-,".contains(c);
            text.chars().all(plain).then(|| text.to_owned())
        });
    found
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_a_modules_information() {
        let module = b"\x7fELF..%s depends=%s\n\0license=GPL\0depends=virtio,virtio-ring\0name=x\0";
        assert_eq!(dependencies(module), ["virtio", "virtio_ring"]);
        assert!(dependencies(b"\0depends=\0intree=Y\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
