//! Where an object is: walks from a dentry through its parents and mounts up to the root of the
//! mount namespace, and writes the components on the way, last first.
//!
//! Names are read without the locks that d_path takes: a rename at the same instant may show the
//! old or the new name of a component.

use audit_common::{
    limits::{FILTER_COMPONENTS, NAME_BYTES, PATH_STEPS},
    record::{section, section_flags},
};
use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::{
    kernel::{self, Block, Struct, with_task},
    policy,
    record::{CLASSES, Writer, bounded},
    settings::offset,
};

/// `struct path`: a dentry in a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Path {
    mount: u64,
    dentry: u64,
}

/// `d_parent` and the `d_name` behind it; the agent refuses kernels where they are not neighbours.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    parent: u64,
    name_hash_length: u64,
    name: u64,
}

impl Path {
    /// The `struct path` at `base + offset`.
    #[inline(always)]
    pub fn read(base: u64, offset: usize) -> Self {
        Self {
            mount: kernel::pointer(base, offset + offset!(path_mnt)),
            dentry: kernel::pointer(base, offset + offset!(path_dentry)),
        }
    }

    /// The same, in a structure that the current task leads to.
    #[inline(always)]
    fn of_struct<const TYPED: bool>(base: Struct<TYPED>, offset: usize) -> Self {
        Self {
            mount: base.field(offset + offset!(path_mnt)),
            dentry: base.field(offset + offset!(path_dentry)),
        }
    }

    /// The entry `dentry` of the directory whose `struct path` is at `directory`.
    #[inline(always)]
    pub fn entry(directory: u64, dentry: u64) -> Self {
        Self {
            mount: kernel::pointer(directory, offset!(path_mnt)),
            dentry,
        }
    }

    /// 0 for a name that nothing has yet.
    #[inline(always)]
    pub fn inode(&self) -> u64 {
        kernel::pointer(self.dentry, offset!(dentry_inode))
    }

    #[inline(always)]
    pub fn of_file(file: u64) -> Self {
        Self::read(file, offset!(file_path))
    }

    /// The same, of a file that was read.
    #[inline(always)]
    pub fn of(file: &Block) -> Self {
        let path = offset!(file_path);
        Self {
            mount: file.field(path + offset!(path_mnt)),
            dentry: file.field(path + offset!(path_dentry)),
        }
    }

    #[inline(always)]
    pub fn working_directory() -> Self {
        with_task!(|task| Self::of_struct(task.pointer(offset!(task_fs)), offset!(fs_pwd)))
    }

    /// Nowhere, for a process that has ended so far that it has let go of it.
    #[inline(always)]
    pub fn root() -> Self {
        with_task!(|task| Self::of_struct(task.pointer(offset!(task_fs)), offset!(fs_root)))
    }

    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.dentry == 0
    }

    /// As d_unlinked() has it: not in the hash, and not a root.
    #[inline(always)]
    pub fn is_deleted(&self) -> bool {
        let unhashed = kernel::pointer(self.dentry, offset!(dentry_hash_pprev)) == 0;
        unhashed && kernel::pointer(self.dentry, offset!(dentry_parent)) != self.dentry
    }

    /// Nobody holds it any more, and nobody can find it (lockref_mark_dead).
    #[inline(always)]
    pub fn is_dead(&self) -> bool {
        kernel::read::<i32>(self.dentry, offset!(dentry_count)) < 0
    }

    /// The address of the last component's name, and of its directory's.
    #[inline(always)]
    pub fn last_names(&self) -> (u64, u64) {
        let link: Link = kernel::read(self.dentry, offset!(dentry_parent));
        let above: Link = kernel::read(link.parent, offset!(dentry_parent));
        (link.name, above.name)
    }
}

/// How far the walk of each class has come.
#[map]
static CLIMBS: PerCpuArray<Climb> = PerCpuArray::with_max_entries(CLASSES, 0);

/// Writes the section `tag` with the components of `path`.
#[inline(always)]
pub fn section(writer: &mut Writer, tag: u8, path: Path) {
    section_below(writer, tag, path, Path::root(), path.is_deleted());
}

/// As seen by a process whose root is `root`; where that is nowhere, by the mount namespace.
#[inline(always)]
pub fn section_below(writer: &mut Writer, tag: u8, path: Path, root: Path, deleted: bool) {
    let class = writer.class();
    let Some(climb) = CLIMBS.get_ptr_mut(class.into()) else {
        return;
    };
    // SAFETY: a per-CPU map value, and programs of one class never interrupt each other.
    let climb = unsafe { &mut *climb };
    let mut open = writer.section(tag);
    let start = writer.end();
    // One by one: the names would be zeroed too.
    climb.start = start;
    climb.at = path;
    climb.mount_root = kernel::pointer(path.mount, offset!(vfsmount_root));
    climb.root = root;
    climb.root_at = BELOW_ROOT;
    climb.flags = section_flags::TRUNCATED.into();
    climb.components = 0;
    writer.suspend();
    let mut passes = 0;
    while passes < PATH_STEPS.div_ceil(STEPS_AT_ONCE) && climb_steps(class.into()) == CONTINUE {
        passes += 1;
    }
    writer.reload();
    open.flags = climb.flags as u8;
    if deleted {
        open.flags |= section_flags::DELETED;
    }
    let mut root_at = climb.root_at;
    if root_at == BELOW_ROOT {
        root_at = writer.end() - start;
        if !root.is_none() {
            open.flags |= section_flags::UNREACHABLE;
        }
    }
    open.root_at = root_at as u16;
    writer.close(open);
    if tag == section::PATH && writer.header().candidates != 0 {
        policy::policy_path(class.into());
    }
}

/// `Climb::root_at` until the process's root is met.
const BELOW_ROOT: u64 = u64::MAX;

/// How far a walk has come.
#[repr(C)]
struct Climb {
    start: u64,
    at: Path,
    /// The dentry at which the mount `at.mount` begins.
    mount_root: u64,
    root: Path,
    root_at: u64,
    /// TRUNCATED until the walk has ended.
    flags: u64,
    /// Names met below the process's root, and where in the record the last of them begin.
    components: u64,
    names: [u16; FILTER_COMPONENTS],
}

/// Where in a record the names are of the path that was walked last.
pub struct Names(&'static Climb);

impl Names {
    /// `None` where the walk did not come to the process's root, so that it is not known what the
    /// path is to the process.
    #[inline(always)]
    pub fn of(class: u32) -> Option<Self> {
        let climb = CLIMBS.get_ptr(class)?;
        // SAFETY: as in `section`.
        let climb = unsafe { &*climb };
        (climb.flags == 0 && climb.root_at != BELOW_ROOT).then_some(Self(climb))
    }

    /// The name `depth` steps below the root, of those kept.
    #[inline(always)]
    pub fn at(&self, depth: u64) -> Option<u64> {
        let components = self.0.components;
        if depth >= components || depth >= FILTER_COMPONENTS as u64 {
            return None;
        }
        let at = bounded::<LAST_NAME>(components - 1 - depth);
        // SAFETY: the mask is that of the array's size.
        Some(unsafe { *self.0.names.as_ptr().add(at as usize) }.into())
    }
}

const LAST_NAME: u64 = FILTER_COMPONENTS as u64 - 1;

const CONTINUE: u32 = 0;
const STOP: u32 = 1;

/// Some steps of a walk. A global function: the verifier checks it once, for any state of the walk, and
/// not in every pass of the loop (Linux 5.6; bpf_loop is of 5.17).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn climb_steps(class: u32) -> u32 {
    let Some(climb) = CLIMBS.get_ptr_mut(class) else {
        return STOP;
    };
    // SAFETY: as in `section`.
    let climb = unsafe { &mut *climb };
    let Some(mut writer) = Writer::resume(class as u8) else {
        return STOP;
    };
    for _ in 0..STEPS_AT_ONCE {
        if climb_step(climb, &mut writer) == STOP {
            return STOP;
        }
    }
    CONTINUE
}

/// So many that most paths need few calls, and the verifier few states.
const STEPS_AT_ONCE: usize = 4;

/// One component, or one crossing of a mount.
#[inline(always)]
fn climb_step(climb: &mut Climb, writer: &mut Writer) -> u32 {
    if climb.root_at == BELOW_ROOT && climb.at == climb.root {
        climb.root_at = writer.end() - climb.start;
    }
    if climb.at.dentry == climb.mount_root {
        return cross(climb);
    }
    let link: Link = kernel::read(climb.at.dentry, offset!(dentry_parent));
    if climb.root_at == BELOW_ROOT {
        let at = bounded::<LAST_NAME>(climb.components);
        // SAFETY: the mask is that of the array's size.
        unsafe { *climb.names.as_mut_ptr().add(at as usize) = writer.end() as u16 };
        climb.components += 1;
    }
    let read = writer.kernel_text::<{ NAME_BYTES as u32 }>(link.name);
    writer.suspend();
    if link.parent == climb.at.dentry {
        // A root that is not where it is mounted: memfd, pipe, or a detached tree.
        climb.flags = section_flags::PSEUDO.into();
        return STOP;
    }
    if read == 0 || !writer.has_room() {
        return STOP;
    }
    climb.at.dentry = link.parent;
    CONTINUE
}

/// From the root of a mount to the directory that it is mounted on.
#[inline(always)]
fn cross(climb: &mut Climb) -> u32 {
    let mount = climb.at.mount - offset!(mount_mnt) as u64;
    let above = kernel::pointer(mount, offset!(mount_parent));
    if above == mount {
        climb.flags = 0;
        return STOP;
    }
    climb.at.dentry = kernel::pointer(mount, offset!(mount_mountpoint));
    climb.at.mount = above + offset!(mount_mnt) as u64;
    climb.mount_root = kernel::pointer(climb.at.mount, offset!(vfsmount_root));
    CONTINUE
}
