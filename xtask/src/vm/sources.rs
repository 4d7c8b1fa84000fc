//! Which mirror does this system take Debian's packages from? Read from its own apt sources, so that
//! a local mirror or proxy is used here too.
//!
//! Invariant: nothing is written; both notations (one line, deb822) are understood.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Where Debian's packages and their security updates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub main: String,
    pub security: String,
}

/// One archive and what is taken from it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
}

/// The release that this system is, for example "bookworm". None when it is not Debian.
pub fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    (value("ID")? == "debian")
        .then(|| value("VERSION_CODENAME"))
        .flatten()
}

impl Mirror {
    /// As given on the command line: the archive named `debian`; its security updates are beside it.
    pub fn given(main: &str) -> Self {
        let main = main.trim_end_matches('/');
        Self {
            main: main.to_owned(),
            security: format!("{main}-security"),
        }
    }

    pub fn of_this_system() -> Result<Self> {
        let codename = codename().context(
            "this system is not Debian, so its apt sources name no Debian mirror; name one: --mirror URL",
        )?;
        let etc = Path::new("/etc/apt");
        let mut sources = Vec::new();
        let mut files = vec![etc.join("sources.list")];
        if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for file in &files {
            let Ok(text) = fs::read_to_string(file) else {
                continue;
            };
            match file.extension().and_then(|e| e.to_str()) {
                Some("list") => sources.extend(text.lines().filter_map(one_line)),
                Some("sources") => sources.extend(stanzas(&text)),
                // apt ignores other names, and so do we.
                _ => {}
            }
        }
        choose(&sources, &codename).with_context(|| {
            format!(
                "no Debian mirror with the suite {codename} in {}; name one: --mirror URL",
                etc.display()
            )
        })
    }
}

/// Third parties use suites of the same name; theirs lack the component or the name of the archive.
fn choose(sources: &[Source], codename: &str) -> Option<Mirror> {
    let find = |suite: &str| {
        sources
            .iter()
            .find(|source| {
                source.uri.contains("debian")
                    && source.suites.iter().any(|s| s == suite)
                    && source.components.iter().any(|c| c == "main")
            })
            .map(|source| source.uri.trim_end_matches('/').to_owned())
    };
    let main = find(codename)?;
    let security =
        find(&format!("{codename}-security")).unwrap_or_else(|| Mirror::given(&main).security);
    Some(Mirror { main, security })
}

/// `deb [option=value ...] URI SUITE COMPONENT...`
fn one_line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split('#').next()?.split_ascii_whitespace();
    Some(Source {
        uri: words.next()?.to_owned(),
        suites: vec![words.next()?.to_owned()],
        components: words.map(str::to_owned).collect(),
    })
}

/// deb822: stanzas of `Key: value`, a value going on in indented lines.
fn stanzas(text: &str) -> Vec<Source> {
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push_str(line);
                }
            } else if let Some((key, value)) = line.split_once(':') {
                fields.push((key.to_ascii_lowercase(), value.to_owned()));
            }
        }
        let words = |key: &str| -> Vec<String> {
            fields
                .iter()
                .filter(|(name, _)| name == key)
                .flat_map(|(_, value)| value.split_ascii_whitespace().map(str::to_owned))
                .collect()
        };
        let off = words("enabled").iter().any(|word| word == "no");
        if off || !words("types").iter().any(|word| word == "deb") {
            continue;
        }
        found.extend(words("uris").into_iter().map(|uri| Source {
            uri,
            suites: words("suites"),
            components: words("components"),
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_lead_to_the_mirror_and_third_parties_do_not() {
        let old = "# deb http://old/debian bookworm main\n\
                   deb [arch=amd64 signed-by=/k] https://third/linux/debian bookworm stable\n\
                   deb [signed-by=/k] http://m/debian/ bookworm main contrib # comment\n";
        let sources: Vec<Source> = old.lines().filter_map(one_line).collect();
        assert_eq!(sources.len(), 2);
        assert_eq!(
            choose(&sources, "bookworm"),
            Some(Mirror {
                main: "http://m/debian".into(),
                security: "http://m/debian-security".into()
            })
        );
        let new = "Types: deb\nURIs: http://off/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
                   Types: deb deb-src\n# why\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\nComponents: main\n\n\
                   Types: deb\nURIs: http://s/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let sources = stanzas(new);
        assert_eq!(sources.len(), 2);
        assert_eq!(
            choose(&sources, "bookworm"),
            Some(Mirror {
                main: "http://m/debian".into(),
                security: "http://s/debian-security".into()
            })
        );
        assert_eq!(choose(&sources, "trixie"), None);
    }
}
