//! Where an object is: walks from a dentry through its parents and mounts up to the root of the
//! mount namespace, and writes the components on the way, last first.
//!
//! Names are read without the locks that d_path takes: a rename at the same instant may show the
//! old or the new name of a component.

use audit_common::{
    limits::{NAME_BYTES, PATH_COMPONENTS},
    record::section_flags,
};

use crate::{kernel, record::Writer, settings::offset, task};

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

    #[inline(always)]
    pub fn of_file(file: u64) -> Self {
        Self::read(file, offset!(file_path))
    }

    #[inline(always)]
    pub fn working_directory() -> Self {
        let fs = kernel::pointer(task::current(), offset!(task_fs));
        Self::read(fs, offset!(fs_pwd))
    }

    #[inline(always)]
    fn root() -> Self {
        let fs = kernel::pointer(task::current(), offset!(task_fs));
        Self::read(fs, offset!(fs_root))
    }

    /// The address of the last component's name, and of its directory's.
    #[inline(always)]
    pub fn last_names(&self) -> (u64, u64) {
        let link: Link = kernel::read(self.dentry, offset!(dentry_parent));
        let above: Link = kernel::read(link.parent, offset!(dentry_parent));
        (link.name, above.name)
    }
}

/// Writes the section `tag` with the components of `path`.
#[inline(always)]
pub fn section(writer: &mut Writer, tag: u8, path: Path) {
    let mut open = writer.section(tag);
    let root = Path::root();
    let mut climb = Climb {
        class: writer.class().into(),
        start: writer.end(),
        at: path,
        mount_root: kernel::pointer(path.mount, offset!(vfsmount_root)),
        root,
        root_at: BELOW_ROOT,
        flags: section_flags::TRUNCATED.into(),
    };
    writer.suspend();
    kernel::repeat(PATH_COMPONENTS, &mut climb, step);
    writer.reload();
    open.flags = climb.flags as u8;
    if deleted(path.dentry) {
        open.flags |= section_flags::DELETED;
    }
    if climb.root_at == BELOW_ROOT {
        climb.root_at = writer.end() - climb.start;
        open.flags |= section_flags::UNREACHABLE;
    }
    open.root_at = climb.root_at as u16;
    writer.close(open);
}

/// `Climb::root_at` until the process's root is met.
const BELOW_ROOT: u64 = u64::MAX;

/// How far a walk has come.
struct Climb {
    class: u64,
    start: u64,
    at: Path,
    /// The dentry at which the mount `at.mount` begins.
    mount_root: u64,
    root: Path,
    root_at: u64,
    /// TRUNCATED until the walk has ended.
    flags: u64,
}

const CONTINUE: u64 = 0;
const STOP: u64 = 1;

/// One component, or one crossing of a mount.
extern "C" fn step(_: u64, climb: *mut Climb) -> u64 {
    // SAFETY: bpf_loop passes on the pointer that `section` gave it.
    let climb = unsafe { &mut *climb };
    let Some(mut writer) = Writer::resume(climb.class as u8) else {
        return STOP;
    };
    if climb.root_at == BELOW_ROOT && climb.at == climb.root {
        climb.root_at = writer.end() - climb.start;
    }
    if climb.at.dentry == climb.mount_root {
        return cross(climb);
    }
    let link: Link = kernel::read(climb.at.dentry, offset!(dentry_parent));
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
fn cross(climb: &mut Climb) -> u64 {
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

/// As d_unlinked() has it: not in the hash, and not a root.
#[inline(always)]
fn deleted(dentry: u64) -> bool {
    let unhashed = kernel::pointer(dentry, offset!(dentry_hash_pprev)) == 0;
    unhashed && kernel::pointer(dentry, offset!(dentry_parent)) != dentry
}
