//! How does an event become bytes? Field after field by tag, as prost does it; but what events of
//! one actor have in common is encoded once and copied.
//!
//! Invariant: the bytes are those of [`Message::encode`], because whoever proves the record encodes
//! stored columns with that.

use audit_proto::{Message, v1::Event};
use prost::encoding::{int32, int64, message, string};

/// The fields that tell who and where: `host` to `container`. Their tags follow each other.
pub fn actor(event: &Event, out: &mut Vec<u8>) {
    object(10, &event.host, out);
    object(20, &event.process, out);
    object(21, &event.parent, out);
    object(22, &event.container, out);
}

/// The whole event; `actor` is what [`actor`] made of it, or of another event with the same actor.
pub fn event(event: &Event, actor: &[u8], out: &mut Vec<u8>) {
    let Event {
        id,
        time,
        time_remainder_ns,
        boot_time_ns,
        kind,
        class,
        cpu,
        sequence,
        via,
        host: _,
        process: _,
        parent: _,
        container: _,
        file,
        target_file,
        socket,
        target_process,
        exit,
        result,
        lost,
        agent,
        syscall,
        new_credentials,
        new_namespaces,
        mount,
        module,
        bpf,
        flow,
        dns,
        amendment,
        shed,
        argument_race,
    } = event;
    text(1, id, out);
    long(2, *time, out);
    short(3, *time_remainder_ns, out);
    long(4, *boot_time_ns, out);
    short(5, *kind, out);
    short(6, *class, out);
    if let Some(cpu) = cpu {
        int32::encode(7, cpu, out);
    }
    if let Some(sequence) = sequence {
        int64::encode(8, sequence, out);
    }
    text(9, via, out);
    out.extend_from_slice(actor);
    object(30, file, out);
    object(31, target_file, out);
    object(32, socket, out);
    object(33, target_process, out);
    object(34, exit, out);
    object(35, result, out);
    object(36, lost, out);
    object(37, agent, out);
    object(38, syscall, out);
    object(39, new_credentials, out);
    object(40, new_namespaces, out);
    object(41, mount, out);
    object(42, module, out);
    object(43, bpf, out);
    object(44, flow, out);
    object(45, dns, out);
    object(46, amendment, out);
    object(47, shed, out);
    object(48, argument_race, out);
}

fn object<M: Message>(tag: u32, object: &Option<M>, out: &mut Vec<u8>) {
    if let Some(object) = object {
        message::encode(tag, object, out);
    }
}

// A plain field of proto3 is absent when it is empty.

fn text(tag: u32, text: &String, out: &mut Vec<u8>) {
    if !text.is_empty() {
        string::encode(tag, text, out);
    }
}

fn long(tag: u32, number: i64, out: &mut Vec<u8>) {
    if number != 0 {
        int64::encode(tag, &number, out);
    }
}

fn short(tag: u32, number: i32, out: &mut Vec<u8>) {
    if number != 0 {
        int32::encode(tag, &number, out);
    }
}

#[cfg(test)]
mod tests {
    use audit_proto::columns::{self, COLUMNS, ColumnType, OwnedValue};

    use super::*;

    fn is_as_prost_does_it(of: &Event) {
        let (mut who, mut bytes) = (Vec::new(), Vec::new());
        actor(of, &mut who);
        event(of, &who, &mut bytes);
        assert_eq!(bytes, of.encode_to_vec(), "{of:?}");
    }

    #[test]
    fn every_column_alone_and_all_together_are_encoded_as_prost_does_it() {
        let mut whole = Event::default();
        is_as_prost_does_it(&whole);
        for (at, column) in COLUMNS.iter().enumerate() {
            let value = match column.ty {
                ColumnType::Int | ColumnType::Time => OwnedValue::Int(-77),
                ColumnType::Bool => OwnedValue::Bool(true),
                ColumnType::Text => OwnedValue::Text("x".repeat(200)),
                ColumnType::TextList => OwnedValue::TextList(vec![String::new(), "y".to_owned()]),
                ColumnType::Enum => OwnedValue::Text("process".to_owned()),
            };
            let mut alone = Event::default();
            for event in [&mut alone, &mut whole] {
                let set = columns::set(event, at, value.clone());
                assert!(
                    set.is_some() || column.ty == ColumnType::Enum,
                    "{}",
                    column.name
                );
            }
            is_as_prost_does_it(&alone);
        }
        (whole.kind, whole.class) = (40, 3);
        is_as_prost_does_it(&whole);
    }
}
