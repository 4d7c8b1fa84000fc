//! Which history goes on when an agent starts? The one that its spool has, if its end and its key fit
//! each other; else a new one, which names it.
//!
//! A history cannot go on where its last batches may be missing here (damage, an old image of the disk)
//! or elsewhere (a copied state directory): the next batch would have a number that another one has.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
};

use audit_ledger::{Former, Frames, Key, Origin, Past, Sealer, Summary};
use audit_wal::{Disk, System};
use tokio::sync::Notify;

use super::{
    Limits, Sealing, Spool, State, Waiting,
    key::Kept,
    lock,
    logs::{Found, Logs},
    record::End,
};
use crate::identity::Identity;

const DIRECTORY: &str = "spool";
const CURRENT: &str = "current";
const DIVERGED: &str = "diverged";

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("spool {}: {source}; state_dir must be a directory that the agent can write to", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is in use by another agent; stop it, or set another state_dir", .0.display())]
    Busy(PathBuf),
    #[error("spool: {0}")]
    Log(#[from] audit_wal::WalError),
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SpoolError + '_ {
    move |source| SpoolError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The spool of a state directory.
pub struct Opened<D: Disk = System> {
    pub spool: Arc<Spool<D>>,
    /// Histories that ended, with what of them is not delivered; oldest first.
    pub former: Vec<Arc<Spool<D>>>,
    /// Up to where the batches tell what the kernel has recorded.
    pub state: Option<State>,
    /// What has to be told: it is not known how much was lost, if anything.
    pub losses: Vec<Loss>,
    /// Batches of the history that goes on which are damaged here.
    pub holes: Vec<(i64, i64)>,
    /// The run before did not end in order: what it had not told when it ended, nobody knows.
    pub was_cut: bool,
    /// Held for its lock.
    pub _lock: Option<File>,
}

/// Of place "spool" where batches or their absence tell the verifier the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    pub place: &'static str,
    pub cause: String,
}

impl Loss {
    fn of_spool(cause: String) -> Self {
        let place = "spool";
        Self { place, cause }
    }
}

/// Why a history cannot go on.
struct Ended {
    reason: String,
    /// Batches of it may be gone.
    is_cut: bool,
}

impl From<&str> for Ended {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<String> for Ended {
    fn from(reason: String) -> Self {
        Self {
            reason,
            is_cut: false,
        }
    }
}

/// This agent's key and place in its history.
struct Going {
    sealer: Sealer,
    agent_id: String,
}

pub fn open(state_dir: &Path, identity: &Identity, limits: Limits) -> Result<Opened, SpoolError> {
    let root = state_dir.join(DIRECTORY);
    System.create_dir(&root).map_err(failed(&root))?;
    let locked = take_lock(&root)?;
    let mut opened = open_on(System, state_dir, identity, limits)?;
    opened._lock = Some(locked);
    Ok(opened)
}

/// As [`open`], on another disk and without the lock.
pub fn open_on<D: Disk>(
    disk: D,
    state_dir: &Path,
    identity: &Identity,
    limits: Limits,
) -> Result<Opened<D>, SpoolError> {
    let root = state_dir.join(DIRECTORY);
    disk.create_dir(&root).map_err(failed(&root))?;
    let mut losses = Vec::new();
    let mut former = Vec::new();
    let mut state = None;
    let mut going = None;
    let mut ended = None;
    let mut was_cut = false;
    let current = current(&disk, &root);
    for dir in histories(&disk, &root)? {
        let (logs, found) = Logs::open(disk.clone(), &dir, limits.segment_bytes)?;
        for damage in &found.recovery.damaged {
            losses.push(Loss::of_spool(format!("the spool was damaged: {damage}")));
        }
        if Some(&dir) != current.as_ref() {
            former.push((dir, logs, found));
            continue;
        }
        state.clone_from(&found.state);
        was_cut = found.end.as_ref().is_some_and(|end| end.promised);
        match resume(&disk, &dir, &found, identity) {
            Ok(sealer) => going = Some((dir, logs, found, sealer)),
            Err(Ended { reason, is_cut }) => {
                let agent_id = name(&dir);
                tracing::error!(agent_id, reason, "a new history begins");
                losses.push(Loss {
                    place: if is_cut { "agent" } else { "spool" },
                    cause: format!("history {agent_id} cannot go on: {reason}"),
                });
                let last = found.end.as_ref().map_or(0, |end| end.past.batch);
                // What is sealed anew is not missing there.
                let batch = shared(&disk, &dir).unwrap_or(last);
                ended = Some(Former { agent_id, batch });
                former.push((dir, logs, found));
            }
        }
    }
    let spool = match going {
        Some((dir, logs, found, going)) => spool(disk, dir, logs, &found, going, limits),
        None => begin(disk, &root, identity, ended, limits)?,
    };
    let former = take_over(former, &spool, identity, limits, &mut losses)?;
    let holes = lock(&spool.logs).holes();
    Ok(Opened {
        holes,
        spool,
        former,
        state,
        losses,
        was_cut,
        _lock: None,
    })
}

fn take_lock(root: &Path) -> Result<File, SpoolError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SpoolError::Busy(root.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(SpoolError::Io { path, source }),
    }
}

fn name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn histories<D: Disk>(disk: &D, root: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut found = disk.list(root).map_err(failed(root))?;
    found.retain(|path| disk.is_dir(path));
    found.sort();
    Ok(found)
}

fn current(disk: &impl Disk, root: &Path) -> Option<PathBuf> {
    let name = disk.read(&root.join(CURRENT)).ok()?;
    Some(root.join(String::from_utf8(name).ok()?.trim()))
}

/// Of a history of which the collector has another version: up to where they are the same.
fn shared(disk: &impl Disk, dir: &Path) -> Option<i64> {
    let marked = disk.read(&dir.join(DIVERGED)).ok()?;
    String::from_utf8(marked).ok()?.trim().parse().ok()
}

fn has_diverged(disk: &impl Disk, dir: &Path) -> bool {
    disk.open(&dir.join(DIVERGED), false).is_ok()
}

fn origin(identity: &Identity) -> Origin {
    Origin {
        host_id: identity.host_id.clone(),
        boot_id: identity.boot_id.clone(),
        run: identity.run.clone(),
    }
}

/// The sealer for the next batch, or why there can be none.
fn resume(
    disk: &impl Disk,
    dir: &Path,
    found: &Found,
    identity: &Identity,
) -> Result<Going, Ended> {
    if has_diverged(disk, dir) {
        return Err("the collector has another history of this name".into());
    }
    let kept = Kept::read(disk, dir).map_err(|error| format!("its key cannot be read: {error}"))?;
    let kept = kept.ok_or("it has no key")?;
    let mut key = kept.key().ok_or("its key is damaged")?;
    let agent_id = kept.agent_id.clone();
    let Some(End { past, host_id, .. }) = found.end.clone() else {
        return match key.epoch() {
            1 => Ok(Going {
                sealer: Sealer::begin(key, origin(identity), kept.former()),
                agent_id,
            }),
            _ => Err(cut("its last batches are gone")),
        };
    };
    if host_id != identity.host_id {
        return Err(format!("it is of host {host_id}").into());
    }
    let fits = match key.epoch() - past.epoch {
        0 => key.public()[..] == past.public_key[..],
        1 => key.public()[..] == past.next_public_key[..],
        _ => false,
    };
    if past.agent_id != agent_id || !fits {
        return Err(cut(
            "its last batches are gone, or its key is of another time",
        ));
    }
    if key.epoch() == past.epoch {
        // Each run has a key of its own.
        let mut next = Key::new(key.epoch(), *key.seed());
        next.evolve();
        let written = Kept::new(&agent_id, &next, None).write(disk, dir);
        written.map_err(|error| format!("its next key cannot be written: {error}"))?;
        key = next;
    }
    Ok(Going {
        sealer: Sealer::resume(key, origin(identity), past),
        agent_id,
    })
}

fn cut(reason: &str) -> Ended {
    Ended {
        reason: reason.to_owned(),
        is_cut: true,
    }
}

/// A new history; on disk, with its key, before it is the current one.
fn begin<D: Disk>(
    disk: D,
    root: &Path,
    identity: &Identity,
    former: Option<Former>,
    limits: Limits,
) -> Result<Arc<Spool<D>>, SpoolError> {
    let mut seed = [0; 32];
    for part in seed.chunks_mut(8) {
        part.copy_from_slice(&disk.random().map_err(failed(root))?.to_le_bytes());
    }
    let key = Key::new(1, seed);
    let agent_id = audit_ledger::agent_id(&key.public());
    let dir = root.join(&agent_id);
    disk.create_dir(&dir).map_err(failed(&dir))?;
    Kept::new(&agent_id, &key, former.as_ref())
        .write(&disk, &dir)
        .map_err(failed(&dir))?;
    let (logs, found) = Logs::open(disk.clone(), &dir, limits.segment_bytes)?;
    disk.replace(&root.join(CURRENT), format!("{agent_id}\n").as_bytes())
        .map_err(failed(root))?;
    tracing::info!(agent_id, "a history begins");
    let sealer = Sealer::begin(key, origin(identity), former);
    let going = Going { sealer, agent_id };
    Ok(spool(disk, dir, logs, &found, going, limits))
}

fn spool<D: Disk>(
    disk: D,
    dir: PathBuf,
    logs: Logs<D>,
    found: &Found,
    going: Going,
    limits: Limits,
) -> Arc<Spool<D>> {
    let past = found.end.as_ref().map(|end| end.past.clone());
    let past = past.unwrap_or_default();
    let (first, last) = found.numbers.unwrap_or((past.batch + 1, past.batch));
    let waiting = Waiting {
        last,
        // What of it was acknowledged, the collector says.
        acknowledged: first - 1,
        events: past.events,
        events_acknowledged: match found.numbers {
            Some(_) => found.events_before,
            None => past.events,
        },
        disk_bytes: logs.bytes(),
        epoch_on_disk: logs.epoch(),
        ..Waiting::default()
    };
    Arc::new(Spool {
        dir,
        agent_id: going.agent_id,
        limits,
        sealing: Mutex::new(Sealing {
            sealer: going.sealer,
            since: disk.now(),
            batches: 0,
            failing: false,
        }),
        logs: Mutex::new(logs),
        waiting: Mutex::new(waiting),
        room: Condvar::new(),
        changed: Notify::new(),
        disk,
    })
}

/// Former histories: those without batches are removed, and those of another host, which delivers them
/// itself; those of which the collector has another version are sealed anew, into the one that goes on;
/// the others are to be delivered as they are.
fn take_over<D: Disk>(
    former: Vec<(PathBuf, Logs<D>, Found)>,
    spool_now: &Arc<Spool<D>>,
    identity: &Identity,
    limits: Limits,
    losses: &mut Vec<Loss>,
) -> Result<Vec<Arc<Spool<D>>>, SpoolError> {
    let disk = &spool_now.disk;
    let mut left = Vec::new();
    for (dir, mut logs, found) in former {
        if let Some((first, last)) = found.numbers
            && let Some(End { host_id, .. }) = &found.end
            && *host_id != identity.host_id
        {
            losses.push(Loss::of_spool(format!(
                "batches {first} to {last} of history {} are of host {}, which delivers them itself if \
                 this state directory was copied from it",
                name(&dir),
                host_id
            )));
        } else if has_diverged(disk, &dir) {
            let shared = shared(disk, &dir).unwrap_or(0);
            reseal(&mut logs, &found, shared, spool_now);
        } else if found.numbers.is_some() {
            let agent_id = name(&dir);
            // It seals nothing; what it signs is only what it drops.
            let key = Kept::read(disk, &dir).ok().flatten();
            let key = key.and_then(|kept| kept.key());
            let key = key.unwrap_or_else(|| Key::new(1, [0; 32]));
            let sealer = Sealer::begin(key, origin(identity), None);
            let going = Going { sealer, agent_id };
            let ended = spool(disk.clone(), dir, logs, &found, going, limits);
            ended.close();
            left.push(ended);
            continue;
        }
        drop(logs);
        disk.remove_dir(&dir).map_err(failed(&dir))?;
    }
    Ok(left)
}

/// The events as they are, under new headers.
fn reseal<D: Disk>(logs: &mut Logs<D>, found: &Found, acknowledged: i64, spool_now: &Spool<D>) {
    let Some((first, last)) = found.numbers else {
        return;
    };
    let first = first.max(acknowledged + 1);
    let mut next = first;
    while next <= last
        && let Some(batch) = logs.read(next)
    {
        let Ok(header) = audit_ledger::header(&batch) else {
            break;
        };
        next = header.fields.batch + 1;
        let fields = header.fields;
        let frames = match batch.dropped.is_some() {
            true => Frames::default(),
            false => audit_ledger::unpack(&batch, &fields).unwrap_or_default(),
        };
        let summary = Summary {
            sealed_time: fields.sealed_time,
            first_time: fields.first_time,
            last_time: fields.last_time,
            classes: fields.classes,
            losses: fields.losses,
            next_within_ms: fields.next_within_ms,
            gaps: Vec::new(),
        };
        let sealed = spool_now.seal(&frames, summary);
        spool_now.keep(&[sealed], None, &|| true);
    }
    tracing::warn!(
        batches = (last + 1 - first).max(0),
        "batches of the history that cannot go on are sealed again"
    );
}

/// `acknowledged`: up to there the collector has the same.
pub fn mark_diverged(disk: &impl Disk, dir: &Path, acknowledged: i64) -> io::Result<()> {
    let text = format!("{acknowledged}\n");
    disk.replace(&dir.join(DIVERGED), text.as_bytes())
}

impl<D: Disk> Spool<D> {
    /// Everything was delivered, or told as lost.
    pub fn remove(&self) {
        // The logs stay open until the last of its users is gone, which harms nobody.
        if let Err(error) = self.disk.remove_dir(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "a delivered history cannot be removed");
        }
    }

    /// Where the history stands.
    pub fn past(&self) -> Option<Past> {
        lock(&self.sealing).sealer.past().cloned()
    }
}

/// What a spool holds, for whoever asks while no agent uses it.
pub struct Stat {
    pub agent_id: String,
    pub is_current: bool,
    pub dir: PathBuf,
    pub report: audit_wal::Report,
    pub numbers: Option<(i64, i64)>,
    pub past: Option<Past>,
    pub bytes: u64,
    /// What keeps this history from going on.
    pub problem: Option<String>,
}

/// Reads all of it, and changes nothing but what opening a log repairs.
pub fn stat(state_dir: &Path, identity: &Identity) -> Result<Vec<Stat>, SpoolError> {
    let root = state_dir.join(DIRECTORY);
    if !root.exists() {
        return Ok(Vec::new());
    }
    let _lock = take_lock(&root)?;
    let mut stats = Vec::new();
    for dir in histories(&System, &root)? {
        let report = audit_wal::check(&dir.join("log"), super::logs::max_record_bytes())?;
        let (logs, found) = Logs::open(System, &dir, Limits::SEGMENT_BYTES)?;
        let is_current = Some(&dir) == current(&System, &root).as_ref();
        stats.push(Stat {
            agent_id: name(&dir),
            is_current,
            report,
            numbers: found.numbers,
            bytes: logs.bytes(),
            problem: problem(&dir, &found, identity),
            past: found.end.map(|end| end.past),
            dir,
        });
    }
    Ok(stats)
}

fn problem(dir: &Path, found: &Found, identity: &Identity) -> Option<String> {
    if has_diverged(&System, dir) {
        return Some("the collector has another history of this name".to_owned());
    }
    let key = Kept::read(&System, dir)
        .ok()
        .flatten()
        .and_then(|kept| kept.key());
    let Some(key) = key else {
        return Some("no key that can be read".to_owned());
    };
    let End { past, host_id, .. } = found.end.as_ref()?;
    if *host_id != identity.host_id {
        return Some(format!("it is of host {host_id}"));
    }
    let later = key.epoch() - past.epoch;
    (!(0..=1).contains(&later)).then(|| "its last batches are gone".to_owned())
}
