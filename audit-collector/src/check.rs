//! `--dry-run`: would this configuration work here? Nothing is changed.

use std::{path::Path, time::SystemTime};

use crate::{config::Config, detect::Rules, pipeline::CollectorError};

/// What would run, a line each; the first thing that would fail is the error.
pub fn check(config: &Config) -> Result<Vec<String>, CollectorError> {
    config.validate()?;
    let rules = Rules::load(&config.detect);
    let mut lines = vec![
        "configuration: valid".to_owned(),
        format!(
            "data directory: {} ({})",
            config.data_dir.display(),
            directory(&config.data_dir)?
        ),
    ];
    for (name, value) in [
        ("unix socket", config.listen.unix.display().to_string()),
        ("TCP", config.listen.tcp.clone()),
    ] {
        lines.push(format!(
            "{name}: {}",
            if value.is_empty() { "none" } else { &value }
        ));
    }
    lines.push(tls(config)?);
    lines.push(format!("rules: {} loaded", rules.loaded()));
    lines.extend(
        rules
            .broken()
            .iter()
            .map(|reason| format!("  to repair: {reason}")),
    );
    lines.extend(
        rules
            .idle()
            .iter()
            .map(|reason| format!("  cannot fire: {reason}")),
    );
    Ok(lines)
}

fn tls(config: &Config) -> Result<String, CollectorError> {
    let Some(files) = config.listen.tls.files()? else {
        return Ok("TLS: none".to_owned());
    };
    let loaded = files.load()?;
    if files.joining {
        audit_pki::Authority::open(&config.listen.tls.authority)?;
    }
    Ok(format!(
        "TLS: the certificate {}, {} are revoked, hosts can{} join",
        audit_pki::certificate::expiry(loaded.validity.expires_in(SystemTime::now())),
        loaded.revoked.len(),
        if files.joining { "" } else { "not" }
    ))
}

/// Whether the nearest existing parent can hold it.
fn directory(path: &Path) -> Result<&'static str, CollectorError> {
    let absolute = std::path::absolute(path)?;
    for (depth, parent) in absolute.ancestors().enumerate() {
        match std::fs::metadata(parent) {
            Ok(found) if !found.is_dir() => {
                let message = format!("{} is not a directory", parent.display());
                return Err(std::io::Error::other(message).into());
            }
            Ok(found) if found.permissions().readonly() => {
                let message = format!("{} is read-only", parent.display());
                return Err(std::io::Error::other(message).into());
            }
            Ok(_) => {
                return Ok(if depth == 0 {
                    "exists"
                } else {
                    "will be created"
                });
            }
            Err(_) => {}
        }
    }
    Ok("will be created")
}
