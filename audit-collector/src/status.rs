//! How is the collector doing? Counters, agents and problems in one answer.

use std::sync::{Arc, atomic::Ordering};

use audit_proto::{
    totals::{ClassTotals, FilterTotal},
    v1::{AgentStatus, ClassStatus, FilterStatus, StatusResponse},
};

use crate::{
    alerts::AlertLog,
    detect::Rules,
    ingest::{Counters, Sessions},
    problems::Problems,
    store::Store,
    streams::Totals,
};

pub struct StatusSource {
    pub store: Arc<Store>,
    pub alerts: Arc<AlertLog>,
    pub rules: Arc<Rules>,
    pub sessions: Arc<Sessions>,
    pub counters: Arc<Counters>,
    pub problems: Arc<Problems>,
    pub start_time: i64,
}

/// Agents in the answer: connected ones and the latest others.
const MAX_AGENTS: usize = 1000;

impl StatusSource {
    pub fn read(&self) -> StatusResponse {
        let totals = self.store.totals();
        StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i64::from(std::process::id()),
            data_dir: self.store.dir().display().to_string(),
            start_time: self.start_time,
            stored_events: totals.events,
            stored_batches: totals.batches,
            duplicate_batches: self.counters.duplicate.load(Ordering::Relaxed),
            rejected_batches: self.counters.rejected.load(Ordering::Relaxed),
            wal_bytes: totals.wal_bytes as i64,
            table_bytes: totals.table_bytes as i64,
            table_files: totals.table_files as i64,
            uncompacted_events: totals.fresh_rows as i64,
            alerts: *self.alerts.last().borrow() as i64,
            rules_loaded: self.rules.loaded() as i64,
            rules_idle: self.rules.idle().to_vec(),
            agents: self.agents(),
            problems: self.problems.list(),
            missing_events: totals.missing_events,
        }
    }

    fn agents(&self) -> Vec<AgentStatus> {
        let mut agents: Vec<AgentStatus> = self
            .store
            .streams()
            .into_iter()
            .map(|stream| {
                let agent_id = stream.past.agent_id;
                AgentStatus {
                    connected: self.sessions.hello(&agent_id).is_some(),
                    agent_id,
                    host_id: stream.host_id,
                    host_name: stream.host_name,
                    boot_id: stream.boot_id,
                    run: stream.run,
                    last_batch: stream.past.batch,
                    events: stream.events,
                    last_time: stream.last_time,
                    lost: stream.lost,
                    classes: classes(&stream.totals),
                    filters: filters(&stream.totals),
                }
            })
            .collect();
        for hello in self.sessions.connected() {
            if self.store.stream(&hello.agent_id).is_none() {
                agents.push(AgentStatus {
                    agent_id: hello.agent_id,
                    host_id: hello.host_id,
                    host_name: hello.host_name,
                    boot_id: hello.boot_id,
                    run: hello.run,
                    connected: true,
                    ..AgentStatus::default()
                });
            }
        }
        agents.sort_by_key(|agent| (!agent.connected, std::cmp::Reverse(agent.last_time)));
        agents.truncate(MAX_AGENTS);
        agents
    }
}

/// A line that is none is of an agent that this version does not know.
fn classes(totals: &Totals) -> Vec<ClassStatus> {
    let lines = totals.classes.iter();
    let known = lines.filter_map(|line| line.parse::<ClassTotals>().ok());
    let status = known.map(|totals| ClassStatus {
        class: totals.class,
        seen: totals.seen,
        filtered: totals.filtered,
        shed: totals.shed,
        lost: totals.lost,
        sent: totals.sent,
    });
    status.collect()
}

fn filters(totals: &Totals) -> Vec<FilterStatus> {
    let lines = totals.filters.iter();
    let known = lines.filter_map(|line| line.parse::<FilterTotal>().ok());
    let status = known.map(|total| FilterStatus {
        name: total.rule,
        hidden: total.hidden,
    });
    status.collect()
}
