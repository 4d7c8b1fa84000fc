//! SHA-256 of many messages, each behind the same byte, as RFC 6962 hashes leaves and nodes.
//!
//! The rounds of a message wait for each other, also where the processor has instructions for them. So
//! where it has registers of 512 bits, sixteen messages are hashed at once, a word of each in one
//! register. Elsewhere, and for the few that are left, sha2 does one after the other. Both give the
//! same; a test compares them.

use sha2::{Digest as _, Sha256};

pub type Digest = [u8; 32];

/// Of `prefix` and each message.
pub fn all<'a>(prefix: u8, messages: impl Iterator<Item = &'a [u8]>) -> Vec<Digest> {
    #[cfg(target_arch = "x86_64")]
    if lanes::are_supported() {
        return lanes::all(prefix, &messages.collect::<Vec<_>>());
    }
    messages.map(|message| one(prefix, message)).collect()
}

/// Of `prefix` and one message.
pub fn one(prefix: u8, message: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    hash.update([prefix]);
    hash.update(message);
    hash.finalize().into()
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{
        __m512i, __mmask16, _mm512_add_epi32, _mm512_loadu_si512, _mm512_mask_mov_epi32,
        _mm512_ror_epi32, _mm512_set1_epi32, _mm512_set4_epi32, _mm512_shuffle_epi8,
        _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_ternarylogic_epi32,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    use super::{Digest, one};

    const LANES: usize = 16;
    const BLOCK: usize = 64;
    /// Fewer messages take longer together than one after the other.
    const WORTH: usize = 6;

    /// FIPS 180-4, 4.2.2.
    const K: [u32; 64] = [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ];
    /// FIPS 180-4, 5.3.3.
    const INITIAL: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    pub fn are_supported() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
    }

    pub fn all(prefix: u8, messages: &[&[u8]]) -> Vec<Digest> {
        let mut digests = vec![[0; 32]; messages.len()];
        // The shorter ones of a group wait for the longest.
        let mut order: Vec<(usize, usize)> =
            messages.iter().map(|text| blocks(text)).zip(0..).collect();
        order.sort_unstable();
        for group in order.chunks(LANES) {
            if group.len() < WORTH {
                for (_, at) in group {
                    digests[*at] = one(prefix, messages[*at]);
                }
                continue;
            }
            let mut lanes = [Message::default(); LANES];
            for (lane, (blocks, at)) in lanes.iter_mut().zip(group) {
                *lane = Message {
                    prefix,
                    text: messages[*at],
                    blocks: *blocks,
                };
            }
            #[expect(unsafe_code, reason = "only a processor knows what it has")]
            // SAFETY: called where are_supported() has said so.
            let found = unsafe { together(&lanes) };
            for ((_, at), digest) in group.iter().zip(found) {
                digests[*at] = digest;
            }
        }
        digests
    }

    /// With the prefix, 0x80 and eight bytes of length.
    fn blocks(text: &[u8]) -> usize {
        (text.len() + 10).div_ceil(BLOCK)
    }

    /// A message as blocks: the prefix, the text, 0x80, zeros, the length in bits.
    #[derive(Clone, Copy, Default)]
    struct Message<'a> {
        prefix: u8,
        text: &'a [u8],
        blocks: usize,
    }

    impl Message<'_> {
        /// From the text itself where a block has nothing else.
        fn block<'b>(&'b self, at: usize, room: &'b mut [u8; BLOCK]) -> &'b [u8; BLOCK] {
            let start = (at * BLOCK).wrapping_sub(1);
            if let Some(inside) = self.text.get(start..).and_then(<[u8]>::first_chunk) {
                return inside;
            }
            room.fill(0);
            let (mut from, mut to) = (start, 0);
            if at == 0 {
                room[0] = self.prefix;
                (from, to) = (0, 1);
            }
            let rest = self.text.get(from..).unwrap_or_default();
            let length = rest.len().min(BLOCK - to);
            room[to..to + length].copy_from_slice(&rest[..length]);
            // Where the text has ended, in this block or exactly before it.
            if from <= self.text.len() && to + length < BLOCK {
                room[to + length] = 0x80;
            }
            if at + 1 == self.blocks {
                let bits = (self.text.len() as u64 + 1) * 8;
                room[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
            }
            room
        }
    }

    /// A word of each message.
    type Word = __m512i;

    #[target_feature(enable = "avx512f,avx512bw")]
    fn together(lanes: &[Message<'_>; LANES]) -> [Digest; LANES] {
        let mut state = INITIAL.map(|word| _mm512_set1_epi32(word.cast_signed()));
        let mut room = [[0; BLOCK]; LANES];
        let most = lanes.iter().map(|lane| lane.blocks).max().unwrap_or(0);
        for at in 0..most {
            let mut words = [state[0]; LANES];
            let mut unfinished: __mmask16 = 0;
            for (n, (lane, room)) in lanes.iter().zip(&mut room).enumerate() {
                unfinished |= u16::from(at < lane.blocks) << n;
                words[n] = load(lane.block(at, room));
            }
            let next = compress(&state, transposed(&words));
            for (word, next) in state.iter_mut().zip(next) {
                *word = _mm512_mask_mov_epi32(*word, unfinished, next);
            }
        }
        let words = state.map(|word| stored(word));
        let mut digests = [[0; 32]; LANES];
        for (lane, digest) in digests.iter_mut().enumerate() {
            for (to, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(&words) {
                *to = word[lane].to_be_bytes();
            }
        }
        digests
    }

    macro_rules! unrolled {
        ($at:ident in $($n:literal)+ => $body:block) => {
            $({
                const $at: usize = $n;
                $body
            })+
        };
    }

    /// FIPS 180-4, 6.2.2.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn compress(before: &[Word; 8], mut words: [Word; 16]) -> [Word; 8] {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *before;
        for (sixteen, k) in K.as_chunks::<16>().0.iter().enumerate() {
            // Written out, so that each word keeps its register.
            unrolled!(AT in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 => {
                if sixteen > 0 {
                    let (w2, w15) = (words[(AT + 14) % 16], words[(AT + 1) % 16]);
                    let small0 = xor(
                        _mm512_ror_epi32::<7>(w15),
                        _mm512_ror_epi32::<18>(w15),
                        _mm512_srli_epi32::<3>(w15),
                    );
                    let small1 = xor(
                        _mm512_ror_epi32::<17>(w2),
                        _mm512_ror_epi32::<19>(w2),
                        _mm512_srli_epi32::<10>(w2),
                    );
                    let sum = add(words[AT], words[(AT + 9) % 16]);
                    words[AT] = add(sum, add(small0, small1));
                }
                let choice = _mm512_ternarylogic_epi32::<0xca>(e, f, g);
                let majority = _mm512_ternarylogic_epi32::<0xe8>(a, b, c);
                let big1 = xor(
                    _mm512_ror_epi32::<6>(e),
                    _mm512_ror_epi32::<11>(e),
                    _mm512_ror_epi32::<25>(e),
                );
                let big0 = xor(
                    _mm512_ror_epi32::<2>(a),
                    _mm512_ror_epi32::<13>(a),
                    _mm512_ror_epi32::<22>(a),
                );
                let known = add(words[AT], _mm512_set1_epi32(k[AT].cast_signed()));
                let one = add(add(h, known), add(big1, choice));
                (h, g, f, e) = (g, f, e, add(d, one));
                (d, c, b, a) = (c, b, a, add(one, add(big0, majority)));
            });
        }
        let after = [a, b, c, d, e, f, g, h];
        std::array::from_fn(|at| add(before[at], after[at]))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add(one: Word, other: Word) -> Word {
        _mm512_add_epi32(one, other)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn xor(one: Word, two: Word, three: Word) -> Word {
        _mm512_ternarylogic_epi32::<0x96>(one, two, three)
    }

    /// Sixteen big-endian words of one message.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(block: &[u8; BLOCK]) -> Word {
        #[expect(unsafe_code, reason = "loads go by pointers")]
        // SAFETY: the block has as many bytes as the register, and need not be aligned.
        let words = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
        _mm512_shuffle_epi8(words, swap)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn stored(word: Word) -> [u32; LANES] {
        let mut words = [0; LANES];
        #[expect(unsafe_code, reason = "stores go by pointers")]
        // SAFETY: as in load().
        unsafe {
            _mm512_storeu_si512(words.as_mut_ptr().cast(), word);
        }
        words
    }

    /// From sixteen words of each message to each word of sixteen messages.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(rows: &[Word; 16]) -> [Word; 16] {
        let mut pairs = *rows;
        for at in (0..16).step_by(2) {
            pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
            pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
        }
        let mut fours = pairs;
        for at in (0..16).step_by(4) {
            fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
            fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
            fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
            fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
        }
        // Now each has four words of four messages: quarters go where they belong.
        let mut words = fours;
        for at in 0..4 {
            let [one, two, three, four] = [fours[at], fours[at + 4], fours[at + 8], fours[at + 12]];
            let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(one, two);
            let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(one, two);
            let later_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(three, four);
            let later_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(three, four);
            words[at] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even, later_even);
            words[at + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd, later_odd);
            words[at + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even, later_even);
            words[at + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd, later_odd);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn together_they_give_what_each_alone_does(
            prefix: u8,
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..60),
        ) {
            let alone: Vec<Digest> = messages.iter().map(|m| one(prefix, m)).collect();
            prop_assert_eq!(all(prefix, messages.iter().map(Vec::as_slice)), alone);
        }
    }

    #[test]
    fn every_length_around_a_block_is_padded_rightly() {
        let text: Vec<u8> = (0..200).collect();
        for length in 0..text.len() {
            let message = &text[..length];
            let expected = one(1, message);
            assert_eq!(
                all(1, [message; 16].into_iter()),
                [expected; 16],
                "{length}"
            );
            let beside = all(1, [message, &text].into_iter().cycle().take(16));
            let others = [expected, one(1, &text)];
            assert_eq!(beside, others.repeat(8), "{length} beside others");
        }
    }

    /// `cargo test -p audit-ledger -- --ignored --nocapture rate`
    #[test]
    #[ignore = "a measurement"]
    fn rate_together_and_one_after_the_other() {
        let events: Vec<Vec<u8>> = (0..4096_usize)
            .map(|n| vec![n as u8; 400 + n % 64])
            .collect();
        let bytes: usize = events.iter().map(Vec::len).sum();
        let rate = |what: &str, hash: &dyn Fn() -> Vec<Digest>| {
            let begun = std::time::Instant::now();
            for _ in 0..100 {
                std::hint::black_box(hash());
            }
            let took = begun.elapsed();
            let (events, bytes) = (events.len() as f64 * 100.0, bytes as f64 * 100.0);
            println!(
                "{what}: {:.0} ns an event, {:.2} GB/s",
                took.as_nanos() as f64 / events,
                bytes / took.as_nanos() as f64
            );
        };
        rate("one after the other", &|| {
            events.iter().map(|event| one(0, event)).collect()
        });
        rate("together", &|| all(0, events.iter().map(Vec::as_slice)));
    }
}
