//! Where do a call's names lead? Looked up by this process, after the run, by its own means.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use audit_proto::text::escape;

use crate::strace::Call;

/// How a call names a file: positions of arguments.
#[derive(Debug, Clone, Copy)]
pub enum Name {
    /// From the working directory.
    Path(usize),
    /// From a directory's descriptor.
    At(usize, usize),
    /// The same two, and what a final link leads to.
    Follow(usize),
    FollowAt(usize, usize),
    Descriptor(usize),
    No,
}

use Name::{At, Descriptor, Follow, FollowAt, No, Path as Plain};

/// Calls about one or two files.
const CALLS: &[(&str, Name, Name)] = &[
    ("unlink", Plain(0), No),
    ("unlinkat", At(0, 1), No),
    ("rmdir", Plain(0), No),
    ("rename", Plain(0), Plain(1)),
    ("renameat", At(0, 1), At(2, 3)),
    ("renameat2", At(0, 1), At(2, 3)),
    ("link", Plain(0), Plain(1)),
    ("linkat", At(0, 1), At(2, 3)),
    ("symlink", No, Plain(1)),
    ("symlinkat", No, At(1, 2)),
    ("mkdir", Plain(0), No),
    ("mkdirat", At(0, 1), No),
    ("mknod", Plain(0), No),
    ("mknodat", At(0, 1), No),
    ("chmod", Follow(0), No),
    ("fchmod", Descriptor(0), No),
    ("fchmodat", FollowAt(0, 1), No),
    ("chown", Follow(0), No),
    ("lchown", Plain(0), No),
    ("fchown", Descriptor(0), No),
    ("fchownat", FollowAt(0, 1), No),
    ("truncate", Follow(0), No),
    ("ftruncate", Descriptor(0), No),
    ("setxattr", Follow(0), No),
    ("lsetxattr", Plain(0), No),
    ("fsetxattr", Descriptor(0), No),
    ("removexattr", Follow(0), No),
    ("lremovexattr", Plain(0), No),
    ("fremovexattr", Descriptor(0), No),
    ("mount", Follow(1), No),
    ("umount2", Follow(0), No),
    ("pivot_root", Plain(0), Plain(1)),
    ("execve", Plain(0), No),
    ("execveat", At(0, 1), No),
    ("open", Plain(0), No),
    ("creat", Plain(0), No),
    ("openat", At(0, 1), No),
    ("openat2", At(0, 1), No),
];

/// Both files of the call, as the record writes paths; "-" for none.
pub fn files(call: &Call) -> Result<(String, String)> {
    let (_, first, second) = CALLS
        .iter()
        .find(|(name, ..)| *name == call.name)
        .with_context(|| {
            format!(
                "witness/names.rs does not know where {} has paths",
                call.name
            )
        })?;
    Ok((file(call, *first)?, file(call, *second)?))
}

fn file(call: &Call, name: Name) -> Result<String> {
    let path = match name {
        No => return Ok("-".to_owned()),
        Descriptor(at) => PathBuf::from(OsStr::from_bytes(&call.argument(at)?.path()?)),
        Plain(at) | Follow(at) => joined(call.cwd.clone(), call, at)?,
        At(directory, at) | FollowAt(directory, at) => {
            // For an absolute name the descriptor may be anything.
            let base = call.argument(directory)?.path().unwrap_or_default();
            joined(base, call, at)?
        }
    };
    let path = match name {
        Follow(_) | FollowAt(..) => path.canonicalize().unwrap_or_else(|_| beside(&path)),
        Plain(_) | At(..) => beside(&path),
        Descriptor(_) | No => path,
    };
    Ok(escape(path.as_os_str().as_bytes()).into_owned())
}

fn joined(base: Vec<u8>, call: &Call, at: usize) -> Result<PathBuf> {
    let given = call.argument(at)?.text()?;
    Ok(Path::new(OsStr::from_bytes(&base)).join(OsStr::from_bytes(&given)))
}

/// The name in the directory that it really is in; where that is gone, without looking.
fn beside(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return clean(path);
    };
    let parent = parent.canonicalize().unwrap_or_else(|_| clean(parent));
    parent.join(name)
}

fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}
