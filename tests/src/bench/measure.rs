//! How much CPU was spent, and by whom? Readings before and after; differences are for the caller.

use std::{fs, mem};

use anyhow::{Context as _, Result, ensure};

/// User and system time of this process and the children it has waited for.
pub fn own_cpu_ns() -> Result<u64> {
    let mut total = 0;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        #[expect(unsafe_code, reason = "no getrusage in std")]
        // SAFETY: rusage is plain integers, for which zero is valid; the kernel fills it.
        let usage = unsafe {
            let mut usage: libc::rusage = mem::zeroed();
            ensure!(
                libc::getrusage(who, &raw mut usage) == 0,
                "getrusage failed"
            );
            usage
        };
        for time in [usage.ru_utime, usage.ru_stime] {
            total +=
                u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_usec)? * 1_000;
        }
    }
    Ok(total)
}

fn tick_ns() -> u64 {
    #[expect(unsafe_code, reason = "no sysconf in std")]
    // SAFETY: sysconf has no memory arguments.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(ticks).ok().filter(|t| *t > 0).unwrap_or(100)
}

/// CPU time of a process with all its threads, also those that have ended.
pub fn process_cpu_ns(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is gone"))?;
    // The name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let rest = stat.rsplit_once(')').context("no name in stat")?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks * tick_ns())
}

/// Highest resident size so far.
pub fn peak_rss_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? << 10)
}

/// All CPUs together, everything but idle and waiting for disks.
pub fn system_cpu_ns() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat
        .lines()
        .next()
        .and_then(|l| l.strip_prefix("cpu "))
        .context("/proc/stat")?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq (stolen time is the hypervisor's)
    Ok([0, 1, 2, 5, 6].iter().map(|i| fields[*i]).sum::<u64>() * tick_ns())
}

/// The first process of this name, for kernel threads.
pub fn find_process(name: &str) -> Option<u32> {
    let wanted = format!("{name}\n");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (fs::read_to_string(entry.path().join("comm")).ok()? == wanted).then_some(pid)
    })
}

pub fn pin_to(cpu: usize) -> Result<()> {
    pin_thread(0, cpu)
}

/// Leaves a process, with the threads that it has by now and those that they will start, what nobody
/// else wants of that CPU.
pub fn set_aside(pid: u32, cpu: usize) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let name = entry.file_name();
        let thread = name.to_str().context("a thread's number")?.parse()?;
        let done = pin_thread(thread, cpu).and_then(|()| only_idle(thread));
        // One that has ended meanwhile needs nothing.
        if entry.path().exists() {
            done?;
        }
    }
    Ok(())
}

fn only_idle(thread: libc::pid_t) -> Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    #[expect(unsafe_code, reason = "no scheduling policy in std")]
    // SAFETY: takes a struct of ours.
    let result = unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const none) };
    ensure!(
        result == 0,
        "cannot make thread {thread} wait for idle time: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// 0 is the calling thread.
fn pin_thread(thread: libc::pid_t, cpu: usize) -> Result<()> {
    #[expect(unsafe_code, reason = "no affinity in std")]
    // SAFETY: cpu_set_t is plain integers, for which zero is valid; CPU_SET checks its bounds.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    ensure!(
        result == 0,
        "cannot stay on CPU {cpu}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_every_reading() {
        let (own, process, system) = (
            own_cpu_ns().expect("own"),
            process_cpu_ns(std::process::id()).expect("p"),
            system_cpu_ns().expect("s"),
        );
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_millis(300) {
            std::hint::black_box(fs::metadata("/").expect("root"));
        }
        let least = 20_000_000;
        assert!(own_cpu_ns().expect("own") > own + least);
        assert!(process_cpu_ns(std::process::id()).expect("p") > process + least);
        assert!(system_cpu_ns().expect("s") > system + least);
        assert!(peak_rss_bytes(std::process::id()).expect("rss") > 1 << 20);
    }
}
