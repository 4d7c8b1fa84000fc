//! How fast does a collector store? Synthetic agents seal batches and deliver them over mTLS on
//! loopback, each keeping a few in flight; time runs from the first seal to the last acknowledgement,
//! which comes after verification and fsync. The first of them are also timed by themselves: how fast it
//! takes a burst, before compaction has to keep up; and the second half: what it goes on with. Beside it, in the same run, what of it this machine could do
//! alone (hash, compress, sync, gRPC), and what a log shipper makes of as many lines.

mod echo;
mod limits;
mod peer;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use audit_agent::server::Server;
use audit_ledger::{Frames, Key, Origin, Sealer, Summary};
use audit_proto::{
    Message as _,
    v1::{
        Batch, Container, DeliverRequest, Event, File, Hello, Host, Kind, Parent, Process,
        deliver_request, deliver_response, ingest_client::IngestClient,
    },
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::{limits::Limits, peer::Shipping};
use super::{Common, interrupt, measure, report::grouped};
use crate::{
    site::Site,
    stack::{Options, Stack},
};

/// As the agent's defaults: a busy agent's batch is full, not late.
const EVENTS_PER_BATCH: u64 = 4096;
const IN_FLIGHT: usize = 8;
/// What fits well into the collector's memory for rows that are not in files yet.
const BURST_EVENTS: u64 = 160 * EVENTS_PER_BATCH;
/// 2026-05-01T08:00:00Z, in microseconds.
const BEGAN: i64 = 1_777_622_400_000_000;
const BOOT: &str = "5f2ac01b-9d3e-4c55-8a11-000000000000";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Agents that deliver at once
    #[arg(long, default_value_t = 8)]
    agents: u64,
    /// Batches of 4,096 events from each agent [default: 100, with --quick 5]
    #[arg(long)]
    batches: Option<u64>,
}

/// Encoded events of one batch, and their first and last times.
type Encoded = (Frames, i64, i64);

pub fn run(args: &Args) -> Result<ExitCode> {
    interrupt::catch();
    let batches = args
        .batches
        .unwrap_or(if args.common.quick { 5 } else { 100 });
    let site = Site::new()?;
    let mut stack = Stack::start(Options {
        without_agent: true,
        collector: site.options()?,
        ..Options::default()
    })?;
    let events = args.agents * batches * EVENTS_PER_BATCH;
    eprintln!(
        "encoding {} events of {} agents",
        grouped(i64::try_from(events)?),
        args.agents
    );
    let encoded: Vec<Vec<Encoded>> = (0..args.agents)
        .map(|agent| encode(agent, batches))
        .collect::<Result<_>>()?;
    let limits = Limits::measure(&encoded)?;
    let pid = stack.collector_pid().context("no collector")?;
    let cpu = measure::process_cpu_ns(pid)?;
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let acknowledged = Acknowledged::default();
    let wire_bytes = runtime.block_on(async {
        let sessions = encoded.into_iter().enumerate().map(|(agent, batches)| {
            let server = site.server(&host(agent as u64).id)?;
            let acknowledged = acknowledged.clone();
            let session =
                async move { deliver(server, agent as u64, batches, &acknowledged).await };
            Ok(tokio::spawn(session))
        });
        let sessions: Vec<_> = sessions.collect::<Result<_>>()?;
        let mut bytes = 0;
        for session in sessions {
            bytes += session.await??;
        }
        Ok::<_, anyhow::Error>(bytes)
    })?;
    let took = began.elapsed();
    let burst = acknowledged.of_first(BURST_EVENTS, began);
    let half = acknowledged.of_first(events / 2, began);
    let cpu = Duration::from_nanos(measure::process_cpu_ns(pid)? - cpu);
    let stored = stack.number("select count(*) from events")?;
    ensure!(
        stored == i64::try_from(events)?,
        "{events} acknowledged, but {stored} stored"
    );
    // It would go on with compaction and detection beside the peer.
    drop(stack);
    let again = (0..args.agents).map(|agent| encode(agent, batches));
    let peer = peer::measure(&site, again, args.common.quick);
    interrupt::check()?;
    let measured = Measured {
        events,
        wire_bytes,
        took,
        burst,
        second_half: half.map(|half| took - half),
        cpu,
    };
    report(args, &measured, &limits, peer)?;
    Ok(ExitCode::SUCCESS)
}

struct Measured {
    events: u64,
    wire_bytes: usize,
    took: Duration,
    /// What the first [`BURST_EVENTS`] took, if there were more.
    burst: Option<Duration>,
    second_half: Option<Duration>,
    /// Of the collector.
    cpu: Duration,
}

/// When each batch of any agent was.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<Instant>>>);

impl Acknowledged {
    fn add(&self, batches: i64) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.extend((0..batches).map(|_| Instant::now()));
    }

    fn of_first(&self, events: u64, began: Instant) -> Option<Duration> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = usize::try_from(events / EVENTS_PER_BATCH)
            .ok()?
            .checked_sub(1)?;
        (times.len() > last + 1).then(|| times[last] - began)
    }
}

fn report(args: &Args, measured: &Measured, limits: &Limits, peer: Result<Shipping>) -> Result<()> {
    let events = measured.events as f64;
    let seconds = measured.took.as_secs_f64();
    let per_second = events / seconds;
    println!(
        "{} events sealed, sent over mTLS, verified, synced and acknowledged in {seconds:.2} s from {} agents, and all of them stored",
        grouped(i64::try_from(measured.events)?),
        args.agents
    );
    println!(
        "{} events/s, {} events per CPU second of the collector",
        grouped(per_second as i64),
        grouped((events / measured.cpu.as_secs_f64()) as i64)
    );
    let burst = measured
        .burst
        .map(|took| BURST_EVENTS as f64 / took.as_secs_f64());
    if let Some(rate) = burst {
        println!(
            "{} events/s for the first {}, before compaction has to keep up",
            grouped(rate as i64),
            grouped(i64::try_from(BURST_EVENTS)?)
        );
    }
    let second_half = measured
        .second_half
        .map(|took| events / 2.0 / took.as_secs_f64());
    if let Some(rate) = second_half {
        println!("{} events/s for the second half", grouped(rate as i64));
    }
    println!(
        "{:.0} bytes an event on the wire",
        measured.wire_bytes as f64 / events
    );
    println!("alone on one processor of this machine (gRPC: on both), in the same run:");
    for (what, rate) in limits.rates() {
        println!("  {:>12} events/s  {what}", grouped(rate as i64));
    }
    let rates: serde_json::Map<_, _> = limits
        .rates()
        .map(|(what, rate)| (what.to_owned(), json!(rate)))
        .into_iter()
        .collect();
    args.common.write_json(&json!({
        "bench": "ingest", "agents": args.agents, "events": measured.events, "seconds": seconds,
        "events_per_second": per_second as i64,
        "burst_events_per_second": burst.map(|rate| rate as i64),
        "second_half_events_per_second": second_half.map(|rate| rate as i64),
        "collector_cpu_seconds": measured.cpu.as_secs_f64(),
        "wire_bytes": measured.wire_bytes, "limits_events_per_second": rates,
        "peer": compare(peer, per_second),
    }))
}

/// Prints the peer's rates, or why there are none; the answer is for the JSON file.
fn compare(peer: Result<Shipping>, ours: f64) -> Value {
    match peer {
        Ok(peer) => {
            peer.print(ours);
            peer.as_json(ours)
        }
        Err(error) => {
            println!("SKIPPED peer: {error:#}");
            json!({ "skipped": format!("{error:#}") })
        }
    }
}

fn host(agent: u64) -> Host {
    Host {
        id: format!("{agent:032x}"),
        name: format!("node-{agent}"),
        boot_id: BOOT.to_owned(),
        run: format!("{agent:012x}"),
    }
}

fn sealer(host: &Host) -> Sealer {
    let origin = Origin {
        host_id: host.id.clone(),
        boot_id: host.boot_id.clone(),
        run: host.run.clone(),
    };
    let mut seed = [0; 32];
    seed.copy_from_slice(host.id.as_bytes());
    Sealer::begin(Key::new(1, seed), origin, None)
}

fn encode(agent: u64, batches: u64) -> Result<Vec<Encoded>> {
    let host = host(agent);
    let batch = |number: u64| {
        let first = i64::try_from(number * EVENTS_PER_BATCH)?;
        let last = i64::try_from((number + 1) * EVENTS_PER_BATCH)?;
        let events = (first..last).map(|n| event(&host, n).encode_to_vec());
        Ok((
            events.collect(),
            BEGAN + first * 1000,
            BEGAN + (last - 1) * 1000,
        ))
    };
    (0..batches).map(batch).collect()
}

fn seal(sealer: &mut Sealer, (frames, first_time, last_time): &Encoded) -> Batch {
    let summary = Summary {
        sealed_time: *last_time,
        first_time: *first_time,
        last_time: *last_time,
        ..Summary::default()
    };
    sealer.seal(frames, summary)
}

/// One in five an exec, the others opens; some texts repeat and some do not, as on a host.
fn event(host: &Host, number: i64) -> Event {
    let exec = number % 5 == 0;
    let pid = 1000 + number / 5;
    let class = if exec { "process" } else { "file" };
    Event {
        id: format!("{}-{class}-0-{number}", host.run),
        time: BEGAN + number * 1000,
        time_remainder_ns: 137,
        boot_time_ns: number * 1_000_000,
        kind: if exec { Kind::Exec } else { Kind::Open }.into(),
        class: if exec { 1 } else { 3 },
        cpu: Some(0),
        sequence: Some(number + 1),
        via: "tracepoint".to_owned(),
        host: Some(host.clone()),
        process: Some(process(pid)),
        parent: Some(Parent {
            pid: Some(1),
            exe: "/usr/lib/systemd/systemd".to_owned(),
            ..Parent::default()
        }),
        container: Some(Container {
            cgroup: "/system.slice/cron.service".to_owned(),
            ..Container::default()
        }),
        file: (!exec).then(|| File {
            path: format!("/var/lib/app/cache/{:06}.tmp", number % 5000),
            path_source: "kernel".to_owned(),
            inode: Some(number),
            access: "write".to_owned(),
            ..File::default()
        }),
        ..Event::default()
    }
}

fn process(pid: i64) -> Process {
    let zero = Some(0);
    Process {
        exec_id: format!("5f2ac01b9d3e-{pid}-{}", pid * 1000),
        pid: Some(pid),
        tid: Some(pid),
        start_time_ns: Some(pid * 1000),
        exe: "/usr/bin/python3.11".to_owned(),
        exe_invoked: "/usr/bin/python3".to_owned(),
        argv: vec![
            "python3".to_owned(),
            "-m".to_owned(),
            "app.worker".to_owned(),
            format!("--job={pid}"),
        ],
        cwd: "/var/lib/app".to_owned(),
        name: "python3".to_owned(),
        uid: zero,
        gid: zero,
        euid: zero,
        egid: zero,
        user: "root".to_owned(),
        loginuid: Some(-1),
        ..Process::default()
    }
}

/// Returns how many bytes the batches were.
async fn deliver(
    server: Server,
    agent: u64,
    batches: Vec<Encoded>,
    times: &Acknowledged,
) -> Result<usize> {
    let (sender, receiver) = mpsc::channel(1);
    let host = host(agent);
    let mut sealer = sealer(&host);
    let hello = Hello {
        agent_id: sealer.agent_id().to_owned(),
        first_batch: 1,
        host_id: host.id,
        host_name: host.name,
        boot_id: host.boot_id,
        run: host.run,
        version: "bench".to_owned(),
        pid: 0,
    };
    let send = async |message| {
        sender
            .send(DeliverRequest {
                message: Some(message),
            })
            .await
    };
    send(deliver_request::Message::Hello(hello)).await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client = IngestClient::new(server.connect().await?)
        .max_encoding_message_size(audit_proto::MAX_MESSAGE_BYTES);
    let mut answers = client.deliver(requests).await?.into_inner();
    let last = i64::try_from(batches.len())?;
    let (mut sent, mut acknowledged, mut bytes) = (0, 0, 0);
    let batches = Arc::new(batches);
    while acknowledged < last {
        while sent < last && sent - acknowledged < i64::try_from(IN_FLIGHT)? {
            let of = Arc::clone(&batches);
            let at = usize::try_from(sent)?;
            let (batch, back) = tokio::task::spawn_blocking(move || {
                let batch = seal(&mut sealer, &of[at]);
                (batch, sealer)
            })
            .await?;
            sealer = back;
            bytes += batch.encoded_len();
            send(deliver_request::Message::Batch(batch)).await?;
            sent += 1;
        }
        match answers.message().await?.and_then(|answer| answer.message) {
            Some(deliver_response::Message::Ack(ack)) => {
                times.add(ack.batch - acknowledged);
                acknowledged = ack.batch;
            }
            Some(deliver_response::Message::Welcome(_)) => {}
            None => bail!("the collector ended the session after batch {acknowledged} of {last}"),
        }
    }
    Ok(bytes)
}
