//! Agent and collector killed, together and one after the other, and the network between them cut, under
//! a workload that is counted: nothing is lost, nothing is there twice, and `hostaudit verify` says
//! "complete". A few rounds in CI; `cargo xtask chaos` runs as many as it is told.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use audit_tests::{Options, Stack, load::Load, netns::Netns, pins::Pins, stack::binary};

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
            stack.start_collector()?;
            stack.start_agent()?;
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
    let mut stack = Stack::start(options(&pins, netns.as_ref()))?;
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

/// Over a network, if there is one to cut.
fn options(pins: &Pins, netns: Option<&Netns>) -> Options {
    let Some(netns) = netns else {
        return Options {
            agent: pins.options(&[]),
            collector: vec![COMPACTION.to_owned()],
            ..Options::default()
        };
    };
    let address = format!("{}:{PORT}", netns.address());
    Options {
        agent: pins.options(&[&format!("server=http://{address}")]),
        collector: vec![
            format!("listen.tcp={address}"),
            "listen.allow_insecure=true".to_owned(),
            COMPACTION.to_owned(),
        ],
        collector_within: netns.within(),
        ..Options::default()
    }
}

/// As a person asks it.
fn complete(stack: &Stack) -> Result<()> {
    let output = Command::new(binary("hostaudit")?)
        .arg("--server")
        .arg(format!("unix://{}", stack.socket().display()))
        .arg("verify")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(0) && said.starts_with("complete, "),
        "{:?} {said}{error}",
        output.status
    );
    eprint!("{said}");
    Ok(())
}
