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
    time::Instant,
};

use audit_ledger::{Former, Frames, Key, Origin, Past, Sealer, Summary};
use tokio::sync::Notify;

use super::{
    Limits, Sealing, Spool, State, Waiting,
    disk::{Disk, Found},
    key::Kept,
    lock,
};
use crate::identity::{Identity, keep, random};

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
pub struct Opened {
    pub spool: Arc<Spool>,
    /// Histories that ended, with what of them is not delivered; oldest first.
    pub former: Vec<Arc<Spool>>,
    /// Up to where the batches tell what the kernel has recorded.
    pub state: Option<State>,
    /// What has to be told: it is not known how much was lost.
    pub losses: Vec<String>,
    /// Batches of the history that goes on which are damaged here.
    pub holes: Vec<(i64, i64)>,
    /// Held for its lock.
    pub _lock: File,
}

/// This agent's key and place in its history.
struct Going {
    sealer: Sealer,
    agent_id: String,
}

pub fn open(state_dir: &Path, identity: &Identity, limits: Limits) -> Result<Opened, SpoolError> {
    let root = state_dir.join(DIRECTORY);
    fs::create_dir_all(&root).map_err(failed(&root))?;
    let locked = take_lock(&root)?;
    let mut losses = Vec::new();
    let mut former = Vec::new();
    let mut state = None;
    let mut going = None;
    let mut ended = None;
    for dir in histories(&root)? {
        let is_current = Some(&dir) == current(&root).as_ref();
        let (disk, found) = Disk::open(&dir)?;
        for damage in &found.recovery.damaged {
            losses.push(format!("the spool was damaged: {damage}"));
        }
        if is_current {
            state.clone_from(&found.state);
            match resume(&dir, &found, identity) {
                Ok(sealer) => going = Some((dir, disk, found, sealer)),
                Err(reason) => {
                    let agent_id = name(&dir);
                    tracing::error!(agent_id, reason, "a new history begins");
                    losses.push(format!("history {agent_id} cannot go on: {reason}"));
                    ended = Some(Former {
                        agent_id,
                        batch: found.past.as_ref().map_or(0, |past| past.batch),
                    });
                    former.push((dir, disk, found));
                }
            }
        } else {
            former.push((dir, disk, found));
        }
    }
    let spool = match going {
        Some((dir, disk, found, going)) => spool(dir, disk, &found, going, limits),
        None => begin(&root, identity, ended, limits)?,
    };
    let former = take_over(former, &spool, identity, limits, &mut losses)?;
    let holes = lock(&spool.disk).holes();
    Ok(Opened {
        holes,
        spool,
        former,
        state,
        losses,
        _lock: locked,
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

/// Oldest first.
fn histories(root: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed(root))? {
        let path = entry.map_err(failed(root))?.path();
        if let Ok(data) = fs::metadata(&path)
            && data.is_dir()
        {
            found.push((data.created().or_else(|_| data.modified()).ok(), path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn current(root: &Path) -> Option<PathBuf> {
    let name = fs::read_to_string(root.join(CURRENT)).ok()?;
    Some(root.join(name.trim()))
}

fn origin(identity: &Identity) -> Origin {
    Origin {
        host_id: identity.host_id.clone(),
        boot_id: identity.boot_id.clone(),
        run: identity.run.clone(),
    }
}

/// The sealer for the next batch, or why there can be none.
fn resume(dir: &Path, found: &Found, identity: &Identity) -> Result<Going, String> {
    if dir.join(DIVERGED).exists() {
        return Err("the collector has another history of this name".to_owned());
    }
    let kept = Kept::read(dir).map_err(|error| format!("its key cannot be read: {error}"))?;
    let kept = kept.ok_or("it has no key")?;
    let mut key = kept.key().ok_or("its key is damaged")?;
    let agent_id = kept.agent_id.clone();
    let Some(past) = found.past.clone() else {
        return match key.epoch() {
            1 => Ok(Going {
                sealer: Sealer::begin(key, origin(identity), kept.former()),
                agent_id,
            }),
            _ => Err("its last batches are gone".to_owned()),
        };
    };
    if found.host_id != identity.host_id && !found.host_id.is_empty() {
        return Err(format!("it is of host {}", found.host_id));
    }
    let fits = match key.epoch() - past.epoch {
        0 => key.public()[..] == past.public_key[..],
        1 => key.public()[..] == past.next_public_key[..],
        _ => false,
    };
    if past.agent_id != agent_id || !fits {
        return Err("its last batches are gone, or its key is of another time".to_owned());
    }
    if key.epoch() == past.epoch {
        // Each run has a key of its own.
        let mut next = Key::new(key.epoch(), *key.seed());
        next.evolve();
        let written = Kept::new(&agent_id, &next, None).write(dir);
        written.map_err(|error| format!("its next key cannot be written: {error}"))?;
        key = next;
    }
    Ok(Going {
        sealer: Sealer::resume(key, origin(identity), past),
        agent_id,
    })
}

/// A new history; on disk, with its key, before it is the current one.
fn begin(
    root: &Path,
    identity: &Identity,
    former: Option<Former>,
    limits: Limits,
) -> Result<Arc<Spool>, SpoolError> {
    let mut seed = [0; 32];
    random(&mut seed).map_err(failed(root))?;
    let key = Key::new(1, seed);
    let agent_id = audit_ledger::agent_id(&key.public());
    let dir = root.join(&agent_id);
    fs::create_dir_all(&dir).map_err(failed(&dir))?;
    Kept::new(&agent_id, &key, former.as_ref())
        .write(&dir)
        .map_err(failed(&dir))?;
    let (disk, found) = Disk::open(&dir)?;
    keep(&root.join(CURRENT), &agent_id).map_err(failed(root))?;
    tracing::info!(agent_id, "a history begins");
    let sealer = Sealer::begin(key, origin(identity), former);
    Ok(spool(dir, disk, &found, Going { sealer, agent_id }, limits))
}

fn spool(dir: PathBuf, disk: Disk, found: &Found, going: Going, limits: Limits) -> Arc<Spool> {
    let past = found.past.clone().unwrap_or_default();
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
        disk_bytes: disk.bytes(),
        ..Waiting::default()
    };
    Arc::new(Spool {
        dir,
        agent_id: going.agent_id,
        limits,
        sealing: Mutex::new(Sealing {
            sealer: going.sealer,
            since: Instant::now(),
            batches: 0,
            failing: false,
        }),
        disk: Mutex::new(disk),
        waiting: Mutex::new(waiting),
        room: Condvar::new(),
        changed: Notify::new(),
    })
}

/// Former histories: those without batches are removed, and those of another host, which delivers them
/// itself; those of which the collector has another version are sealed anew, into the one that goes on;
/// the others are to be delivered as they are.
fn take_over(
    former: Vec<(PathBuf, Disk, Found)>,
    spool_now: &Arc<Spool>,
    identity: &Identity,
    limits: Limits,
    losses: &mut Vec<String>,
) -> Result<Vec<Arc<Spool>>, SpoolError> {
    let mut left = Vec::new();
    for (dir, mut disk, found) in former {
        if let Some((first, last)) = found.numbers
            && found.host_id != identity.host_id
        {
            losses.push(format!(
                "batches {first} to {last} of history {} are of host {}, which delivers them itself if \
                 this state directory was copied from it",
                name(&dir),
                found.host_id
            ));
        } else if dir.join(DIVERGED).exists() {
            reseal(&mut disk, &found, spool_now);
        } else if found.numbers.is_some() {
            let agent_id = name(&dir);
            // It seals nothing; what it signs is only what it drops.
            let key = Kept::read(&dir).ok().flatten().and_then(|kept| kept.key());
            let key = key.unwrap_or_else(|| Key::new(1, [0; 32]));
            let sealer = Sealer::begin(key, origin(identity), None);
            let going = Going { sealer, agent_id };
            let ended = spool(dir, disk, &found, going, limits);
            ended.close();
            left.push(ended);
            continue;
        }
        drop(disk);
        fs::remove_dir_all(&dir).map_err(failed(&dir))?;
    }
    Ok(left)
}

/// The events as they are, under new headers.
fn reseal(disk: &mut Disk, found: &Found, spool_now: &Spool) {
    let Some((first, last)) = found.numbers else {
        return;
    };
    let mut next = first;
    while next <= last
        && let Some(batch) = disk.read(next)
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
        batches = last - first + 1,
        "batches of the history that cannot go on are sealed again"
    );
}

pub fn mark_diverged(dir: &Path) -> io::Result<()> {
    let file = File::create(dir.join(DIVERGED))?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

impl Spool {
    /// Everything was delivered, or told as lost.
    pub fn remove(&self) {
        // The logs stay open until the last of its users is gone, which harms nobody.
        if let Err(error) = fs::remove_dir_all(&self.dir) {
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
    for dir in histories(&root)? {
        let report = audit_wal::check(&dir.join("log"), super::disk::max_record_bytes())?;
        let (disk, found) = Disk::open(&dir)?;
        let is_current = Some(&dir) == current(&root).as_ref();
        stats.push(Stat {
            agent_id: name(&dir),
            is_current,
            report,
            numbers: found.numbers,
            bytes: disk.bytes(),
            problem: problem(&dir, &found, identity),
            past: found.past,
            dir,
        });
    }
    Ok(stats)
}

fn problem(dir: &Path, found: &Found, identity: &Identity) -> Option<String> {
    if dir.join(DIVERGED).exists() {
        return Some("the collector has another history of this name".to_owned());
    }
    let key = Kept::read(dir).ok().flatten().and_then(|kept| kept.key());
    let Some(key) = key else {
        return Some("no key that can be read".to_owned());
    };
    let past = found.past.as_ref()?;
    if found.host_id != identity.host_id && !found.host_id.is_empty() {
        return Some(format!("it is of host {}", found.host_id));
    }
    let later = key.epoch() - past.epoch;
    (!(0..=1).contains(&later)).then(|| "its last batches are gone".to_owned())
}
