//! Builds one record in a per-CPU buffer and sends it to its ring.
//!
//! The buffer is twice TAIL_BYTES: a section begins in the first half only, and is at most half
//! long, so every write is in bounds and the verifier can see it from two masks. The masks are
//! inline assembly because the compiler, which proves them redundant, would drop them.

use core::arch::asm;

use audit_common::{
    call::SLOTS,
    class,
    config::Counters,
    kind,
    limits::{SCRATCH_BYTES, TAIL_BYTES},
    record::{Header, SectionHeader, form, section_flags, via},
};
use aya_ebpf::{
    helpers::generated::{
        bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
        bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_probe_read_user_str,
        bpf_ringbuf_output, bpf_ringbuf_query,
    },
    macros::map,
    maps::{PerCpuArray, RingBuf},
};

use crate::{policy, settings, syscall::Call, task};

// A lane each, so that a flood in one evicts nothing of another. The agent sets the sizes.
#[map]
static PROCESS_RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static NETWORK_RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map]
static FILE_RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(CLASSES, 0);
/// When each class last woke its reader on this CPU.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(CLASSES, 0);
/// A buffer for each class: programs of one class never interrupt each other on a CPU.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(CLASSES, 0);

pub const CLASSES: u32 = class::FLOW as u32 + 1;
/// Waking costs an interrupt, so a ring that is being drained is not woken at every record.
const WAKE_INTERVAL_NS: u64 = 1_000_000;
const WAKE: u64 = aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP as u64;
const NO_WAKE: u64 = aya_ebpf::bindings::BPF_RB_NO_WAKEUP as u64;
const AVAILABLE: u64 = aya_ebpf::bindings::BPF_RB_AVAIL_DATA as u64;

#[repr(C, align(8))]
pub struct Scratch([u8; SCRATCH_BYTES]);

/// Which hook writes a record, and of which system call.
#[derive(Clone, Copy)]
pub struct Origin {
    /// [`via`]
    pub via: u8,
    /// [`audit_common::call`]; SLOTS for none.
    pub slot: u32,
}

impl From<u8> for Origin {
    #[inline(always)]
    fn from(via: u8) -> Self {
        Self { via, slot: SLOTS }
    }
}

impl From<&Call> for Origin {
    #[inline(always)]
    fn from(call: &Call) -> Self {
        Self {
            via: call.via,
            slot: call.slot,
        }
    }
}

/// A record under construction.
pub struct Writer {
    base: *mut u8,
    /// Where the next section begins.
    end: u64,
    class: u8,
}

/// `value & MASK`, kept by the compiler.
#[inline(always)]
pub fn bounded<const MASK: u64>(mut value: u64) -> u64 {
    // SAFETY: register arithmetic only.
    unsafe { asm!("{0} &= {1}", inout(reg) value, const MASK, options(pure, nomem, nostack)) };
    value
}

pub const HALF: u64 = TAIL_BYTES as u64 - 1;

/// Counts what a program left out on purpose.
#[inline(always)]
pub fn count_filtered(class: u8) {
    if let Some(counters) = COUNTERS.get_ptr_mut(class.into()) {
        // SAFETY: a per-CPU map value, valid for the program's run.
        unsafe { (*counters).filtered += 1 };
    }
}

/// Gives a number to a record that was not made: whoever reads the ring tells it as lost.
#[inline(always)]
pub fn count_missed(class: u8) {
    if let Some(counters) = COUNTERS.get_ptr_mut(class.into()) {
        // SAFETY: as above.
        unsafe { (*counters).sequence += 1 };
    }
}

/// Counts what is beyond a budget.
#[inline(always)]
pub fn count_shed(class: u8) {
    if let Some(counters) = COUNTERS.get_ptr_mut(class.into()) {
        // SAFETY: as above.
        unsafe { (*counters).shed += 1 };
    }
}

/// The record of a class on this CPU, finished or not.
#[inline(always)]
pub fn header_of(class: u32) -> Option<&'static mut Header> {
    let base: *mut Header = SCRATCH.get_ptr_mut(class)?.cast();
    // SAFETY: the start of a per-CPU map value, which is larger than a header.
    Some(unsafe { &mut *base })
}

/// The bytes of that record from `at` on.
#[inline(always)]
pub fn bytes_of(class: u32, at: u64) -> Option<*const u8> {
    let base: *const u8 = SCRATCH.get_ptr(class)?.cast();
    // SAFETY: within the first half of the buffer.
    Some(unsafe { base.add(bounded::<HALF>(at) as usize) })
}

/// Counts a connect whose outcome will not be known.
#[inline(always)]
pub fn count_pending_full(class: u8) {
    if let Some(counters) = COUNTERS.get_ptr_mut(class.into()) {
        // SAFETY: as above.
        unsafe { (*counters).pending_full += 1 };
    }
}

impl Writer {
    /// A record of the current task with a payload of `T` (zeroed), to be sent, or kept until
    /// [`Self::restore`]. `None` when the task is one of ours or a rule hides the record, which is
    /// counted as filtered. Connections are followed though a rule hides how they began; such a
    /// record is hidden when it is sent.
    #[inline(always)]
    pub fn begin<T>(
        class: u8,
        kind: u16,
        origin: impl Into<Origin>,
    ) -> Option<(Self, &'static mut T)> {
        if settings::ignored() != 0 {
            count_filtered(class);
            return None;
        }
        let Origin { via, slot } = origin.into();
        let (writer, payload) = Self::blank::<T>(class, kind, via)?;
        task::fill_actor(class.into());
        let followed = kind == kind::CONNECT || kind == kind::ACCEPT;
        if policy::generation() != 0
            && !kind::is_kept(kind)
            && policy::policy_judge(class.into(), slot, followed.into()) == policy::HIDDEN
        {
            return None;
        }
        Some((writer, payload))
    }

    /// As [`Self::begin`], in the name of `who`: for what happens outside the acting process.
    #[inline(always)]
    pub fn begin_as<T>(
        class: u8,
        kind: u16,
        via: u8,
        who: &Header,
    ) -> Option<(Self, &'static mut T)> {
        let (writer, payload) = Self::blank::<T>(class, kind, via)?;
        task::copy(writer.header(), who);
        if policy::generation() != 0 {
            policy::policy_judge_owner(class.into());
        } else {
            writer.header().candidates = 0;
        }
        Some((writer, payload))
    }

    /// As [`Self::begin`], of what no process does.
    #[inline(always)]
    pub fn begin_of_nobody<T>(class: u8, kind: u16, via: u8) -> Option<(Self, &'static mut T)> {
        let base: *mut Header = SCRATCH.get_ptr_mut(class.into())?.cast();
        // SAFETY: the buffer is larger than a header.
        unsafe { zero(base) };
        Self::blank::<T>(class, kind, via)
    }

    /// Sections that no record has yet. In the buffer of the file class, as the record will be.
    #[inline(always)]
    pub fn draft() -> Option<Self> {
        let base: *mut u8 = SCRATCH.get_ptr_mut(class::FILE.into())?.cast();
        Some(Self {
            base,
            end: size_of::<Header>() as u64,
            class: class::FILE,
        })
    }

    /// What was written from `start` on.
    #[inline(always)]
    pub fn at(&self, start: u64) -> *const u8 {
        // SAFETY: within the first half of the buffer.
        unsafe { self.base.add(bounded::<HALF>(start) as usize) }
    }

    /// Takes up a prepared record of `BYTES` that was kept at `kept`, in kernel memory. Its payload must be
    /// a `T`.
    #[inline(always)]
    pub fn restore<T, const BYTES: usize>(
        class: u8,
        kept: *const u8,
    ) -> Option<(Self, &'static mut T)> {
        const { assert!(BYTES <= SCRATCH_BYTES) };
        let base: *mut u8 = SCRATCH.get_ptr_mut(class.into())?.cast();
        // SAFETY: BYTES are at most the buffer; base has room for a header and any payload.
        unsafe {
            if bpf_probe_read_kernel(base.cast(), BYTES as u32, kept.cast()) != 0 {
                return None;
            }
            let mut writer = Self {
                base,
                end: 0,
                class,
            };
            writer.reload();
            writer.header().time_ns = bpf_ktime_get_boot_ns();
            Some((writer, &mut *base.add(size_of::<Header>()).cast::<T>()))
        }
    }

    #[inline(always)]
    fn blank<T>(class: u8, kind: u16, via: u8) -> Option<(Self, &'static mut T)> {
        let base: *mut u8 = SCRATCH.get_ptr_mut(class.into())?.cast();
        let writer = Self {
            base,
            end: (size_of::<Header>() + size_of::<T>()) as u64,
            class,
        };
        let header = writer.header();
        header.kind = kind;
        header.payload_size = size_of::<T>() as u16;
        header.class = class;
        header.via = via;
        header.form = form::OF_KIND;
        header.generation = 0;
        header.candidates = 0;
        // SAFETY: no arguments.
        header.time_ns = unsafe { bpf_ktime_get_boot_ns() };
        // SAFETY: base has room for a header and any payload.
        unsafe {
            let payload = base.add(size_of::<Header>()).cast::<T>();
            zero(payload);
            Some((writer, &mut *payload))
        }
    }

    /// Gives the record its number: now it must be sent.
    #[inline(always)]
    fn number(&self) -> Option<()> {
        let counters = COUNTERS.get_ptr_mut(self.class.into())?;
        let header = self.header();
        // SAFETY: counters is a per-CPU map value.
        unsafe {
            (*counters).sequence += 1;
            header.sequence = (*counters).sequence;
            header.cpu = bpf_get_smp_processor_id();
        }
        Some(())
    }

    /// Where the record begins, after [`Self::suspend`]: to be kept.
    #[inline(always)]
    pub fn base(&self) -> *const u8 {
        self.base
    }

    /// Takes back everything behind a payload of `T`.
    #[inline(always)]
    pub fn drop_sections<T>(&mut self) {
        self.end = (size_of::<Header>() + size_of::<T>()) as u64;
    }

    #[inline(always)]
    pub fn header(&self) -> &'static mut Header {
        // SAFETY: base is the start of a per-CPU map value, which is larger than a header.
        unsafe { &mut *self.base.cast::<Header>() }
    }

    /// Begins a section; its bytes follow at the returned writer's end.
    #[inline(always)]
    pub fn section(&mut self, tag: u8) -> Open {
        let at = bounded::<HALF>(self.end);
        let header = SectionHeader {
            tag,
            flags: 0,
            root_at: 0,
            size: 0,
        };
        // SAFETY: `at` is within the first half, and the header is far smaller than the second.
        unsafe {
            self.base
                .add(at as usize)
                .cast::<SectionHeader>()
                .write_unaligned(header)
        };
        self.end = at + size_of::<SectionHeader>() as u64;
        Open {
            at,
            flags: 0,
            root_at: 0,
        }
    }

    /// Ends the section.
    #[inline(always)]
    pub fn close(&mut self, open: Open) {
        let at = bounded::<HALF>(open.at);
        // SAFETY: as in `section`.
        unsafe {
            let header = self.base.add(at as usize).cast::<SectionHeader>();
            (&raw mut (*header).flags).write(open.flags);
            (&raw mut (*header).root_at).write_unaligned(open.root_at);
            let size = self.end - open.at - size_of::<SectionHeader>() as u64;
            (&raw mut (*header).size).write_unaligned(size as u32);
        }
    }

    /// Whether another section of up to half the buffer fits.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.end < HALF
    }

    /// Leaves the record for [`Self::resume`]. Its end goes through map memory, of which the
    /// verifier knows nothing: a value that it knew would grow with every pass of a loop, and each
    /// pass would be a new state to check.
    #[inline(always)]
    pub fn suspend(&self) {
        // SAFETY: the header is in the buffer. Volatile, or the compiler would keep the value.
        unsafe { (&raw mut self.header().size).write_volatile(self.end as u32) };
    }

    /// The suspended record of `class` on this CPU.
    #[inline(always)]
    pub fn resume(class: u8) -> Option<Self> {
        let base: *mut u8 = SCRATCH.get_ptr_mut(class.into())?.cast();
        let mut writer = Self {
            base,
            end: 0,
            class,
        };
        writer.reload();
        Some(writer)
    }

    /// Goes on where others have left the record.
    #[inline(always)]
    pub fn reload(&mut self) {
        // SAFETY: as in `suspend`.
        self.end = unsafe { (&raw const self.header().size).read_volatile() }.into();
    }

    #[inline(always)]
    pub fn class(&self) -> u8 {
        self.class
    }

    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends the kernel's NUL-terminated string at `source`, at most `LIMIT` bytes with the NUL.
    /// Returns what it took, NUL included; 0 when it could not be read.
    #[inline(always)]
    pub fn kernel_text<const LIMIT: u32>(&mut self, source: u64) -> u64 {
        let at = bounded::<HALF>(self.end);
        // SAFETY: at is within the first half and LIMIT at most half.
        let read = unsafe {
            bpf_probe_read_kernel_str(self.base.add(at as usize).cast(), LIMIT, source as *const _)
        };
        self.advance(at, read)
    }

    /// As [`Self::kernel_text`], from the current process's memory.
    #[inline(always)]
    pub fn user_text<const LIMIT: u32>(&mut self, source: u64) -> u64 {
        let at = bounded::<HALF>(self.end);
        // SAFETY: as above.
        let read = unsafe {
            bpf_probe_read_user_str(self.base.add(at as usize).cast(), LIMIT, source as *const _)
        };
        self.advance(at, read)
    }

    #[inline(always)]
    fn advance(&mut self, at: u64, read: i64) -> u64 {
        if read <= 0 {
            return 0;
        }
        let read = bounded::<HALF>(read as u64);
        self.end = at + read;
        read
    }

    /// Takes back the last byte: the NUL of a text whose section has a length anyway.
    #[inline(always)]
    pub fn drop_nul(&mut self, read: u64) {
        if read > 0 {
            self.end -= 1;
        }
    }

    /// Appends `size` bytes (less than half the buffer) of the current process's memory.
    #[inline(always)]
    pub fn user_bytes(&mut self, source: u64, size: u64) -> bool {
        let at = bounded::<HALF>(self.end);
        let size = bounded::<HALF>(size);
        // SAFETY: both bounded by half the buffer.
        let failed = unsafe {
            bpf_probe_read_user(
                self.base.add(at as usize).cast(),
                size as u32,
                source as *const _,
            )
        };
        if failed == 0 {
            self.end = at + size;
        }
        failed == 0
    }

    /// Appends `size` bytes, at most `MOST`, of kernel memory.
    #[inline(always)]
    pub fn kernel_bytes<const MOST: u64>(&mut self, source: u64, size: u64) -> bool {
        let at = bounded::<HALF>(self.end);
        let size = if size < MOST { size } else { MOST };
        // SAFETY: both bounded by half the buffer.
        let failed = unsafe {
            bpf_probe_read_kernel(
                self.base.add(at as usize).cast(),
                size as u32,
                source as *const _,
            )
        };
        if failed == 0 {
            self.end = at + size;
        }
        failed == 0
    }

    /// Sends the record, unless a rule hides it or it is beyond a budget; what does not fit into the
    /// ring is counted, and its number is missed.
    #[inline(always)]
    pub fn send(self) {
        if policy::generation() != 0 && policy::policy_admit(self.class.into()) != policy::PASSES {
            return;
        }
        if self.number().is_none() {
            return;
        }
        const ALL: u64 = SCRATCH_BYTES as u64 - 1;
        let size = bounded::<ALL>(self.end);
        self.header().size = size as u32;
        let ring = match self.class {
            class::PROCESS => &raw const PROCESS_RING,
            class::FILE => &raw const FILE_RING,
            _ => &raw const NETWORK_RING,
        };
        let wake = self.wake(ring);
        // SAFETY: size is within the buffer; ring is a ring buffer map.
        let failed = unsafe { bpf_ringbuf_output(ring as *mut _, self.base.cast(), size, wake) };
        if failed != 0
            && let Some(counters) = COUNTERS.get_ptr_mut(self.class.into())
        {
            // SAFETY: a per-CPU map value.
            unsafe { (*counters).ring_full += 1 };
        }
        crate::log::sent(self.header().kind, size, failed);
    }

    #[inline(always)]
    fn wake(&self, ring: *const RingBuf) -> u64 {
        // SAFETY: ring is a ring buffer map; woken a per-CPU map value.
        unsafe {
            if bpf_ringbuf_query(ring as *mut _, AVAILABLE) < settings::wakeup_bytes() {
                return NO_WAKE;
            }
            let Some(woken) = WOKEN.get_ptr_mut(self.class.into()) else {
                return WAKE;
            };
            let now = self.header().time_ns;
            if now - *woken < WAKE_INTERVAL_NS {
                return NO_WAKE;
            }
            *woken = now;
            WAKE
        }
    }
}

/// Zeroes word by word: a call of memset is a loop over bytes to the verifier.
#[inline(always)]
unsafe fn zero<T>(value: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0) };
    let words = value.cast::<u64>();
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: within the value; volatile, so that it does not become memset again.
        unsafe { words.add(at).write_volatile(0) };
        at += 1;
    }
}

/// An unfinished section.
pub struct Open {
    at: u64,
    pub flags: u8,
    pub root_at: u16,
}

impl Open {
    #[inline(always)]
    pub fn truncated(&mut self) {
        self.flags |= section_flags::TRUNCATED;
    }
}

/// A whole section of one kernel string.
#[inline(always)]
pub fn kernel_section(writer: &mut Writer, tag: u8, source: u64) {
    const LIMIT: u32 = audit_common::limits::PATH_BYTES as u32;
    let mut open = writer.section(tag);
    let read = writer.kernel_text::<LIMIT>(source);
    if read == 0 || read == u64::from(LIMIT) {
        open.truncated();
    }
    writer.drop_nul(read);
    writer.close(open);
}

/// A whole section of one string of the current process; empty and marked when unreadable.
#[inline(always)]
pub fn user_section(writer: &mut Writer, tag: u8, source: u64) {
    const LIMIT: u32 = audit_common::limits::PATH_BYTES as u32;
    let mut open = writer.section(tag);
    let read = writer.user_text::<LIMIT>(source);
    if read == 0 || read == u64::from(LIMIT) {
        open.truncated();
    }
    writer.drop_nul(read);
    writer.close(open);
}

pub use via::BTF_TRACEPOINT;
