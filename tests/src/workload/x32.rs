//! System calls by the x32 ABI: numbers with a bit of their own, of a 64-bit program that wants to get
//! past an audit which knows the plain numbers only.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{Workload, ours, quoted, system};

pub fn x32(work: &mut Workload) -> Result<()> {
    if !system::x32_is_served() {
        eprintln!(
            "x32 is not served here (CONFIG_X86_X32_ABI, syscall.x32=y): an attempt is expected"
        );
        return refused(work);
    }
    let (made, moved) = (work.path("made-by-x32"), work.path("moved-by-x32"));
    let mut room = system::LowMemory::map()?;
    let made_at = text(&made)?;
    let moved_at = text(&moved)?;
    let flags = i64::from(libc::O_CREAT | libc::O_WRONLY);
    let fd = system::x32(libc::SYS_open, [made_at.as_ptr() as i64, flags, 0o600])?;
    system::x32(libc::SYS_close, [fd, 0, 0])?;
    let (from, to) = (made_at.as_ptr() as i64, moved_at.as_ptr() as i64);
    system::x32(libc::SYS_rename, [from, to, 0])?;
    system::x32(libc::SYS_unlink, [to, 0, 0])?;
    // Numbers of x32 only, whose arrays have 32-bit pointers.
    const EXECVE: i64 = 520;
    let missing = room.put(b"/no/such/x32\0").context("no room")?;
    let argv = room.put(&[missing.to_le_bytes(), [0; 4]].concat());
    let argv = i64::from(argv.context("no room")?);
    let refused = system::x32(EXECVE, [missing.into(), argv, 0]);
    ensure!(refused.is_err(), "a missing program was executed");

    let us = ours();
    let (made, moved) = (quoted(made), quoted(moved));
    for (what, condition) in [
        (
            "open",
            format!("kind = 'open' and file_path = {made} and file_access = 'create'"),
        ),
        (
            "rename",
            format!(
                "kind = 'rename' and syscall_abi = 'x32' and file_path = {made} \
                 and target_file_path = {moved}"
            ),
        ),
        (
            "unlink",
            format!("kind = 'unlink' and syscall_abi = 'x32' and file_path = {moved}"),
        ),
        (
            "execve",
            "kind = 'exec_failed' and file_path = '/no/such/x32' and result_error = 'ENOENT' \
             and target_process_argv = ['/no/such/x32']"
                .to_owned(),
        ),
    ] {
        work.once(format!("x32: {what}"), format!("{us} and {condition}"));
    }
    Ok(())
}

/// Also an attempt is told.
fn refused(work: &mut Workload) -> Result<()> {
    let path = text(&work.path("by-x32"))?;
    let at = path.as_ptr() as i64;
    let result = system::x32(libc::SYS_rename, [at, at, 0]);
    ensure!(result.is_err(), "x32 is served after all");
    let told = "kind = 'rename' and syscall_abi = 'x32' and result_error = 'ENOSYS'";
    work.once("x32: an attempt", format!("{} and {told}", ours()));
    Ok(())
}

fn text(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
