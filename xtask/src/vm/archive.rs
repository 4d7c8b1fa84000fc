//! How is an initramfs written? As a cpio archive of the kind "newc", the only one that Linux reads
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Not compressed: QEMU copies it
//! into memory, while an emulated processor would have to unpack it.

/// Files in the order in which the kernel makes them: a directory before what is in it.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
/// Names and contents begin at multiples of this.
const ALIGN: usize = 4;

impl Archive {
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, b"");
    }

    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, LINK, target.as_bytes());
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        // inode, mode, user, group, links, time, size, four device numbers, length of the name with
        // its NUL, check
        let numbers = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            links,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/sh", b"12345");
        archive.link("sh", "bin/sh");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGN, 0);
        // The second entry: after a header of 110 and "bin\0", aligned.
        let at = (110 + 4usize).next_multiple_of(4);
        let header = std::str::from_utf8(&bytes[at..at + 110]).unwrap();
        assert!(header.starts_with("070701"), "{header}");
        assert_eq!(&header[14..22], "000081ed", "a program: {header}");
        assert_eq!(&header[54..62], "00000005", "its size: {header}");
        assert_eq!(&header[94..102], "00000007", "its name: {header}");
        let content = (at + 110 + 7).next_multiple_of(4);
        assert_eq!(&bytes[at + 110..at + 117], b"bin/sh\0");
        assert_eq!(&bytes[content..content + 5], b"12345");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
