//! Agent and collector killed, together and one after the other, and the network between them cut, under
//! a workload that is counted: nothing is lost, nothing is there twice, and `hostaudit verify` says
//! "complete". A few rounds in CI; `cargo xtask chaos` runs as many as it is told.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use audit_agent::identity::Identity;
use audit_tests::{
    Options, Stack, load::Load, netns::Netns, pins::Pins, site::Site, stack::binary,
};

const ROUNDS: u64 = 8;
const PORT: u16 = 4620;
/// Often, so that it is killed too; and what a collector reads back at its start stays short.
const COMPACTION: &str = "table.compact_after_s=3";

/// Repeats with its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn round(stack: &mut Stack, netns: Option<&Netns>, chance: &mut Chance) -> Result<&'static str> {
    let kinds = if netns.is_some() { 4 } else { 3 };
    Ok(match chance.below(kinds) {
        0 => {
            stack.kill_agent();
            pause(chance.below(300));
            stack.start_agent()?;
            "agent killed"
        }
        1 => {
            stack.kill_collector();
            pause(chance.below(1000));
            stack.start_collector()?;
            "collector killed"
        }
        2 => {
            stack.kill_collector();
            stack.kill_agent();
            pause(chance.below(300));
            stack.start_both()?;
            "both killed"
        }
        _ => {
            if let Some(netns) = netns {
                netns.cut()?;
                pause(500 + chance.below(1500));
                netns.mend()?;
            }
            "network cut"
        }
    })
}

#[test]
fn nothing_is_lost_or_stored_twice_whatever_is_killed_or_cut() -> Result<()> {
    let Some(pins) = Pins::new("chaos")? else {
        return Ok(());
    };
    let rounds = number("HOSTAUDIT_CHAOS_ROUNDS", ROUNDS);
    let seed = number("HOSTAUDIT_CHAOS_SEED", 1);
    let netns = match Netns::new() {
        Ok(netns) => Some(netns),
        Err(error) => {
            eprintln!("SKIPPED: cuts of the network: {error:#}");
            None
        }
    };
    let (mut stack, _site) = start(&pins, netns.as_ref())?;
    let mut load = Load::start()?;
    let mut chance = Chance(seed);
    for at in 1..=rounds {
        pause(chance.below(1000));
        let what = round(&mut stack, netns.as_ref(), &mut chance)
            .with_context(|| format!("round {at} of seed {seed}\n{}", stack.agent_log()))?;
        eprintln!("round {at} of {rounds}: {what}");
    }
    load.check_whole(&mut stack)?;
    complete(&stack)
}

/// Whom nothing else here runs as.
const UID: u32 = 64_321;

/// Rings of a few pages, of which only the workload's own events take: so what is not stored is lost
/// there, and every one of it must be told.
#[test]
fn what_a_tiny_ring_loses_is_told_to_the_last_event() -> Result<()> {
    let Some(pins) = Pins::new("tiny")? else {
        return Ok(());
    };
    let rounds = number("HOSTAUDIT_CHAOS_ROUNDS", ROUNDS).min(50);
    let mut stack = Stack::start(Options {
        without_agent: true,
        collector: vec![COMPACTION.to_owned()],
        agent: pins.options(&["rings.file_bytes=32768"]),
        ..Options::default()
    })?;
    stack.agent_config(&only_of(UID))?;
    stack.start_agent()?;
    let mut load = Load::of_user(UID)?;
    let mut chance = Chance(number("HOSTAUDIT_CHAOS_SEED", 1));
    for _ in 0..rounds {
        pause(chance.below(1000));
        stack.kill_agent();
        pause(chance.below(500));
        stack.start_agent()?;
    }
    load.finish();
    // What was lost behind the last event that is there is told when it is overdue.
    pause(1000);
    stack.stop_agent()?;
    let (made, stored) = (load.made() * 3, load.stored(&mut stack)?);
    let lost = stack
        .number("select sum(lost_count) from events where kind = 'lost' and lost_class = 'file'")?;
    eprintln!("{made} made, {stored} stored, {lost} told as lost");
    ensure!(lost > 0, "nothing was lost: the test says nothing");
    ensure!(
        stored + lost == made,
        "{made} made, but {stored} stored and {lost} told as lost\n{:?}\n{:?}",
        stack.query("select lost_class, lost_place, lost_cause, count(*), sum(lost_count) from events where kind = 'lost' group by 1, 2, 3")?,
        stack.status()?.agents
    );
    let said = verify(&stack, 1)?;
    ensure!(said.starts_with("incomplete"), "{said}");
    Ok(())
}

/// A configuration that records of files what one user does.
fn only_of(uid: u32) -> String {
    let kinds =
        "open, close_write, unlink, rename, link, mkdir_mknod, mode, owner, truncate, xattr";
    format!(
        "capture:\n  filters:\n    - {{name: others, kinds: [{kinds}]}}\n    - {{name: ours, action: include, uids: [{uid}]}}\n"
    )
}

/// Over mTLS, and over a network if there is one to cut.
fn start(pins: &Pins, netns: Option<&Netns>) -> Result<(Stack, Site)> {
    let site = match netns {
        Some(netns) => Site::at(SocketAddr::new(netns.address().parse()?, PORT))?,
        None => Site::new()?,
    };
    let mut collector = site.options()?;
    collector.push(COMPACTION.to_owned());
    let mut stack = Stack::start(Options {
        without_agent: true,
        collector,
        collector_within: netns.map(Netns::within).unwrap_or_default(),
        ..Options::default()
    })?;
    let host = Identity::of_host(stack.state_dir())?;
    let mut agent = pins.options(&[]);
    agent.extend(site.agent_options(&host.host_id)?);
    stack.agent_options(agent);
    stack.start_agent()?;
    Ok((stack, site))
}

fn complete(stack: &Stack) -> Result<()> {
    let said = verify(stack, 0)?;
    ensure!(said.starts_with("complete, "), "{said}");
    Ok(())
}

/// As a person asks it, with the exit code that is expected.
fn verify(stack: &Stack, code: i32) -> Result<String> {
    let output = Command::new(binary("hostaudit")?)
        .arg("--server")
        .arg(format!("unix://{}", stack.socket().display()))
        .arg("verify")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{:?} {said}{error}",
        output.status
    );
    eprint!("{said}");
    Ok(said)
}
