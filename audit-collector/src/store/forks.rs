//! What was offered in an agent's name, beside the stored batch of its number? Kept as evidence, in one
//! file that only grows, up to a bound.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use audit_proto::{Message as _, v1::Batch};

use super::Store;

const NAME: &str = "forks";
/// Enough to prove what happened; an agent with a copied state offers the same batch again and again.
const MAX_BYTES: u64 = 16 << 20;

impl Store {
    /// Durable when it returns. The same batch is kept once; beyond the bound none is, which is told.
    pub fn keep_fork(&self, batch: &Batch) -> io::Result<()> {
        let path = self.dir.join(NAME);
        // One at a time.
        let _state = super::lock(&self.state);
        let kept = self.forks()?;
        if kept.contains(batch) {
            return Ok(());
        }
        let encoded = batch.encode_to_vec();
        let mut file = File::options().append(true).create(true).open(&path)?;
        if file.metadata()?.len() + encoded.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!(
                "{} has {MAX_BYTES} bytes already",
                path.display()
            )));
        }
        let mut entry = (encoded.len() as u32).to_le_bytes().to_vec();
        entry.extend_from_slice(&encoded);
        file.write_all(&entry)?;
        file.sync_all()
    }

    /// Those that are kept. The last one is left out if its writing was cut short.
    pub fn forks(&self) -> io::Result<Vec<Batch>> {
        read(&self.dir.join(NAME))
    }
}

fn read(path: &Path) -> io::Result<Vec<Batch>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes?,
    };
    let mut rest = &bytes[..];
    let mut batches = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>()
        && let Some((encoded, behind)) =
            behind.split_at_checked(u32::from_le_bytes(*length) as usize)
    {
        batches.extend(Batch::decode(encoded));
        rest = behind;
    }
    Ok(batches)
}
