//! The exec storm: a program as small as programs get, so that starting it is all there is.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, ptr};

use anyhow::{Result, ensure};

/// Ends with status 0.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0x31, 0xff, // xor edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60 (exit)
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;

#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, #0
    0xa8, 0x0b, 0x80, 0xd2, // mov x8, #93 (exit)
    0x01, 0x00, 0x00, 0xd4, // svc #0
];
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

const LOAD_ADDRESS: u64 = 0x40_0000;
const HEADERS_BYTES: u64 = 64 + 56;

/// Writes a static executable: an ELF header, one segment, and the code.
pub fn write_program(path: &Path) -> Result<()> {
    let total = HEADERS_BYTES + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.resize(16, 0);
    elf.extend(2u16.to_le_bytes()); // executable
    elf.extend(MACHINE.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    elf.extend((LOAD_ADDRESS + HEADERS_BYTES).to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // program headers follow
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for field in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes()); // readable, executable
    for field in [0, LOAD_ADDRESS, LOAD_ADDRESS, total, total, 0x1000] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(CODE);
    fs::write(path, elf)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// posix_spawn (a vfork inside) and wait.
pub fn storm(program: &Path, count: u64) -> Result<()> {
    let path = std::ffi::CString::new(program.as_os_str().as_encoded_bytes())?;
    let argv = [path.as_ptr().cast_mut(), ptr::null_mut()];
    let envp = [ptr::null_mut()];
    for _ in 0..count {
        let mut pid = 0;
        let mut status = 0;
        #[expect(
            unsafe_code,
            reason = "std's Command opens and reads a pipe for every start"
        )]
        // SAFETY: path and argv are NUL-terminated and outlive the calls.
        let (spawned, waited) = unsafe {
            let spawned = libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                ptr::null(),
                ptr::null(),
                argv.as_ptr(),
                envp.as_ptr(),
            );
            (spawned, libc::waitpid(pid, &raw mut status, 0))
        };
        ensure!(spawned == 0, "cannot start {path:?}: error {spawned}");
        ensure!(
            waited == pid && status == 0,
            "{path:?} ended with wait status {status}"
        );
    }
    Ok(())
}
