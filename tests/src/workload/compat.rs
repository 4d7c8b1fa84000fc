//! System calls by `int 0x80`: a 64-bit program that uses the 32-bit door, as one that wants to get
//! past an audit would.

use std::{ffi::CString, os::unix::ffi::OsStrExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{Workload, dns, ours, quoted, system};

/// An argument in the first 4 GiB, which is all that a 32-bit call can point to.
fn low(room: &mut system::LowMemory, text: &[u8]) -> Result<u32> {
    let text = CString::new(text)?;
    room.put(text.as_bytes_with_nul())
        .context("no room in the low memory")
}

pub fn compat(work: &mut Workload) -> Result<()> {
    // arch/x86/entry/syscalls/syscall_32.tbl
    const UNLINK: u32 = 10;
    const EXECVE: u32 = 11;
    const RENAME: u32 = 38;
    const MKDIR: u32 = 39;
    const OPEN: u32 = 5;
    const CLOSE: u32 = 6;
    let mut room = system::LowMemory::map()?;
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let (made, moved, directory) = (
        work.path("made-by-int80"),
        work.path("moved"),
        work.path("directory"),
    );
    let made_at = low(&mut room, &bytes(&made))?;
    let moved_at = low(&mut room, &bytes(&moved))?;
    let directory_at = low(&mut room, &bytes(&directory))?;
    let flags = (libc::O_CREAT | libc::O_WRONLY) as u32;
    let fd = system::int80(OPEN, [made_at, flags, 0o600]);
    ensure!(fd >= 0, "int 0x80 is not served here: {fd}");
    system::int80(CLOSE, [fd as u32, 0, 0]);
    system::int80(RENAME, [made_at, moved_at, 0]);
    system::int80(MKDIR, [directory_at, 0o700, 0]);
    system::int80(UNLINK, [moved_at, 0, 0]);
    let missing = low(&mut room, b"/no/such/program")?;
    let argument = low(&mut room, b"an-argument")?;
    let argv = room.put(&[missing.to_le_bytes(), argument.to_le_bytes(), [0; 4]].concat());
    system::int80(EXECVE, [missing, argv.context("room")?, 0]);
    let connected = connect(&mut room)?;

    let us = ours();
    let (made, moved, directory) = (quoted(made), quoted(moved), quoted(directory));
    for (what, condition) in [
        (
            "open",
            format!("kind = 'open' and file_path = {made} and file_access = 'create'"),
        ),
        (
            "rename",
            format!(
                "kind = 'rename' and syscall_abi = 'i386' and file_path = {made} \
                 and target_file_path = {moved}"
            ),
        ),
        (
            "mkdir",
            format!("kind = 'mkdir_mknod' and syscall_abi = 'i386' and file_path = {directory}"),
        ),
        (
            "unlink",
            format!("kind = 'unlink' and syscall_abi = 'i386' and file_path = {moved}"),
        ),
        (
            "execve",
            "kind = 'exec_failed' and file_path = '/no/such/program' and result_error = 'ENOENT' \
             and target_process_argv = ['/no/such/program', 'an-argument']"
                .to_owned(),
        ),
        (
            "connect by socketcall",
            format!(
                "kind = 'connect' and socket_peer_address = '127.0.0.1' and socket_peer_port = {connected}"
            ),
        ),
    ] {
        work.once(format!("int 0x80: {what}"), format!("{us} and {condition}"));
    }
    ask(work, &mut room)
}

/// A connection by socketcall, whose arguments are in memory; the port that it went to.
fn connect(room: &mut system::LowMemory) -> Result<u16> {
    const SOCKETCALL: u32 = 102;
    const SOCKET: u32 = 1;
    const CONNECT: u32 = 3;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let arguments = room.put(&words([2, 1, 0])).context("room")?;
    let socket = system::int80(SOCKETCALL, [SOCKET, arguments, 0]);
    ensure!(socket >= 0, "socket by socketcall: {socket}");
    let [high, lower] = port.to_be_bytes();
    let address = room.put(&[2, 0, high, lower, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let arguments = room.put(&words([socket as u32, address.context("room")?, 16]));
    let result = system::int80(SOCKETCALL, [CONNECT, arguments.context("room")?, 0]);
    ensure!(result == 0, "connect by socketcall: {result}");
    Ok(port)
}

/// Asks for an address by socketcall; whether anybody hears it is another question.
fn ask(work: &mut Workload, room: &mut system::LowMemory) -> Result<()> {
    const ASKED: &str = "by.int80.test";
    const SOCKETCALL: u32 = 102;
    const SOCKET: u32 = 1;
    const SENDTO: u32 = 11;
    const DATAGRAM: u32 = 2;
    let arguments = room.put(&words([2, DATAGRAM, 0])).context("room")?;
    let socket = system::int80(SOCKETCALL, [SOCKET, arguments, 0]);
    ensure!(socket >= 0, "socket by socketcall: {socket}");
    let message = dns::query_address(80, ASKED);
    let at = room.put(&message).context("room")?;
    let address = room.put(&[2, 0, 0, 53, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let size = message.len() as u32;
    let arguments = words([socket as u32, at, size, 0, address.context("room")?, 16]);
    let arguments = room.put(&arguments).context("room")?;
    let sent = system::int80(SOCKETCALL, [SENDTO, arguments, 0]);
    ensure!(sent == size as i32, "sendto by socketcall: {sent}");
    work.once(
        "int 0x80: a DNS query by socketcall",
        format!(
            "kind = 'dns' and {} and socket_peer_address = '127.0.0.1' and dns_response = false \
             and dns_query_name = '{ASKED}' and dns_id = 80",
            ours()
        ),
    );
    Ok(())
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
