//! The agent: from records of the kernel programs to sealed batches at the collector.
//!
//! One thread, [`pipeline`]'s reader, does everything up to a full batch; one seals; one keeps batches
//! on disk; one task ships them.
//!
//! ```text
//! source -> decode -> enrich -> filter -> number -> encode -> | seal -> | spool | -> ship
//! ```
//!
//! | step | module | when full or failing | counted in |
//! |---|---|---|---|
//! | read | [`source`], [`replay`] | the kernel counts what found no room in a ring | `lost` event, place "ring" |
//! | decode | [`decode`] | a record that is not understood becomes a `lost` event | `undecodable`, place "decode" |
//! | join argv | [`arguments`] | an exec leaves with what came of its argv | `process.argv_truncated_bytes` |
//! | enrich | [`enrich`], [`process`], [`users`], [`container`], [`resolve`], [`host_path`], [`dns`] | fields stay absent | heartbeat detail |
//! | filter | [`policy`], in the kernel; what it leaves open in [`filter`] | - | `filtered`, each rule's `hidden`, `shed` events |
//! | number | [`sequence`] | - | gaps are losses |
//! | encode | [`encode`], [`actor`] | - | - |
//! | batch | [`batch`] | the reader waits for the sealing thread | `sealed` |
//! | seal, sign | [`seal`] | it waits for the disk | as spool |
//! | keep | [`spool`] | the oldest events are dropped, or it waits, sealing waits, the reader waits, the rings fill, the kernel counts | `lost` event, place "spool"; `spool_waits` |
//! | ship | [`ship`] | batches stay in the spool and are sent again | `sent`, `sessions` |
//!
//! Memory, with the default configuration, each at its bound at once, as a cgroup counts it
//! (`tests/tests/memory.rs` holds the agent to 64 MiB idle and 128 MiB under flood):
//!
//! | what | bound | MiB | set by |
//! |---|---|---|---|
//! | program, libraries, stacks | what is touched of them | 9 | - |
//! | rings | 4 + 4 + 16 MiB, all there from the start; in RSS they count twice, because the kernel maps each twice in a row | 24 | `rings` |
//! | kernel programs and maps | the entries of each, there from the start | 18 | `audit_common::limits` |
//! | a round: taken, held back | 512 KiB of each ring, twice | 3 | `reader::ROUND_BYTES` |
//! | process table, with what /proc said at the start | 19 MiB and one program; 65,536 entries | 19 | `process_table` |
//! | actors | 32, of 100 KiB with the shortest arguments | 3 | `actor` |
//! | execs waiting for argv | 8 MiB and one of 2 MiB; 256 | 10 | `arguments` |
//! | batches: open, passed on, being sealed; compressed | 2 MiB each, and zstd's own | 9 | `batch`, `seal`, `audit_ledger::Sealer` |
//! | newest batches, or while the disk fails those that wait | 16 MiB, or one batch if that is larger | 16 | `queue` |
//! | batches on their way: two requests, a frame of HTTP/2 | 2 MiB each if nothing compresses | 6 | `ship::REQUESTS` |
//! | cgroups, names of containers | 4,096 paths; 512 containers | 2 | `container` |
//! | mount tables: of the host two and one being read, of other namespaces | 640 KiB each; 1 MiB | 3 | `host_path` |
//! | names of addresses, pieces of DNS messages | 8,192 addresses; 384 KiB of pieces | 2 | `dns` |
//! | users and groups | 2 MiB of each file | 4 | `users` |
//! | sum | | 128 | |
//!
//! Beyond it: one event may be of 10 MiB (an argv of 2 MiB of which every byte is escaped), and
//! then is its batch, for the moment. At the start the spool is read once, a segment of 8 MiB at a time.
//! `bench loss` fails above 128 MiB.

pub mod actor;
pub mod arguments;
pub mod batch;
pub mod calls;
#[cfg(test)]
mod catalogue;
pub mod clock;
pub mod config;
pub mod container;
pub mod counters;
pub mod decode;
pub mod dns;
pub mod encode;
pub mod enrich;
pub mod errno;
pub mod filter;
pub mod glob;
pub mod host_path;
pub mod identity;
pub mod own;
pub mod pipeline;
pub mod policy;
pub mod probe;
pub mod process;
pub mod reader;
pub mod replay;
pub mod resolve;
#[cfg(test)]
mod sample;
pub mod seal;
pub mod sequence;
pub mod server;
pub mod shed;
pub mod ship;
pub mod source;
pub mod spool;
pub mod stage;
pub mod users;

use std::{io, sync::mpsc};

use tokio::sync::watch;

pub use config::{Config, InvalidConfig};
pub use pipeline::Ended;

/// Runs the agent on this host's kernel until `stop` becomes true or its sender is gone.
pub async fn run(config: Config, control: impl Into<Control>) -> Result<Ended, AgentError> {
    open(&config)?.run(control).await
}

/// An agent that is attached, or has another source, and does not run yet.
pub struct Ready<S> {
    source: S,
    config: Config,
    identity: identity::Identity,
    opened: spool::Opened,
}

impl<S: source::Source + 'static> Ready<S> {
    /// Until `stop` becomes true or its sender is gone; then empties the source, and waits a few
    /// seconds for the collector to acknowledge everything.
    pub async fn run(self, control: impl Into<Control>) -> Result<Ended, AgentError> {
        let Self {
            source,
            config,
            identity,
            opened,
        } = self;
        let server = config.server().map_err(InvalidConfig::from)?;
        tokio::select! {
            ended = pipeline::run(source, config, identity, opened, control.into()) => ended,
            never = server.watch_certificate() => never,
        }
    }
}

/// What a running agent is told from outside.
pub struct Control {
    /// Ends it when it becomes true, or when its sender is gone.
    pub stop: watch::Receiver<bool>,
    /// New configurations, of which it takes over what can change while it runs.
    pub reload: Option<mpsc::Receiver<Config>>,
}

impl From<watch::Receiver<bool>> for Control {
    fn from(stop: watch::Receiver<bool>) -> Self {
        Self { stop, reload: None }
    }
}

/// Opens the spool, loads and attaches the kernel programs, and says in the log which hooks are there.
pub fn open(config: &Config) -> Result<Ready<reader::Reader>, AgentError> {
    open_with(config, |state| {
        let reader = reader::Reader::open(config, state)?;
        // Those of a former agent have been told.
        tell(reader.hooks());
        Ok(reader)
    })
}

/// An agent with records of another source.
pub fn open_source<S: source::Source>(source: S, config: &Config) -> Result<Ready<S>, AgentError> {
    open_with(config, |_| Ok(source))
}

fn open_with<S: source::Source>(
    config: &Config,
    source: impl FnOnce(Option<spool::State>) -> Result<S, AgentError>,
) -> Result<Ready<S>, AgentError> {
    let valid = config.validate()?;
    let identity = identity::Identity::of_host(&config.state_dir)?;
    let mut opened = spool::open(&config.state_dir, &identity, valid.spool)?;
    let source = source(opened.state.take())?;
    if opened.was_cut && !source.takes_over() {
        opened.losses.push(spool::Loss {
            place: "agent",
            cause: "the run before did not end in order, and its capture ended with it: what it had not \
                    told by then, and what happened until this run, is missing"
                .to_owned(),
        });
    }
    Ok(Ready {
        source,
        config: config.clone(),
        identity,
        opened,
    })
}

fn tell(hooks: &[probe::HookStatus]) {
    if hooks.is_empty() {
        return;
    }
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
}

/// Why the agent cannot run (any more).
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error(transparent)]
    Probe(#[from] probe::ProbeError),
    #[error(transparent)]
    Spool(#[from] spool::SpoolError),
    #[error("{0}; the next start of the agent begins a new history and delivers what waits")]
    Diverged(#[from] ship::Diverged),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error("reading records failed: {0}")]
    Source(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("the reader ended by a panic; its message is in the log")]
    Reader,
    #[error("sealing ended by a panic; its message is in the log")]
    Sealer,
    #[error("keeping batches on disk ended by a panic; its message is in the log")]
    Keeper,
    #[error("shipping ended by a panic: {0}")]
    Shipping(String),
}
