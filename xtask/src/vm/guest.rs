//! What does a command do on another kernel? Boots it in QEMU with one command, shows the command's
//! output as it comes, and brings back its exit status and what it left in /results.
//!
//! Invariants: the disk is not changed (writes go to a temporary file of QEMU); every guest ends,
//! at the latest when its time is up, also when this program was killed (coreutils' timeout sees to
//! it); its console is kept in target/vm/logs.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{archive::Archive, kernel::Kernel, modules, tools::Tools};

const INIT: &str = include_str!("guest/init.sh");
/// What a run may leave in /results.
const RESULTS_BYTES: u64 = 64 << 20;
/// x32 is compiled in but off by default.
const KERNEL_LINE: &str = "console=ttyS0 panic=-1 edd=off quiet loglevel=4 syscall.x32=y \
                           lsm=lockdown,yama,integrity,apparmor";
/// Of the console, what an error message shows.
const CONSOLE_TAIL_LINES: usize = 25;
/// While nothing else is to be seen, how often it is said that the guest still runs.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// One command for one guest.
#[derive(Debug, Clone)]
pub struct Order {
    pub words: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub timeout: Duration,
    /// Before each line of output, for example "6.12 | ".
    pub prefix: String,
}

#[derive(Debug)]
pub struct Answer {
    /// As a shell has it.
    pub status: i32,
    /// What the command wrote.
    pub output: PathBuf,
    /// What it left in /results.
    pub results: PathBuf,
    pub took: Duration,
}

/// Where guests run.
pub struct Host<'a> {
    pub directory: &'a Path,
    pub tools: &'a Tools,
    pub image: &'a Path,
    pub kvm: bool,
    pub memory_mib: u32,
}

impl Host<'_> {
    pub fn run(&self, kernel: &Kernel, order: &Order) -> Result<Answer> {
        let runs = self.directory.join("run");
        let run = runs.join(std::process::id().to_string());
        fs::create_dir_all(&run)?;
        remove_abandoned(&runs)?;
        let answer = self.run_in(&run, kernel, order);
        let removed = fs::remove_dir_all(&run);
        let answer = answer?;
        removed?;
        Ok(answer)
    }

    fn run_in(&self, run: &Path, kernel: &Kernel, order: &Order) -> Result<Answer> {
        let initramfs = run.join("initramfs");
        fs::write(&initramfs, self.initramfs(kernel, order)?)?;
        let disk = run.join("results");
        File::create(&disk)?.set_len(RESULTS_BYTES)?;
        let logs = self.directory.join("logs");
        fs::create_dir_all(&logs)?;
        let log = |kind: &str| logs.join(format!("{}.{kind}", kernel.name()));
        let (console, output) = (log("console"), log("output"));
        let _ = fs::remove_file(&console);
        let began = Instant::now();
        let qemu = self.command(kernel, &initramfs, &disk, &console)?;
        let ended = watch(limited(&qemu, order.timeout), order, &output)?;
        if let Some(line) = ended {
            bail!(
                "{line}\nthe end of {}:\n{}",
                console.display(),
                tail(&console)
            );
        }
        let results = logs.join(format!("{}.results", kernel.name()));
        if let Err(error) = unpack(&disk, &results) {
            bail!(
                "{error:#}\nthe end of {}:\n{}",
                console.display(),
                tail(&console)
            );
        }
        let status = fs::read_to_string(results.join("exit-status"))?;
        Ok(Answer {
            status: status.trim().parse().context("exit status")?,
            output,
            results,
            took: began.elapsed(),
        })
    }

    fn initramfs(&self, kernel: &Kernel, order: &Order) -> Result<Vec<u8>> {
        let busybox = self.tools.busybox().context("no static busybox")?;
        let mut archive = Archive::default();
        for directory in ["bin", "proc", "sys", "dev", "disk", "modules"] {
            archive.directory(directory);
        }
        archive.program("bin/busybox", &fs::read(&busybox)?);
        // For #! of init.
        archive.link("bin/sh", "busybox");
        archive.program("init", INIT.as_bytes());
        archive.program("run.sh", script(order).as_bytes());
        let modules = modules::load_order(&kernel.modules()?, &busybox)?;
        for (at, module) in modules.iter().enumerate() {
            archive.program(
                &format!("modules/{at:02}-{}.ko", module.name),
                &module.content,
            );
        }
        Ok(archive.finish())
    }

    fn command(
        &self,
        kernel: &Kernel,
        initramfs: &Path,
        disk: &Path,
        console: &Path,
    ) -> Result<Command> {
        let mut command = self.tools.qemu();
        // Two processors, because order between processors is part of what is tested.
        command.args(["-M", "q35", "-smp", "2", "-m", &self.memory_mib.to_string()]);
        if self.kvm {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        }
        command.args(["-nic", "none", "-vga", "none", "-display", "none"]);
        command.args(["-monitor", "none", "-no-reboot"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", console.display()));
        command.args(["-chardev", "stdio,id=output,signal=on"]);
        command.args(["-serial", "chardev:output"]);
        command.arg("-drive").arg(format!(
            "file={},format=raw,if=virtio,snapshot=on,cache=unsafe",
            self.image.display()
        ));
        command.arg("-drive").arg(format!(
            "file={},format=raw,if=virtio,cache=unsafe",
            disk.display()
        ));
        command.arg("-kernel").arg(kernel.image()?);
        command.arg("-initrd").arg(initramfs);
        let bpf_lsm = if kernel.bpf_lsm { ",bpf" } else { "" };
        command.args(["-append", &format!("{KERNEL_LINE}{bpf_lsm}")]);
        Ok(command)
    }
}

/// What was left by runs that were killed.
fn remove_abandoned(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs)?.flatten() {
        let process = Path::new("/proc").join(entry.file_name());
        if !process.exists() {
            // Another run may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// What the guest's shell runs.
fn script(order: &Order) -> String {
    let mut script = String::from("cd /root\n");
    for (name, value) in &order.environment {
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    let words: Vec<String> = order.words.iter().map(|word| quoted(word)).collect();
    script.push_str(&words.join(" "));
    script.push('\n');
    script
}

/// As one word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Under coreutils' timeout, which ends it also when nobody is left to wait for it.
fn limited(qemu: &Command, timeout: Duration) -> Command {
    let mut command = Command::new("timeout");
    command.args([
        "--foreground",
        "--kill-after=5",
        &timeout.as_secs().to_string(),
    ]);
    command.arg(qemu.get_program()).args(qemu.get_args());
    for (name, value) in qemu.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

/// Shows and keeps the output until the guest ends. Some when it did not end by itself.
fn watch(mut command: Command, order: &Order, output: &Path) -> Result<Option<String>> {
    let mut kept = File::create(output)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start QEMU")?;
    let stdout = child.stdout.take().context("QEMU has no output")?;
    let prefix = order.prefix.clone();
    let reader = std::thread::spawn(move || -> std::io::Result<()> {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            kept.write_all(&line)?;
            let mut terminal = std::io::stdout().lock();
            terminal.write_all(prefix.as_bytes())?;
            terminal.write_all(&line)?;
            terminal.flush()?;
            line.clear();
        }
        Ok(())
    });
    let ended = wait(&mut child, order)?;
    let shown = reader.join();
    ensure!(
        matches!(shown, Ok(Ok(()))),
        "the guest's output could not be shown, or kept in {}",
        output.display()
    );
    Ok(ended)
}

fn wait(child: &mut Child, order: &Order) -> Result<Option<String>> {
    let began = Instant::now();
    let mut said = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match status.code() {
                Some(0) => None,
                Some(124 | 137) => Some(format!(
                    "not done within {} s (--timeout)",
                    order.timeout.as_secs()
                )),
                _ => Some(format!("QEMU: {status}")),
            });
        }
        if said.elapsed() > SIGN_OF_LIFE {
            said = Instant::now();
            eprintln!(
                "{}... running for {} s of at most {} s",
                order.prefix,
                began.elapsed().as_secs(),
                order.timeout.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The archive that the guest wrote to its second disk.
fn unpack(disk: &Path, results: &Path) -> Result<()> {
    if results.exists() {
        fs::remove_dir_all(results)?;
    }
    fs::create_dir_all(results)?;
    let output = Command::new("tar")
        .args(["-x", "--no-same-owner", "-f"])
        .arg(disk)
        .arg("-C")
        .arg(results)
        .output()
        .context("cannot start tar")?;
    ensure!(
        output.status.success() && results.join("exit-status").exists(),
        "the guest ended without a result: did its kernel panic? {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_reaches_the_guest_as_it_is() {
        let order = Order {
            words: vec!["/bin/echo".into(), "it's $HOME `id`".into(), String::new()],
            environment: vec![("A".into(), "b c".into())],
            timeout: Duration::ZERO,
            prefix: String::new(),
        };
        let output = Command::new("sh")
            .arg("-c")
            .arg(script(&order).replace("cd /root\n", "") + "echo $A")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "it's $HOME `id` \nb c\n"
        );
    }
}
