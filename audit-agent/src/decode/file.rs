//! open, and how a file becomes an object of an event.

use audit_common::record::{
    CloseWrite, FileObject, Open, Record, layer, open_outcome, section, section_flags,
};
use audit_proto::{
    text::escape,
    v1::{Event, File},
};

use super::{number, result, text};
use crate::resolve;

pub(super) fn open(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let open: Open = record.payload()?;
    let tags = [section::PATH, section::OBJECT];
    if tags.iter().all(|tag| record.section(*tag).is_none()) {
        return asked(record, &open, event);
    }
    // What a hook saw while the file was opened, else what was behind the descriptor.
    let walked = text::walked(record, section::OBJECT);
    let walked = walked.or_else(|| text::walked(record, section::PATH));
    let walked = walked.unwrap_or_default();
    if let Some(process) = &mut event.process {
        process.root = walked.root;
    }
    let mut file = File {
        path_source: if walked.path.is_empty() { "" } else { "kernel" }.to_owned(),
        path: walked.path,
        path_given: String::new(),
        path_truncated_bytes: text::cut_bytes(walked.truncated),
        deleted: walked.deleted.then_some(true),
        memfd: walked.memfd.then_some(true),
        open_flags: Some(open.flags.into()),
        access: access(open.outcome).to_owned(),
        ..File::default()
    };
    object(&open.file, &mut file);
    event.file = Some(file);
    event.result = result(open.result);
    Some(())
}

pub(super) fn close_write(record: &Record<'_>, event: &mut Event) -> Option<()> {
    let closed: CloseWrite = record.payload()?;
    let walked = text::walked(record, section::PATH).unwrap_or_default();
    if let Some(process) = &mut event.process {
        process.root = walked.root;
    }
    // Bytes were counted if the open was seen.
    let counted = |value: u64| (closed.opened_ns != 0).then_some(value as i64);
    let open_ns = record.header.time_ns.saturating_sub(closed.opened_ns);
    let mut file = File {
        path_source: if walked.path.is_empty() { "" } else { "kernel" }.to_owned(),
        path: walked.path,
        path_truncated_bytes: text::cut_bytes(walked.truncated),
        deleted: walked.deleted.then_some(true),
        memfd: walked.memfd.then_some(true),
        access: access(closed.outcome).to_owned(),
        bytes_read: counted(closed.bytes_read),
        bytes_written: counted(closed.bytes_written),
        position_bytes: Some(closed.position_bytes as i64),
        open_duration_ns: counted(open_ns),
        ..File::default()
    };
    object(&closed.file, &mut file);
    if closed.inode_gone != 0 {
        (file.size_bytes, file.owner_uid, file.owner_gid) = (None, None, None);
    }
    event.file = Some(file);
    Some(())
}

/// What the inode says; nothing where there was none yet.
pub(super) fn object(object: &FileObject, file: &mut File) {
    let FileObject {
        inode,
        size_bytes,
        device,
        mode,
        owner_uid,
        owner_gid,
        generation,
        layer,
        real_device,
        reserved: _,
        real_inode,
    } = *object;
    if inode == 0 && mode == 0 {
        return;
    }
    file.inode = Some(inode as i64);
    file.device = Some(device.into());
    file.mode = Some(mode.into());
    file.owner_uid = number(owner_uid);
    file.owner_gid = number(owner_gid);
    file.size_bytes = Some(size_bytes as i64);
    file.generation = (generation != 0).then_some(generation.into());
    layer::name(layer).clone_into(&mut file.layer);
    file.real_inode = (layer != layer::NONE).then_some(real_inode as i64);
    file.real_device = (layer != layer::NONE).then_some(real_device.into());
}

/// An open without a file, because it was not permitted, or is told before it is done: what it asked
/// for.
fn asked(record: &Record<'_>, open: &Open, event: &mut Event) -> Option<()> {
    let named = named(record, section::GIVEN, section::BASE, event);
    event.file = Some(File {
        open_flags: Some(open.flags.into()),
        access: access(open.outcome).to_owned(),
        ..named
    });
    event.result = result(open.result);
    Some(())
}

/// The strongest that applies.
fn access(outcome: u32) -> &'static str {
    if outcome & open_outcome::CREATED != 0 {
        "create"
    } else if outcome & open_outcome::TRUNCATE != 0 {
        "truncate"
    } else if outcome & open_outcome::WRITE != 0 {
        "write"
    } else {
        "read"
    }
}

/// True for an open that only reads and is reported because its name is watched.
pub fn is_watched_read(outcome: u32) -> bool {
    outcome & open_outcome::WATCHED_READ != 0
        && outcome & (open_outcome::CREATED | open_outcome::TRUNCATE | open_outcome::WRITE) == 0
}

/// A file known by the name that a call gave: joined here, looked up by [`resolve`] where joining
/// does not settle it.
pub(super) fn named(record: &Record<'_>, tag: u8, base_tag: u8, event: &mut Event) -> File {
    let Some(given) = record.section(tag) else {
        return File::default();
    };
    let base = record.section(base_tag);
    if let (Some(process), Some(base)) = (&mut event.process, &base) {
        process.root = text::root(base);
    }
    let base_bytes = base.as_ref().map(text::walked_bytes);
    let joined = resolve::join(base_bytes.as_deref(), given.bytes);
    let path = escape(&joined.path).into_owned();
    let text = escape(given.bytes);
    let cut = given.header.flags & section_flags::TRUNCATED != 0
        || base.is_some_and(|base| base.header.flags & section_flags::TRUNCATED != 0);
    File {
        path_given: if text == path {
            String::new()
        } else {
            text.into_owned()
        },
        path_source: match joined.exact {
            _ if path.is_empty() => "",
            true => "argument",
            false => "lexical",
        }
        .to_owned(),
        path,
        path_truncated_bytes: text::cut_bytes(cut),
        path_copied: (given.header.flags & section_flags::COPIED != 0).then_some(true),
        ..File::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;

    #[test]
    fn an_open_is_told_whole() {
        let event = sample::record(kind::OPEN).event();
        let file = event.file.expect("file");
        assert_eq!(
            (file.path.as_str(), file.path_source.as_str()),
            ("/tmp/out", "kernel")
        );
        assert_eq!((file.inode, file.device), (Some(42), Some(8 << 20 | 1)));
        assert_eq!((file.mode, file.size_bytes), (Some(0o100_755), Some(5)));
        assert_eq!((file.owner_uid, file.owner_gid), (Some(1000), Some(1000)));
        assert_eq!(
            (file.open_flags, file.access.as_str()),
            (Some(0o1101), "create")
        );
        assert_eq!(event.result.expect("result").value, Some(3));
    }

    #[test]
    fn a_close_tells_counts_only_where_something_was_counted() {
        let mut sample = sample::record(kind::CLOSE_WRITE);
        let file = sample.event().file.expect("file");
        assert_eq!(
            (file.path.as_str(), file.access.as_str()),
            ("/tmp/out", "truncate")
        );
        assert_eq!((file.bytes_read, file.bytes_written), (Some(0), Some(9)));
        assert_eq!((file.position_bytes, file.size_bytes), (Some(9), Some(5)));
        assert_eq!(file.open_duration_ns, Some(123));
        let mut closed = sample.payload_as::<CloseWrite>();
        (closed.opened_ns, closed.inode_gone) = (0, 1);
        sample.payload = zerocopy::IntoBytes::as_bytes(&closed).to_vec();
        sample.sections.clear();
        let file = sample.event().file.expect("file");
        assert_eq!((file.path.as_str(), file.path_source.as_str()), ("", ""));
        assert_eq!((file.bytes_read, file.bytes_written), (None, None));
        assert_eq!((file.open_duration_ns, file.size_bytes), (None, None));
        assert_eq!(file.inode, Some(42));
    }

    #[test]
    fn access_is_the_strongest() {
        assert_eq!(
            access(open_outcome::WRITE | open_outcome::TRUNCATE),
            "truncate"
        );
        assert_eq!(access(open_outcome::WRITE), "write");
        assert_eq!(access(open_outcome::WATCHED_READ), "read");
        assert!(is_watched_read(open_outcome::WATCHED_READ));
        assert!(!is_watched_read(
            open_outcome::WATCHED_READ | open_outcome::WRITE
        ));
    }
}
