//! `hostaudit tail`: events as they are stored, from now or from the past, without a gap: the
//! stream is resumed by cursor when the collector goes away and comes back.

use std::time::{Duration, Instant};

use anyhow::Result;
use audit_proto::v1::{TailRequest, TailResponse};
use tokio::{signal, time::sleep};

use crate::{
    client::{self, Client, Target},
    color::Style,
    compact::Compact,
    display, json,
    output::Output,
    terminal::Terminal,
    when::Clock,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit tail                                    what happens from now on
  hostaudit tail --since 10m                        the last ten minutes, then on
  hostaudit tail --since yesterday --until-now -o json > events.json
  hostaudit tail --where \"kind = 'connect' and socket_peer_port <> 443\"
  hostaudit tail --where \"process_user = 'root' and file_path like '/etc/%'\"
  hostaudit query --columns                         what can stand in --where

A slow reader loses nothing: it is told how far behind it is and reads on from the store. Each
JSON line carries its cursor; --cursor resumes after it.";

/// More events than this to go is worth saying.
const LAG_NOTICE: i64 = 10_000;
const LAG_EVERY: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Show events as they happen, or from a point in the past
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Tail {
    /// Start in the past: 10m, 2h, 1d, RFC 3339 or local time
    #[arg(long, value_name = "TIME", conflicts_with = "cursor")]
    since: Option<String>,
    /// Only events for which this SQL predicate over the columns of `events` is true
    #[arg(
        long = "where",
        value_name = "SQL",
        default_value = "",
        hide_default_value = true
    )]
    predicate: String,
    /// compact: a line to read; json: one object a line with every column that is set
    #[arg(short, long, value_enum, default_value_t = Format::Compact)]
    output: Format,
    /// Resume after the event with this cursor
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// End when the present is reached
    #[arg(long)]
    until_now: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Compact,
    Json,
}

pub async fn run(args: &Tail, target: &Target, terminal: &Terminal) -> Result<()> {
    let clock = Clock::system();
    let since = args
        .since
        .as_deref()
        .map(|text| clock.parse(text))
        .transpose()
        .map_err(|e| anyhow::anyhow!("--since {e}"))?;
    let client = target.connect().await?;
    let mut reader = Reader {
        request: TailRequest {
            cursor: args.cursor.clone().unwrap_or_default(),
            since_time: since,
            r#where: args.predicate.clone(),
            until_now: args.until_now,
        },
        printer: Printer {
            format: args.output,
            compact: terminal.compact(),
        },
        notice: Notice {
            terminal: *terminal,
            last: None,
            behind: false,
        },
    };
    let interrupted = tokio::select! {
        outcome = reader.follow(client, target) => { outcome?; false }
        _ = signal::ctrl_c() => true,
    };
    if interrupted && !reader.request.cursor.is_empty() {
        reader.notice.say(&format!(
            "go on later with: hostaudit tail --cursor {}",
            reader.request.cursor
        ));
    }
    Ok(())
}

struct Reader {
    /// Always where to resume: the cursor moves with what was printed.
    request: TailRequest,
    printer: Printer,
    notice: Notice,
}

impl Reader {
    async fn follow(&mut self, mut client: Client, target: &Target) -> Result<()> {
        let mut wait = RETRY_FIRST;
        if self.request.cursor.is_empty() && self.request.since_time.is_none() {
            // So that a lost connection before the first event does not skip what follows.
            let asked = Clock::system().now.as_microsecond();
            match self.stream(&mut client, &mut wait).await? {
                End::Done => return Ok(()),
                End::Broken(reason) => self.lost(&reason),
            }
            self.request.since_time = Some(asked);
            client = self.reconnect(target, &mut wait).await;
        }
        loop {
            match self.stream(&mut client, &mut wait).await? {
                End::Done => return Ok(()),
                End::Broken(reason) => self.lost(&reason),
            }
            client = self.reconnect(target, &mut wait).await;
        }
    }

    fn lost(&self, reason: &str) {
        self.notice.say(&format!(
            "the collector went away ({reason}); waiting for it"
        ));
    }

    async fn reconnect(&self, target: &Target, wait: &mut Duration) -> Client {
        loop {
            sleep(*wait).await;
            *wait = (*wait * 2).min(RETRY_LAST);
            if let Ok(client) = target.connect().await {
                return client;
            }
        }
    }

    async fn stream(&mut self, client: &mut Client, wait: &mut Duration) -> Result<End> {
        let mut stream = match client.tail(self.request.clone()).await {
            Ok(response) => response.into_inner(),
            Err(status) if client::is_passing(&status) => {
                return Ok(End::Broken(status.message().to_owned()));
            }
            Err(status) => return Err(client::plain(&status)),
        };
        loop {
            match stream.message().await {
                Ok(Some(page)) => {
                    *wait = RETRY_FIRST;
                    self.page(&page)?;
                }
                // Only `until_now` has an end; otherwise the collector is stopping.
                Ok(None) if self.request.until_now => return Ok(End::Done),
                Ok(None) => return Ok(End::Broken("it ended the stream".to_owned())),
                Err(status) if client::is_passing(&status) => {
                    return Ok(End::Broken(status.message().to_owned()));
                }
                Err(status) => return Err(client::plain(&status)),
            }
        }
    }

    fn page(&mut self, page: &TailResponse) -> Result<()> {
        if page.missing_events > 0 {
            self.notice.say(&format!(
                "{} from here on cannot be shown: their files are missing; `hostaudit status` names \
                 them",
                display::plural(page.missing_events, "stored event")
            ));
        }
        // Locked for a page only: the lock must not be held while waiting for the next.
        let mut out = Output::new();
        for entry in &page.events {
            if let Some(event) = &entry.event {
                out.line(&self.printer.print(event, &entry.cursor))?;
            }
        }
        out.flush()?;
        if let Some(last) = page.events.last() {
            self.request.cursor.clone_from(&last.cursor);
        }
        self.notice.lag(page.behind);
        Ok(())
    }
}

enum End {
    Done,
    Broken(String),
}

struct Printer {
    format: Format,
    compact: Compact,
}

impl Printer {
    fn print(&mut self, event: &audit_proto::v1::Event, cursor: &str) -> String {
        match self.format {
            Format::Compact => self.compact.event(event),
            Format::Json => json::event(event, cursor),
        }
    }
}

/// What is said beside the events, on standard error.
struct Notice {
    terminal: Terminal,
    last: Option<Instant>,
    behind: bool,
}

impl Notice {
    fn say(&self, text: &str) {
        eprintln!(
            "{}",
            self.terminal
                .error_palette
                .paint(Style::Dim, &format!("hostaudit: {text}"))
        );
    }

    fn lag(&mut self, behind: i64) {
        if behind < LAG_NOTICE {
            if self.behind && behind == 0 {
                self.say("caught up");
                self.behind = false;
            }
            return;
        }
        if self.last.is_none_or(|t| t.elapsed() >= LAG_EVERY) {
            self.say(&format!(
                "{} behind; reading on from the store",
                display::plural(behind, "event")
            ));
            self.last = Some(Instant::now());
            self.behind = true;
        }
    }
}
