//! A ring as its only reader sees it: a position that moves from record to record, and one in memory
//! shared with the kernel, up to which the kernel may write again.
//!
//! Where records must survive this process, the second follows only when [`Ring::release`] says so;
//! else after some records. Not after each: both sides' positions are in memory that the other side
//! reads for each record that it writes, and every change costs it a cache miss. Layout: kernel/bpf/ringbuf.c; the consumer's page, the producer's, then
//! the data twice in a row, so that no record is in two pieces.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{Map, MapData};

/// In front of each record: its length with two flags, and four bytes for the kernel.
const HEAD_BYTES: usize = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// So often in a ring's length is room given back: what the kernel believes taken is never more than
/// that above what is.
const RELEASES: u64 = 64;

pub(crate) struct Ring {
    map: MapData,
    consumer: Mapping,
    producer: Mapping,
    bytes: usize,
    page: usize,
    /// Behind the last record read.
    read: u64,
    /// Behind the last record that was there when we last looked.
    seen: u64,
    /// Up to which the kernel may write again.
    released: u64,
    /// What the kernel may overwrite follows only at a release.
    keeps: bool,
}

impl Ring {
    /// Begins where the reader before this one had released.
    pub(crate) fn new(map: Map, keeps: bool) -> io::Result<Self> {
        let Map::RingBuf(map) = map else {
            return Err(io::Error::other("it is no ring"));
        };
        let bytes = map.info().map_err(io::Error::other)?.max_entries() as usize;
        let page = rustix::param::page_size();
        let fd = map.fd().as_fd();
        let consumer = Mapping::new(fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(fd, page, page + 2 * bytes, libc::PROT_READ)?;
        let read = consumer.position().load(Ordering::Acquire);
        Ok(Self {
            map,
            consumer,
            producer,
            bytes,
            page,
            read,
            seen: read,
            released: read,
            keeps,
        })
    }

    /// The next record, unless there is none that is whole.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        if !self.keeps && self.read - self.released >= self.bytes as u64 / RELEASES {
            self.release(self.read);
        }
        loop {
            if self.read == self.seen {
                if !self.keeps {
                    self.release(self.read);
                }
                self.seen = self.produced();
                if self.read == self.seen {
                    return None;
                }
            }
            let at = self.page + (self.read as usize & (self.bytes - 1));
            let head = self.producer.word(at).load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let length = (head & !DISCARDED) as usize;
            self.read += (HEAD_BYTES + length).next_multiple_of(8) as u64;
            if head & DISCARDED == 0 {
                return self.producer.bytes(at + HEAD_BYTES, length);
            }
        }
    }

    /// Everything that programs have begun to write has been read.
    pub(crate) fn is_empty(&self) -> bool {
        self.read == self.produced()
    }

    /// Behind the last record read.
    pub(crate) fn position(&self) -> u64 {
        self.read
    }

    /// Somebody has read here before.
    pub(crate) fn was_read(&self) -> bool {
        self.consumer.position().load(Ordering::Relaxed) > 0
    }

    /// Gives what lies before `position` back to the kernel.
    pub(crate) fn release(&mut self, position: u64) {
        if position == self.released {
            return;
        }
        self.released = position;
        self.consumer.position().store(position, Ordering::Release);
    }

    fn produced(&self) -> u64 {
        self.producer.position().load(Ordering::Acquire)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// Pages shared with the kernel.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

#[expect(unsafe_code, reason = "memory that the kernel shares")]
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Mapping {}

#[expect(unsafe_code, reason = "memory that the kernel shares")]
impl Mapping {
    fn new(
        fd: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        protection: libc::c_int,
    ) -> io::Result<Self> {
        let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
        // SAFETY: a new mapping, where the kernel wants it.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// The first eight bytes: a position. Machines of 32 bits are not served.
    fn position(&self) -> &AtomicU64 {
        // SAFETY: mapped as long as self, and aligned to a page.
        unsafe { self.start.cast().as_ref() }
    }

    /// The word at `at`, which is a multiple of eight within the mapping.
    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(8) && at + 4 <= self.bytes);
        // SAFETY: within the mapping, because positions are taken modulo the ring's size.
        unsafe { self.start.add(at).cast().as_ref() }
    }

    fn bytes(&self, at: usize, length: usize) -> Option<&[u8]> {
        if at.checked_add(length)? > self.bytes {
            return None;
        }
        // SAFETY: within the mapping; the kernel does not write there until it is released.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), length) })
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "memory that the kernel shares")]
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no reference outlives self. An error leaves it mapped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
