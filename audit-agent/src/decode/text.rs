//! How do a record's numbers and sections become the event's numbers and text?

use audit_common::record::{Record, Section, section_flags, walked_path};
use audit_proto::text::escape;

/// A kernel id: 4294967295 means "none" and is -1 in the event.
pub fn number(id: u32) -> Option<i64> {
    Some(if id == u32::MAX { -1 } else { id.into() })
}

/// A NUL-padded comm.
pub fn comm(bytes: &[u8], out: &mut String) {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    out.clear();
    out.push_str(&escape(&bytes[..end]));
}

/// As [`escape`], without a copy where there is nothing to escape.
fn escaped(bytes: Vec<u8>) -> String {
    if bytes.contains(&b'\\') {
        return escape(&bytes).into_owned();
    }
    String::from_utf8(bytes).unwrap_or_else(|error| escape(error.as_bytes()).into_owned())
}

/// A walked path as text, with what is to be known about it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Walked {
    pub path: String,
    /// The process's root in its mount namespace; empty where it is that namespace's root.
    pub root: String,
    pub truncated: bool,
    pub deleted: bool,
    pub memfd: bool,
}

/// The section `tag` as a path, if the record has it.
pub fn walked(record: &Record<'_>, tag: u8) -> Option<Walked> {
    record.section(tag).map(|section| walk(&section))
}

fn walk(section: &Section<'_>) -> Walked {
    let flags = section.header.flags;
    let is = |flag: u8| flags & flag != 0;
    let (mut below, _) = walked_path(section);
    let mut walked = Walked {
        truncated: is(section_flags::TRUNCATED),
        deleted: is(section_flags::DELETED),
        ..Walked::default()
    };
    if is(section_flags::PSEUDO) {
        let name = below.next().unwrap_or_default();
        if name == b"/" {
            // A namespace's file, or another that is named only when it is asked.
            return walked;
        }
        walked.memfd = name.starts_with(b"memfd:");
        if walked.memfd {
            walked.path.push('/');
        }
        walked.path.push_str(&escape(name));
        return walked;
    }
    walked.path = escaped(walked_bytes(section));
    walked.root = root(section);
    walked
}

/// The part of a walked path above the process's root; empty outside a chroot.
pub fn root(section: &Section<'_>) -> String {
    let (_, above) = walked_path(section);
    let mut root = Vec::new();
    for component in above {
        root.push(b'/');
        root.extend_from_slice(component);
    }
    escaped(root)
}

/// The part of a walked path that the process sees. A path whose beginning is missing begins
/// without a slash; one outside the process's root begins with "(unreachable)", as in /proc.
pub fn walked_bytes(section: &Section<'_>) -> Vec<u8> {
    let (below, _) = walked_path(section);
    let mut path = Vec::with_capacity(section.bytes.len() + 1);
    if section.header.flags & section_flags::UNREACHABLE != 0 {
        path.extend_from_slice(b"(unreachable)");
    }
    let cut = section.header.flags & section_flags::TRUNCATED != 0;
    for (at, component) in below.enumerate() {
        if at > 0 || !cut {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    if path.is_empty() && !cut {
        path.push(b'/');
    }
    path
}

/// Text from user memory, and whether it was cut.
pub fn given(record: &Record<'_>, tag: u8) -> Option<(String, bool)> {
    let section = record.section(tag)?;
    let cut = section.header.flags & section_flags::TRUNCATED != 0;
    Some((escape(section.bytes).into_owned(), cut))
}

/// Of text known to be cut by an unknown length: the least that it can be.
pub fn cut_bytes(truncated: bool) -> Option<i64> {
    truncated.then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use audit_common::record::{SectionHeader, section};

    fn walk_of(flags: u8, root_at: u16, bytes: &[u8]) -> Walked {
        walk(&Section {
            header: SectionHeader {
                tag: section::PATH,
                flags,
                root_at,
                size: bytes.len() as u32,
            },
            bytes,
        })
    }

    #[test]
    fn ids_are_signed_and_only_none_is_negative() {
        assert_eq!(number(u32::MAX), Some(-1));
        assert_eq!(number(0), Some(0));
        assert_eq!(number(3_000_000_000), Some(3_000_000_000));
    }

    #[test]
    fn paths_join_from_the_root() {
        assert_eq!(walk_of(0, 8, b"ls\0bin\0\0").path, "/bin/ls");
        assert_eq!(walk_of(0, 0, b"").path, "/");
        let jailed = walk_of(0, 3, b"sh\0jail\0srv\0");
        assert_eq!(
            (jailed.path.as_str(), jailed.root.as_str()),
            ("/sh", "/srv/jail")
        );
        assert_eq!(walk_of(0, 6, b"\xff\\b\0c\0").path, "/c/\\xff\\\\b");
    }

    #[test]
    fn flags_are_kept() {
        let memfd = walk_of(
            section_flags::PSEUDO | section_flags::DELETED,
            8,
            b"memfd:x\0",
        );
        assert_eq!(memfd.path, "/memfd:x");
        assert!(memfd.memfd && memfd.deleted);
        assert_eq!(
            walk_of(section_flags::PSEUDO, 9, b"pipe:[12]\0").path,
            "pipe:[12]"
        );
        let cut = walk_of(section_flags::TRUNCATED, 4, b"b\0a\0");
        assert!(cut.truncated);
        assert_eq!(cut.path, "a/b");
        assert_eq!(
            walk_of(section_flags::UNREACHABLE, 2, b"a\0").path,
            "(unreachable)/a"
        );
    }
}
