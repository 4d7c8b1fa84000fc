//! A caller that changes its arguments while the kernel reads them: another thread writes to the path
//! or the address all the time. After each try the world shows what the kernel really used, and the
//! record must have just that.

use std::{
    ffi::CString,
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use super::{Workload, ours, quoted, system};

/// Tries of each call, unless the variable says otherwise.
const TRIES: usize = 10_000;
const TRIES_VARIABLE: &str = "HOSTAUDIT_RACE_TRIES";

pub fn races(work: &mut Workload) -> Result<()> {
    let tries = match std::env::var(TRIES_VARIABLE) {
        Ok(text) => text.parse().context(TRIES_VARIABLE)?,
        Err(_) => TRIES,
    };
    unlinks(work, tries)?;
    refused(work, tries)?;
    renames(work, tries)?;
    opens(work, tries)?;
    connects(work, tries)?;
    execs(work, tries)
}

/// Two names that differ in one byte, and a text that is now the one and now the other.
struct Names {
    paths: [PathBuf; 2],
    text: Vec<AtomicU8>,
    /// Where they differ, and how.
    at: usize,
}

const LETTERS: [u8; 2] = [b'a', b'b'];

impl Names {
    fn new(work: &Workload, what: &str) -> Result<Self> {
        let paths = ["a", "b"].map(|letter| work.path(format!("{what}-{letter}")));
        let text = CString::new(paths[0].as_os_str().as_bytes())?.into_bytes_with_nul();
        let at = text.len() - 2;
        Ok(Self {
            paths,
            text: text.into_iter().map(AtomicU8::new).collect(),
            at,
        })
    }

    fn quoted(&self) -> [String; 2] {
        self.paths.each_ref().map(quoted)
    }

    /// Runs `body` with the text's address while another thread changes it.
    fn while_changing<T>(&self, body: impl FnOnce(*const AtomicU8) -> T) -> T {
        changing(&self.text[self.at], LETTERS, || body(self.text.as_ptr()))
    }
}

/// Tries of these calls take so little that all may be over before the attacker has a processor; then
/// there are more.
fn goes_on(truth: &[bool], tries: usize) -> bool {
    let raced = truth.contains(&true) && truth.contains(&false);
    truth.len() < tries || (!raced && truth.len() < 20 * tries)
}

/// Runs `body` while another thread writes both `values` in turn.
fn changing<T>(place: &AtomicU8, values: [u8; 2], body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each stays for about as long as a call takes from reading it to its end.
            let mut spins = 0_usize;
            while !done.load(Ordering::Relaxed) {
                for value in values {
                    place.store(value, Ordering::Relaxed);
                    spins = (spins * 5 + 17) % 512;
                    (0..spins).for_each(|_| std::hint::spin_loop());
                }
            }
        });
        let result = body();
        done.store(true, Ordering::Relaxed);
        result
    })
}

impl Workload {
    /// One event a try, in order, and `column` of each has what the world has shown: the first of
    /// `values` for a false truth, the second for a true one.
    fn told(
        &mut self,
        what: &str,
        condition: &str,
        (column, values): (&str, [String; 2]),
        truth: &[bool],
    ) -> Result<()> {
        for (name, value, which) in [("a", &values[0], false), ("b", &values[1], true)] {
            let tries = (1..).zip(truth).filter(|(_, was)| **was == which);
            let tries: Vec<String> = tries.map(|(number, _)| number.to_string()).collect();
            // An attacker who never wins a race proves nothing.
            ensure!(!tries.is_empty(), "{what}: the race was never {name}");
            let sql = format!(
                "select count(*) from (select {column} as told, \
                 row_number() over (order by boot_time_ns) as number \
                 from events where {condition}) \
                 where told = {value} and number in ({})",
                tries.join(", ")
            );
            let action = format!("{what}: {} of {} were {name}", tries.len(), truth.len());
            self.answer(action, sql, i64::try_from(tries.len())?);
        }
        let sql = format!("select count(*) from events where {condition}");
        self.answer(format!("{what}: all"), sql, i64::try_from(truth.len())?);
        Ok(())
    }

    /// Some calls of that kind were seen to be raced; what was used is what their own events tell,
    /// and what was found another name.
    fn raced(&mut self, kind: &str) {
        let of = |name: &str| {
            format!(
                "(select boot_time_ns, file_path, argument_race_used, argument_race_found \
                 from events where kind = '{name}' and {} and syscall_name = '{kind}') as {name}",
                ours()
            )
        };
        let joined = format!(
            "from {} join {} on {kind}.boot_time_ns = argument_race.boot_time_ns \
             where argument_race.argument_race_used",
            of("argument_race"),
            of(kind)
        );
        let fine = format!(
            "{joined} = {kind}.file_path \
             and argument_race.argument_race_found <> argument_race.argument_race_used"
        );
        let all = format!(
            "(select count(*) from events where kind = 'argument_race' and {} \
             and syscall_name = '{kind}')",
            ours()
        );
        self.answer(
            format!("{kind}: races that were seen, each with both names"),
            format!(
                "select case when all_of > 0 and all_of = fine then 1 else 0 end from \
                 (select {all} as all_of, (select count(*) {fine}) as fine)"
            ),
            1,
        );
    }
}

fn unlinks(work: &mut Workload, tries: usize) -> Result<()> {
    let names = Names::new(work, "unlink")?;
    let base = work.path("unlink-base");
    fs::write(&base, "x")?;
    let mut truth = Vec::new();
    for path in &names.paths {
        fs::hard_link(&base, path)?;
    }
    names.while_changing(|text| -> Result<()> {
        for _ in 0..tries {
            system::unlink_text(text)?;
            let gone = usize::from(names.paths[0].exists());
            truth.push(gone == 1);
            fs::hard_link(&base, &names.paths[gone])?;
        }
        Ok(())
    })?;
    let (us, [a, b]) = (ours(), names.quoted());
    let condition = format!("kind = 'unlink' and {us} and result_error is null");
    work.told("unlink", &condition, ("file_path", [a, b]), &truth)?;
    work.raced("unlink");
    Ok(())
}

/// Unlinks that fail: the error says which of the names the kernel used.
fn refused(work: &mut Workload, tries: usize) -> Result<()> {
    let names = Names::new(work, "refused")?;
    fs::create_dir(&names.paths[0])?;
    let mut truth = Vec::new();
    names.while_changing(|text| -> Result<()> {
        while goes_on(&truth, tries) {
            let error = system::unlink_text(text).err().context("it was removed")?;
            truth.push(error.kind() == std::io::ErrorKind::NotFound);
        }
        Ok(())
    })?;
    let (us, values) = (ours(), names.quoted());
    let condition = format!("kind = 'unlink' and {us} and result_error in ('EISDIR', 'ENOENT')");
    work.told("refused unlink", &condition, ("file_path", values), &truth)
}

fn renames(work: &mut Workload, tries: usize) -> Result<()> {
    let names = Names::new(work, "rename")?;
    let moved = work.path("moved");
    let mut truth = Vec::new();
    for path in &names.paths {
        fs::write(path, "x")?;
    }
    names.while_changing(|text| -> Result<()> {
        for _ in 0..tries {
            system::rename_text(text, &moved)?;
            let gone = usize::from(names.paths[0].exists());
            truth.push(gone == 1);
            fs::rename(&moved, &names.paths[gone])?;
        }
        Ok(())
    })?;
    let (us, to, values) = (ours(), quoted(&moved), names.quoted());
    let condition =
        format!("kind = 'rename' and {us} and target_file_path = {to} and result_error is null");
    work.told("rename", &condition, ("file_path", values), &truth)?;
    work.raced("rename");
    Ok(())
}

fn opens(work: &mut Workload, tries: usize) -> Result<()> {
    let names = Names::new(work, "open")?;
    let mut truth = Vec::new();
    for path in &names.paths {
        fs::write(path, "x")?;
    }
    let first = fs::metadata(&names.paths[0])?.ino();
    names.while_changing(|text| -> Result<()> {
        while goes_on(&truth, tries) {
            let file = system::open_text(text)?;
            truth.push(file.metadata()?.ino() != first);
        }
        Ok(())
    })?;
    let condition = format!("kind = 'open' and {} and file_access = 'write'", ours());
    work.told("open", &condition, ("file_path", names.quoted()), &truth)
}

fn connects(work: &mut Workload, tries: usize) -> Result<()> {
    // Two addresses that differ in the last byte: 127.0.0.1 and 127.0.0.2, on one port.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let accepting = std::thread::spawn(move || {
        // Ends with the connection that says so.
        for stream in listener.incoming().map_while(Result::ok) {
            if stream
                .peer_addr()
                .is_ok_and(|peer| peer.ip() == Ipv4Addr::new(127, 0, 0, 3))
            {
                return;
            }
        }
    });
    let [high, low] = port.to_be_bytes();
    let address = [2, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0].map(AtomicU8::new);
    let mut truth = Vec::new();
    changing(&address[7], [1, 2], || -> Result<()> {
        for _ in 0..tries {
            let stream = TcpStream::from(system::connect_address(&address)?);
            truth.push(stream.peer_addr()?.ip() != Ipv4Addr::LOCALHOST);
            // No port stays in TIME_WAIT.
            rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO))?;
        }
        Ok(())
    })?;
    let last = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )?;
    rustix::net::bind(&last, &std::net::SocketAddr::from(([127, 0, 0, 3], 0)))?;
    rustix::net::connect(&last, &std::net::SocketAddr::from(([127, 0, 0, 3], port)))?;
    accepting.join().expect("the acceptor");
    let condition = format!(
        "kind = 'connect' and {} and socket_peer_address <> '127.0.0.3' \
         and socket_peer_port = {port} and result_value = 0",
        ours()
    );
    let values = ["'127.0.0.1'", "'127.0.0.2'"].map(str::to_owned);
    work.told(
        "connect",
        &condition,
        ("socket_peer_address", values),
        &truth,
    )
}

fn execs(work: &mut Workload, tries: usize) -> Result<()> {
    let names = Names::new(work, "exec")?;
    // They differ in how they end.
    for (program, path) in ["/bin/true", "/bin/false"].into_iter().zip(&names.paths) {
        fs::copy(program, path)?;
    }
    let mut truth = Vec::new();
    names.while_changing(|text| -> Result<()> {
        for _ in 0..tries {
            truth.push(system::spawn_text(text)? != 0);
        }
        Ok(())
    })?;
    let condition = format!("kind = 'exec' and parent_pid = {}", std::process::id());
    work.told("exec", &condition, ("process_exe", names.quoted()), &truth)
}
