//! A consumer in Rust: prints who executed what and who connected where, and never misses an event.
//!
//! Usage: tail [unix:///run/hostaudit/collector.sock | http://127.0.0.1:4620] [CURSOR-FILE]

use std::{error::Error, io::Write as _, path::Path, time::Duration};

use audit_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        Condition, EventFilter, Kind, TailEvent, TailRequest, TailResponse,
        collector_client::CollectorClient,
    },
};
use tonic::{Code, Status, transport::Endpoint};

const RETRY: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments
        .next()
        .unwrap_or_else(|| "unix:///run/hostaudit/collector.sock".to_owned());
    let cursor_file = arguments
        .next()
        .unwrap_or_else(|| "hostaudit.cursor".to_owned());
    let cursor_file = Path::new(&cursor_file);
    loop {
        let cursor = std::fs::read_to_string(cursor_file).unwrap_or_default();
        match follow(&server, wanted(cursor.trim()), cursor_file).await {
            Ok(()) => eprintln!("tail: the collector is stopping; trying again"),
            Err(error) if is_passing(&*error) => eprintln!("tail: {error}; trying again"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Any of `allow` (each of which must hold whole), and none of `deny`.
fn wanted(cursor: &str) -> TailRequest {
    let execs = EventFilter {
        kinds: vec![Kind::Exec.into()],
        ..EventFilter::default()
    };
    let connections = EventFilter {
        kinds: vec![Kind::Connect.into()],
        conditions: vec![Condition {
            column: "socket_peer_address".to_owned(),
            networks: vec!["10.0.0.0/8".to_owned(), "fe80::/10".to_owned()],
            ..Condition::default()
        }],
    };
    let own = EventFilter {
        conditions: vec![Condition {
            column: "process_exe".to_owned(),
            prefixes: vec!["/usr/lib/systemd/".to_owned()],
            ..Condition::default()
        }],
        ..EventFilter::default()
    };
    TailRequest {
        cursor: cursor.to_owned(),
        allow: vec![execs, connections],
        deny: vec![own],
        fields: ["host_name", "process_exe", "process_argv", "socket_peer"]
            .map(str::to_owned)
            .to_vec(),
        ..TailRequest::default()
    }
}

async fn follow(
    server: &str,
    request: TailRequest,
    cursor_file: &Path,
) -> Result<(), Box<dyn Error>> {
    let channel = Endpoint::from_shared(server.to_owned())?.connect().await?;
    let mut client = CollectorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut pages = client.tail(request).await?.into_inner();
    while let Some(page) = pages.message().await? {
        page.events.iter().for_each(handle);
        tell(&page);
        // After the work: a crash repeats a page rather than skipping one.
        write_cursor(cursor_file, &page.cursor)?;
    }
    Ok(())
}

/// Your work goes here.
fn handle(entry: &TailEvent) {
    let event = entry.event.clone().unwrap_or_default();
    let process = event.process.unwrap_or_default();
    let host = event.host.unwrap_or_default().name;
    match event.socket.and_then(|socket| socket.peer) {
        Some(peer) => println!("{host} {} -> {}", process.exe, peer.address),
        None => println!("{host} {:?}", process.argv),
    }
}

/// Nothing is skipped; but someone may want to know.
fn tell(page: &TailResponse) {
    if page.missing_events > 0 {
        eprintln!("tail: {} stored events are missing", page.missing_events);
    }
    match &page.lagged {
        Some(lagged) if lagged.over => eprintln!("tail: caught up"),
        Some(lagged) => eprintln!("tail: {} events behind", lagged.events),
        None => {}
    }
}

/// Replaces the file as a whole, so that a crash leaves the old cursor or the new one.
fn write_cursor(path: &Path, cursor: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    writeln!(file, "{cursor}")?;
    std::fs::rename(new, path)
}

/// Whether asking again can help: the collector is away, not unwilling.
fn is_passing(error: &(dyn Error + 'static)) -> bool {
    match error.downcast_ref::<Status>() {
        Some(status) => status.code() == Code::Unavailable,
        None => error.is::<tonic::transport::Error>(),
    }
}
