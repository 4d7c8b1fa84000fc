//! System calls that no safe library offers in the form that a test needs.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes the program in `file`; returns only on failure.
#[expect(unsafe_code, reason = "a system call")]
pub fn exec_file(file: BorrowedFd<'_>, arguments: &[&CStr]) -> io::Error {
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with null and outlive the call; the texts end with NUL.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Mounts of this process are its own from now on.
#[expect(unsafe_code, reason = "a system call")]
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: no memory is passed but constants.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS).into())?;
        done(
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            )
            .into(),
        )
    }
}

#[expect(unsafe_code, reason = "a system call")]
pub fn bind_mount(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (text(from)?, text(to)?);
    // SAFETY: both texts end with NUL and outlive the call.
    let result = unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            std::ptr::null(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    };
    done(result.into())
}

#[expect(unsafe_code, reason = "a system call")]
pub fn mount_tmpfs(at: &Path) -> io::Result<()> {
    let at = text(at)?;
    // SAFETY: as above.
    let result = unsafe {
        libc::mount(
            c"tmpfs".as_ptr(),
            at.as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    done(result.into())
}

/// creat(2), which libraries replace by open.
#[expect(unsafe_code, reason = "a system call")]
pub fn creat(path: &Path) -> io::Result<()> {
    let path = text(path)?;
    // SAFETY: the text ends with NUL; the descriptor is closed at once.
    unsafe {
        let fd = libc::syscall(libc::SYS_creat, path.as_ptr(), 0o600);
        done(fd)?;
        libc::close(fd as i32);
    }
    Ok(())
}
