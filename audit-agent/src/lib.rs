//! The agent: from records of the kernel programs to sealed batches at the collector.
//!
//! One thread, [`pipeline`]'s reader, does everything up to a sealed batch; one task ships.
//!
//! ```text
//! source -> decode -> enrich -> filter -> number -> seal -> | queue | -> ship
//! ```
//!
//! | step | module | when full or failing | counted in |
//! |---|---|---|---|
//! | read | [`source`], [`replay`] | the kernel counts what found no room in a ring | `lost` event, place "ring" |
//! | decode | [`decode`] | a record that is not understood becomes a `lost` event | `undecodable`, place "decode" |
//! | join argv | [`arguments`] | an exec leaves with what came of its argv | `process.argv_truncated_bytes` |
//! | enrich | [`enrich`], [`process`], [`users`], [`container`], [`resolve`], [`dns`] | fields stay absent | heartbeat detail |
//! | filter | [`filter`] | - | `filtered` |
//! | number | [`sequence`] | - | gaps are losses |
//! | seal | [`seal`] | - | `sealed` |
//! | queue | [`queue`] | the reader waits, the rings fill, the kernel counts | `queue_full` |
//! | ship | [`ship`] | batches stay queued and are sent again | `sent`, `sessions` |
//!
//! Memory, with the default configuration, each at its bound at once:
//!
//! | what | bound | MiB | set by |
//! |---|---|---|---|
//! | program, libraries, stacks | what is touched of them | 9 | - |
//! | rings, shared with the kernel | 4 + 2 + 16 MiB; the kernel maps each twice in a row, so twice in RSS | 44 | `rings` |
//! | a round: taken, held back, leaving | 512 KiB of each ring, up to four times | 6 | `reader::ROUND_BYTES` |
//! | process table, with what /proc said at the start | 22 MiB and one program; 65,536 entries | 22 | `process_table` |
//! | execs waiting for argv | 8 MiB and one of 2 MiB; 256 | 10 | `arguments` |
//! | open batch: encoded, framed, compressed | 2 MiB each | 6 | `batch`, `audit_ledger::Sealer` |
//! | queue | 16 MiB, or one batch if that is larger | 16 | `queue` |
//! | batches on their way: two requests, a frame of HTTP/2 | 2 MiB each if nothing compresses | 6 | `ship::REQUESTS` |
//! | cgroups | 8,192 paths | 2 | `container` |
//! | names of addresses, pieces of DNS messages | 8,192 addresses; 384 KiB of pieces | 2 | `dns` |
//! | users and groups | 2 MiB of each file | 4 | `users` |
//! | sum | | 127 | |
//!
//! Beyond it: one event may be of 10 MiB (an argv of 2 MiB of which every byte is escaped), and
//! then is its batch, for the moment. `bench loss` fails above 128 MiB.

pub mod arguments;
pub mod calls;
#[cfg(test)]
mod catalogue;
pub mod clock;
pub mod config;
pub mod container;
pub mod counters;
pub mod decode;
pub mod dns;
pub mod enrich;
pub mod errno;
pub mod filter;
pub mod glob;
pub mod identity;
pub mod own;
pub mod pipeline;
pub mod probe;
pub mod process;
pub mod queue;
pub mod reader;
pub mod replay;
pub mod resolve;
#[cfg(test)]
mod sample;
pub mod seal;
pub mod sequence;
pub mod ship;
pub mod source;
pub mod stage;
pub mod users;

use std::io;

use tokio::sync::watch;

pub use config::{Config, InvalidConfig};
pub use pipeline::Ended;

/// Runs the agent on this host's kernel until `stop` becomes true or its sender is gone.
pub async fn run(config: Config, stop: watch::Receiver<bool>) -> Result<Ended, AgentError> {
    run_source(open(&config)?, config, stop).await
}

/// Loads and attaches the kernel programs, and says in the log which hooks are there.
pub fn open(config: &Config) -> Result<reader::Reader, AgentError> {
    config.validate()?;
    let reader = reader::Reader::open(config)?;
    let hooks = reader.hooks();
    for hook in hooks
        .iter()
        .filter(|hook| hook.attached.is_none() && !hook.off)
    {
        let reason = hook.tried.last().map_or("", |(_, reason)| reason);
        tracing::warn!(
            hook = hook.name,
            reason,
            "not attached: its events will be missing"
        );
    }
    let attached = hooks.iter().filter(|hook| hook.attached.is_some()).count();
    tracing::info!(attached, of = hooks.len(), "kernel hooks attached");
    Ok(reader)
}

/// Runs the agent on `source` until `stop` becomes true or its sender is gone; then empties the
/// source, and waits a few seconds for the collector to acknowledge everything.
pub async fn run_source<S: source::Source + 'static>(
    source: S,
    config: Config,
    stop: watch::Receiver<bool>,
) -> Result<Ended, AgentError> {
    let identity = identity::Identity::of_host(&config.state_dir)?;
    pipeline::run(source, &config, identity, stop).await
}

/// Why the agent cannot run (any more).
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error("reading records failed: {0}")]
    Source(io::Error),
    #[error("cannot start the reader's thread: {0}")]
    Thread(io::Error),
    #[error("the reader ended by a panic; its message is in the log")]
    Reader,
    #[error("shipping ended by a panic: {0}")]
    Shipping(String),
}
