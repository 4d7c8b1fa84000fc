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

/// Requests of the ring may use this thread's credentials, by the number that it returns.
#[expect(unsafe_code, reason = "a system call")]
pub fn register_personality(ring: i32) -> io::Result<u16> {
    const IORING_REGISTER_PERSONALITY: libc::c_int = 9;
    // SAFETY: no memory is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            IORING_REGISTER_PERSONALITY,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    done(result)?;
    u16::try_from(result).map_err(io::Error::other)
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

#[expect(unsafe_code, reason = "a system call")]
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = text(at)?;
    // SAFETY: the text ends with NUL and outlives the call.
    done(unsafe { libc::umount2(at.as_ptr(), 0) }.into())
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

/// A call that takes numbers only.
#[expect(unsafe_code, reason = "a system call")]
pub fn call(number: libc::c_long, [a, b, c]: [i64; 3]) -> io::Result<()> {
    // SAFETY: callers pass no addresses but null.
    done(unsafe { libc::syscall(number, a, b, c, 0, 0) })
}

/// This thread alone, not the process: glibc's setresuid would change every thread.
pub fn thread_becomes_nobody() -> io::Result<()> {
    const NOBODY: i64 = 65534;
    call(libc::SYS_setresuid, [NOBODY, NOBODY, NOBODY])
}

#[expect(unsafe_code, reason = "a system call")]
pub fn truncate(path: &Path, size: i64) -> io::Result<()> {
    let path = text(path)?;
    // SAFETY: the text ends with NUL and outlives the call.
    done(unsafe { libc::syscall(libc::SYS_truncate, path.as_ptr(), size) })
}

/// Waits until a traced child has stopped.
#[expect(unsafe_code, reason = "a system call")]
pub fn wait_stopped(pid: u32) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: the status is ours.
    done(unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) }.into())
}

#[expect(unsafe_code, reason = "a system call")]
pub fn set_host_name(name: &str) -> io::Result<()> {
    let size = name.len();
    let name = CString::new(name).map_err(io::Error::from)?;
    // SAFETY: the text outlives the call.
    done(unsafe { libc::sethostname(name.as_ptr(), size) }.into())
}

/// Every one of them with an argument that the kernel refuses, except for the harmless last two.
#[expect(unsafe_code, reason = "system calls")]
pub fn refused_kernel_changes() -> io::Result<()> {
    let late = libc::timespec {
        tv_sec: 1,
        tv_nsec: 2_000_000_000,
    };
    // In memory that was written to: what the kernel refuses before it reads it may not be there yet.
    let texts = (c"a=1".to_owned(), c"no_such_module".to_owned());
    let (parameters, module) = std::hint::black_box(texts);
    // SAFETY: all texts end with NUL; sizes are those of what is pointed to.
    unsafe {
        let none = std::ptr::null::<u8>();
        libc::syscall(libc::SYS_init_module, c"x".as_ptr(), 1, parameters.as_ptr());
        libc::syscall(libc::SYS_delete_module, module.as_ptr(), libc::O_NONBLOCK);
        libc::syscall(libc::SYS_reboot, 1, 2, 3, none);
        libc::syscall(
            libc::SYS_clock_settime,
            libc::CLOCK_REALTIME,
            &raw const late,
        );
        libc::syscall(libc::SYS_umount2, c"/no/such/mount".as_ptr(), 0);
        libc::syscall(libc::SYS_swapon, c"/no/such/swap".as_ptr(), 0);
        libc::syscall(libc::SYS_personality, u64::from(u32::MAX));
        let process_keyring = -2;
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"hostaudit:test".as_ptr(),
            c"x".as_ptr(),
            1,
            process_keyring,
        );
    }
    Ok(())
}

/// An array of one element.
#[expect(unsafe_code, reason = "a system call")]
pub fn make_bpf_map(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    const MAP_CREATE: i32 = 0;
    const ARRAY: u32 = 2;
    // union bpf_attr: type, key size, value size, entries; the name at byte 28.
    let mut attributes = [0_u8; 72];
    for (at, value) in [(0, ARRAY), (4, 4), (8, 8), (12, 1)] {
        attributes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    attributes[28..28 + name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the size is that of the attributes; the descriptor that comes back is ours.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            attributes.as_ptr(),
            attributes.len(),
        );
        done(fd)?;
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Memory that a 32-bit address reaches.
pub struct LowMemory {
    start: *mut u8,
    used: usize,
}

impl LowMemory {
    const BYTES: usize = 64 << 10;

    #[expect(unsafe_code, reason = "a system call")]
    pub fn map() -> io::Result<Self> {
        // SAFETY: a new mapping, which touches nothing that is there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            used: 0,
        })
    }

    /// Copies `bytes` there; `None` when it is full.
    #[expect(unsafe_code, reason = "memory that a system call will read")]
    pub fn put(&mut self, bytes: &[u8]) -> Option<u32> {
        let at = self.used.next_multiple_of(16);
        if at + bytes.len() > Self::BYTES {
            return None;
        }
        self.used = at + bytes.len();
        // SAFETY: within the mapping, which is never unmapped.
        unsafe {
            let to = self.start.add(at);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            u32::try_from(to as usize).ok()
        }
    }
}

/// A call by the 32-bit door; what it returned.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a system call")]
pub fn int80(number: u32, [a, b, c]: [u32; 3]) -> i32 {
    let result: i32;
    // SAFETY: callers pass addresses of live low memory. rbx is the compiler's own, so it is saved;
    // the kernel clears r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {a}",
            "int 0x80",
            "xchg rbx, {a}",
            a = inout(reg) u64::from(a) => _,
            inout("eax") number => result,
            in("ecx") b,
            in("edx") c,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}
