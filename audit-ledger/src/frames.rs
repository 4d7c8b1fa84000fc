//! Which bytes are hashed and compressed? A batch's events, encoded, each after its length.

use std::ops::Range;

/// The events of a batch, as it will hold them: encoded, each after its length. What is hashed and
/// what is compressed are these same bytes.
#[derive(Debug, Default)]
pub struct Frames {
    pub(crate) bytes: Vec<u8>,
    /// Where each event is in `bytes`, without its length.
    pub(crate) events: Vec<Range<usize>>,
}

impl Frames {
    /// Adds an encoded event.
    pub fn push(&mut self, event: &[u8]) {
        // Into a Vec, which grows.
        let _ = prost::encode_length_delimiter(event.len(), &mut self.bytes);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(event);
        self.events.push(start..self.bytes.len());
    }

    /// Events held.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Encoded bytes held, with the lengths.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// As a batch has them.
    pub fn packed(&self, zstd: &mut zstd::bulk::Compressor<'_>) -> std::io::Result<Vec<u8>> {
        zstd.compress(&self.bytes)
    }

    /// Forgets the events, and keeps memory for at most so many bytes.
    pub fn clear(&mut self, kept_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(kept_bytes);
        self.events.clear();
    }

    /// The encoded events.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.events.iter().map(|event| &self.bytes[event.clone()])
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for Frames {
    fn from_iter<I: IntoIterator<Item = T>>(events: I) -> Self {
        let mut frames = Self::default();
        for event in events {
            frames.push(event.as_ref());
        }
        frames
    }
}
