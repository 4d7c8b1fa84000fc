//! What an event says was done, as a verb and its object.
//!
//! A kind of a later version still prints: its name, then whatever object columns are set.

use std::borrow::Cow;

use audit_proto::{
    columns::{self, COLUMNS, Value},
    v1::{Endpoint, Event, Exit, File, Kind, Lost, Process, Shed, Socket, TargetProcess},
};

use super::Span;
use crate::{
    color::Style,
    display::{self, Glyphs},
};

/// Columns of these objects are printed for a kind that this version does not know.
const OBJECTS: [&str; 7] = [
    "file_", "target_", "socket_", "exit_", "lost_", "agent_", "dns_",
];

#[derive(Debug)]
pub struct Action {
    pub verb: &'static str,
    pub style: Style,
    pub object: Vec<Span>,
    /// Who started the process says more than anything else about an exec.
    pub shows_parent: bool,
}

impl Action {
    pub fn of(event: &Event, glyphs: Glyphs) -> Self {
        let kind = Kind::try_from(event.kind).unwrap_or(Kind::Unspecified);
        let (verb, style, mut object) = match kind {
            Kind::Exec => ("exec", Style::Green, exec(event.process.as_ref())),
            Kind::ExecFailed => ("exec!", Style::Yellow, exec_failed(event)),
            Kind::Fork => ("fork", Style::Green, fork(event)),
            Kind::Exit => ("exit", Style::Green, exit(event.exit.as_ref())),
            Kind::Connect => (
                "connect",
                Style::Blue,
                socket(event.socket.as_ref(), glyphs),
            ),
            Kind::Accept => ("accept", Style::Blue, socket(event.socket.as_ref(), glyphs)),
            Kind::Bind => ("bind", Style::Blue, bind(event.socket.as_ref())),
            Kind::Open => open(event.file.as_ref()),
            Kind::CloseWrite => ("close", Style::Plain, close_write(event.file.as_ref())),
            Kind::Container => started(event),
            Kind::Amendment => ("amend", Style::Dim, amended(event)),
            Kind::Unlink => unlink(event),
            Kind::Rename => rename(event),
            Kind::Lost => ("LOST", Style::Alarm, lost(event.lost.as_ref())),
            Kind::Shed => ("SHED", Style::Yellow, shed(event.shed.as_ref())),
            Kind::Heartbeat => ("beat", Style::Dim, totals(event)),
            Kind::Agent => ("agent", Style::Dim, agent(event)),
            Kind::ArgumentRace => ("RACED", Style::Red, raced(event)),
            Kind::Unspecified => ("event", Style::Plain, unknown(event)),
            // Named by the call, told by the objects that are there.
            Kind::Credentials => ("creds", grown(event), objects(event, glyphs)),
            Kind::Ptrace => ("ptrace", Style::Red, objects(event, glyphs)),
            Kind::Signal => ("signal", Style::Plain, objects(event, glyphs)),
            Kind::Namespace => ("ns", Style::Yellow, objects(event, glyphs)),
            Kind::Module => ("module", Style::Red, objects(event, glyphs)),
            Kind::Bpf => ("bpf", Style::Red, objects(event, glyphs)),
            Kind::Memfd => ("memfd", Style::Yellow, objects(event, glyphs)),
            Kind::MemoryExec => ("memexec", Style::Plain, objects(event, glyphs)),
            Kind::Mount => ("mount", Style::Yellow, objects(event, glyphs)),
            Kind::TimeChange => ("clock", Style::Yellow, objects(event, glyphs)),
            Kind::System => ("system", Style::Plain, objects(event, glyphs)),
            Kind::Listen => ("listen", Style::Blue, bind(event.socket.as_ref())),
            Kind::CloseFlow => ("close", Style::Blue, flow(event, glyphs)),
            Kind::Datagram => ("send", Style::Blue, socket(event.socket.as_ref(), glyphs)),
            Kind::Dns => dns(event, glyphs),
            Kind::UnixConnect => ("connect", Style::Blue, objects(event, glyphs)),
            Kind::SocketSpecial => ("socket", Style::Yellow, objects(event, glyphs)),
            Kind::Link => ("link", Style::Yellow, objects(event, glyphs)),
            Kind::MkdirMknod => ("make", Style::Yellow, objects(event, glyphs)),
            Kind::Mode => ("chmod", Style::Yellow, objects(event, glyphs)),
            Kind::Owner => ("chown", Style::Yellow, objects(event, glyphs)),
            Kind::Truncate => ("trunc", Style::Yellow, objects(event, glyphs)),
            Kind::Xattr => ("xattr", Style::Yellow, objects(event, glyphs)),
        };
        object.extend(result(event, kind));
        Self {
            verb,
            style,
            object,
            shows_parent: matches!(kind, Kind::Exec | Kind::ExecFailed),
        }
    }
}

fn plain(text: impl Into<String>) -> Span {
    Span::new(Style::Plain, text)
}

fn dim(text: impl Into<String>) -> Span {
    Span::new(Style::Dim, text)
}

/// The argument list; the program's own path first where `argv[0]` hides it.
fn exec(process: Option<&Process>) -> Vec<Span> {
    let Some(p) = process else {
        return Vec::new();
    };
    let mut spans = Vec::new();
    let last = |path: &str| path.rsplit('/').next().map(str::to_owned);
    let named = p.argv.first().and_then(|a| last(a.trim_start_matches('-')));
    let known = [&p.exe, &p.exe_invoked, &p.script]
        .into_iter()
        .any(|path| last(path) == named);
    if p.argv.is_empty() || (!known && !p.exe.is_empty()) {
        let path = if p.exe.is_empty() {
            &p.exe_invoked
        } else {
            &p.exe
        };
        spans.push(Span::new(Style::Yellow, display::safe(path)));
    }
    spans.push(plain(display::command_line(&p.argv)));
    if let Some(cut) = p.argv_truncated_bytes.filter(|n| *n > 0) {
        spans.push(dim(format!("(+{} not recorded)", display::bytes(cut))));
    }
    if p.exe_memfd == Some(true) {
        spans.push(Span::new(Style::Red, "(from memory)"));
    } else if p.exe_deleted == Some(true) {
        spans.push(Span::new(Style::Red, "(deleted file)"));
    }
    spans
}

fn exec_failed(event: &Event) -> Vec<Span> {
    // The attempt is in `file`; `process` is still the program that tried.
    let path = event.file.as_ref().map(path).unwrap_or_default();
    if path.is_empty() {
        return exec(event.process.as_ref());
    }
    vec![plain(path)]
}

fn fork(event: &Event) -> Vec<Span> {
    let pid = event.target_process.as_ref().and_then(|t| t.pid);
    pid.map(|pid| plain(format!("pid {pid}")))
        .into_iter()
        .collect()
}

fn exit(exit: Option<&Exit>) -> Vec<Span> {
    let Some(exit) = exit else {
        return Vec::new();
    };
    let mut spans = Vec::new();
    match (exit.signal, exit.code) {
        (Some(signal), _) => {
            let core = if exit.core_dumped == Some(true) {
                ", core dumped"
            } else {
                ""
            };
            spans.push(Span::new(
                Style::Red,
                format!("signal {signal}{}{core}", signal_name(signal)),
            ));
        }
        (None, Some(0)) => spans.push(plain("0")),
        (None, Some(code)) => spans.push(Span::new(Style::Yellow, code.to_string())),
        (None, None) => {}
    }
    if let Some(ns) = exit.duration_ns {
        spans.push(dim(format!("({})", display::duration(ns))));
    }
    spans
}

pub fn signal_name(number: i64) -> &'static str {
    match number {
        1 => " HUP",
        2 => " INT",
        3 => " QUIT",
        4 => " ILL",
        5 => " TRAP",
        6 => " ABRT",
        7 => " BUS",
        8 => " FPE",
        9 => " KILL",
        10 => " USR1",
        11 => " SEGV",
        12 => " USR2",
        13 => " PIPE",
        14 => " ALRM",
        15 => " TERM",
        31 => " SYS",
        _ => "",
    }
}

fn open(opened: Option<&File>) -> (&'static str, Style, Vec<Span>) {
    let (verb, style) = match opened.map(|f| &*f.access) {
        Some("create") => ("open+", Style::Yellow),
        Some("truncate") => ("trunc", Style::Yellow),
        Some("write") => ("write", Style::Yellow),
        Some("read") => ("read", Style::Plain),
        _ => ("open", Style::Plain),
    };
    (verb, style, file(opened))
}

fn close_write(closed: Option<&File>) -> Vec<Span> {
    let mut spans = file(closed);
    if let Some(written) = closed.and_then(|file| file.bytes_written) {
        spans.push(dim(format!("{} written", display::bytes(written))));
    }
    spans
}

fn started(event: &Event) -> (&'static str, Style, Vec<Span>) {
    let stopped = event.container.as_ref().is_some_and(|c| c.action == "stop");
    let verb = if stopped { "ctr-" } else { "ctr+" };
    (verb, Style::Yellow, contained(event))
}

/// What a container is called, and else its id.
fn contained(event: &Event) -> Vec<Span> {
    let Some(container) = &event.container else {
        return Vec::new();
    };
    let name = if container.name.is_empty() {
        &container.id
    } else {
        &container.name
    };
    let mut spans = vec![plain(display::safe(name))];
    if !container.image.is_empty() {
        spans.push(dim(display::safe(&container.image)));
    }
    spans
}

fn amended(event: &Event) -> Vec<Span> {
    let mut spans = contained(event);
    if let Some(amendment) = &event.amendment {
        spans.push(dim(format!("{} from", amendment.fields.join(", "))));
        spans.push(dim(display::safe(&amendment.source)));
    }
    spans
}

fn file(file: Option<&File>) -> Vec<Span> {
    let Some(file) = file else {
        return Vec::new();
    };
    let mut spans = vec![plain(path(file))];
    if file.memfd == Some(true) {
        spans.push(dim("(memfd)"));
    }
    if file.path_truncated_bytes.is_some_and(|n| n > 0) {
        spans.push(dim("(path cut)"));
    }
    spans
}

/// The resolved path, else the one given.
fn path(file: &File) -> Cow<'_, str> {
    display::safe(if file.path.is_empty() {
        &file.path_given
    } else {
        &file.path
    })
}

fn flags(event: &Event) -> i64 {
    let given = event.syscall.as_ref().and_then(|syscall| syscall.flags);
    given.unwrap_or_default()
}

fn unlink(event: &Event) -> (&'static str, Style, Vec<Span>) {
    const AT_REMOVEDIR: i64 = 512;
    let directory = flags(event) & AT_REMOVEDIR != 0;
    let verb = if directory { "rmdir" } else { "unlink" };
    (verb, Style::Yellow, file(event.file.as_ref()))
}

fn rename(event: &Event) -> (&'static str, Style, Vec<Span>) {
    const RENAME_EXCHANGE: i64 = 2;
    let exchange = flags(event) & RENAME_EXCHANGE != 0;
    let mut spans = file(event.file.as_ref());
    spans.push(dim(if exchange { "<->" } else { "->" }));
    spans.extend(file(event.target_file.as_ref()));
    ("rename", Style::Yellow, spans)
}

fn socket(socket: Option<&Socket>, glyphs: Glyphs) -> Vec<Span> {
    let Some(s) = socket else {
        return Vec::new();
    };
    let mut spans = vec![protocol(s)];
    let (local, peer) = (endpoint(s.local.as_ref()), endpoint(s.peer.as_ref()));
    if s.direction == "in" {
        spans.extend([plain(local), dim(glyphs.from), plain(peer)]);
    } else {
        spans.push(plain(peer));
        spans.extend(name(s));
    }
    if s.outcome == Some(true) {
        spans.push(dim("(outcome)"));
    }
    spans
}

/// As what the process knew its peer.
fn name(socket: &Socket) -> Option<Span> {
    let peer = socket.peer.as_ref().filter(|peer| !peer.name.is_empty())?;
    Some(dim(format!("({})", display::safe(&peer.name))))
}

/// What was asked, and what came back; whom, only where it is not the answer that counts.
fn dns(event: &Event, glyphs: Glyphs) -> (&'static str, Style, Vec<Span>) {
    let Some(dns) = &event.dns else {
        return ("dns", Style::Blue, socket(event.socket.as_ref(), glyphs));
    };
    let mut spans = vec![
        plain(display::safe(&dns.query_type)),
        plain(display::safe(&dns.query_name)),
    ];
    if dns.response != Some(true) {
        spans.push(dim(glyphs.to));
        spans.push(dim(endpoint(
            event
                .socket
                .as_ref()
                .and_then(|socket| socket.peer.as_ref()),
        )));
        return ("ask", Style::Blue, spans);
    }
    if dns.response_code == "NOERROR" {
        spans.push(dim("="));
    } else {
        let code = display::safe(&dns.response_code);
        spans.push(Span::new(Style::Yellow, format!("= {code}")));
    }
    spans.extend(dns.answers.iter().map(|text| plain(display::safe(text))));
    if let Some(omitted) = dns.answers_omitted {
        spans.push(dim(format!("(+{omitted} not recorded)")));
    }
    if dns.truncated == Some(true) {
        spans.push(dim("(truncated)"));
    }
    ("answer", Style::Blue, spans)
}

fn bind(socket: Option<&Socket>) -> Vec<Span> {
    socket.map_or_else(Vec::new, |s| {
        vec![protocol(s), plain(endpoint(s.local.as_ref()))]
    })
}

fn protocol(socket: &Socket) -> Span {
    plain(display::safe(&socket.protocol))
}

fn endpoint(endpoint: Option<&Endpoint>) -> String {
    let Some(e) = endpoint else {
        return "?".to_owned();
    };
    let address = display::safe(&e.address);
    let address = if address.contains(':') {
        Cow::Owned(format!("[{address}]"))
    } else {
        address
    };
    match e.port {
        Some(port) => format!("{address}:{port}"),
        None => address.into_owned(),
    }
}

/// A failure always; success only where a record exists to tell it.
fn result(event: &Event, kind: Kind) -> Option<Span> {
    let error = event.result.as_ref().map(|r| &*r.error).unwrap_or_default();
    if !error.is_empty() {
        // Under way is how a non-blocking connect begins, not a failure.
        let style = if error == "EINPROGRESS" {
            Style::Dim
        } else {
            Style::Red
        };
        return Some(Span::new(style, format!("= {}", display::safe(error))));
    }
    let outcome = event
        .socket
        .as_ref()
        .is_some_and(|s| s.outcome == Some(true));
    (kind == Kind::Connect && outcome).then(|| dim("= connected"))
}

fn lost(lost: Option<&Lost>) -> Vec<Span> {
    let Some(lost) = lost else {
        return Vec::new();
    };
    let class = columns::class_name(lost.class).unwrap_or(Cow::Borrowed("unknown"));
    let mut text = match lost.count {
        Some(count) => display::plural(count, &format!("{class} event")),
        None => format!("{class} events"),
    };
    if let Some(cpu) = lost.cpu {
        text += &format!(" on cpu {cpu}");
    }
    if !lost.place.is_empty() {
        text += &format!(" at {}", display::safe(&lost.place));
    }
    if !lost.cause.is_empty() {
        text += &format!(": {}", display::safe(&lost.cause));
    }
    vec![Span::new(Style::Alarm, text)]
}

fn shed(shed: Option<&Shed>) -> Vec<Span> {
    let Some(shed) = shed else {
        return Vec::new();
    };
    let class = columns::class_name(shed.class).unwrap_or(Cow::Borrowed("unknown"));
    let count = shed.count.unwrap_or_default();
    let mut text = display::plural(count, &format!("{class} event"));
    text += " beyond the budget";
    if !shed.cgroup.is_empty() {
        text += &format!(" of cgroup {}", display::safe(&shed.cgroup));
    }
    if let Some(sampled) = shed.sampled.filter(|sampled| *sampled > 0) {
        text += &format!(", another {} recorded as a sample", display::count(sampled));
    }
    vec![Span::new(Style::Yellow, text)]
}

/// What the kernel used, and what the argument was changed to.
fn raced(event: &Event) -> Vec<Span> {
    let Some(race) = &event.argument_race else {
        return Vec::new();
    };
    vec![
        plain(display::safe(&race.used)),
        dim("changed to"),
        plain(display::safe(&race.found)),
    ]
}

fn agent(event: &Event) -> Vec<Span> {
    let Some(a) = &event.agent else {
        return Vec::new();
    };
    [&a.action, &a.version, &a.detail]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(|text| plain(display::safe(text)))
        .collect()
}

fn totals(event: &Event) -> Vec<Span> {
    let Some(a) = &event.agent else {
        return Vec::new();
    };
    let told: Vec<_> = [
        ("seen", a.seen),
        ("filtered", a.filtered),
        ("sent", a.sent),
        ("lost", a.lost),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("{name} {}", display::count(value?))))
    .collect();
    vec![dim(told.join(", "))]
}

/// A process that came to more power stands out.
fn grown(event: &Event) -> Style {
    let grew = event.new_credentials.as_ref();
    match grew.and_then(|new| new.privileges_grew) {
        Some(true) => Style::Red,
        _ => Style::Plain,
    }
}

/// The call, and whatever it was about.
fn objects(event: &Event, glyphs: Glyphs) -> Vec<Span> {
    let mut spans = Vec::new();
    if let Some(call) = &event.syscall {
        spans.push(dim(display::safe(&call.name)));
        let text = (!call.text.is_empty()).then(|| plain(display::safe(&call.text)));
        spans.extend(text);
    }
    spans.extend(files(event));
    spans.extend(event.socket.as_ref().map_or_else(Vec::new, special));
    spans.extend(event.bpf.as_ref().map_or_else(Vec::new, |bpf| {
        let parts = [&bpf.command, &bpf.r#type, &bpf.name];
        let told = parts.into_iter().filter(|part| !part.is_empty());
        told.map(|part| plain(display::safe(part))).collect()
    }));
    if let Some(module) = &event.module {
        spans.push(plain(display::safe(&module.name)));
    }
    if let Some(target) = &event.target_process {
        spans.push(dim(glyphs.to));
        spans.extend(process(target));
    }
    if let Some(new) = &event.new_credentials {
        spans.push(plain(format!("uid {}", change(new.uid, new.euid))));
        spans.push(plain(format!("gid {}", change(new.gid, new.egid))));
    }
    spans
}

fn files(event: &Event) -> Vec<Span> {
    let mut spans = Vec::new();
    if let Some(mount) = &event.mount
        && !mount.source.is_empty()
    {
        spans.extend([plain(display::safe(&mount.source)), dim("on")]);
    }
    spans.extend(file(event.file.as_ref()));
    if event.target_file.is_some() {
        spans.push(dim("->"));
        spans.extend(file(event.target_file.as_ref()));
    }
    if let Some(f) = event.file.as_ref().or(event.target_file.as_ref()) {
        spans.extend(f.new_mode.map(|mode| plain(format!("{:o}", mode & 0o7777))));
        let owner = f.new_owner_uid.zip(f.new_owner_gid);
        spans.extend(owner.map(|(uid, gid)| plain(format!("{uid}:{gid}"))));
        spans.extend(f.new_size_bytes.map(|size| plain(display::bytes(size))));
        let attribute = (!f.attribute.is_empty()).then(|| plain(display::safe(&f.attribute)));
        spans.extend(attribute);
    }
    spans
}

fn special(socket: &Socket) -> Vec<Span> {
    let parts = [&socket.family, &socket.r#type, &socket.path];
    let told = parts.into_iter().filter(|part| !part.is_empty());
    told.map(|part| plain(display::safe(part))).collect()
}

fn process(target: &TargetProcess) -> Vec<Span> {
    let mut spans = Vec::new();
    if !target.exe.is_empty() {
        spans.push(plain(display::safe(&target.exe)));
    }
    spans.extend(target.pid.map(|pid| dim(format!("pid {pid}"))));
    if let Some(signal) = target.signal {
        spans.push(plain(format!("{signal}{}", signal_name(signal))));
    }
    spans
}

/// A real and an effective id, as one where they are the same.
fn change(real: Option<i64>, effective: Option<i64>) -> String {
    let text = |id: Option<i64>| id.map_or_else(|| "?".to_owned(), |id| id.to_string());
    if real == effective {
        return text(real);
    }
    format!("{}/{}", text(real), text(effective))
}

fn flow(event: &Event, glyphs: Glyphs) -> Vec<Span> {
    let mut spans = socket(event.socket.as_ref(), glyphs);
    if let Some(flow) = &event.flow {
        let bytes = |value: Option<i64>| display::bytes(value.unwrap_or_default());
        let (sent, received) = (bytes(flow.bytes_sent), bytes(flow.bytes_received));
        spans.push(dim(format!("{sent} out, {received} in")));
        let duration = flow.duration_ns.map(display::duration);
        spans.extend(duration.map(|duration| dim(format!("({duration})"))));
    }
    spans
}

fn unknown(event: &Event) -> Vec<Span> {
    let mut spans: Vec<_> = columns::kind_name(event.kind)
        .map(|name| plain(display::safe(&name)))
        .into_iter()
        .collect();
    for (at, column) in COLUMNS.iter().enumerate() {
        if !OBJECTS.iter().any(|object| column.name.starts_with(object)) {
            continue;
        }
        let value = match columns::get(event, at) {
            Some(Value::Int(v)) => v.to_string(),
            Some(Value::Bool(v)) => v.to_string(),
            Some(Value::Text(v)) => display::quote(&v).into_owned(),
            Some(Value::TextList(v)) => display::command_line(v),
            None => continue,
        };
        spans.push(plain(format!("{}={value}", column.name)));
    }
    spans
}
