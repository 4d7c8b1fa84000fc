//! The answer as one JSON object, named as in the proto file. Each message is taken apart whole, so
//! that a new field is not forgotten here.

use audit_collector::json::rfc3339;
use audit_proto::v1::{AgentStatus, ClassStatus, FilterStatus, StatusResponse};
use serde_json::{Value, json};

pub fn status(status: &StatusResponse) -> Value {
    let StatusResponse {
        version,
        pid,
        data_dir,
        start_time,
        stored_events,
        stored_batches,
        duplicate_batches,
        rejected_batches,
        wal_bytes,
        table_bytes,
        table_files,
        uncompacted_events,
        alerts,
        rules_loaded,
        rules_idle,
        agents,
        problems,
        missing_events,
    } = status;
    json!({
        "version": version,
        "pid": pid,
        "data_dir": data_dir,
        "start_time": rfc3339(*start_time, 0),
        "stored_events": stored_events,
        "stored_batches": stored_batches,
        "duplicate_batches": duplicate_batches,
        "rejected_batches": rejected_batches,
        "wal_bytes": wal_bytes,
        "table_bytes": table_bytes,
        "table_files": table_files,
        "uncompacted_events": uncompacted_events,
        "alerts": alerts,
        "rules_loaded": rules_loaded,
        "rules_idle": rules_idle,
        "agents": agents.iter().map(agent).collect::<Vec<_>>(),
        "problems": problems,
        "missing_events": missing_events,
    })
}

fn agent(agent: &AgentStatus) -> Value {
    let AgentStatus {
        agent_id,
        host_id,
        host_name,
        boot_id,
        run,
        connected,
        last_batch,
        events,
        last_time,
        lost,
        classes,
        filters,
    } = agent;
    json!({
        "agent_id": agent_id,
        "host_id": host_id,
        "host_name": host_name,
        "boot_id": boot_id,
        "run": run,
        "connected": connected,
        "last_batch": last_batch,
        "events": events,
        "last_time": (*last_time != 0).then(|| rfc3339(*last_time, 0)),
        "lost": lost,
        "classes": classes.iter().map(class).collect::<Vec<_>>(),
        "filters": filters.iter().map(filter).collect::<Vec<_>>(),
    })
}

fn class(totals: &ClassStatus) -> Value {
    let ClassStatus {
        class,
        seen,
        filtered,
        shed,
        lost,
        sent,
    } = totals;
    json!({
        "class": class, "seen": seen, "filtered": filtered, "shed": shed, "lost": lost, "sent": sent,
    })
}

fn filter(total: &FilterStatus) -> Value {
    let FilterStatus { name, hidden } = total;
    json!({"name": name, "hidden": hidden})
}
