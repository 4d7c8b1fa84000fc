//! The kernel file systems that the probe reads, mounted for as long as `up` runs where they are
//! not there. What was mounted here is unmounted at the end; what was found stays.

use std::{ffi::CStr, fs, io, path::Path};

struct Wanted {
    kind: &'static CStr,
    at: &'static CStr,
    /// Exists once it is mounted.
    sign: &'static str,
    /// Where else it may be mounted.
    elsewhere: &'static str,
}

/// Tracepoints have their ids in tracefs.
const TRACEFS: Wanted = Wanted {
    kind: c"tracefs",
    at: c"/sys/kernel/tracing",
    sign: "/sys/kernel/tracing/events",
    elsewhere: "/sys/kernel/debug/tracing/events",
};

pub fn has_tracefs() -> bool {
    fs::exists(TRACEFS.sign).unwrap_or(false) || fs::exists(TRACEFS.elsewhere).unwrap_or(false)
}

/// Unmounts when dropped.
#[derive(Debug)]
pub struct Mounted(&'static CStr);

impl Mounted {
    /// None when tracefs is there already.
    pub fn tracefs() -> io::Result<Option<Self>> {
        if has_tracefs() {
            return Ok(None);
        }
        mount(&TRACEFS)?;
        Ok(Some(Self(TRACEFS.at)))
    }

    pub fn path(&self) -> &Path {
        Path::new(self.0.to_str().unwrap_or_default())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "umount2 has no safe interface in std")]
        // SAFETY: the path is a C string that lives for ever; the call touches no memory of ours.
        let outcome = unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
        if outcome != 0 {
            let error = io::Error::last_os_error();
            eprintln!(
                "hostaudit: {} stays mounted: {error}",
                self.path().display()
            );
        }
    }
}

fn mount(wanted: &Wanted) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    #[expect(unsafe_code, reason = "mount has no safe interface in std")]
    // SAFETY: all three strings are C strings that live for ever; tracefs takes no data.
    let outcome = unsafe {
        libc::mount(
            wanted.kind.as_ptr(),
            wanted.at.as_ptr(),
            wanted.kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
