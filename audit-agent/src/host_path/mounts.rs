//! What is mounted where, and what is to be seen of it? A mount table as /proc/PID/mountinfo tells
//! it (`proc_pid_mountinfo(5)`), and the way between paths and places within file systems.
//!
//! Invariants: only mounts that a path from the root can come to count: what a later mount hides, on
//! the same directory or on one above it, is never answered. So what [`Mounts::find`] answers is
//! where [`Mounts::place`] finds that place again. Paths are bytes.

use std::{
    cmp::Ordering,
    io::{self, BufRead},
    ops::Range,
};

use ahash::AHashMap;

/// A mount table.
#[derive(Debug)]
pub struct Mounts {
    /// The paths that `mounts` point into.
    text: Vec<u8>,
    mounts: Vec<Mount>,
    /// Which mounts can be come to, by mountpoint, component by component: what is mounted below a
    /// mountpoint follows it.
    visible: Vec<Visible>,
    /// Positions in `visible`, by device, root and mountpoint, short ones first.
    by_device: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u32,
    parent: u32,
    /// major << 20 | minor, as the kernel has it.
    device: u32,
    /// Which part of its file system is mounted: empty where that directory was removed.
    root: Range<u32>,
    point: Range<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Visible {
    mount: u32,
    /// The nearest that is mounted above it; its own position for the root.
    above: u32,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// major << 20 | minor
    pub device: u32,
    /// From the root of the file system.
    pub path: Vec<u8>,
}

impl Mounts {
    /// Reads a table that takes at most `limit_bytes`.
    pub fn read(mut lines: impl BufRead, limit_bytes: usize) -> io::Result<Self> {
        let mut table = Self {
            text: Vec::new(),
            mounts: Vec::new(),
            visible: Vec::new(),
            by_device: Vec::new(),
        };
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a mount table");
            table.push(&line).ok_or_else(invalid)?;
            if table.bytes() > limit_bytes {
                let most = format!("more than the {limit_bytes} bytes that are kept of a table");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, most));
            }
            line.clear();
        }
        table.text.shrink_to_fit();
        table.mounts.shrink_to_fit();
        table.look();
        Ok(table)
    }

    /// Both say the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.mounts == other.mounts && self.text == other.text
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        let each = size_of::<Mount>() + size_of::<Visible>() + size_of::<u32>();
        size_of::<Self>() + self.text.len() + self.mounts.len() * each
    }

    /// Where `path` leads; `None` where nothing is mounted at the root, or the mounted directory was
    /// removed.
    pub fn place(&self, path: &[u8]) -> Option<Place> {
        let mount = self.mount(self.leads_to(path)?);
        let root = self.text(&mount.root);
        let rest = below(self.text(&mount.point), path)?;
        (!root.is_empty()).then(|| Place {
            device: mount.device,
            path: join(root, rest),
        })
    }

    /// A path that leads there. Of several, that by the mount which shows most of the file system;
    /// of those, the one with the shortest mountpoint.
    pub fn find(&self, place: &Place) -> Option<Vec<u8>> {
        let of = |at: &u32| self.mount(*at as usize).device.cmp(&place.device);
        let first = self
            .by_device
            .partition_point(|at| of(at) == Ordering::Less);
        let same = self.by_device[first..].iter();
        same.take_while(|at| of(at) == Ordering::Equal)
            .find_map(|at| {
                let mount = self.mount(*at as usize);
                let root = self.text(&mount.root);
                let rest = below(root, &place.path).filter(|_| !root.is_empty())?;
                let path = join(self.text(&mount.point), rest);
                (self.leads_to(&path)? == *at as usize).then_some(path)
            })
    }

    fn text(&self, range: &Range<u32>) -> &[u8] {
        &self.text[range.start as usize..range.end as usize]
    }

    fn mount(&self, visible: usize) -> &Mount {
        &self.mounts[self.visible[visible].mount as usize]
    }

    fn point(&self, visible: usize) -> &[u8] {
        self.text(&self.mount(visible).point)
    }

    /// The mount on which the lookup of `path` ends.
    fn leads_to(&self, path: &[u8]) -> Option<usize> {
        if !path.starts_with(b"/") {
            return None;
        }
        // Those above a path are before it, and of what is between none is below it.
        let visible = &self.visible;
        let after = visible.partition_point(|of| {
            let point = self.text(&self.mounts[of.mount as usize].point);
            by_component(point, path) != Ordering::Greater
        });
        let mut at = after.checked_sub(1)?;
        while below(self.point(at), path).is_none() {
            at = visible[at].above as usize;
        }
        Some(at)
    }

    fn push(&mut self, line: &[u8]) -> Option<()> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        let device = fields.next()?;
        let colon = device.iter().position(|byte| *byte == b':')?;
        let (major, minor) = (number(&device[..colon])?, number(&device[colon + 1..])?);
        let root = self.take(fields.next()?)?;
        let point = self.take(fields.next()?)?;
        let is_removed = self.text(&root).ends_with(b"//deleted");
        self.mounts.push(Mount {
            id,
            parent,
            device: major << 20 | minor,
            root: if is_removed { 0..0 } else { root },
            point,
        });
        Some(())
    }

    /// Appends a field of the table to the text.
    fn take(&mut self, field: &[u8]) -> Option<Range<u32>> {
        let start = u32::try_from(self.text.len()).ok()?;
        unescape(field, &mut self.text);
        Some(start..u32::try_from(self.text.len()).ok()?)
    }

    /// Finds what is visible, by the steps of the kernel's own lookup.
    fn look(&mut self) {
        let ids: AHashMap<u32, ()> = self.mounts.iter().map(|mount| (mount.id, ())).collect();
        let is_root = |mount: &Mount| {
            self.text(&mount.point) == b"/"
                && (mount.parent == mount.id || !ids.contains_key(&mount.parent))
        };
        let Some(root) = self.mounts.iter().position(is_root) else {
            return;
        };
        let mut children: AHashMap<(u32, &[u8]), usize> = AHashMap::new();
        for (at, mount) in self.mounts.iter().enumerate().filter(|(at, _)| *at != root) {
            children.insert((mount.parent, self.text(&mount.point)), at);
        }
        let leads_to = |path: &[u8]| {
            let mut at = root;
            let ends = path.iter().enumerate().skip(1);
            let ends = ends.filter_map(|(end, byte)| (*byte == b'/').then_some(end));
            for end in ends.chain([path.len()]).filter(|_| path != b"/") {
                // As often as something is mounted over it; a table that says it forever is none.
                for _ in 0..self.mounts.len() {
                    match children.get(&(self.mounts[at].id, &path[..end])) {
                        Some(over) => at = *over,
                        None => break,
                    }
                }
            }
            at
        };
        let all = 0..self.mounts.len();
        let mut visible: Vec<usize> = all
            .filter(|at| leads_to(self.text(&self.mounts[*at].point)) == *at)
            .collect();
        visible.sort_by(|a, b| {
            let point = |at: &usize| self.text(&self.mounts[*at].point);
            by_component(point(a), point(b))
        });
        self.visible = self.nested(&visible);
        let mut by_device: Vec<u32> = (0..self.visible.len() as u32).collect();
        by_device.sort_by_key(|at| {
            let Mount {
                device,
                root,
                point,
                ..
            } = self.mount(*at as usize);
            (*device, root.len(), point.len())
        });
        self.by_device = by_device;
    }

    /// With what each is mounted below.
    fn nested(&self, sorted: &[usize]) -> Vec<Visible> {
        let mut nested: Vec<Visible> = Vec::with_capacity(sorted.len());
        for (at, mount) in sorted.iter().enumerate() {
            let point = self.text(&self.mounts[*mount].point);
            let mut above = at.saturating_sub(1);
            // The first has nothing above it but itself.
            while let Some(of) = nested.get(above).copied() {
                let upper = self.text(&self.mounts[of.mount as usize].point);
                if below(upper, point).is_some() || of.above as usize == above {
                    break;
                }
                above = of.above as usize;
            }
            nested.push(Visible {
                mount: *mount as u32,
                above: above as u32,
            });
        }
        nested
    }
}

/// What follows `directory` in a path below it: nothing, or a slash and more.
fn below<'a>(directory: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if directory == b"/" {
        return path
            .starts_with(b"/")
            .then(|| if path == b"/" { &path[1..] } else { path });
    }
    let rest = path.strip_prefix(directory)?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

fn join(directory: &[u8], rest: &[u8]) -> Vec<u8> {
    match (directory, rest) {
        (directory, b"") => directory.to_vec(),
        (b"/", rest) => rest.to_vec(),
        (directory, rest) => [directory, rest].concat(),
    }
}

/// A directory comes before what is in it, and that before every other name.
fn by_component(a: &[u8], b: &[u8]) -> Ordering {
    let common = common(a, b);
    let next = |path: &[u8]| match path.get(common) {
        // The root ends with a slash of its own.
        None => 0,
        Some(b'/') => 1,
        Some(byte) => 2 + u16::from(*byte),
    };
    next(a).cmp(&next(b))
}

/// How many bytes they have in common at the beginning; mountpoints of containers have many.
fn common(a: &[u8], b: &[u8]) -> usize {
    let ((many, _), (others, _)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let chunks = many.iter().zip(others).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[16 * chunks..], &b[16 * chunks..]);
    16 * chunks + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `\ooo` is the byte with that octal number.
fn unescape(field: &[u8], out: &mut Vec<u8>) {
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let all = digits.iter().all(|digit| matches!(digit, b'0'..=b'7'));
            let sum = |sum: u32, digit: &u8| sum << 3 | u32::from(digit & 7);
            let value = digits.iter().fold(0, sum);
            u8::try_from(value).ok().filter(|_| all)
        };
        match after.get(..3).and_then(octal).filter(|_| byte == b'\\') {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests;
