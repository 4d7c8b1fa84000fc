//! The connect storm: loopback connections, closed by a reset so that no port waits for its timer.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
};

use anyhow::{Result, ensure};

pub fn storm(count: u64) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    for _ in 0..count {
        let out = TcpStream::connect(address)?;
        let (accepted, _) = listener.accept()?;
        reset_on_close(&out)?;
        drop(out);
        drop(accepted);
    }
    Ok(())
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    #[expect(unsafe_code, reason = "set_linger is not stable")]
    // SAFETY: the pointer and length are those of `linger`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    ensure!(
        result == 0,
        "SO_LINGER: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
