//! Which arguments did somebody change while the kernel used them? Where a record has the kernel's own
//! copy of a text, it also has what the caller's memory said when the call returned.

use audit_common::record::{Record, section, section_flags};
use audit_proto::{text::escape, v1::ArgumentRace};

/// The argument, where its copy is, and where what was found later.
const ARGUMENTS: [(&str, u8, u8); 3] = [
    ("path", section::GIVEN, section::NOW),
    ("target_path", section::TARGET_GIVEN, section::TARGET_NOW),
    ("text", section::TEXT, section::TARGET_NOW),
];

/// Those of `record` that were changed. Memory that could not be read any more is no change.
pub fn races(record: &Record<'_>) -> impl Iterator<Item = ArgumentRace> {
    ARGUMENTS.iter().filter_map(|(argument, used, found)| {
        let (used, found) = (record.section(*used)?, record.section(*found)?);
        let unreadable = found.header.flags & section_flags::TRUNCATED != 0;
        let copied = used.header.flags & section_flags::COPIED != 0;
        (copied && !unreadable && used.bytes != found.bytes).then(|| ArgumentRace {
            argument: (*argument).to_owned(),
            used: escape(used.bytes).into_owned(),
            found: escape(found.bytes).into_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use audit_common::kind;

    fn races_of(sample: &sample::Sample) -> Vec<ArgumentRace> {
        let bytes = sample.bytes();
        races(&Record::parse(&bytes).expect("well formed")).collect()
    }

    #[test]
    fn a_difference_is_a_race() {
        let raced = sample::record(kind::RENAME)
            .copied(section::GIVEN, b"old\xff")
            .section(section::NOW, b"other")
            .copied(section::TARGET_GIVEN, b"/srv/a/new")
            .section(section::TARGET_NOW, b"/srv/a/new");
        let found = races_of(&raced);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                found[0].argument.as_str(),
                found[0].used.as_str(),
                found[0].found.as_str()
            ),
            ("path", "old\\xff", "other")
        );
    }

    #[test]
    fn without_a_copy_or_readable_memory_there_is_none() {
        let sample = sample::record(kind::UNLINK).section(section::NOW, b"other");
        assert_eq!(races_of(&sample), []);
        let mut unreadable = sample.copied(section::GIVEN, b"gone");
        for section in &mut unreadable.sections {
            if section.0 == section::NOW {
                section.1 |= section_flags::TRUNCATED;
                section.3.clear();
            }
        }
        assert_eq!(races_of(&unreadable), []);
    }
}
