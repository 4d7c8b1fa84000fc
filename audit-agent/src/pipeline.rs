//! How do the stages become a running agent? One thread reads the source and does everything up to
//! full batches; one seals them; one task ships them. A bounded handover and a bounded queue join the
//! three. Only this file spawns.
//!
//! Stopping: the source is read until it is empty, the open batch is passed on, its end ends the
//! sealing thread, which closes the queue, and the task ends when everything is acknowledged or the
//! deadline has passed.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use audit_common::{class, config::Counters as KernelCounters};
use audit_proto::{
    Message as _,
    totals::{ClassTotals, FilterTotal},
    v1::Batch,
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
    queue::Queue,
    seal::{self, Sealing},
    shed::Shedding,
    ship::{Refused, Request, Ship},
    source::{LeftOver, Round, Source},
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
/// On their way to the reader; one per session, or per former run.
const REQUESTS: usize = 16;
/// Both threads must keep up with a busy host; where this is not permitted they work without.
const NICE: i32 = -10;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Events that the collector acknowledged.
    pub sent: u64,
    /// Events that it did not acknowledge in time; they are lost with this process.
    pub unsent: u64,
}

/// Runs the agent on `source` until `stop` becomes true or its sender is gone.
pub async fn run<S: Source + 'static>(
    mut source: S,
    config: Config,
    identity: Identity,
    control: Control,
) -> Result<Ended, AgentError> {
    let Control { stop, reload } = control;
    let valid = config.validate()?;
    let queue = Arc::new(Queue::new(valid.queue_bytes));
    let counters = Arc::new(Counters::default());
    let (to_reader, requests) = sync_channel(REQUESTS);
    let ship = Ship {
        server: valid.server,
        identity: identity.clone(),
        queue: Arc::clone(&queue),
        counters: Arc::clone(&counters),
        requests: to_reader.clone(),
    };
    let LeftOver { batches, file } = source.left_over();
    let former = left_over(batches, &ship);
    let keeper = source.keeper();
    let mut table = Table::new(&identity.boot_id, valid.process_table);
    match proc_fs::processes() {
        Ok(seeds) => table.seed(seeds),
        Err(error) => {
            tracing::warn!(%error, "/proc cannot be read; processes that run already stay without program until they exec");
        }
    }
    let parts = seal::Parts {
        queue: Arc::clone(&queue),
        counters: Arc::clone(&counters),
        former: former.iter().map(|ship| Arc::clone(&ship.queue)).collect(),
        keeper,
        give_up: give_up(stop.clone()),
    };
    let (handover, sealing) = seal::handover(&identity, valid.batch.bytes, parts);
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
        queue: Arc::clone(&queue),
        config,
        reload,
        generation: None,
        reloading: None,
        shedding: Shedding::of_host(),
        unsettled: 0,
    };
    let shipping = async move {
        // Before anything of this run, so that the record is in order.
        offer(former, &to_reader).await;
        if let Some(file) = file {
            file.empty();
        }
        ship.queue.reserve(0);
        ship.run().await;
    };
    supervise(reader, sealing, shipping, &queue, &counters).await
}

/// Each former run's batches, to be sent in its name; the queue of this run has room for what they
/// leave of its bytes.
fn left_over(batches: Vec<Batch>, ship: &Ship) -> Vec<Ship> {
    let mut runs: Vec<(Identity, Vec<Batch>)> = Vec::new();
    let mut bytes = 0;
    for batch in batches {
        let Some(header) = &batch.header else {
            continue;
        };
        bytes += batch.encoded_len();
        let of = Identity {
            host_id: header.host_id.clone(),
            host_name: ship.identity.host_name.clone(),
            boot_id: header.boot_id.clone(),
            run: header.run.clone(),
        };
        match runs.last_mut().filter(|(identity, _)| *identity == of) {
            Some((_, batches)) => batches.push(batch),
            None => runs.push((of, vec![batch])),
        }
    }
    ship.queue.reserve(bytes);
    let of_run = |(identity, batches): (Identity, Vec<Batch>)| {
        tracing::info!(
            run = identity.run,
            batches = batches.len(),
            "a former run's last batches are offered to the collector again"
        );
        Ship {
            server: ship.server.clone(),
            identity,
            queue: Arc::new(Queue::left_over(batches)),
            counters: Arc::clone(&ship.counters),
            // Told by this run's sessions.
            requests: sync_channel(1).0,
        }
    };
    runs.into_iter().map(of_run).collect()
}

/// Delivers what former runs have left, and tells what the collector will never take.
async fn offer(former: Vec<Ship>, to_reader: &SyncSender<Request>) {
    for ship in former {
        if let Err(refused) = ship.offer().await {
            tracing::error!(
                run = refused.run,
                events = refused.events,
                reason = refused.reason,
                "what a former run had left is lost"
            );
            tell(to_reader, refused).await;
        }
    }
}

/// Waits for room: what is lost must be told. Gives up only when the reader is gone.
async fn tell(to_reader: &SyncSender<Request>, refused: Refused) {
    let mut request = Request::Tell(refused);
    while let Err(TrySendError::Full(refused)) = to_reader.try_send(request) {
        request = refused;
        tokio::time::sleep(LONGEST_WAIT).await;
    }
}

async fn supervise<S: Source + 'static>(
    reader: Reader<S>,
    sealing: Sealing,
    shipping: impl Future<Output = ()> + Send + 'static,
    queue: &Arc<Queue>,
    counters: &Counters,
) -> Result<Ended, AgentError> {
    let stop = reader.stop.clone();
    let mut reading = on_thread("reader", move || reader.run())?;
    let to_close = Arc::clone(queue);
    let mut sealing = on_thread("sealer", move || {
        let abandoned = sealing.run();
        to_close.close();
        abandoned
    })?;
    let mut shipping = tokio::spawn(shipping);
    // The others end before the reader only by a panic, of which it must not hang.
    let mut sealed = None;
    let mut shipped = false;
    let read = loop {
        tokio::select! {
            read = &mut reading => break read,
            ended = &mut sealing, if sealed.is_none() => {
                sealed = Some(ended.map_err(|_| AgentError::Sealer)?);
            }
            ended = &mut shipping, if !shipped => {
                ended.map_err(|error| AgentError::Shipping(error.to_string()))?;
                shipped = true;
            }
        }
    };
    let read = read.map_err(|_| AgentError::Reader).flatten();
    let unsealed = match sealed {
        Some(abandoned) => abandoned,
        None => sealing.await.map_err(|_| AgentError::Sealer)?,
    };
    // The reader may have used some of the deadline; a minimum is left for the last batch.
    let left = if *stop.borrow() {
        STOP_DEADLINE
    } else {
        STOP_DEADLINE / 2
    };
    if tokio::time::timeout(left, queue.drained()).await.is_err() {
        shipping.abort();
    }
    let ended = Ended {
        sent: counters::get(&counters.sent),
        unsent: read.as_ref().map_or(0, |abandoned| *abandoned) + unsealed + queue.depth().events,
    };
    if ended.unsent > 0 {
        tracing::warn!(
            unsent = ended.unsent,
            "stopped before the collector acknowledged all events"
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
    /// For its depth in heartbeats.
    queue: Arc<Queue>,
    reload: Option<Receiver<Config>>,
    /// Of the rules in force.
    generation: Option<u32>,
    /// Asked for, and to be told when it is in force.
    reloading: Option<Arc<Policy>>,
    shedding: Shedding,
    /// Rounds since a mark was due, in which an exec waited for its argv.
    unsettled: u8,
}

impl<S: Source> Reader<S> {
    /// Until stopped, or until the source fails; returns how many events had to be abandoned.
    fn run(mut self) -> Result<u64, AgentError> {
        self.ignore(std::process::id(), false);
        self.act("start", description());
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
        self.heartbeat();
        self.act("stop", reason);
        self.stage.parts.batch.close();
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
            }
            if now >= heartbeat {
                heartbeat = now + HEARTBEAT_EVERY;
                self.heartbeat();
            }
            while let Ok(request) = self.requests.try_recv() {
                match request {
                    Request::Ignore(pid) => self.ignore(pid, true),
                    Request::Tell(refused) => self.stage.refused(&refused, now),
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
        let depth = self.queue.depth();
        let enricher = &self.stage.parts.enricher;
        let dns = enricher.names().counters();
        let host_paths = enricher.host_paths();
        let detail = format!(
            "merged_exits={} undecodable={} ring_full={} pending_full={} processes={} processes_evicted={} containers_unknown={} containers_unsearched={} host_paths={} host_paths_absent={} mount_tables_read={} queue_batches={} queue_bytes={} queue_full={} sessions={} dns_queries={} dns_responses={} dns_malformed={} dns_flawed={} dns_gaps={} dns_names={} dns_names_evicted={} dns_names_refused={}",
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
            depth.bytes,
            counters::get(&counters.queue_full),
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
