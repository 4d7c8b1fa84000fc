//! How do the stages become a running agent? One thread reads the source and does everything up to
//! full batches; one seals them; one keeps them on disk; one task ships them. Bounded handovers join
//! them, and the spool the last two. Only this file spawns.
//!
//! Stopping: the source is read until it is empty, the open batch is passed on, its end ends the
//! sealing and the keeping thread, which closes the spool, and the task ends when everything is
//! acknowledged or the deadline has passed: what is left then is the next run's to deliver.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use audit_common::{class, config::Counters as KernelCounters};
use audit_proto::{
    totals::{ClassTotals, FilterTotal},
    v1::BatchRange,
};
use tokio::sync::{oneshot, watch};

use crate::{
    AgentError, Config, Control,
    batch::Open as OpenBatch,
    clock::Clock,
    container::Containers,
    counters::{self, Counters},
    enrich::Enricher,
    identity::Identity,
    own::{self, Totals},
    policy::Policy,
    process::{Table, proc_fs},
    seal::{self, Keeping, Sealing},
    shed::Shedding,
    ship::{Diverged, Gone, Request, Ship},
    source::{Round, Source},
    spool::{Loss, Opened, Spool},
    stage::{Parts, Stage},
    users::Users,
};

/// From the request to stop until unacknowledged batches are given up.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Of the deadline, what the reader may use to empty the rings.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// Longest visit to a silent source; so long a stop may go unnoticed.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// On their way to the reader; one per session or loss.
const REQUESTS: usize = 16;
/// Ranges of batches on their way into a header.
const GAPS: usize = 16;
/// Both threads must keep up with a busy host; where this is not permitted they work without.
const NICE: i32 = -10;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Events that the collector acknowledged.
    pub sent: u64,
    /// Events that it did not acknowledge in time: they are in the spool, and the next run delivers them.
    pub unsent: u64,
    /// Events that could not even be kept; they are lost with this process.
    pub abandoned: u64,
}

/// Runs the agent on `source` until `stop` becomes true or its sender is gone.
pub async fn run<S: Source + 'static>(
    source: S,
    config: Config,
    identity: Identity,
    opened: Opened,
    control: Control,
) -> Result<Ended, AgentError> {
    let Control { stop, reload } = control;
    let valid = config.validate()?;
    let Opened {
        spool,
        former,
        losses,
        holes,
        _lock: lock,
        ..
    } = opened;
    let counters = Arc::new(Counters::default());
    let (to_reader, requests) = sync_channel(REQUESTS);
    let (to_header, gaps) = sync_channel(GAPS);
    tell_holes(holes, &to_header);
    let ship = |spool: &Arc<Spool>| Ship {
        server: valid.server.clone(),
        identity: identity.clone(),
        spool: Arc::clone(spool),
        counters: Arc::clone(&counters),
        requests: to_reader.clone(),
        gaps: to_header.clone(),
    };
    let (former, ship): (Vec<Ship>, Ship) = (former.iter().map(ship).collect(), ship(&spool));
    let table = known_processes(Table::new(&identity.boot_id, valid.process_table));
    let (handover, sealing, keeping) = seal::handover(seal::Parts {
        spool: Arc::clone(&spool),
        counters: Arc::clone(&counters),
        batch_bytes: valid.batch.bytes,
        marked: source.is_marked(),
        next_within: HEARTBEAT_EVERY,
        give_up: give_up(stop.clone()),
        gaps,
    });
    let stage = Stage::new(Parts {
        clock: Clock::measure(),
        enricher: Enricher::new(
            table,
            Containers::of_host(&config.containers.state_files),
            Users::of_host(),
        ),
        filter: valid.filter,
        batch: OpenBatch::new(valid.batch, handover),
        counters: Arc::clone(&counters),
        host: identity.host(),
    });
    let reader = Reader {
        source,
        stage,
        stop,
        requests,
        config_hash: config.hash(),
        spool: Arc::clone(&spool),
        config,
        reload,
        generation: None,
        reloading: None,
        shedding: Shedding::of_host(),
        unsettled: 0,
        losses,
    };
    let ended = supervise(reader, sealing, keeping, deliver(former, ship), &counters).await;
    drop(lock);
    ended
}

fn tell_holes(holes: Vec<(i64, i64)>, to_header: &SyncSender<BatchRange>) {
    for (first_batch, last_batch) in holes {
        // More of them than the channel takes are of a disk that is broken: the verdict is no better then.
        let _ = to_header.try_send(BatchRange {
            first_batch,
            last_batch,
        });
    }
}

/// With those that run already.
fn known_processes(mut table: Table) -> Table {
    match proc_fs::processes() {
        Ok(seeds) => table.seed(seeds),
        Err(error) => {
            tracing::warn!(%error, "/proc cannot be read; processes that run already stay without program until they exec");
        }
    }
    table
}

/// Former histories first, so that the record is in order.
async fn deliver(former: Vec<Ship>, ship: Ship) -> Result<(), Diverged> {
    for former in former {
        let agent_id = former.spool.agent_id();
        tracing::info!(agent_id, "what is left of a former history is delivered");
        deliver_one(&former).await?;
        former.spool.remove();
    }
    deliver_one(&ship).await
}

/// A history that cannot go on is marked: the agent ends, and its next start seals anew what is left.
async fn deliver_one(ship: &Ship) -> Result<(), Diverged> {
    let delivered = ship.run().await;
    if delivered.is_err()
        && let Err(error) = ship.spool.give_up_history()
    {
        tracing::error!(%error, "the history that cannot go on cannot be marked");
    }
    delivered
}

async fn supervise<S: Source + 'static>(
    reader: Reader<S>,
    sealing: Sealing,
    keeping: Keeping,
    shipping: impl Future<Output = Result<(), Diverged>> + Send + 'static,
    counters: &Counters,
) -> Result<Ended, AgentError> {
    let stop = reader.stop.clone();
    let spool = Arc::clone(&reader.spool);
    let mut reading = on_thread("reader", move || reader.run())?;
    let mut sealing = on_thread("sealer", move || sealing.run())?;
    let mut keeping = on_thread("keeper", move || {
        let spool = Arc::clone(&keeping.spool);
        let abandoned = keeping.run();
        spool.close();
        abandoned
    })?;
    let mut shipping = tokio::spawn(shipping);
    // The others end before the reader only by a panic, of which it must not hang.
    let (mut sealed, mut kept, mut shipped) = (false, None, false);
    let read = loop {
        tokio::select! {
            read = &mut reading => break read,
            ended = &mut sealing, if !sealed => {
                ended.map_err(|_| AgentError::Sealer)?;
                sealed = true;
            }
            ended = &mut keeping, if kept.is_none() => {
                kept = Some(ended.map_err(|_| AgentError::Keeper)?);
            }
            ended = &mut shipping, if !shipped => {
                ended.map_err(|error| AgentError::Shipping(error.to_string()))??;
                shipped = true;
            }
        }
    };
    let read = read.map_err(|_| AgentError::Reader).flatten();
    let unkept = match kept {
        Some(abandoned) => abandoned,
        None => keeping.await.map_err(|_| AgentError::Keeper)?,
    };
    // The reader may have used some of the deadline; a minimum is left for the last batch.
    let left = if *stop.borrow() {
        STOP_DEADLINE
    } else {
        STOP_DEADLINE / 2
    };
    let drained = tokio::time::timeout(left, spool.drained()).await;
    if !shipped {
        if drained.is_err() {
            shipping.abort();
        }
        // It holds the spool, and a program that embeds the agent may open it again.
        let _ = shipping.await;
    }
    let ended = Ended {
        sent: counters::get(&counters.sent),
        unsent: spool.depth().events,
        abandoned: read.as_ref().map_or(0, |abandoned| *abandoned) + unkept,
    };
    if ended.unsent > 0 {
        tracing::info!(
            unsent = ended.unsent,
            "stopped before the collector acknowledged all events; they are kept, and delivered by the next run"
        );
    }
    if ended.abandoned > 0 {
        tracing::error!(
            abandoned = ended.abandoned,
            "these events could not be kept, and are lost"
        );
    }
    read.map(|_| ended)
}

/// Runs `work` on a thread at the reader's priority; the receiver fails when it panicked.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, AgentError> {
    let (done, finished) = oneshot::channel();
    let body = move || {
        // Of this thread alone.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "working at normal priority");
        }
        // Nobody listens only when the agent itself is gone.
        let _ = done.send(work());
    };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(AgentError::Thread)?;
    Ok(finished)
}

/// While the agent runs, a full queue is waited for; once it stops, only until the deadline.
fn give_up(stop: watch::Receiver<bool>) -> Box<dyn Fn() -> bool + Send> {
    let since = std::sync::OnceLock::new();
    Box::new(move || is_stopped(&stop) && since.get_or_init(Instant::now).elapsed() > STOP_DEADLINE)
}

fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// The thread that reads.
struct Reader<S> {
    source: S,
    stage: Stage,
    stop: watch::Receiver<bool>,
    requests: Receiver<Request>,
    config: Config,
    config_hash: String,
    /// For its depth in heartbeats, and what it dropped.
    spool: Arc<Spool>,
    reload: Option<Receiver<Config>>,
    /// Of the rules in force.
    generation: Option<u32>,
    /// Asked for, and to be told when it is in force.
    reloading: Option<Arc<Policy>>,
    shedding: Shedding,
    /// Rounds since a mark was due, in which an exec waited for its argv.
    unsettled: u8,
    /// Of former runs, to be told.
    losses: Vec<Loss>,
}

impl<S: Source> Reader<S> {
    /// Until stopped, or until the source fails; returns how many events had to be abandoned.
    fn run(mut self) -> Result<u64, AgentError> {
        self.ignore(std::process::id(), false);
        self.act("start", description());
        for Loss { place, cause } in std::mem::take(&mut self.losses) {
            let gone = Gone {
                class: 0,
                events: None,
                place,
                cause,
            };
            self.stage.gone(&gone, Instant::now());
        }
        self.left_out();
        let result = self.read();
        let reason = match &result {
            Ok(()) => "stopped".to_owned(),
            Err(error) => format!("reading failed: {error}"),
        };
        let now = Instant::now();
        self.stage.drain(now);
        // Counts are of two sets, of which one is read.
        self.left_out();
        self.left_out();
        self.dropped();
        self.heartbeat();
        self.act("stop", reason);
        self.stage.parts.batch.end();
        self.mark(now);
        let abandoned = self.stage.parts.batch.abandoned();
        result.map(|()| abandoned).map_err(AgentError::Source)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut round = Round::default();
        let mut now = Instant::now();
        let (mut heartbeat, mut clock) = (now + HEARTBEAT_EVERY, now + CLOCK_EVERY);
        while !is_stopped(&self.stop) {
            let due = self
                .stage
                .parts
                .batch
                .due()
                .map_or(heartbeat, |due| due.min(heartbeat));
            let wait = due.saturating_duration_since(now).min(LONGEST_WAIT);
            self.round(wait, &mut round)?;
            now = Instant::now();
            if now >= clock {
                clock = now + CLOCK_EVERY;
                self.refresh_clock();
                self.left_out();
                self.dropped();
            }
            if now >= heartbeat {
                heartbeat = now + HEARTBEAT_EVERY;
                self.heartbeat();
            }
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Ignore(pid) => self.ignore(pid, true),
                    Request::Tell(gone) => self.stage.gone(&gone, now),
                }
            }
            if let Some(Ok(new)) = self.reload.as_ref().map(Receiver::try_recv) {
                self.reload(new);
            }
            self.stage.close_due(now);
            self.mark(now);
        }
        self.source.stop();
        self.empty(&mut round)
    }

    /// Takes what the rings still hold. On a busy host they never are empty: hence a deadline.
    fn empty(&mut self, round: &mut Round) -> io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < DRAIN_DEADLINE {
            self.round(Duration::ZERO, round)?;
            self.mark(Instant::now());
            if round.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Lets the source give back what is in batches, once they are kept.
    fn mark(&mut self, now: Instant) {
        /// Each round is at most 512 KiB of each ring, of which the smallest has 4 MiB.
        const PATIENCE: u8 = 3;
        if !self.stage.parts.batch.is_unmarked() {
            return;
        }
        if !self.stage.is_settled() && self.unsettled < PATIENCE {
            self.unsettled += 1;
            return;
        }
        self.unsettled = 0;
        if let Some(mark) = self.source.mark() {
            self.stage.drain(now);
            self.stage.parts.batch.mark(mark);
        }
    }

    fn round(&mut self, wait: Duration, round: &mut Round) -> io::Result<()> {
        round.clear();
        match self.source.next(wait, round) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.stage.round(round, Instant::now());
        Ok(())
    }

    fn ignore(&mut self, pid: u32, tell: bool) {
        match self.source.ignore(pid) {
            Ok(()) if tell => {
                tracing::info!(pid, "the collector on this host is left out of the record");
                self.act("ignore", format!("collector pid {pid}"));
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(pid, %error, "cannot be left out of the record; it will contain this process's own events");
            }
        }
    }

    /// Rules and budgets change while the agent runs; the rest does not.
    fn reload(&mut self, new: Config) {
        let policy = match new.policy() {
            Ok(policy) => policy,
            Err(error) => {
                tracing::error!(%error, "not reloaded: the configuration in force stays");
                return;
            }
        };
        for key in self.config.reload(new) {
            tracing::warn!(
                key,
                "changed, but takes effect only when the agent starts again"
            );
        }
        self.config_hash = self.config.hash();
        let policy = Arc::new(policy);
        self.source.want(Arc::clone(&policy));
        self.reloading = Some(policy);
    }

    /// Notes which rules are in force, and tells what budgets have shed.
    fn left_out(&mut self) {
        let left_out = match self.source.left_out() {
            Ok(left_out) => left_out,
            Err(error) => {
                tracing::error!(%error, "filters and budgets cannot be changed, or what they left out not be read");
                return;
            }
        };
        if let Some((generation, policy)) = left_out.rules {
            if self.generation.replace(generation) != Some(generation) {
                let policy = Arc::clone(&policy);
                self.stage.parts.filter.learn(generation, policy);
            }
            if self
                .reloading
                .take_if(|wanted| **wanted == *policy)
                .is_some()
            {
                let filters = policy.rules.len();
                tracing::info!(filters, "configuration reloaded");
                self.act("reload", format!("filters={filters}"));
                // Of the rules that are no more, for the last time.
                self.heartbeat();
            }
        }
        let clock = &self.stage.parts.clock;
        for mut event in self.shedding.events(clock, &left_out.shed) {
            self.stage.emit(&mut event, Instant::now());
        }
    }

    /// Tells what the spool had no room for.
    fn dropped(&mut self) {
        for (class, events) in self.spool.take_dropped() {
            let gone = Gone {
                class,
                events: Some(events),
                place: "spool",
                cause: "the spool was full, or they were too old".to_owned(),
            };
            self.stage.gone(&gone, Instant::now());
        }
    }

    /// A line for each class, and for each rule.
    fn totals(&mut self) -> (Vec<String>, Vec<String>) {
        let counters = &self.stage.parts.counters;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let classes = class::ALL.into_iter().zip(self.source.counters());
        let classes = classes.map(|(class, kernel)| {
            let own = counters.of_class(class.into());
            let totals = ClassTotals {
                class: class::name(class).unwrap_or_default().to_owned(),
                seen: number(kernel.sequence + kernel.filtered + kernel.shed),
                filtered: number(kernel.filtered + counters::get(&own.filtered)),
                shed: number(kernel.shed),
                lost: number(counters::get(&own.lost)),
                sent: number(counters::get(&own.sealed)),
            };
            totals.to_string()
        });
        let classes = classes.collect();
        let mut hidden = self.source.hidden();
        for (rule, count) in self.stage.parts.filter.hidden() {
            *hidden.entry(rule.clone()).or_default() += count;
        }
        let filters = hidden.into_iter().map(|(rule, count)| {
            let hidden = number(count);
            FilterTotal { rule, hidden }.to_string()
        });
        (classes, filters.collect())
    }

    fn refresh_clock(&mut self) {
        if let Some(moved_ns) = self.stage.parts.clock.refresh() {
            tracing::info!(moved_ns, "the wall clock was set");
            self.act("clock", format!("wall clock moved by {moved_ns} ns"));
        }
    }

    fn act(&mut self, action: &str, detail: String) {
        let mut event = own::action(&self.stage.parts.clock, &self.config_hash, action, detail);
        self.stage.emit(&mut event, Instant::now());
    }

    fn heartbeat(&mut self) {
        let (classes, filters) = self.totals();
        let kernel = self.source.counters();
        let counters = &self.stage.parts.counters;
        let sum = |field: fn(&KernelCounters) -> u64| kernel.iter().map(field).sum::<u64>();
        let left_out = sum(|counters| counters.filtered);
        let totals = Totals {
            seen: sum(|counters| counters.sequence + counters.shed) + left_out,
            filtered: left_out + counters::get(&counters.filtered),
            lost: counters::get(&counters.lost),
            sent: counters::get(&counters.sent),
            classes,
            filters,
        };
        let depth = self.spool.depth();
        let enricher = &self.stage.parts.enricher;
        let dns = enricher.names().counters();
        let host_paths = enricher.host_paths();
        let detail = format!(
            "merged_exits={} undecodable={} ring_full={} pending_full={} processes={} processes_evicted={} containers_unknown={} containers_unsearched={} host_paths={} host_paths_absent={} mount_tables_read={} spool_batches={} spool_events={} spool_bytes={} spool_waits={} sessions={} dns_queries={} dns_responses={} dns_malformed={} dns_flawed={} dns_gaps={} dns_names={} dns_names_evicted={} dns_names_refused={}",
            counters::get(&counters.merged_exits),
            counters::get(&counters.undecodable),
            sum(|counters| counters.ring_full),
            sum(|counters| counters.pending_full),
            enricher.table.len(),
            enricher.table.evicted(),
            enricher.containers.unknown(),
            enricher.containers.unsearched(),
            host_paths.found,
            host_paths.absent,
            host_paths.reads,
            depth.batches,
            depth.events,
            depth.bytes,
            counters::get(&counters.spool_waits),
            counters::get(&counters.sessions),
            dns.queries,
            dns.responses,
            dns.malformed,
            dns.flawed,
            dns.stream.gaps,
            dns.cache.entries,
            dns.cache.evicted,
            dns.cache.refused,
        );
        let mut event = own::heartbeat(&self.stage.parts.clock, &self.config_hash, totals, detail);
        self.stage.emit(&mut event, Instant::now());
    }
}

fn description() -> String {
    let uname = rustix::system::uname();
    format!(
        "kernel {} {} pid {}",
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
        std::process::id()
    )
}

#[cfg(test)]
mod tests;
