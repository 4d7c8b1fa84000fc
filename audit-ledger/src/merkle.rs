//! RFC 6962 Merkle tree hashes over events.

use sha2::{Digest as _, Sha256};

use crate::digest;

/// In front of what is hashed: RFC 6962 section 2.1.
const LEAF: u8 = 0;
const NODE: u8 = 1;

/// RFC 6962 Merkle tree hash, bottom up: an odd node at the end of a level moves up as it is.
pub fn root<T: AsRef<[u8]>>(events: &[T]) -> [u8; 32] {
    root_of(leaves(events.iter().map(AsRef::as_ref)))
}

/// RFC 6962 hashes of events.
pub fn leaves<'a>(events: impl Iterator<Item = &'a [u8]>) -> Vec<[u8; 32]> {
    digest::all(LEAF, events)
}

/// As [`root`], of events whose hashes ([`leaves`]) are there already.
pub fn root_of(mut level: Vec<[u8; 32]>) -> [u8; 32] {
    while level.len() > 1 {
        let (pairs, odd) = level.as_chunks::<2>();
        let mut above = digest::all(NODE, pairs.iter().map(|pair| pair.as_flattened()));
        above.extend(odd);
        level = above;
    }
    level.pop().unwrap_or_else(|| Sha256::digest(b"").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 6962 section 2.1, as its recursive definition reads.
    fn model(leaves: &[Vec<u8>]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest(b"").into(),
            [one] => digest::one(LEAF, one),
            many => {
                let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
                digest::one(NODE, &[model(left), model(right)].concat())
            }
        }
    }

    #[test]
    fn roots_of_nothing_and_of_an_empty_leaf_are_the_known_ones() {
        assert_eq!(
            hex(&root::<&[u8]>(&[])),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(&root(&[b""])),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }

    proptest! {
        #[test]
        fn the_root_is_that_of_the_definition(leaves: Vec<Vec<u8>>) {
            prop_assert_eq!(root(&leaves), model(&leaves));
        }
    }
}
