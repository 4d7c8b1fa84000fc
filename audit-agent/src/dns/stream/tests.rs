use proptest::prelude::*;

use super::*;

const KEY: Key = Key {
    socket: 1,
    sent: false,
};

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn numbered(number: u8, bytes: usize) -> Vec<u8> {
    vec![number; bytes]
}

#[derive(Default)]
struct Reader {
    streams: Streams,
    told: Vec<Vec<u8>>,
}

impl Reader {
    fn push(&mut self, key: Key, piece: &Piece<'_>) {
        let told = &mut self.told;
        self.streams
            .push(key, piece, |message| told.push(message.to_vec()));
        check(&self.streams);
    }

    fn at(&mut self, sequence: u32, bytes: &[u8]) {
        self.push(KEY, &Piece::whole(Some(sequence), bytes));
    }
}

fn check(streams: &Streams) {
    let capacity: usize = streams.streams.values().map(|s| s.kept.capacity()).sum();
    assert_eq!(streams.buffered, capacity);
    assert!(streams.buffered <= BUFFERED_BYTES && streams.streams.len() <= STREAMS);
}

#[test]
fn a_length_and_its_message_may_come_apart() {
    // As glibc reads it: two bytes, then the rest.
    let mut reader = Reader::default();
    let bytes = framed(&numbered(1, 40));
    reader.push(KEY, &Piece::whole(None, &bytes[..2]));
    reader.push(KEY, &Piece::whole(None, &bytes[2..]));
    assert_eq!(reader.told, [numbered(1, 40)]);
    assert_eq!(reader.streams.counters().buffered_bytes, 0);
}

#[test]
fn behind_a_gap_in_a_message_comes_the_next_message() {
    let (first, second) = (framed(&numbered(1, 100)), framed(&numbered(2, 50)));
    let mut reader = Reader::default();
    reader.at(u32::MAX - 10, &first[..30]);
    // 20 bytes are lost, across the end of the numbers.
    let bytes = [&first[50..], &second].concat();
    reader.at((u32::MAX - 10).wrapping_add(50), &bytes);
    assert_eq!(reader.told, [numbered(1, 28), numbered(2, 50)]);
    let counters = reader.streams.counters();
    assert_eq!(
        (counters.gaps, counters.cut, counters.lost_places),
        (1, 1, 0)
    );
}

#[test]
fn behind_a_gap_over_a_message_only_whole_messages_are_believed() {
    let mut reader = Reader::default();
    let bytes = framed(&numbered(1, 100));
    reader.at(0, &bytes);
    reader.at(500, &bytes[20..]);
    reader.at(582, &bytes[..50]);
    assert_eq!(reader.told.len(), 1, "that could be anything");
    reader.at(632, &[bytes.clone(), bytes.clone()].concat());
    reader.at(836, &bytes[..50]);
    reader.at(886, &bytes[50..]);
    assert_eq!(reader.told, vec![numbered(1, 100); 4]);
    let counters = reader.streams.counters();
    assert_eq!(
        (counters.gaps, counters.lost_places, counters.skipped_bytes),
        (1, 1, 132)
    );
}

#[test]
fn a_piece_captured_in_part_is_followed_by_a_gap() {
    let (first, second) = (framed(&numbered(1, 9000)), framed(&numbered(2, 50)));
    let bytes = [first, second.clone()].concat();
    let mut reader = Reader::default();
    let piece = Piece {
        sequence: Some(0),
        bytes: &bytes[..4096],
        wire_bytes: 9002,
    };
    reader.push(KEY, &piece);
    reader.at(9002, &second);
    assert_eq!(reader.told, [numbered(1, 4094), numbered(2, 50)]);
    assert_eq!(reader.streams.counters().cut, 1);
}

#[test]
fn what_is_read_twice_is_told_once() {
    let bytes = framed(&numbered(1, 100));
    let mut reader = Reader::default();
    reader.at(7, &bytes[..2]);
    reader.at(7, &bytes);
    reader.at(7, &bytes);
    assert_eq!(reader.told, [numbered(1, 100)]);
    assert_eq!(reader.streams.counters().repeated_bytes, 104);
}

#[test]
fn a_number_used_again_is_another_stream() {
    let bytes = framed(&numbered(1, 100));
    let mut reader = Reader::default();
    for sequence in [7, 3_000_000_000, 100_000_000] {
        reader.at(sequence, &bytes[..70]);
    }
    reader.at(100_000_070, &bytes[70..]);
    assert_eq!(
        reader.told,
        [numbered(1, 68), numbered(1, 68), numbered(1, 100)]
    );
    assert_eq!(reader.streams.counters().restarted, 2);
}

#[test]
fn a_message_beyond_the_bound_is_told_in_part() {
    let bytes = [framed(&numbered(1, 40_000)), framed(&numbered(2, 20))].concat();
    let mut reader = Reader::default();
    for (at, piece) in bytes.chunks(1448).enumerate() {
        reader.at(at as u32 * 1448, piece);
    }
    assert_eq!(reader.told, [numbered(1, MESSAGE_BYTES), numbered(2, 20)]);
    let counters = reader.streams.counters();
    assert_eq!(counters.skipped_bytes as usize, 40_000 - MESSAGE_BYTES);
}

#[test]
fn a_flood_of_half_messages_stays_in_its_bounds() {
    let mut reader = Reader::default();
    let half = framed(&numbered(1, 60_000));
    for socket in 0..2000 {
        let key = Key {
            socket,
            sent: false,
        };
        reader.push(
            key,
            &Piece::whole(None, &half[..2 + socket as usize % 15_000]),
        );
    }
    for round in 0..20 {
        for socket in 0..64 {
            let key = Key { socket, sent: true };
            let bytes = if round == 0 {
                &half[..2000]
            } else {
                &half[2000..3000]
            };
            reader.push(key, &Piece::whole(None, bytes));
        }
    }
    let counters = reader.streams.counters();
    assert!(counters.evicted > 1900, "{counters:?}");
    assert!(counters.streams <= 128 && counters.buffered_bytes as usize <= BUFFERED_BYTES);
}

#[test]
fn empty_messages_are_counted() {
    let mut reader = Reader::default();
    reader.at(
        0,
        &[&[0; 64][..], &framed(&[1; 5]), &framed(&[2; 12])].concat(),
    );
    assert_eq!(reader.told, [vec![2; 12]]);
    assert_eq!(reader.streams.counters().runts, 33);
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_messages(
        sizes in prop::collection::vec(12..3000_usize, 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        knows: bool,
        start: u32,
    ) {
        let messages: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, size)| numbered(n as u8, *size)).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut reader = Reader::default();
        for pair in cuts.windows(2) {
            let sequence = knows.then(|| start.wrapping_add(pair[0] as u32));
            reader.push(KEY, &Piece::whole(sequence, &bytes[pair[0]..pair[1]]));
        }
        prop_assert_eq!(reader.told, messages);
    }

    /// Pieces may be missing, captured in part or repeated: what is told is always a message of
    /// the stream, or its beginning, in order.
    #[test]
    fn nothing_is_put_together_across_a_gap(
        sizes in prop::collection::vec(12..3000_usize, 1..12),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..6_u8), 1..20),
    ) {
        // No byte of a message looks like a small length, so a wrong place shows.
        let messages: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, size)| numbered(200 + n as u8, *size)).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
        let mut cuts: Vec<(usize, u8)> =
            cuts.iter().map(|(cut, fate)| (cut.index(bytes.len()), *fate)).collect();
        cuts.extend([(0, 5), (bytes.len(), 5)]);
        cuts.sort_unstable();
        let mut reader = Reader::default();
        for pair in cuts.windows(2) {
            let (begin, end) = (pair[0].0, pair[1].0);
            let piece = &bytes[begin..end];
            let captured = if pair[0].1 == 1 { &piece[..piece.len() / 2] } else { piece };
            if pair[0].1 != 0 {
                reader.push(KEY, &Piece {
                    sequence: Some(begin as u32),
                    bytes: captured,
                    wire_bytes: piece.len() as u32,
                });
            }
            if pair[0].1 == 2 {
                reader.at(begin as u32, piece);
            }
        }
        let mut last = 0;
        for told in &reader.told {
            let number = told[0];
            prop_assert!(number > last, "in order, each once");
            last = number;
            let message = &messages[usize::from(number - 200)];
            prop_assert_eq!(&told[..], &message[..told.len()]);
        }
    }

    #[test]
    fn no_pieces_make_it_panic(
        pieces in prop::collection::vec(
            (0..3_u64, any::<Option<u32>>(), prop::collection::vec(0..4_u8, 0..40), 0..100_u32),
            0..60,
        ),
    ) {
        let mut reader = Reader::default();
        for (socket, sequence, bytes, more) in pieces {
            let wire_bytes = if more > 80 { u32::MAX } else { more };
            let key = Key { socket, sent: false };
            let sequence = sequence.map(|sequence| sequence % 200);
            reader.push(key, &Piece { sequence, bytes: &bytes, wire_bytes });
        }
    }
}
