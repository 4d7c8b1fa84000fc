//! The threads of a run: who made whom, who is a process, and in which directory each call was made.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use super::line::{Line, Value};

/// A run.
#[derive(Debug)]
pub struct Traced {
    /// strace itself.
    pub tracer: u32,
    pub threads: Vec<Thread>,
}

#[derive(Debug)]
pub struct Thread {
    pub tid: i64,
    /// The process that it belongs to.
    pub pid: i64,
    pub calls: Vec<Call>,
    pub end: Option<End>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Exited(i64),
    Killed(String),
}

#[derive(Debug)]
pub struct Call {
    pub name: String,
    pub arguments: Vec<Value>,
    pub result: Value,
    pub error: Option<String>,
    /// The working directory at the call.
    pub cwd: Vec<u8>,
}

/// Calls that change what is followed here; they must be among those that strace notes.
pub const FOLLOWED: [&str; 6] = ["chdir", "fchdir", "clone", "clone3", "fork", "vfork"];

const CLONE_THREAD: i64 = 0x10000;

impl Call {
    pub fn argument(&self, at: usize) -> Result<&Value> {
        let argument = self.arguments.get(at);
        argument.with_context(|| format!("{} has no argument {at}: {self:?}", self.name))
    }

    /// What it made, of a call that makes threads and processes.
    pub fn child(&self) -> Result<Option<(i64, bool)>> {
        let flags = match self.name.as_str() {
            "clone3" => self.argument(0)?.field("flags"),
            "clone" => self
                .arguments
                .iter()
                .find_map(|argument| argument.0.strip_prefix("flags="))
                .map(|flags| Value(flags.to_owned())),
            "fork" | "vfork" => Some(Value("0".to_owned())),
            _ => return Ok(None),
        };
        if self.error.is_some() {
            return Ok(None);
        }
        let flags = flags.context("no flags")?.number()?;
        Ok(Some((self.result.number()?, flags & CLONE_THREAD != 0)))
    }
}

impl Traced {
    /// From the files in `directory`; the first thread began in `cwd`.
    pub(super) fn read(directory: &Path, tracer: u32, cwd: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let tid: i64 = path
                .extension()
                .and_then(|end| end.to_str()?.parse().ok())
                .with_context(|| format!("{} has no number", path.display()))?;
            let text = fs::read_to_string(&path)?;
            let lines = text
                .lines()
                .map(|line| Line::parse(line).with_context(|| format!("strace wrote {line:?}")));
            files.insert(tid, lines.collect::<Result<Vec<_>>>()?);
        }
        let mut made = BTreeSet::new();
        for line in files.values().flatten() {
            if let Some((child, _)) = line.as_call().map_or(Ok(None), |call| call.child())? {
                made.insert(child);
            }
        }
        let mut first = files.keys().filter(|tid| !made.contains(tid));
        let root = *first.next().context("strace wrote nothing")?;
        ensure!(first.next().is_none(), "threads that nobody made");
        let mut threads = Vec::new();
        let start = cwd.canonicalize()?.as_os_str().as_bytes().to_vec();
        let mut waiting = VecDeque::from([(root, root, start)]);
        while let Some((tid, pid, cwd)) = waiting.pop_front() {
            let lines = files.remove(&tid);
            // One that was made and ended before strace got hold of it has no file.
            let lines = lines.with_context(|| format!("no file of thread {tid}"))?;
            threads.push(follow(lines, (tid, pid, cwd), &mut waiting)?);
        }
        Ok(Self { tracer, threads })
    }
}

impl Line {
    fn as_call(&self) -> Option<Call> {
        let Self::Call {
            name,
            arguments,
            result,
            error,
        } = self
        else {
            return None;
        };
        Some(Call {
            name: name.clone(),
            arguments: arguments.clone(),
            result: result.clone(),
            error: error.clone(),
            cwd: Vec::new(),
        })
    }
}

fn follow(
    lines: Vec<Line>,
    (tid, pid, mut cwd): (i64, i64, Vec<u8>),
    waiting: &mut VecDeque<(i64, i64, Vec<u8>)>,
) -> Result<Thread> {
    let (mut calls, mut end) = (Vec::new(), None);
    for line in lines {
        if let Some(call) = line.as_call() {
            let call = Call {
                cwd: cwd.clone(),
                ..call
            };
            if let Some((child, is_thread)) = call.child()? {
                waiting.push_back((child, if is_thread { pid } else { child }, cwd.clone()));
            }
            match call.name.as_str() {
                "chdir" if call.error.is_none() => {
                    cwd = resolved(&cwd, &call.argument(0)?.text()?);
                }
                "fchdir" if call.error.is_none() => cwd = call.argument(0)?.path()?,
                _ => {}
            }
            calls.push(call);
        }
        match line {
            Line::Exited(code) => end = Some(End::Exited(code)),
            Line::Killed(signal) => end = Some(End::Killed(signal)),
            Line::Call { .. } | Line::Other => {}
        }
    }
    Ok(Thread {
        tid,
        pid,
        calls,
        end,
    })
}

/// Where `given` leads from `base`, through every link, if it is still there.
fn resolved(base: &[u8], given: &[u8]) -> Vec<u8> {
    let joined =
        Path::new(std::ffi::OsStr::from_bytes(base)).join(std::ffi::OsStr::from_bytes(given));
    let found = joined.canonicalize().unwrap_or(joined);
    found.as_os_str().as_bytes().to_vec()
}
