//! Where does the running kernel keep a field? Reads the kernel's own type information (BTF) and
//! finds `struct.member.member`, through anonymous structs and unions. And what else it says of
//! itself: its functions, what its tracepoints pass on, the values of its enums.
//!
//! Format: Documentation/bpf/btf.rst of Linux; little-endian, as on both supported architectures.

use std::{collections::HashMap, fs, io, ops::Range, path::Path};

use zerocopy::{FromBytes, Immutable, KnownLayout};

const KIND_POINTER: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNCTION: u32 = 12;
const KIND_PROTOTYPE: u32 = 13;
/// Names for the same type: typedef, volatile, const, restrict, type tag.
const ALIASES: [u32; 5] = [8, 9, 10, 11, 18];
/// Typedef chains and anonymous nesting are short; a longer one is not BTF.
const MAX_DEPTH: u32 = 32;

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error(
        "cannot read {path}: {error}; the kernel needs CONFIG_DEBUG_INFO_BTF=y, as distribution kernels since 2021 have"
    )]
    Read { path: String, error: io::Error },
    #[error(
        "{0} is not the type information (BTF) of a kernel; is something mounted over it, or /sys from elsewhere?"
    )]
    Format(String),
}

#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct FileHeader {
    magic: u16,
    version: u8,
    flags: u8,
    header_bytes: u32,
    types_offset: u32,
    types_bytes: u32,
    strings_offset: u32,
    strings_bytes: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct TypeHeader {
    name: u32,
    info: u32,
    size_or_type: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Member {
    name: u32,
    type_id: u32,
    offset: u32,
}

/// Of an enum, and of a function's prototype: a name, and a value or a type.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Named {
    name: u32,
    value: u32,
}

/// What a tracepoint passes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// To a struct of that name; of none for `void *`.
    Pointer(String),
    Number,
}

/// The kernel's types.
pub struct Types {
    bytes: Vec<u8>,
    strings: usize,
    /// Of the kernel itself; names of a module's types are numbered behind them.
    strings_bytes: usize,
    module_strings: usize,
    /// Where each type's header is; ids count from 1.
    types: Vec<usize>,
    structs: HashMap<Vec<u8>, u32>,
    functions: HashMap<Vec<u8>, u32>,
    /// By name, those of tracepoints only: `btf_trace_NAME`.
    tracepoints: HashMap<Vec<u8>, u32>,
}

impl Types {
    pub fn of_kernel() -> Result<Self, BtfError> {
        let mut types = Self::read(Path::new("/sys/kernel/btf/vmlinux"))?;
        // Where overlayfs is not built in, its types are known once the module is loaded.
        if let Ok(module) = fs::read("/sys/kernel/btf/overlay") {
            types
                .extend(&module)
                .ok_or_else(|| BtfError::Format("/sys/kernel/btf/overlay".to_owned()))?;
        }
        Ok(types)
    }

    fn read(path: &Path) -> Result<Self, BtfError> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| BtfError::Read {
            path: name.clone(),
            error,
        })?;
        Self::parse(bytes).ok_or(BtfError::Format(name))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let (header, types, strings) = parts(&bytes)?;
        let mut this = Self {
            bytes,
            strings,
            strings_bytes: header.strings_bytes as usize,
            module_strings: 0,
            types: vec![0],
            structs: HashMap::new(),
            functions: HashMap::new(),
            tracepoints: HashMap::new(),
        };
        this.add(types)?;
        Some(this)
    }

    /// Adds the types of a module, which are numbered behind those of the kernel.
    fn extend(&mut self, module: &[u8]) -> Option<()> {
        let (_, types, strings) = parts(module)?;
        let at = self.bytes.len();
        self.module_strings = at + strings;
        self.bytes.extend_from_slice(module);
        self.add(at + types.start..at + types.end)
    }

    fn add(&mut self, Range { start, end }: Range<usize>) -> Option<()> {
        let mut at = start;
        while at < end {
            let header = self.header_at(at)?;
            let id = u32::try_from(self.types.len()).ok()?;
            if kind(header) == KIND_STRUCT
                && let Some(name) = self.name(header.name)
            {
                let name = name.to_vec();
                self.structs.entry(name).or_insert(id);
            }
            if kind(header) == KIND_FUNCTION
                && let Some(name) = self.name(header.name)
            {
                let name = name.to_vec();
                self.functions.entry(name).or_insert(id);
            }
            if kind(header) == KIND_TYPEDEF
                && let Some(name) = self.name(header.name)
                && let Some(name) = name.strip_prefix(b"btf_trace_")
            {
                let name = name.to_vec();
                self.tracepoints.insert(name, header.size_or_type);
            }
            self.types.push(at);
            at += size_of::<TypeHeader>() + trailer_bytes(header)?;
        }
        Some(())
    }

    /// Does this kernel have a function of that name? True of helpers of BPF programs too.
    pub fn has_function(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// Its number among the types.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.functions.get(name.as_bytes()).copied()
    }

    /// What the tracepoint `name` passes to its programs; `None` when this kernel has none.
    pub fn tracepoint(&self, name: &str) -> Option<Vec<Argument>> {
        // A pointer to a function, of which the first argument is not passed on.
        let pointer = self.header_at(self.resolve(*self.tracepoints.get(name.as_bytes())?)?)?;
        let at = self.resolve(pointer.size_or_type)?;
        let prototype = self.header_at(at)?;
        if kind(pointer) != KIND_POINTER || kind(prototype) != KIND_PROTOTYPE {
            return None;
        }
        let arguments = self.named(at, prototype).skip(1);
        arguments.map(|named| self.argument(named?.value)).collect()
    }

    fn argument(&self, id: u32) -> Option<Argument> {
        let header = self.header_at(self.resolve(id)?)?;
        if kind(header) != KIND_POINTER {
            return Some(Argument::Number);
        }
        let target = self.resolve(header.size_or_type);
        let name = target.and_then(|at| self.name(self.header_at(at)?.name));
        let name = String::from_utf8_lossy(name.unwrap_or_default());
        Some(Argument::Pointer(name.into_owned()))
    }

    /// The value of a name in one of the kernel's enums of 32 bits.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        self.types.iter().skip(1).find_map(|at| {
            let header = self.header_at(*at).filter(|h| kind(*h) == KIND_ENUM)?;
            let mut values = self.named(*at, header).flatten();
            let found = values.find(|named| self.name(named.name) == Some(name.as_bytes()))?;
            Some(found.value)
        })
    }

    /// The names behind a type's header.
    fn named(&self, at: usize, header: TypeHeader) -> impl Iterator<Item = Option<Named>> {
        (0..(header.info & 0xffff) as usize).map(move |n| {
            let at = at + size_of::<TypeHeader>() + n * size_of::<Named>();
            Some(Named::read_from_prefix(self.bytes.get(at..)?).ok()?.0)
        })
    }

    /// The byte offset of `path` ("file.f_path"), or of the first that is there of several with "|"
    /// between; `None` when this kernel has no such field.
    pub fn offset(&self, path: &str) -> Option<u32> {
        path.split('|').find_map(|path| self.offset_of(path))
    }

    fn offset_of(&self, path: &str) -> Option<u32> {
        let mut parts = path.split('.');
        let mut id = *self.structs.get(parts.next()?.as_bytes())?;
        let mut bits = 0;
        for part in parts {
            let (offset, type_id) = self.member(id, part.as_bytes(), 0)?;
            bits += offset;
            id = type_id;
        }
        Some(bits / 8)
    }

    /// Offset in bits and type of the member called `name`, looked for in anonymous members too.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        let at = self.resolve(id)?;
        let header = self.header_at(at)?;
        if ![KIND_STRUCT, KIND_UNION].contains(&kind(header)) {
            return None;
        }
        let bitfields = header.info >> 31 == 1;
        for n in 0..(header.info & 0xffff) as usize {
            let at = at + size_of::<TypeHeader>() + n * size_of::<Member>();
            let (member, _) = Member::read_from_prefix(self.bytes.get(at..)?).ok()?;
            // With bit fields the upper byte of the offset is the field's width.
            let offset = if bitfields {
                member.offset & 0xff_ffff
            } else {
                member.offset
            };
            match self.name(member.name) {
                Some(found) if found == name => return Some((offset, member.type_id)),
                Some(_) => {}
                None => {
                    if let Some((inner, id)) = self.member(member.type_id, name, depth + 1) {
                        return Some((offset + inner, id));
                    }
                }
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<usize> {
        for _ in 0..MAX_DEPTH {
            let at = *self.types.get(id as usize).filter(|_| id != 0)?;
            let header = self.header_at(at)?;
            if !ALIASES.contains(&kind(header)) {
                return Some(at);
            }
            id = header.size_or_type;
        }
        None
    }

    fn header_at(&self, at: usize) -> Option<TypeHeader> {
        let (header, _) = TypeHeader::read_from_prefix(self.bytes.get(at..)?).ok()?;
        Some(header)
    }

    /// `None` for anonymous.
    fn name(&self, offset: u32) -> Option<&[u8]> {
        let offset = offset as usize;
        let at = match offset.checked_sub(self.strings_bytes) {
            Some(of_module) => self.module_strings + of_module,
            None => self.strings + offset,
        };
        let text = self.bytes.get(at..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        (end > 0).then(|| &text[..end])
    }
}

/// The header of a file, where its types are, and where its strings begin.
fn parts(bytes: &[u8]) -> Option<(FileHeader, Range<usize>, usize)> {
    let (header, _) = FileHeader::read_from_prefix(bytes).ok()?;
    if header.magic != 0xeb9f {
        return None;
    }
    let start = header.header_bytes.checked_add(header.types_offset)? as usize;
    let end = start.checked_add(header.types_bytes as usize)?;
    let strings = header.header_bytes.checked_add(header.strings_offset)? as usize;
    Some((header, start..end, strings))
}

fn kind(header: TypeHeader) -> u32 {
    header.info >> 24 & 0x1f
}

/// Bytes behind a type's header.
fn trailer_bytes(header: TypeHeader) -> Option<usize> {
    let count = (header.info & 0xffff) as usize;
    Some(match kind(header) {
        // int; array; struct, union; enum; function prototype; variable; section; tag; 64-bit enum
        1 => 4,
        3 => 12,
        4 | 5 => 12 * count,
        6 => 8 * count,
        13 => 8 * count,
        14 => 4,
        15 => 12 * count,
        17 => 4,
        19 => 12 * count,
        0 | 2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_that_every_kernel_has() {
        let Ok(types) = Types::of_kernel() else {
            eprintln!("SKIPPED: this kernel shows no BTF");
            return;
        };
        assert_eq!(types.offset("list_head.next"), Some(0));
        assert_eq!(types.offset("list_head.prev"), Some(8));
        // Through an anonymous union and a qualifier on newer kernels.
        let parent = types.offset("dentry.d_parent").expect("d_parent");
        assert_eq!(types.offset("dentry.d_name.name"), Some(parent + 16));
        assert_eq!(types.offset("task_struct.no_such_field"), None);
        assert_eq!(types.offset("no_such_struct.x"), None);
        assert!(types.has_function("vfs_read"));
        assert!(!types.has_function("no_such_function"));
        let either = "task_struct.no_such_field|list_head.prev";
        assert_eq!(types.offset(either), Some(8));
    }

    #[test]
    fn finds_arguments_of_tracepoints_and_values_of_enums() {
        let Ok(types) = Types::of_kernel() else {
            eprintln!("SKIPPED: this kernel shows no BTF");
            return;
        };
        let pointer = |name: &str| Argument::Pointer(name.to_owned());
        assert_eq!(
            types.tracepoint("sys_exit"),
            Some(vec![pointer("pt_regs"), Argument::Number])
        );
        let exec = types.tracepoint("sched_process_exec").expect("exec");
        assert_eq!(exec.first(), Some(&pointer("task_struct")));
        assert_eq!(exec.get(2), Some(&pointer("linux_binprm")));
        assert_eq!(types.tracepoint("no_such_tracepoint"), None);
        assert_eq!(types.enumerator("BPF_MAP_TYPE_RINGBUF"), Some(27));
        assert_eq!(types.enumerator("NO_SUCH_ENUMERATOR"), None);
    }

    #[test]
    fn damaged_btf_is_refused_or_read_but_never_panics() {
        let Ok(bytes) = fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED: this kernel shows no BTF");
            return;
        };
        for cut in [0, 3, 20, 24, 100, 5000] {
            assert!(
                Types::parse(bytes[..cut].to_vec()).is_none(),
                "cut at {cut}"
            );
        }
        for at in (0..2000).step_by(7) {
            let mut damaged = bytes[..200_000.min(bytes.len())].to_vec();
            damaged[at] ^= 0xff;
            if let Some(types) = Types::parse(damaged) {
                let _ = types.offset("task_struct.cred");
                let _ = types.tracepoint("sys_exit");
                let _ = types.enumerator("BPF_MAP_TYPE_RINGBUF");
            }
        }
    }
}
