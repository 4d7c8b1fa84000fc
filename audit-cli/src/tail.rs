//! `hostaudit tail`: events as they are stored, from now or from the past, without a gap: the
//! stream is resumed by cursor when the collector goes away and comes back.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use audit_proto::{
    filter,
    v1::{EventFilter, Lagged, TailEvent, TailRequest, TailResponse},
};
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
  hostaudit tail -n 20                              the last 20 events, then end
  hostaudit tail -f -n 20 --allow kind=exec         the last 20 execs, then on
  hostaudit tail --since 10m                        the last ten minutes, then on
  hostaudit tail --since yesterday --until-now -o json > events.json
  hostaudit tail --allow 'kind=exec,process_uid=0' --deny 'process_exe=/usr/bin/node'
  hostaudit tail --allow 'kind=connect,socket_peer_address<<=10.0.0.0/8' --allow kind=listen
  hostaudit tail --where \"file_path like '/etc/%' and process_user <> 'root'\"
  hostaudit tail -o json --fields process,file_path --cursor-file my.cursor >> mine.jsonl
  hostaudit query --columns                         the columns, for filters and --fields

A filter is COLUMN TEST VALUE, several joined by a comma, which must all hold:
  kind=exec|fork                     one of these values
  process_exe^=/usr/bin/             begins with
  file_path$=.so                     ends with
  process_argv*=--privileged         has in it; of a list, any item
  'process_argv~=^-{1\\,2}rm$'        a regular expression (RE2), found anywhere
  'socket_peer_address<<=10.0.0.0/8' an address in a network
  'socket_peer_port>=1024'           at least; <= at most
  container_id   '!container_id'     has the column, has it not
An event is shown if it matches any --allow (or there is none) and no --deny.

A slow reader loses nothing: it is told how far behind it is and reads on from the store. Each
JSON line carries its cursor; --cursor resumes after it.";

/// While it is behind, it is said so often.
const LAG_EVERY: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// Of `-f` alone, as of tail(1) and journalctl.
const FOLLOW_LINES: u32 = 10;

/// Show events as they happen, or from a point in the past
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Tail {
    /// Start in the past: 10m, 2h, 1d, RFC 3339 or local time
    #[arg(long, value_name = "TIME", conflicts_with = "cursor")]
    since: Option<String>,
    /// Start with the last N events that match; without -f, end after them
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "cursor")]
    lines: Option<u32>,
    /// Wait for more: the default, but for -n. Alone it shows the last 10 events first
    #[arg(short, long)]
    follow: bool,
    /// End when the present is reached
    #[arg(long, conflicts_with = "follow")]
    until_now: bool,
    /// Only events that match this filter; may be repeated, any may match
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    allow: Vec<EventFilter>,
    /// But none that match this one; may be repeated
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    deny: Vec<EventFilter>,
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
    /// Only these columns or objects of each event, joined by commas; with -o json
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    fields: Vec<String>,
    /// Resume after the event with this cursor
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    /// Resume after the cursor in this file, where it exists, and keep it up to date
    #[arg(long, value_name = "FILE", conflicts_with = "cursor")]
    cursor_file: Option<PathBuf>,
}

impl Tail {
    fn request(&self) -> Result<TailRequest> {
        if !self.fields.is_empty() && self.output == Format::Compact {
            bail!("--fields goes with -o json: a compact line is made of fields of its own choice");
        }
        let since = self.since.as_deref();
        let since = since.map(|text| Clock::system().parse(text)).transpose();
        let since_time = since.map_err(|e| anyhow::anyhow!("--since {e}"))?;
        let cursor = match &self.cursor_file {
            Some(path) => read_cursor(path)?,
            None => self.cursor.clone().unwrap_or_default(),
        };
        let alone = self.follow && since_time.is_none();
        let lines = self.lines.or(alone.then_some(FOLLOW_LINES));
        Ok(TailRequest {
            last_events: match lines {
                // "The last none" is from now on.
                Some(lines) if cursor.is_empty() => lines.into(),
                _ => 0,
            },
            cursor,
            since_time: since_time.filter(|_| lines != Some(0)),
            r#where: self.predicate.clone(),
            until_now: self.until_now || (self.lines.is_some() && !self.follow),
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            fields: self.fields.clone(),
            lagged_events: 0,
        })
    }
}

/// Empty where there is no file yet.
fn read_cursor(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("--cursor-file {}", path.display())),
    }
}

/// Replaces the file as a whole, so that it is never half a cursor.
fn write_cursor(path: &Path, cursor: &str) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, format!("{cursor}\n"))
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("--cursor-file {}", path.display()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Compact,
    Json,
}

pub async fn run(args: &Tail, target: &Target, terminal: &Terminal) -> Result<()> {
    let request = args.request()?;
    let client = target.connect().await?;
    let mut reader = Reader {
        request,
        cursor_file: args.cursor_file.clone(),
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
    if interrupted && args.cursor_file.is_none() && !reader.request.cursor.is_empty() {
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
    cursor_file: Option<PathBuf>,
    printer: Printer,
    notice: Notice,
}

impl Reader {
    async fn follow(&mut self, mut client: Client, target: &Target) -> Result<()> {
        let mut wait = RETRY_FIRST;
        let from_now = self.request.since_time.is_none() && self.request.last_events == 0;
        if self.request.cursor.is_empty() && from_now {
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
            if let Some(line) = self.printer.print(entry) {
                out.line(&line)?;
            }
        }
        out.flush()?;
        self.request.cursor.clone_from(&page.cursor);
        if let Some(path) = &self.cursor_file {
            write_cursor(path, &page.cursor)?;
        }
        self.notice.lag(page.lagged.as_ref(), page.behind);
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
    fn print(&mut self, entry: &TailEvent) -> Option<String> {
        let event = entry.event.as_ref()?;
        Some(match self.format {
            Format::Compact => self.compact.event(event),
            Format::Json => json::event(event, &entry.cursor, entry.masked),
        })
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

    fn lag(&mut self, lagged: Option<&Lagged>, behind: i64) {
        match lagged {
            Some(lagged) if lagged.over => {
                self.say("caught up");
                self.behind = false;
            }
            Some(lagged) => {
                self.say(&format!(
                    "{} behind, since {}; nothing is skipped, it is read on from the store",
                    display::plural(lagged.events, "event"),
                    Clock::system().local(lagged.since_time),
                ));
                self.last = Some(Instant::now());
                self.behind = true;
            }
            None if self.behind && self.last.is_none_or(|t| t.elapsed() >= LAG_EVERY) => {
                self.say(&format!("{} behind", display::plural(behind, "event")));
                self.last = Some(Instant::now());
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        tail: Tail,
    }

    fn request(arguments: &[&str]) -> Result<TailRequest> {
        let line = ["tail"].iter().chain(arguments);
        Line::try_parse_from(line)?.tail.request()
    }

    #[test]
    fn lines_and_follow_are_as_of_tail_and_journalctl() {
        let read = |arguments: &[&str]| {
            let request = request(arguments).expect("valid");
            (request.last_events, request.until_now)
        };
        assert_eq!(read(&[]), (0, false));
        assert_eq!(read(&["-n", "5"]), (5, true));
        assert_eq!(read(&["-f"]), (10, false));
        assert_eq!(read(&["-f", "-n", "5"]), (5, false));
        assert_eq!(read(&["-f", "-n", "0"]), (0, false));
        assert_eq!(read(&["--since", "10m"]), (0, false));
        assert_eq!(read(&["--since", "10m", "-n", "5"]), (5, true));
        assert_eq!(read(&["--since", "10m", "-f"]), (0, false));
        assert_eq!(read(&["--since", "10m", "--until-now"]), (0, true));
        assert!(request(&["-f", "--until-now"]).is_err());
    }

    #[test]
    fn filters_and_fields_are_read_and_wrong_ones_refused() {
        let request = |arguments: &[&str]| request(arguments);
        let both = request(&["--allow", "kind=exec,process_uid=0", "--allow", "kind=fork"]);
        let both = both.expect("valid");
        assert_eq!((both.allow.len(), both.allow[0].conditions.len()), (2, 2));
        let error = request(&["--deny", "kind!=exec"]).expect_err("refused");
        assert!(error.to_string().contains("no `!=`"), "{error}");
        let error = request(&["--fields", "process"]).expect_err("refused");
        assert!(error.to_string().contains("-o json"), "{error}");
        let fields = request(&["-o", "json", "--fields", "process,file_path"]);
        assert_eq!(fields.expect("valid").fields, ["process", "file_path"]);
    }

    #[test]
    fn a_cursor_file_wins_once_it_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("my.cursor");
        let name = path.display().to_string();
        let arguments = ["--cursor-file", &name, "-n", "5"];
        let first = request(&arguments).expect("valid");
        assert_eq!((first.cursor.as_str(), first.last_events), ("", 5));
        write_cursor(&path, "42").expect("written");
        let second = request(&arguments).expect("valid");
        assert_eq!((second.cursor.as_str(), second.last_events), ("42", 0));
    }
}
