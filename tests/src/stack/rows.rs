//! From the Arrow stream of a query's answer to JSON objects.

use anyhow::{Context as _, Result};
use arrow::{ipc::reader::StreamReader, json::ArrayWriter};

pub type Row = serde_json::Map<String, serde_json::Value>;

pub fn decode(arrow_ipc: &[u8]) -> Result<Vec<Row>> {
    let mut writer = ArrayWriter::new(Vec::new());
    for batch in StreamReader::try_new(arrow_ipc, None).context("not an Arrow stream")? {
        writer.write(&batch?)?;
    }
    writer.finish()?;
    let json = writer.into_inner();
    // The writer leaves nothing at all for no rows.
    if json.is_empty() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_slice(&json)?)
}
