//! Where an object is: walks from a dentry through its parents and mounts up to the root of the
//! mount namespace, and writes the components on the way, last first.
//!
//! Names are read without the locks that d_path takes: a rename at the same instant may show the
//! old or the new name of a component.

use audit_common::{
    limits::{NAME_BYTES, PATH_COMPONENTS},
    record::section_flags,
};

use crate::{
    kernel,
    record::{Open, Writer},
    settings::offset,
    task,
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
// Its own function: the verifier checks a BPF function's body once for each call, and programs
// call it up to three times, but the instructions are there once.
#[inline(always)]
pub fn section(writer: &mut Writer, tag: u8, path: Path) {
    let mut open = writer.section(tag);
    walk(writer, &mut open, path);
    writer.close(open);
}

#[inline(always)]
fn walk(writer: &mut Writer, open: &mut Open, path: Path) {
    let root = Path::root();
    let Path {
        mount: mut vfsmount,
        mut dentry,
    } = path;
    let mut mount_root = kernel::pointer(vfsmount, offset!(vfsmount_root));
    let mut below_root = true;
    let mut last = true;
    for _ in 0..PATH_COMPONENTS {
        if below_root && dentry == root.dentry && vfsmount == root.mount {
            below_root = false;
            open.root_at = writer.length(open) as u16;
        }
        if dentry == mount_root {
            let mount = vfsmount - offset!(mount_mnt) as u64;
            let above = kernel::pointer(mount, offset!(mount_parent));
            if above == mount {
                finish(writer, open, below_root);
                return;
            }
            dentry = kernel::pointer(mount, offset!(mount_mountpoint));
            vfsmount = above + offset!(mount_mnt) as u64;
            mount_root = kernel::pointer(vfsmount, offset!(vfsmount_root));
            continue;
        }
        let link: Link = kernel::read(dentry, offset!(dentry_parent));
        if last {
            last = false;
            // As d_unlinked() has it: not in the hash, and not a root.
            let unhashed = kernel::pointer(dentry, offset!(dentry_hash_pprev)) == 0;
            if unhashed && link.parent != dentry {
                open.flags |= section_flags::DELETED;
            }
        }
        if link.parent == dentry {
            // A root that is not where it is mounted: memfd, pipe, or a detached tree.
            open.flags |= section_flags::PSEUDO;
            writer.kernel_text::<{ NAME_BYTES as u32 }>(link.name);
            finish(writer, open, below_root);
            return;
        }
        if writer.kernel_text::<{ NAME_BYTES as u32 }>(link.name) == 0 || !writer.has_room() {
            break;
        }
        dentry = link.parent;
    }
    open.truncated();
    finish(writer, open, below_root);
}

#[inline(always)]
fn finish(writer: &Writer, open: &mut Open, below_root: bool) {
    if below_root {
        open.root_at = writer.length(open) as u16;
        open.flags |= section_flags::UNREACHABLE;
    }
}
