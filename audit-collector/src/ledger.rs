//! INTERIM until crate audit-ledger lands.
use audit_proto::{Message as _, v1::{Batch, BatchHeader}};
use sha2::{Digest as _, Sha256};
#[derive(Debug, thiserror::Error)]
pub enum BatchError { #[error("{0}")] Bad(String) }
pub fn root<T: AsRef<[u8]>>(leaves: &[T]) -> [u8; 32] {
    match leaves {
        [] => Sha256::digest(b"").into(),
        [one] => { let mut h = Sha256::new(); h.update([0]); h.update(one.as_ref()); h.finalize().into() }
        _ => { let k = leaves.len().next_power_of_two() / 2; let mut h = Sha256::new(); h.update([1]); h.update(root(&leaves[..k])); h.update(root(&leaves[k..])); h.finalize().into() }
    }
}
pub fn header_hash(h: &BatchHeader) -> [u8; 32] { Sha256::digest(h.encode_to_vec()).into() }
pub fn open(batch: &Batch) -> Result<Vec<Vec<u8>>, BatchError> {
    let bad = |s: &str| BatchError::Bad(s.to_owned());
    let header = batch.header.as_ref().ok_or_else(|| bad("no header"))?;
    let raw = zstd::bulk::decompress(&batch.events, header.event_bytes as usize).map_err(|e| bad(&format!("payload: {e}")))?;
    let mut rest = &raw[..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let n = prost::decode_length_delimiter(&mut rest).map_err(|_| bad("length"))?;
        if n > rest.len() { return Err(bad("cut")); }
        out.push(rest[..n].to_vec()); rest = &rest[n..];
    }
    if out.len() != header.event_count as usize { return Err(bad("event count differs")); }
    if root(&out)[..] != header.root[..] { return Err(bad("the Merkle root does not match the events")); }
    Ok(out)
}
