//! How do hooks get to their places? Loads each program for the first rung that takes it, attaches
//! it, and puts the calls into the dispatcher's maps.
//!
//! Invariant: a hook that cannot be attached says why, and does not keep the others from it.

use std::mem;

use audit_common::{call::Shape, kind};
use aya::{
    Btf, Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{KProbe, Program, ProgramError, ProgramFd, links::FdLink},
};

use super::{
    chain,
    hooks::{
        CORE, DISPATCHER, FREED, HOOKS, Hook, HookStatus, LISTENER, PROBE_DISPATCHER, Place, Point,
        Rung,
    },
    io_uring,
    pins::Making,
};
use crate::Config;

/// A program at a tracepoint, and how often the kernel had skipped it when we last looked.
pub(super) struct Attached {
    pub name: String,
    pub program: ProgramFd,
    pub skipped: u64,
}

/// [`Shape`], which aya may copy into a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct KernelShape(Shape);

#[expect(
    unsafe_code,
    reason = "aya asks for the promise that every byte pattern is a value"
)]
// SAFETY: repr(transparent) over a struct of integers without padding, which zerocopy has checked.
unsafe impl aya::Pod for KernelShape {}

/// Where returning system calls go.
pub(super) struct Dispatch {
    pub programs: ProgramArray<MapData>,
    pub probe_programs: ProgramArray<MapData>,
    pub shapes: Array<MapData, KernelShape>,
}

/// Attaches hooks, and keeps what was attached.
pub(super) struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub dispatch: &'a mut Dispatch,
    pub kernel: &'a Btf,
    pub missing: &'a [&'static str],
    pub uring: &'a io_uring::Tracepoints,
    /// Why this kernel's way to free open files is not one to watch.
    pub frees_unseen: Option<&'static str>,
    /// Where links and programs are pinned, if they are.
    pub pins: Option<&'a Making>,
    /// It is watched.
    pub sees_freed: bool,
    pub attached: Vec<Attached>,
}

impl Attacher<'_> {
    /// Every hook that the configuration wants, and the dispatcher that serves their calls.
    pub fn attach_all(&mut self, config: &Config, preemptible: bool) -> Vec<HookStatus> {
        let mut rungs = vec![Rung::Tracepoint];
        if preemptible {
            rungs.insert(0, Rung::Kprobe);
        }
        let mut no_dispatcher = Vec::new();
        let mut dispatcher = None;
        for rung in &rungs {
            match self.attach_dispatcher(*rung) {
                Ok(()) => {
                    dispatcher = Some(*rung);
                    break;
                }
                Err(reason) => no_dispatcher.push((*rung, reason)),
            }
        }
        let mut hooks = Vec::new();
        for hook in HOOKS {
            let mut status = status(hook);
            let mut kinds = status.kinds.iter();
            status.off = !hook.kinds.is_empty() && kinds.all(|kind| config.capture.is_off(kind));
            if !status.off {
                if !hook.calls.is_empty() {
                    status.tried.clone_from(&no_dispatcher);
                }
                self.attach_hook(hook, &rungs, dispatcher, &mut status);
            }
            hooks.push(status);
        }
        hooks
    }

    fn attach_dispatcher(&mut self, rung: Rung) -> Result<(), String> {
        if rung == Rung::Kprobe {
            self.attach(PROBE_DISPATCHER)?;
            // Whether it is skipped does not matter: it does nothing.
            return attach(self.ebpf, LISTENER, self.kernel, self.pins).map(mem::drop);
        }
        self.attach(DISPATCHER)
    }

    /// On the first rung that takes it; its calls go where the dispatcher is.
    fn attach_hook(
        &mut self,
        hook: &Hook,
        rungs: &[Rung],
        dispatcher: Option<Rung>,
        status: &mut HookStatus,
    ) {
        let needed = |path: &&&str| {
            let of = path.split('.').next().unwrap_or_default();
            CORE.contains(&of) || hook.needs.iter().any(|group| group.contains(&of))
        };
        if let Some(path) = self.missing.iter().find(needed) {
            let reason = format!("this kernel has no field {path}");
            status.tried.push((Rung::Tracepoint, reason));
            return;
        }
        if !hook.calls.is_empty() {
            let Some(rung) = dispatcher else { return };
            if let Err(reason) = self.route(hook, rung) {
                status.tried.push((rung, reason));
                return;
            }
            status.attached = Some(rung);
        }
        if !hook.operations.is_empty() {
            self.attach_operations(hook, status);
            return;
        }
        if hook.points.is_empty() {
            return;
        }
        let rungs = if hook.probes_first {
            &[Rung::Kprobe, Rung::Tracepoint]
        } else {
            rungs
        };
        for rung in rungs {
            let points = match rung {
                Rung::Kprobe => hook.probes,
                _ => hook.points,
            };
            match points.iter().try_for_each(|point| self.attach(*point)) {
                Ok(()) => {
                    // Where it stays at its tracepoint, so it says.
                    let probed = points.iter().any(|p| matches!(p.place, Place::Kprobe(_)));
                    let got = if probed {
                        Rung::Kprobe
                    } else {
                        Rung::Tracepoint
                    };
                    status.attached = match status.attached {
                        Some(of_calls) if !hook.probes_first => Some(of_calls),
                        _ => Some(got),
                    };
                    return;
                }
                Err(reason) => status.tried.push((*rung, reason)),
            }
        }
        status.attached = None;
    }

    /// Operations of io_uring, which has tracepoints of its own.
    fn attach_operations(&mut self, hook: &Hook, status: &mut HookStatus) {
        let points = self.uring.points(self.ebpf, hook.operations);
        let attached =
            points.and_then(|points| points.into_iter().try_for_each(|point| self.attach(point)));
        match attached {
            Ok(()) => {
                status.attached = Some(Rung::Tracepoint);
                let lacks = self.uring.lacks().map(|what| (Rung::Tracepoint, what));
                status.tried.extend(lacks);
            }
            Err(reason) => status.tried.push((Rung::Tracepoint, reason)),
        }
    }

    /// Puts the hook's calls into the dispatcher's maps.
    fn route(&mut self, hook: &Hook, rung: Rung) -> Result<(), String> {
        for row in hook.calls.iter().copied().flatten() {
            let (program, programs) = match rung {
                Rung::Kprobe => {
                    let name = format!("{}_kprobe", row.program);
                    let place = PROBE_DISPATCHER.place;
                    let program = load(self.ebpf, &name, place, self.kernel)?;
                    (program, &mut self.dispatch.probe_programs)
                }
                _ => {
                    let program = load(self.ebpf, row.program, DISPATCHER.place, self.kernel)?;
                    (program, &mut self.dispatch.programs)
                }
            };
            for slot in row.slots() {
                self.dispatch
                    .shapes
                    .set(slot, KernelShape(row.shape), 0)
                    .and_then(|()| programs.set(slot, &program, 0))
                    .map_err(|error| format!("{}: {}", row.name, chain(&error)))?;
            }
        }
        Ok(())
    }

    pub fn attach(&mut self, point: Point) -> Result<(), String> {
        let is_freed = point.program == FREED.program;
        if let (true, Some(reason)) = (is_freed, self.frees_unseen) {
            return Err(format!("{}: {reason}", point.place.name()));
        }
        let program = attach(self.ebpf, point, self.kernel, self.pins)?;
        if is_freed {
            self.sees_freed = true;
            // What is skipped there was freed by an interrupt of the program, and so no open file.
            return Ok(());
        }
        // A program at several places counts once for all of them.
        if self
            .attached
            .iter()
            .all(|known| known.name != point.program)
        {
            self.attached.push(Attached {
                name: point.program.to_owned(),
                program,
                skipped: 0,
            });
        }
        Ok(())
    }
}

fn kind_name(number: u16) -> &'static str {
    kind::from_number(number).map_or("", |row| row.name)
}

fn status(hook: &Hook) -> HookStatus {
    HookStatus {
        name: hook.name,
        kinds: hook.kinds.iter().map(|kind| kind_name(*kind)).collect(),
        attached: None,
        off: false,
        objects: None,
        texts: None,
        tried: Vec::new(),
    }
}

/// Loads a program for that place, unless it is loaded already, for it may serve many calls.
pub(super) fn load(
    ebpf: &mut Ebpf,
    name: &str,
    place: Place,
    kernel: &Btf,
) -> Result<ProgramFd, String> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?;
    let loaded = match (program, place) {
        (Program::BtfTracePoint(program), Place::Tracepoint(tracepoint)) => {
            program.load(tracepoint, kernel)
        }
        (Program::KProbe(program), Place::Kprobe(_)) => program.load(),
        (Program::Lsm(program), Place::Lsm(hook)) => program.load(hook, kernel),
        (Program::FEntry(program), Place::Fentry(function)) => program.load(function, kernel),
        (Program::RawTracePoint(program), Place::RawTracepoint(_)) => program.load(),
        (Program::Iter(program), Place::Iterator(over)) => program.load(over, kernel),
        _ => return Err(format!("{name} is not for {place:?}")),
    };
    let loaded = match loaded {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    };
    let fd = || ebpf.program(name).map(Program::fd);
    loaded
        .and_then(|()| fd().ok_or(ProgramError::NotLoaded)?)
        .and_then(|fd| fd.try_clone().map_err(ProgramError::IOError))
        .map_err(|error| format!("{name}: {}", chain(&error)))
}

pub(super) fn attach(
    ebpf: &mut Ebpf,
    point: Point,
    kernel: &Btf,
    pins: Option<&Making>,
) -> Result<ProgramFd, String> {
    let fd = load(ebpf, point.program, point.place, kernel)?;
    let named = |reason: String| format!("{}: {reason}", point.program);
    // The link by itself, if it is to be pinned.
    macro_rules! link {
        ($program:ident, $attached:expr) => {{
            let link = $attached.map_err(|error| named(chain(&error)))?;
            let Some(_) = pins else { return Ok(fd) };
            $program.take_link(link).map_err(|error| chain(&error))
        }};
    }
    let link: Result<FdLink, String> = match (ebpf.program_mut(point.program), point.place) {
        (Some(Program::BtfTracePoint(program)), Place::Tracepoint(_)) => {
            link!(program, program.attach()).map(FdLink::from)
        }
        (Some(Program::Lsm(program)), Place::Lsm(_)) => {
            link!(program, program.attach()).map(FdLink::from)
        }
        (Some(Program::FEntry(program)), Place::Fentry(_)) => {
            link!(program, program.attach()).map(FdLink::from)
        }
        (Some(Program::RawTracePoint(program)), Place::RawTracepoint(name)) => {
            link!(program, program.attach(name)).map(FdLink::from)
        }
        (Some(Program::KProbe(program)), Place::Kprobe(function)) => {
            let program: &mut KProbe = program;
            let link = link!(program, program.attach(function, 0));
            link.and_then(|link| FdLink::try_from(link).map_err(|error| chain(&error)))
        }
        _ => Err(chain(&ProgramError::NotLoaded)),
    };
    let link = link.map_err(named)?;
    if let Some(pins) = pins {
        pin(ebpf, point, link, pins).map_err(named)?;
    }
    Ok(fd)
}

/// From here on the program is attached as long as its link is in the directory.
fn pin(ebpf: &mut Ebpf, point: Point, link: FdLink, pins: &Making) -> Result<(), String> {
    let path = pins.program(point.program);
    // One program may be at several places.
    if let Some(program) = ebpf.program_mut(point.program).filter(|_| !path.exists()) {
        program.pin(&path).map_err(|error| chain(&error))?;
    }
    let path = pins.link(point.program, point.place.name());
    link.pin(&path)
        .map(mem::drop)
        .map_err(|error| chain(&error))
}
