use super::*;
use proptest::prelude::*;

/// From lines of id, parent, device, root and mountpoint.
fn table(lines: &[&[u8]]) -> Mounts {
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(line);
        text.extend_from_slice(b" rw,relatime master:1 - ext4 /dev/vda rw\n");
    }
    Mounts::read(text.as_slice(), 1 << 20).expect("a table")
}

fn place(device: u32, path: &str) -> Option<Place> {
    Some(Place {
        device,
        path: path.as_bytes().to_vec(),
    })
}

/// The host's path of `place`.
fn found(mounts: &Mounts, place: &Place) -> Option<String> {
    let path = mounts.find(place)?;
    Some(String::from_utf8(path).expect("utf-8"))
}

#[test]
fn the_longest_mountpoint_says_where_a_path_leads() {
    let mounts = table(&[
        b"20 1 8:1 / /",
        b"21 20 0:5 / /a",
        b"22 20 8:1 /srv/b /a-b",
        b"23 21 8:2 /x /a/b",
    ]);
    let leads = |path: &str| mounts.place(path.as_bytes());
    let device = |major: u32, minor: u32| major << 20 | minor;
    assert_eq!(leads("/"), place(device(8, 1), "/"));
    assert_eq!(leads("/ab"), place(device(8, 1), "/ab"));
    assert_eq!(leads("/a"), place(device(0, 5), "/"));
    assert_eq!(leads("/a/a"), place(device(0, 5), "/a"));
    assert_eq!(leads("/a/bc"), place(device(0, 5), "/bc"));
    assert_eq!(leads("/a/b/c/d"), place(device(8, 2), "/x/c/d"));
    assert_eq!(leads("/a-b/c"), place(device(8, 1), "/srv/b/c"));
    assert_eq!(leads("a"), None);
    assert_eq!(leads(""), None);
}

#[test]
fn what_a_later_mount_hides_is_not_answered() {
    let of = |device, path: &str| place(device, path).expect("a place");
    // Over the same directory, and over one above it.
    let mounts = table(&[
        b"20 1 0:1 / /",
        b"21 20 0:2 / /data",
        b"22 21 0:3 / /data",
        b"23 20 0:4 / /run/one",
        b"24 20 0:5 / /run",
    ]);
    assert_eq!(mounts.place(b"/data/f"), place(3, "/f"));
    assert_eq!(mounts.place(b"/run/one/f"), place(5, "/one/f"));
    assert_eq!(found(&mounts, &of(2, "/f")), None);
    assert_eq!(found(&mounts, &of(3, "/f")).as_deref(), Some("/data/f"));
    assert_eq!(found(&mounts, &of(4, "/f")), None);
    // A part of a file system that another covers.
    assert_eq!(found(&mounts, &of(1, "/etc/f")).as_deref(), Some("/etc/f"));
    assert_eq!(found(&mounts, &of(1, "/data/f")), None);
    // Mounted over the root, where those that have their root below do not come.
    let mounts = table(&[b"20 1 0:1 / /", b"21 20 0:2 / /"]);
    assert_eq!(mounts.place(b"/f"), place(1, "/f"));
}

#[test]
fn of_several_ways_the_mount_that_shows_most_is_told() {
    let of = |path: &str| place(1, path).expect("a place");
    let mounts = table(&[
        b"20 1 0:9 / /",
        b"21 20 0:1 /a/b /s",
        b"22 20 0:1 /a /long/name",
        b"23 20 0:1 /a /long/other-name",
    ]);
    let leads = |path| found(&mounts, &of(path));
    assert_eq!(leads("/a/b/c").as_deref(), Some("/long/name/b/c"));
    assert_eq!(leads("/a").as_deref(), Some("/long/name"));
    assert_eq!(leads("/abc"), None);
    // The next where that is covered.
    let mounts = table(&[
        b"20 1 0:9 / /",
        b"21 20 0:1 /a/b /s",
        b"22 20 0:1 /a /all",
        b"23 22 0:7 / /all/b",
    ]);
    assert_eq!(found(&mounts, &of("/a/b/c")).as_deref(), Some("/s/c"));
}

#[test]
fn a_removed_directory_leads_nowhere() {
    let mounts = table(&[b"20 1 0:1 / /", b"21 20 0:1 /gone//deleted /m"]);
    assert_eq!(mounts.place(b"/m/f"), None);
    assert_eq!(mounts.place(b"/n/f"), place(1, "/n/f"));
}

#[test]
fn a_namespaces_file_has_no_slash() {
    let mounts = table(&[b"20 1 0:1 / /", b"21 20 0:4 net:[4026532008] /run/netns/a"]);
    let file = mounts.place(b"/run/netns/a").expect("a place");
    assert_eq!(file.path, b"net:[4026532008]");
    assert_eq!(found(&mounts, &file).as_deref(), Some("/run/netns/a"));
}

#[test]
fn names_are_bytes_and_come_back_from_their_escapes() {
    let mounts = table(&[
        b"20 1 0:1 / /",
        b"21 20 0:2 /a\\040b\\134 /m\\011\\012\xff\\0401",
    ]);
    assert_eq!(
        mounts.place(b"/m\t\n\xff 1/f"),
        place(2, "/a b\\/f"),
        "{mounts:?}"
    );
    assert_eq!(
        mounts.find(&place(2, "/a b\\/f").expect("a place")),
        Some(b"/m\t\n\xff 1/f".to_vec())
    );
}

#[test]
fn what_is_no_table_or_too_much_of_one_is_refused() {
    let refused = |text: &[u8], limit| Mounts::read(text, limit).expect_err("refused").kind();
    let line = b"20 1 0:1 / / rw - ext4 x rw\n";
    assert_eq!(refused(line, 10), io::ErrorKind::FileTooLarge);
    for text in [&b"20 1\n"[..], b"x 1 0:1 / / rw\n", b"20 1 01 / / rw\n"] {
        assert_eq!(refused(text, 1 << 20), io::ErrorKind::InvalidData);
    }
    let nothing = Mounts::read(&b""[..], 1 << 20).expect("empty");
    assert_eq!(nothing.place(b"/"), None);
    // Without a root nothing can be come to.
    let mounts = table(&[b"21 20 0:2 / /a"]);
    assert_eq!(mounts.place(b"/a"), None);
}

/// As the kernel writes a path.
fn mangled(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").bytes()),
            byte => out.push(*byte),
        }
    }
    out
}

/// Names that sort before and after a slash, some with bytes that are escaped or no text.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        b"a".to_vec(),
        b"a-".to_vec(),
        b"a b".to_vec(),
        b"\xff".to_vec(),
        b"!\\\n".to_vec(),
    ])
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(name(), 0..4).prop_map(|names| match names.is_empty() {
        true => b"/".to_vec(),
        false => names
            .iter()
            .flat_map(|name| [b"/", name.as_slice()].concat())
            .collect(),
    })
}

/// What was mounted: on which of those before, from where, at which path.
struct Model {
    mounts: Vec<(usize, u32, Vec<u8>, Vec<u8>)>,
}

impl Model {
    fn new(steps: Vec<(u32, Vec<u8>, Vec<u8>)>) -> Self {
        let mut model = Self {
            mounts: vec![(usize::MAX, 0, b"/".to_vec(), b"/".to_vec())],
        };
        for (device, root, point) in steps {
            model
                .mounts
                .push((model.lookup(&point), device, root, point));
        }
        model
    }

    /// As the kernel walks: at each directory to what is mounted there.
    fn lookup(&self, path: &[u8]) -> usize {
        let mut at = 0;
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        let mut place = Vec::new();
        for name in names {
            place.push(b'/');
            place.extend_from_slice(name);
            let over = |at: usize| {
                let mut mounts = self.mounts.iter();
                mounts.position(|(parent, _, _, point)| *parent == at && *point == place)
            };
            while let Some(next) = over(at) {
                at = next;
            }
        }
        at
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (at, (parent, device, root, point)) in self.mounts.iter().enumerate() {
            let parent = parent.wrapping_add(100);
            text.extend(format!("{} {parent} 0:{device} ", at + 100).bytes());
            text.extend([mangled(root), mangled(point)].join(&b' '));
            text.extend_from_slice(b" rw - x x rw\n");
        }
        text
    }
}

proptest! {
    #[test]
    fn paths_lead_where_the_kernel_walks_and_back(
        steps in prop::collection::vec((0..4_u32, path(), path()), 0..12),
        asked in prop::collection::vec(path(), 1..8),
    ) {
        let model = Model::new(steps);
        let mounts = Mounts::read(model.text().as_slice(), 1 << 20).expect("a table");
        for path in asked {
            let (_, device, root, point) = &model.mounts[model.lookup(&path)];
            let rest = below(point, &path).expect("below its mountpoint");
            let expected = Place { device: *device, path: join(root, rest) };
            let leads = mounts.place(&path).expect("a place");
            prop_assert_eq!(&leads, &expected, "{:?}", path);
            // There is a way to it, at least this; and it leads there.
            let way = mounts.find(&leads).expect("a way");
            prop_assert_eq!(mounts.place(&way), Some(leads));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, path: Vec<u8>) {
        if let Ok(mounts) = Mounts::read(bytes.as_slice(), 1 << 20) {
            let place = mounts.place(&path);
            place.and_then(|place| mounts.find(&place));
        }
    }
}
