//! What does a log make of segment files that it may never have written?
//!
//! Guarantee: of any files, with sound checksums or without, with any indexes and names, everything
//! that [`crate::wal`] says holds, and nothing panics.
//!
//! Input: descriptions of segments, then changes of their bytes. Frames are written from the format in
//! `audit-wal`'s documentation, so that checksums are no obstacle to what lies behind them.

use std::path::{Path, PathBuf};

use audit_wal::simulated::Simulated;

use crate::{
    input::Input,
    wal::{DIR, recovers},
};

const MAX_SEGMENTS: u8 = 4;
const MAX_PIECES: u8 = 24;
const MAX_CHANGES: usize = 4;
/// Where the second copy of a header is.
const SECOND_AT: usize = 4096;

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let disk = Simulated::new(0);
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let mut next = 1;
    for at in 0..1 + input.byte() % MAX_SEGMENTS {
        let first = match input.flag() {
            true => input.number(next as i64) as u64,
            false => next,
        };
        let path = Path::new(DIR).join(name(first, &mut input));
        next = first;
        let content = segment(&mut next, at.into(), &mut input);
        files.push((path, content));
    }
    for _ in 0..MAX_CHANGES {
        if !input.is_empty() {
            let at = input.below(files.len());
            input.edit(&mut files[at].1);
        }
    }
    for (path, content) in files {
        disk.put(&path, content);
    }
    recovers(&disk);
}

/// Mostly as a log names it.
fn name(first: u64, input: &mut Input<'_>) -> String {
    match input.byte() {
        255 => format!("{first:X}.seg"),
        254 => format!("{first:016x}.cut"),
        253 => String::from_utf8_lossy(input.piece()).replace('/', "_") + ".seg",
        _ => format!("{first:016x}.seg"),
    }
}

/// A header, then frames and other bytes; `next` is the index that is expected next.
fn segment(next: &mut u64, number: u64, input: &mut Input<'_>) -> Vec<u8> {
    let salt = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let copy = header(salt);
    let mut bytes = vec![0; SECOND_AT];
    let lost = input.byte();
    if lost & 1 == 0 {
        bytes[..copy.len()].copy_from_slice(&copy);
    }
    bytes.extend(if lost & 2 == 0 { copy } else { [0; 16] });
    for _ in 0..input.byte() % MAX_PIECES {
        match input.byte() % 8 {
            0 => bytes.extend_from_slice(input.piece()),
            1 => bytes.extend(std::iter::repeat_n(0, usize::from(input.byte()) * 8)),
            2 => {
                let index = input.number(*next as i64) as u64;
                let durable = input.number(index as i64) as u64;
                bytes.extend(frame(salt, index, durable, input));
                *next = index.wrapping_add(1);
            }
            choice => {
                let durable = next.wrapping_sub(u64::from(choice) - 2);
                bytes.extend(frame(salt, *next, durable, input));
                *next = next.wrapping_add(1);
            }
        }
    }
    bytes
}

fn header(salt: u64) -> [u8; 16] {
    let mut copy = [0; 16];
    copy[..4].copy_from_slice(b"wal2");
    copy[8..].copy_from_slice(&salt.to_le_bytes());
    let sum = crc32c::crc32c(&[&copy[..4], &copy[8..]].concat());
    copy[4..8].copy_from_slice(&sum.to_le_bytes());
    copy
}

fn frame(salt: u64, index: u64, durable: u64, input: &mut Input<'_>) -> Vec<u8> {
    let (length, fill) = (usize::from(input.byte()), input.byte());
    // Now and then one that is too short or too long.
    let record = vec![fill; length + length / 250 * 255];
    let mut head = [0; 24];
    head[..4].copy_from_slice(&(record.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append((salt >> 32) as u32, &record);
    head[4..8].copy_from_slice(&sum.to_le_bytes());
    head[8..16].copy_from_slice(&index.to_le_bytes());
    head[16..].copy_from_slice(&durable.to_le_bytes());
    let sum = crc32c::crc32c_append(salt as u32, &head);
    let mut frame = [&sum.to_le_bytes()[..], &head, &record].concat();
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame
}
