//! The end of open files: told when the last holder lets go, with what went through them.

use std::{
    fs::{self, File, OpenOptions},
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, IntoRawFd as _, OwnedFd},
        unix::{
            fs::{FileExt as _, MetadataExt as _},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{Mode, OFlags},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};

use super::{Workload, ours, quoted, system};

impl Workload {
    /// The only close of `path`, by this process.
    fn closed(&mut self, action: &str, path: &Path, more: &str) {
        self.closed_by(action, path, &format!("{} and {more}", ours()));
    }

    /// The only close of `path`, whoever is asked for in `more`.
    fn closed_by(&mut self, action: &str, path: &Path, more: &str) {
        let path = quoted(path);
        let close = format!("kind = 'close_write' and file_path = {path}");
        self.once(action, format!("{close} and {more}"));
        self.once(format!("{action}: and no other close of it"), close);
    }
}

fn moved(read: usize, written: usize) -> String {
    format!("file_bytes_read = {read} and file_bytes_written = {written}")
}

pub fn closes(work: &mut Workload) -> Result<()> {
    plain(work)?;
    counts(work)?;
    whole_files(work)?;
    duplicates(work)?;
    ends_of_processes(work)?;
    other_holders(work)?;
    removed(work)?;
    untold(work)
}

fn plain(work: &mut Workload) -> Result<()> {
    let (made, cut) = (work.path("made"), work.path("cut"));
    fs::write(&made, "12345")?;
    work.closed(
        "what was written to a new file",
        &made,
        &format!(
            "{} and file_size_bytes = 5 and file_position_bytes = 5 and file_access = 'create' \
             and file_inode = {} and file_path_source = 'kernel' and file_open_duration_ns > 0 \
             and file_deleted is null",
            moved(0, 5),
            fs::metadata(&made)?.ino()
        ),
    );
    fs::rename(&made, &cut)?;
    let mut file = File::create(&cut)?;
    file.write_all(b"ab")?;
    drop(file);
    let read = work.path("read");
    fs::write(&read, "abcdef")?;
    let again = work.path("again");
    fs::rename(&read, &again)?;
    let mut file = OpenOptions::new().read(true).write(true).open(&again)?;
    file.read_exact(&mut [0; 4])?;
    drop(file);
    work.closed(
        "a file that was cut by its open",
        &cut,
        &format!("{} and file_access = 'truncate'", moved(0, 2)),
    );
    work.closed(
        "a file that was only read, but open for writing",
        &again,
        &format!("{} and file_access = 'write'", moved(4, 0)),
    );
    Ok(())
}

/// Every call that moves bytes.
fn counts(work: &mut Workload) -> Result<()> {
    let path = work.path("counted");
    let mut file = open(&path)?;
    file.write_all(b"12345678")?;
    ensure!(file.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"c")])? == 3);
    file.write_all_at(b"pwrite", 0)?;
    let vectors = [IoSlice::new(b"v"), IoSlice::new(b"ec")];
    ensure!(rustix::io::pwritev(&file, &vectors, 0)? == 3);
    ensure!(file.read_at(&mut [0; 2], 0)? == 2);
    let position = file.metadata()?.size();
    drop(file);
    work.closed(
        "write, writev, pwrite, pwritev; pread",
        &path,
        &format!(
            "{} and file_position_bytes = {position} and file_size_bytes = 11",
            moved(2, 8 + 3 + 6 + 3)
        ),
    );
    Ok(())
}

/// Calls between two descriptors.
fn whole_files(work: &mut Workload) -> Result<()> {
    let (from, to) = (work.path("from"), work.path("to"));
    fs::write(&from, [7; 4000])?;
    let (source, target) = (File::open(&from)?, open(&to)?);
    ensure!(rustix::fs::sendfile(&target, &source, Some(&mut 0), 1000)? == 1000);
    ensure!(rustix::fs::copy_file_range(&source, Some(&mut 0), &target, None, 500)? == 500);
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(b"through a pipe")?;
    ensure!(system::splice(&reader, &target, 14)? == 14);
    drop(target);
    work.closed(
        "sendfile, copy_file_range, splice",
        &to,
        &moved(0, 1000 + 500 + 14),
    );
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    Ok(options.open(path)?)
}

fn duplicates(work: &mut Workload) -> Result<()> {
    let (duplicated, replaced, ranged) = (
        work.path("duplicated"),
        work.path("replaced"),
        work.path("ranged"),
    );
    let first = open(&duplicated)?;
    let mut second = first.try_clone()?;
    (&first).write_all(b"1")?;
    drop(first);
    second.write_all(b"23")?;
    drop(second);
    work.closed("by the last of two descriptors", &duplicated, &moved(0, 3));

    let mut slot: OwnedFd = open(&replaced)?.into();
    rustix::io::write(&slot, b"1234")?;
    rustix::io::dup2(&File::open("/dev/null")?, &mut slot)?;
    work.closed("by dup2", &replaced, &moved(0, 4));

    // Its number is ours until the call has closed it.
    let number = i64::from(open(&ranged)?.into_raw_fd());
    match system::call(libc::SYS_close_range, [number, number, 0]) {
        Ok(()) => work.closed("by close_range", &ranged, &moved(0, 0)),
        // Before Linux 5.9; by close then.
        Err(_) => system::call(libc::SYS_close, [number, 0, 0])?,
    }
    Ok(())
}

/// Descriptors that nobody closes by a call.
fn ends_of_processes(work: &mut Workload) -> Result<()> {
    let (at_exit, at_exec) = (work.path("at-exit"), work.path("at-exec"));
    let script = "exec 3>at-exit; echo xy >&3; exit 0";
    let writer = shell(work, script)?;
    work.closed_by(
        "by the end of a process",
        &at_exit,
        &format!(
            "process_pid = {writer} and {} and process_mount_namespace is not null and process_root is null",
            moved(0, 3)
        ),
    );
    let path = at_exec.clone();
    let holder = child("/bin/true", move || {
        let mut file = File::create(&path)?;
        file.write_all(b"1")?;
        // Its descriptor is closed by exec, as every one of Rust's.
        let _left_open = file.into_raw_fd();
        Ok(())
    })?;
    work.closed_by(
        "by exec",
        &at_exec,
        &format!("process_pid = {holder} and {}", moved(0, 1)),
    );
    // The process has left its root when it lets go of its files.
    let root = work.path("jail");
    fs::create_dir(&root)?;
    let jail = root.clone();
    let holder = child("/no/such/program", move || {
        rustix::process::chroot(&jail)?;
        let mut file = File::create("/inside")?;
        file.write_all(b"12345")?;
        let _left_open = file.into_raw_fd();
        system::end()
    })?;
    work.once(
        "by the end of a process in another root",
        format!(
            "kind = 'close_write' and process_pid = {holder} and file_path = '/inside' \
             and process_root = {} and {}",
            quoted(&root),
            moved(0, 5)
        ),
    );
    Ok(())
}

fn shell(work: &Workload, script: &str) -> Result<u32> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(&work.directory)
        .spawn()?;
    ensure!(child.wait()?.success(), "{script}");
    Ok(child.id())
}

/// The number of a child that did this before it began to run `program`.
#[expect(unsafe_code, reason = "the child works between fork and exec")]
fn child(
    program: &str,
    work: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<u32> {
    let mut command = Command::new(program);
    // SAFETY: no other thread of this process holds a lock that the child needs.
    let mut child = unsafe { command.pre_exec(work).spawn()? };
    ensure!(child.wait()?.success(), "the child before {program}");
    Ok(child.id())
}

/// A mapping, and a message.
fn other_holders(work: &mut Workload) -> Result<()> {
    let (mapped, sent) = (work.path("mapped"), work.path("sent"));
    let mut file = open(&mapped)?;
    file.write_all(&[1; 4096])?;
    let mapping = system::Mapping::of(&file, 4096)?;
    drop(file);
    let written = work.path("meanwhile");
    fs::write(&written, "x")?;
    drop(mapping);
    let close = |path: &Path| {
        format!(
            "select max(boot_time_ns) from events where kind = 'close_write' and file_path = {}",
            quoted(path)
        )
    };
    work.closed("by the end of a mapping", &mapped, &moved(0, 4096));
    work.answer(
        "by the end of a mapping: after what came before it",
        format!(
            "select cast(({}) > ({}) as bigint)",
            close(&mapped),
            close(&written)
        ),
        1,
    );

    let (ours, theirs) = UnixStream::pair()?;
    let mut file = open(&sent)?;
    file.write_all(b"12")?;
    send(&ours, &file)?;
    drop(file);
    let mut received = receive(&theirs)?;
    received.write_all(b"3")?;
    drop(received);
    work.closed("by who got it in a message", &sent, &moved(0, 3));
    Ok(())
}

fn send(socket: &UnixStream, file: &File) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    ensure!(message.push(SendAncillaryMessage::ScmRights(&files)));
    let text = [IoSlice::new(b"x")];
    rustix::net::sendmsg(socket, &text, &mut message, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: &UnixStream) -> Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let text = &mut [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, text, &mut message, RecvFlags::empty())?;
    let files = message.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok(File::from(files.context("no descriptor came")?))
}

/// Files without a name by then.
fn removed(work: &mut Workload) -> Result<()> {
    let path = work.path("removed");
    let mut file = open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(b"1")?;
    let inode = file.metadata()?.ino();
    drop(file);
    work.closed(
        "a file that was removed before",
        &path,
        &format!("file_deleted and file_inode = {inode} and {}", moved(0, 1)),
    );
    let name = "hostaudit-closed";
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::io::write(&file, b"1")?;
    drop(file);
    work.closed(
        "a memfd",
        Path::new(&format!("/memfd:{name}")),
        "file_memfd and file_bytes_written is null",
    );
    Ok(())
}

/// What is not open for writing, or no regular file.
fn untold(work: &mut Workload) -> Result<()> {
    let (read, by_path, pipe) = (work.path("only-read"), work.path("path"), work.path("pipe"));
    for path in [&read, &by_path] {
        let made = path.with_extension("made");
        fs::write(&made, "x")?;
        fs::rename(&made, path)?;
    }
    drop(File::open(&read)?);
    drop(rustix::fs::open(&by_path, OFlags::PATH, Mode::empty())?);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    drop(open(&pipe)?);
    for (what, path) in [
        ("a file that is only read", read),
        ("a descriptor of O_PATH", by_path),
        ("a pipe", pipe),
    ] {
        let path = quoted(path);
        let condition = format!("kind = 'close_write' and file_path = {path}");
        work.number(format!("{what} is not told"), condition, 0);
    }
    Ok(())
}
