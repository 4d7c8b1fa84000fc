//! System calls that no safe library offers in the form that a test needs.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::atomic::AtomicU8,
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

/// `upper` over `lower`, to be seen at `merged`.
#[expect(unsafe_code, reason = "a system call")]
pub fn mount_overlay(lower: &Path, upper: &Path, work: &Path, merged: &Path) -> io::Result<()> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let (options, merged) = (CString::new(options)?, text(merged)?);
    // SAFETY: all texts end with NUL and outlive the call.
    let result = unsafe {
        libc::mount(
            c"overlay".as_ptr(),
            merged.as_ptr(),
            c"overlay".as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    };
    done(result.into())
}

/// Unmounts it once nobody uses it any more.
#[expect(unsafe_code, reason = "a system call")]
pub fn detach(at: &Path) -> io::Result<()> {
    let at = text(at)?;
    // SAFETY: the text ends with NUL and outlives the call.
    done(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) }.into())
}

/// FS_IOC_GETVERSION
#[expect(unsafe_code, reason = "a system call")]
pub fn generation(file: impl AsFd) -> io::Result<u32> {
    const GET: libc::c_ulong = 0x8008_7601;
    let mut generation = 0_u64;
    // SAFETY: file systems write four or eight bytes, of which there are eight.
    done(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET, &raw mut generation) }.into())?;
    Ok(generation as u32)
}

#[expect(unsafe_code, reason = "a system call")]
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = text(at)?;
    // SAFETY: the text ends with NUL and outlives the call.
    done(unsafe { libc::umount2(at.as_ptr(), 0) }.into())
}

/// Ends this process here and now.
#[expect(unsafe_code, reason = "a system call")]
pub fn end() -> ! {
    // SAFETY: nothing of this process is used any more.
    unsafe { libc::_exit(0) }
}

/// Moves bytes from a pipe to where a file's position is.
#[expect(unsafe_code, reason = "a system call")]
pub fn splice(from: impl AsFd, to: impl AsFd, bytes: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let null = std::ptr::null_mut();
    // SAFETY: no memory is passed.
    let moved = unsafe { libc::splice(from, null, to, null, bytes, 0) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// A file in memory, shared with whoever maps it too.
pub struct Mapping {
    address: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "a system call")]
    pub fn of(file: impl AsFd, bytes: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: at an address that the kernel chooses; nothing else is there.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, bytes })
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "a system call")]
    fn drop(&mut self) {
        // SAFETY: mapped above, and nobody has a reference into it.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
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

/// A message queue to write to, whose name is gone already.
#[expect(unsafe_code, reason = "a system call")]
pub fn message_queue(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    let name = CString::new(format!("/{name}"))?;
    // SAFETY: a name, and attributes that may be absent; the descriptor is new and ours.
    unsafe {
        use std::os::fd::FromRawFd as _;
        let flags = libc::O_CREAT | libc::O_RDWR;
        let queue = libc::mq_open(
            name.as_ptr(),
            flags,
            0o600,
            std::ptr::null::<libc::mq_attr>(),
        );
        if queue < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::mq_unlink(name.as_ptr());
        Ok(std::os::fd::OwnedFd::from_raw_fd(queue))
    }
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
    // Written by us: a page that nobody has touched yet, as one of constants may be, is not there
    // for kernel programs, and a kernel that has no modules does not touch it.
    let (module, parameters) = (CString::new("no_such_module")?, CString::new("a=1")?);
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
    // Before Linux 5.11 maps count as locked memory; where more cannot be had, it is not needed.
    let unlimited = rustix::process::Rlimit {
        current: None,
        maximum: None,
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
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

/// Removes from every map of that name an element that it does not have; how many there are.
#[expect(unsafe_code, reason = "system calls")]
pub fn disturb_bpf_maps(name: &str) -> io::Result<usize> {
    use std::os::fd::FromRawFd as _;
    const DELETE_ELEM: i32 = 3;
    const MAP_GET_NEXT_ID: i32 = 12;
    const MAP_GET_FD_BY_ID: i32 = 14;
    const OBJ_GET_INFO_BY_FD: i32 = 15;
    const NAME_AT: usize = 24;
    // `union bpf_attr` in words; what a command does not know of it is zero.
    let bpf = |command: i32, attributes: &mut [u64; 4]| {
        // SAFETY: the size is that of the attributes; what they point to outlives the call.
        unsafe {
            let size = size_of_val(attributes);
            libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size)
        }
    };
    let (mut id, mut found) = (0, 0);
    loop {
        let mut next = [id, 0, 0, 0];
        if bpf(MAP_GET_NEXT_ID, &mut next) != 0 {
            return Ok(found);
        }
        id = next[0] >> 32;
        let fd = bpf(MAP_GET_FD_BY_ID, &mut [id, 0, 0, 0]);
        if fd < 0 {
            continue; // gone meanwhile
        }
        // SAFETY: the descriptor came back just now and is ours.
        let map = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as i32) };
        let mut info = [0_u8; 80];
        let what = map.as_raw_fd() as u64 | (info.len() as u64) << 32;
        done(bpf(
            OBJ_GET_INFO_BY_FD,
            &mut [what, info.as_mut_ptr() as u64, 0, 0],
        ))?;
        if info[NAME_AT..].starts_with(name.as_bytes()) && info[NAME_AT + name.len()] == 0 {
            let key = u32::MAX;
            let element = [map.as_raw_fd() as u64, (&raw const key) as u64, 0, 0];
            bpf(DELETE_ELEM, &mut element.clone());
            found += 1;
        }
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

/// A call by its x32 number.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a system call")]
pub fn x32(number: libc::c_long, [a, b, c]: [i64; 3]) -> io::Result<i64> {
    const X32: libc::c_long = 0x4000_0000;
    // SAFETY: callers pass addresses of memory that outlives the call.
    let result = unsafe { libc::syscall(X32 | number, a, b, c) };
    done(result)?;
    Ok(result)
}

pub fn x32_is_served() -> bool {
    x32(libc::SYS_getpid, [0; 3]).is_ok()
}

/// Connects to a port of 127.0.0.1; the register of the descriptor is not zero above its 32 bits.
#[expect(unsafe_code, reason = "a system call")]
pub fn connect_with_full_register(socket: &impl std::os::fd::AsFd, port: u16) -> io::Result<()> {
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    let register = i64::from(socket.as_fd().as_raw_fd()) | 0x5a5a_5a5a << 32;
    // SAFETY: the address outlives the call and has the size given.
    done(unsafe { libc::syscall(libc::SYS_connect, register, address.as_ptr(), address.len()) })
}

/// A network namespace for this thread and those that it starts, with `lo` up and these addresses
/// on it.
#[expect(unsafe_code, reason = "system calls")]
pub fn own_network(four: std::net::Ipv4Addr, six: std::net::Ipv6Addr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    /// `struct in6_ifreq` (linux/ipv6.h).
    #[repr(C)]
    struct Request6 {
        address: [u8; 16],
        prefix: u32,
        interface: i32,
    }
    /// The first interface of a namespace.
    const LO: i32 = 1;
    // SAFETY: requests are zeroed structures of the kernel's form, whose fields are set before use;
    // interface names end with NUL.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNET).into())?;
        let inet = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let inet6 = socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
        let named = |name: &CStr| {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
                *to = (*from).cast_signed();
            }
            request
        };
        let mut up = named(c"lo");
        up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        done(libc::ioctl(inet.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const up).into())?;
        let mut more = named(c"lo:1");
        more.ifr_ifru.ifru_addr.sa_family = libc::AF_INET as u16;
        for (to, from) in (2..).zip(four.octets()) {
            more.ifr_ifru.ifru_addr.sa_data[to] = from.cast_signed();
        }
        done(libc::ioctl(inet.as_raw_fd(), libc::SIOCSIFADDR, &raw const more).into())?;
        let more = Request6 {
            address: six.octets(),
            prefix: 128,
            interface: LO,
        };
        done(libc::ioctl(inet6.as_raw_fd(), libc::SIOCSIFADDR, &raw const more).into())
    }
}

/// Sends all `messages` with one sendmmsg, each in two segments.
pub fn send_messages(socket: BorrowedFd<'_>, messages: &mut [Vec<u8>]) -> io::Result<()> {
    each_message(libc::SYS_sendmmsg, socket, messages)
}

/// Receives as many messages as there is room for, with one recvmmsg.
pub fn receive_messages(socket: BorrowedFd<'_>, room: &mut [Vec<u8>]) -> io::Result<()> {
    each_message(libc::SYS_recvmmsg, socket, room)
}

#[expect(unsafe_code, reason = "a system call")]
fn each_message(
    number: libc::c_long,
    socket: BorrowedFd<'_>,
    buffers: &mut [Vec<u8>],
) -> io::Result<()> {
    const FIRST: usize = 5;
    // SAFETY: headers point to segments, and these to buffers, which all outlive the call.
    unsafe {
        let segments = buffers.iter_mut().map(|buffer| {
            let (first, rest) = buffer.split_at_mut(FIRST);
            [first, rest].map(|part| libc::iovec {
                iov_base: part.as_mut_ptr().cast(),
                iov_len: part.len(),
            })
        });
        let mut segments: Vec<[libc::iovec; 2]> = segments.collect();
        let headers = segments.iter_mut().map(|segments| {
            let mut header: libc::mmsghdr = std::mem::zeroed();
            header.msg_hdr.msg_iov = segments.as_mut_ptr();
            header.msg_hdr.msg_iovlen = segments.len() as _;
            header
        });
        let mut headers: Vec<libc::mmsghdr> = headers.collect();
        let none = std::ptr::null::<libc::timespec>();
        let moved = libc::syscall(
            number,
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            headers.len(),
            0,
            none,
        );
        done(moved)?;
        for (buffer, header) in buffers.iter_mut().zip(&headers) {
            buffer.truncate(header.msg_len as usize);
        }
        if moved == buffers.len() as libc::c_long {
            Ok(())
        } else {
            Err(io::Error::other("not all messages went at once"))
        }
    }
}

/// unlink of a text that changes meanwhile.
#[expect(unsafe_code, reason = "a system call")]
pub fn unlink_text(text: *const AtomicU8) -> io::Result<()> {
    // SAFETY: the text ends with NUL, which does not change, and outlives the call.
    done(unsafe { libc::syscall(libc::SYS_unlink, text) })
}

#[expect(unsafe_code, reason = "a system call")]
pub fn rename_text(from: *const AtomicU8, to: &Path) -> io::Result<()> {
    let to = text(to)?;
    // SAFETY: as above.
    done(unsafe { libc::syscall(libc::SYS_rename, from, to.as_ptr()) })
}

#[expect(unsafe_code, reason = "a system call")]
pub fn open_text(text: *const AtomicU8) -> io::Result<std::fs::File> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: as above; the descriptor that comes back is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open, text, libc::O_WRONLY | libc::O_CLOEXEC);
        done(fd)?;
        Ok(std::fs::File::from_raw_fd(fd as i32))
    }
}

/// A connection to a `struct sockaddr_in` that changes meanwhile.
#[expect(unsafe_code, reason = "a system call")]
pub fn connect_address(address: &[AtomicU8; 16]) -> io::Result<std::os::fd::OwnedFd> {
    let family = rustix::net::AddressFamily::INET;
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None)?;
    // SAFETY: the size is that of the address, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_connect,
            socket.as_raw_fd(),
            address.as_ptr(),
            address.len(),
        )
    };
    done(result)?;
    Ok(socket)
}

/// Runs the program at a path that changes meanwhile; its exit status. The child shares the memory
/// until it is another program.
#[expect(unsafe_code, reason = "a system call")]
pub fn spawn_text(path: *const AtomicU8) -> io::Result<i32> {
    let arguments = [c"raced".as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    let (mut pid, mut status) = (0, 0);
    // SAFETY: both arrays end with null and outlive the call, as does the path.
    unsafe {
        let error = libc::posix_spawn(
            &raw mut pid,
            path.cast(),
            std::ptr::null(),
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        done(libc::waitpid(pid, &raw mut status, 0).into())?;
    }
    Ok(status)
}
