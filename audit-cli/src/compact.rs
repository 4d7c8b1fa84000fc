//! An event as one line that a person reads: when, where, who, which process, what it did to what.
//!
//! Invariants: one event is one line whatever its text holds; a line never exceeds the width asked
//! for; what is unknown is left out, never guessed.

mod action;

use audit_proto::v1::{Alert, Container, Event};

use crate::{
    color::{Palette, Style},
    display::{self, Glyphs},
    when::{Clock, Micros},
};

pub use action::{Action, signal_name};

/// Column widths grow with what is seen, up to these, so that lines stay aligned without one long
/// name pushing everything to the right for ever.
const HOST_MAX: usize = 16;
const USER_MAX: usize = 18;
/// A comm of 15, brackets and a seven-digit pid.
const PROCESS_MAX: usize = 24;
const VERB: usize = 7;
/// However narrow the terminal, this much of the object stays before the suffix is given up.
const OBJECT_MIN: usize = 24;

/// A piece of a line in one style; the text is safe for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub style: Style,
    pub text: String,
}

impl Span {
    pub fn new(style: Style, text: impl Into<String>) -> Self {
        Self {
            style,
            text: text.into(),
        }
    }
}

/// Prints events as lines and remembers how wide the columns are.
#[derive(Debug)]
pub struct Compact {
    pub palette: Palette,
    pub glyphs: Glyphs,
    /// Columns of the terminal; None where lines may be as long as they are.
    pub width: Option<usize>,
    pub clock: Clock,
    host: usize,
    user: usize,
    process: usize,
}

impl Compact {
    pub fn new(palette: Palette, glyphs: Glyphs, width: Option<usize>, clock: Clock) -> Self {
        Self {
            palette,
            glyphs,
            width,
            clock,
            host: 4,
            user: 4,
            process: 12,
        }
    }

    /// One event, without the line's end.
    pub fn event(&mut self, event: &Event) -> String {
        let head = self.head(event, event.time);
        let action = Action::of(event, self.glyphs);
        let verb = Span::new(action.style, pad(action.verb, VERB));
        let suffix = self.suffix(event, &action);
        self.line(head, vec![verb], action.object, suffix)
    }

    /// One alert: the rule's level and title, then the event that matched.
    pub fn alert(&mut self, alert: &Alert) -> String {
        let empty = Event::default();
        let event = alert.event.as_ref().unwrap_or(&empty);
        let mut head = self.head(event, alert.time);
        let rule = alert.rule.clone().unwrap_or_default();
        let level = display::safe(&rule.level).into_owned();
        let title = Span::new(Style::Bold, display::safe(&rule.title));
        // Time first, then what matters about an alert, then who and what.
        let at = 1.min(head.len());
        head.insert(
            at,
            Span::new(level_style(&level), pad(&level.to_uppercase(), 8)),
        );
        let action = Action::of(event, self.glyphs);
        let suffix = self.suffix(event, &action);
        let verb = Span::new(action.style, action.verb);
        let colon = Span::new(Style::Dim, ":");
        let mut lead = vec![title];
        if !verb.text.is_empty() {
            lead.push(colon);
            lead.push(verb);
        }
        self.line(head, lead, action.object, suffix)
    }

    fn head(&mut self, event: &Event, time: Micros) -> Vec<Span> {
        let host = event.host.as_ref().map(|h| &*h.name).unwrap_or_default();
        let host = column(host, &mut self.host, HOST_MAX, self.glyphs);
        let (user, is_root) = user(event);
        let user = column(&user, &mut self.user, USER_MAX, self.glyphs);
        let (name, pid) = process(event);
        let name =
            display::fit(&name, PROCESS_MAX - pid.len().min(10), self.glyphs.ellipsis).into_owned();
        let wide = display::width(&name) + pid.len();
        self.process = self.process.max(wide.min(PROCESS_MAX));
        let pid = pad(&pid, self.process.saturating_sub(display::width(&name)));
        vec![
            Span::new(Style::Dim, self.clock.local(time)),
            Span::new(Style::Blue, host),
            Span::new(
                if is_root {
                    Style::Magenta
                } else {
                    Style::Plain
                },
                user,
            ),
            Span::new(Style::Cyan, name),
            Span::new(Style::Dim, pid),
        ]
    }

    fn suffix(&self, event: &Event, action: &Action) -> Vec<Span> {
        let mut spans = Vec::new();
        if let Some(parent) = event.parent.as_ref().filter(|_| action.shows_parent) {
            let name = [&parent.name, basename(&parent.exe)]
                .into_iter()
                .find(|n| !n.is_empty());
            let pid = parent.pid.map(|p| format!("[{p}]")).unwrap_or_default();
            let text = format!(
                "{}{pid}",
                name.map(|n| display::safe(n)).unwrap_or_default()
            );
            if !text.is_empty() {
                spans.push(Span::new(
                    Style::Dim,
                    format!("{} {text}", self.glyphs.from),
                ));
            }
        }
        if let Some(label) = event.container.as_ref().and_then(container) {
            spans.push(Span::new(Style::Yellow, label));
        }
        spans
    }

    /// Joins the parts by blanks; the object gives way first, then the suffix, then the rest.
    fn line(
        &self,
        head: Vec<Span>,
        lead: Vec<Span>,
        object: Vec<Span>,
        suffix: Vec<Span>,
    ) -> String {
        let columns = |spans: &[Span]| {
            spans
                .iter()
                .map(|s| display::width(&s.text) + 1)
                .sum::<usize>()
        };
        // Name and pid are two spans of one word; the colon sticks to what is before it.
        let glued = |before: &Span, span: &Span| {
            span.text.starts_with('[') && before.style == Style::Cyan || span.text == ":"
        };
        let mut spans = head;
        spans.extend(lead);
        if let Some(width) = self.width {
            let taken = columns(&spans);
            let tail = columns(&suffix);
            let room = width.saturating_sub(taken);
            let keep = room >= tail + OBJECT_MIN.min(columns(&object));
            let room = if keep { room - tail } else { room };
            spans.extend(cut(object, room, self.glyphs));
            if keep {
                spans.extend(suffix);
            }
            spans = cut(spans, width, self.glyphs);
        } else {
            spans.extend(object);
            spans.extend(suffix);
        }
        let mut out = String::new();
        let mut before: Option<&Span> = None;
        for span in spans.iter().filter(|s| !s.text.is_empty()) {
            if before.is_some_and(|b| !glued(b, span)) {
                out.push(' ');
            }
            out.push_str(&self.palette.paint(span.style, &span.text));
            before = Some(span);
        }
        out.truncate(out.trim_end_matches(' ').len());
        out
    }
}

/// The spans that fit, the one at the edge shortened.
fn cut(spans: Vec<Span>, room: usize, glyphs: Glyphs) -> Vec<Span> {
    let mut left = room;
    let mut out = Vec::new();
    let count = spans.len();
    for (at, mut span) in spans.into_iter().enumerate() {
        let wide = display::width(&span.text);
        // The last one needs no room for what follows it.
        let after = usize::from(at + 1 < count);
        if wide + after > left && wide > left {
            span.text = display::fit(&span.text, left, glyphs.ellipsis).into_owned();
            if left > display::width(glyphs.ellipsis) {
                out.push(span);
            }
            break;
        }
        left = left.saturating_sub(wide + 1);
        out.push(span);
    }
    out
}

fn column(text: &str, wide: &mut usize, max: usize, glyphs: Glyphs) -> String {
    let text = display::safe(text);
    let text = display::fit(&text, max, glyphs.ellipsis);
    *wide = (*wide).max(display::width(&text));
    pad(&text, *wide)
}

fn pad(text: &str, columns: usize) -> String {
    let blank = columns.saturating_sub(display::width(text));
    format!("{text}{:blank$}", "")
}

/// Who acts, and who logged in where that is somebody else: "root(alice)".
fn user(event: &Event) -> (String, bool) {
    let Some(p) = &event.process else {
        return ("-".to_owned(), false);
    };
    let acting = p.euid.or(p.uid);
    let name = [&p.effective_user, &p.user]
        .into_iter()
        .find(|n| !n.is_empty());
    let name = match (name, acting) {
        (Some(name), _) => name.clone(),
        (None, Some(uid)) => uid.to_string(),
        (None, None) => "-".to_owned(),
    };
    let login = match (p.login_user.as_str(), p.loginuid) {
        ("", Some(uid)) if uid >= 0 && Some(uid) != acting => uid.to_string(),
        (login, _) => login.to_owned(),
    };
    if login.is_empty() || login == name {
        return (name, acting == Some(0));
    }
    (format!("{name}({login})"), acting == Some(0))
}

fn process(event: &Event) -> (String, String) {
    let Some(p) = &event.process else {
        return ("-".to_owned(), String::new());
    };
    let name = [&*p.name, basename(&p.exe)]
        .into_iter()
        .find(|n| !n.is_empty())
        .unwrap_or("?");
    let pid = p.pid.map(|pid| format!("[{pid}]")).unwrap_or_default();
    (display::safe(name).into_owned(), pid)
}

/// Twelve digits name a container well enough for a line; a pod by its first eight.
fn container(container: &Container) -> Option<String> {
    let id: String = container.id.chars().take(12).collect();
    let pod: String = container.pod_uid.chars().take(8).collect();
    let mut parts = Vec::new();
    if !pod.is_empty() {
        parts.push(format!("pod:{}", display::safe(&pod)));
    }
    if !id.is_empty() {
        let runtime = if container.runtime.is_empty() {
            "container"
        } else {
            &container.runtime
        };
        parts.push(format!("{}:{}", display::safe(runtime), display::safe(&id)));
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub fn level_style(level: &str) -> Style {
    match level {
        "critical" => Style::Alarm,
        "high" => Style::Red,
        "medium" => Style::Yellow,
        _ => Style::Blue,
    }
}

#[cfg(test)]
mod tests;
