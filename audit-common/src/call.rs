//! Which system calls become records, and what their arguments are.
//!
//! Every returning system call has a slot: its number, for an i386 call plus [`COMPAT_SLOT`]. The
//! agent puts a program and a [`Shape`] there; the kernel programs have no list of calls.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots below are those of the native calls (x32 included: its own numbers begin at 512).
pub const COMPAT_SLOT: u32 = 1024;
pub const SLOTS: u32 = 2 * COMPAT_SLOT;

/// Argument registers of a call.
pub const ARGUMENTS: usize = 6;
/// In place of an argument's position: the call has no such argument.
pub const NONE: u8 = 0xff;

/// What the arguments of a call mean, by position; value of the map `SHAPES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shape {
    /// [`crate::kind`]
    pub kind: u16,
    /// [`crate::class`]
    pub class: u8,
    /// [`flags`]
    pub flags: u8,
    /// A path, and the descriptor of the directory that it starts from.
    pub path: u8,
    pub directory: u8,
    /// A second path of the same kind.
    pub target_path: u8,
    pub target_directory: u8,
    /// A descriptor whose file the call is about.
    pub descriptor: u8,
    /// Texts that are not paths.
    pub text: u8,
    pub second_text: u8,
    /// A structure in the caller's memory, and how much of it is kept.
    pub structure: u8,
    pub structure_bytes: u8,
    /// Report the call only if this argument passes [`Shape::mask`].
    pub filter: u8,
    /// Descriptors of the file that bytes come from, and of the one that they go to; the result says
    /// how many.
    pub source: u8,
    pub sink: u8,
    /// Bits of which one must be set in the argument; with [`flags::VALUES`], bit N admits value N.
    pub mask: u32,
    /// With [`flags::VALUES`], a value beyond 31 that is admitted too.
    pub also: u32,
}

pub mod flags {
    /// [`super::Shape::mask`] is a set of values.
    pub const VALUES: u8 = 1;
    /// Calls that failed are not reported.
    pub const ONLY_SUCCESS: u8 = 2;
    /// Calls that succeeded are not reported: another hook tells them.
    pub const ONLY_FAILURE: u8 = 8;
    /// Report the call only if its structure does not begin with four zero bytes.
    pub const STRUCTURE_SET: u8 = 16;
    /// What the path names is looked at through a final symbolic link.
    pub const FOLLOW: u8 = 4;
}

impl Shape {
    /// A call of `kind` without any of it.
    pub const fn new(kind: u16, class: u8) -> Self {
        Self {
            kind,
            class,
            flags: 0,
            path: NONE,
            directory: NONE,
            target_path: NONE,
            target_directory: NONE,
            descriptor: NONE,
            text: NONE,
            second_text: NONE,
            structure: NONE,
            structure_bytes: 0,
            filter: NONE,
            source: NONE,
            sink: NONE,
            mask: 0,
            also: 0,
        }
    }
}
