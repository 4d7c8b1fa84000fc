//! Where do log lines of the kernel programs go? To `tracing`, target "kernel", level DEBUG. Only an
//! object built with HOSTAUDIT_EBPF_LOG=1 writes any; the usual one has not even the map for them.

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The programs' log lines. What the ring of 128 KiB cannot hold is not logged.
pub(super) struct Log(EbpfLogger<Forward>);

impl Log {
    /// `None` when the programs log nothing.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        let logger = EbpfLogger::init_with_logger(ebpf, Forward).ok()?;
        tracing::info!("the kernel programs log; RUST_LOG=kernel=debug shows it");
        Some(Self(logger))
    }

    pub(super) fn forward(&mut self) {
        self.0.flush();
    }
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        tracing::enabled!(target: "kernel", tracing::Level::DEBUG)
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "kernel", level = %record.level(), program = record.target(), "{}", record.args());
    }

    fn flush(&self) {}
}
