//! Which case does an input stand for? Its bytes are choices, read one after the other: so every input
//! is a case, and a small change of it is a similar one.

/// What numbers break: the ends of their types, and what is near a limit of ours.
const ODD: [i64; 12] = [
    0,
    1,
    -1,
    i64::MIN,
    i64::MIN + 1,
    i64::MAX,
    i64::MAX - 1,
    i32::MAX as i64,
    i32::MIN as i64,
    64 << 20,
    (64 << 20) + 1,
    1 << 16,
];

/// Choices; behind the last one every choice is 0.
#[derive(Debug, Clone)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// 0 where there is nothing to choose from.
    pub fn below(&mut self, n: usize) -> usize {
        let choice = match n {
            0..=256 => usize::from(self.byte()),
            _ => usize::from(self.byte()) << 8 | usize::from(self.byte()),
        };
        choice.checked_rem(n).unwrap_or(0)
    }

    /// Fewer where the input ends.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes after their length, at most 255.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.take(length)
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Mostly near `near`, where the checks are; or an odd one, or any.
    pub fn number(&mut self, near: i64) -> i64 {
        match self.byte() {
            choice @ 0..200 => near.wrapping_add(i64::from(choice) - 100),
            255 => {
                let mut bytes = [0; 8];
                let taken = self.take(8);
                bytes[..taken.len()].copy_from_slice(taken);
                i64::from_le_bytes(bytes)
            }
            choice => ODD[usize::from(choice) % ODD.len()],
        }
    }

    /// Changes `bytes` in one place.
    pub fn edit(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.extend_from_slice(self.piece());
            return;
        }
        let at = self.below(bytes.len());
        match self.byte() % 3 {
            0 => {
                let new = self.piece();
                let end = bytes.len().min(at + new.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            1 => {
                let new = self.piece();
                bytes.splice(at..at, new.iter().copied());
            }
            _ => self.damage(bytes),
        }
    }

    /// Changes `bytes` in one place as chance does: nothing comes in that was not there.
    pub fn damage(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        let end = |length: usize| bytes.len().min(at + length);
        match self.byte() % 5 {
            0 => bytes[at] ^= 1 << (self.byte() % 8),
            1 => {
                let end = end(self.below(1 << 13));
                bytes[at..end].fill(0);
            }
            2 => {
                let end = end(self.below(1 << 13));
                let to = self.below(bytes.len());
                let end = end.min(at + bytes.len() - to);
                bytes.copy_within(at..end, to);
            }
            3 => {
                let end = end(self.below(1 << 13));
                bytes.drain(at..end);
            }
            _ => bytes.truncate(at),
        }
    }
}
