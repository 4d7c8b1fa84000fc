use super::*;

struct Place {
    dir: tempfile::TempDir,
    max_bytes: u64,
}

impl Place {
    fn new(max_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        Self { dir, max_bytes }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("events.jsonl")
    }

    /// As after a start: present is far beyond, so that only what is on disk decides.
    fn open(&self) -> LineFile {
        let config = config::EventsFile {
            path: self.path(),
            max_bytes: self.max_bytes,
            max_files: 0,
            ..config::EventsFile::default()
        };
        let mut file = LineFile::new(&config, self.dir.path().join("state"), 0);
        file.recover().expect("recovers");
        file
    }

    /// All lines on disk, rotated files first.
    fn lines(&self) -> Vec<String> {
        let mut files = rotated_files(&self.path()).expect("files");
        files.sort();
        files.push(self.path());
        let texts = files
            .iter()
            .map(|path| fs::read_to_string(path).unwrap_or_default());
        let text: String = texts.collect();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines().map(str::to_owned).collect()
    }

    /// A copy of everything, with the same inode numbers in its state.
    fn copy(&self) -> Self {
        let copy = Self::new(self.max_bytes);
        let mut state: State =
            serde_json::from_slice(&fs::read(self.dir.path().join("state")).expect("a state"))
                .expect("json");
        for entry in fs::read_dir(self.dir.path()).expect("dir") {
            let from = entry.expect("entry").path();
            let to = copy.dir.path().join(from.file_name().expect("name"));
            fs::copy(&from, &to).expect("copies");
            let (old, new) = (fs::metadata(&from), fs::metadata(&to));
            if old.expect("old").ino() == state.inode {
                state.inode = new.expect("new").ino();
            }
        }
        state.path = copy.path();
        let text = serde_json::to_vec(&state).expect("json");
        fs::write(copy.dir.path().join("state"), text).expect("writes");
        copy
    }
}

fn line(cursor: i64) -> Line {
    let text = format!("{{\"id\":\"e-{cursor}\",\"cursor\":\"{cursor}\"}}");
    Line { cursor, text }
}

fn lines(cursors: std::ops::RangeInclusive<i64>) -> Vec<Line> {
    cursors.map(line).collect()
}

fn texts(cursors: std::ops::RangeInclusive<i64>) -> Vec<String> {
    lines(cursors).into_iter().map(|line| line.text).collect()
}

/// What an exporter does after any start: everything beyond the cursor.
fn finish(place: &Place, last: i64) {
    let mut file = place.open();
    file.append(&lines(1..=last)).expect("appends");
    file.sync().expect("syncs");
}

#[test]
fn cut_at_any_byte_after_the_last_sync_no_line_is_missing_or_double() {
    let place = Place::new(1 << 20);
    let mut file = place.open();
    file.append(&lines(1..=3)).expect("appends");
    file.sync().expect("syncs");
    let durable = file.bytes();
    file.append(&lines(4..=8)).expect("appends");
    let bytes = file.bytes();
    for end in durable..=bytes {
        let copy = place.copy();
        let cut = File::options()
            .write(true)
            .open(copy.path())
            .expect("opens");
        cut.set_len(end).expect("cuts");
        finish(&copy, 10);
        assert_eq!(copy.lines(), texts(1..=10), "cut at {end} of {bytes}");
    }
}

#[test]
fn what_a_loss_of_power_leaves_behind_the_last_sync_is_cut() {
    let place = Place::new(1 << 20);
    let mut file = place.open();
    file.append(&lines(1..=3)).expect("appends");
    file.sync().expect("syncs");
    let durable = file.bytes() as usize;
    file.append(&lines(4..=8)).expect("appends");
    let whole = fs::read(place.path()).expect("text");
    for at in durable..whole.len() {
        let copy = place.copy();
        let mut damaged = whole.clone();
        let end = (at + 7).min(whole.len());
        damaged[at..end].fill(0);
        // In place: the inode is the copy's.
        File::options()
            .write(true)
            .open(copy.path())
            .expect("opens")
            .write_all_at(&damaged, 0)
            .expect("writes");
        finish(&copy, 10);
        assert_eq!(copy.lines(), texts(1..=10), "zeros at {at}");
    }
}

#[test]
fn rotation_keeps_order_and_names_what_each_file_reaches() {
    let place = Place::new(100);
    let mut file = place.open();
    for cursor in 1..=20 {
        file.append(&[line(cursor)]).expect("appends");
    }
    assert_eq!(place.lines(), texts(1..=20));
    let rotated = rotated_files(&place.path()).expect("files");
    assert!(rotated.len() >= 5, "{rotated:?}");
    for path in &rotated {
        assert!(fs::metadata(path).expect("file").len() <= 100);
        let text = fs::read_to_string(path).expect("text");
        let last = text.lines().last().expect("a line");
        let cursor = path
            .extension()
            .expect("a cursor")
            .to_string_lossy()
            .into_owned();
        let cursor: i64 = cursor.parse().expect("a number");
        assert_eq!(last, line(cursor).text);
    }
    // All at once, and a line that is larger than a file may be.
    let place = Place::new(100);
    let mut many = lines(1..=20);
    many[7].text = format!("{{\"x\":\"{}\",\"cursor\":\"8\"}}", "y".repeat(500));
    place.open().append(&many).expect("appends");
    let expected: Vec<String> = many.into_iter().map(|line| line.text).collect();
    assert_eq!(place.lines(), expected);
}

#[test]
fn a_crash_at_any_step_of_a_rotation_leaves_no_line_missing_or_double() {
    for step in 0..4 {
        let place = Place::new(100);
        let mut file = place.open();
        file.append(&lines(1..=2)).expect("appends");
        if step >= 1 {
            file.sync().expect("syncs");
        }
        if step >= 2 {
            fs::rename(place.path(), rotated(&place.path(), 2)).expect("renames");
        }
        if step >= 3 {
            File::create(place.path()).expect("creates");
        }
        drop(file);
        finish(&place, 10);
        assert_eq!(place.lines(), texts(1..=10), "step {step}");
    }
}

#[test]
fn the_oldest_rotated_files_are_deleted_beyond_those_kept() {
    let place = Place::new(100);
    let mut file = place.open();
    file.max_files = 2;
    fs::write(place.dir.path().join("events.jsonl.notes"), "not ours").expect("writes");
    for cursor in 1..=30 {
        file.append(&[line(cursor)]).expect("appends");
    }
    assert_eq!(rotated_files(&place.path()).expect("files").len(), 2);
    let left = place.lines();
    assert_eq!(
        left,
        texts(31 - left.len() as i64..=30),
        "the newest are left"
    );
    assert!(place.dir.path().join("events.jsonl.notes").exists());
}

#[test]
fn an_old_file_is_ended_and_an_empty_one_is_not() {
    let place = Place::new(1 << 20);
    let mut file = place.open();
    file.max_age_s = 3600;
    file.tend().expect("tends");
    file.append(&lines(1..=2)).expect("appends");
    file.tend().expect("tends");
    assert!(rotated_files(&place.path()).expect("files").is_empty());
    if let Some(opened) = &mut file.opened {
        opened.began -= 3600;
    }
    file.sync().expect("syncs");
    // The age outlives a restart.
    let mut file = place.open();
    file.max_age_s = 3600;
    file.tend().expect("tends");
    assert_eq!(rotated_files(&place.path()).expect("files").len(), 1);
    file.tend().expect("tends");
    assert_eq!(rotated_files(&place.path()).expect("files").len(), 1);
    assert_eq!(place.lines(), texts(1..=2));
}

#[test]
fn another_program_may_rename_cut_or_remove_the_file() {
    let place = Place::new(1 << 20);
    let mut file = place.open();
    file.append(&lines(1..=2)).expect("appends");
    // logrotate with `create`: unsynced lines are found in the renamed file after a crash.
    let away = place.dir.path().join("events.jsonl.1");
    fs::rename(place.path(), &away).expect("renames");
    drop(file);
    let mut file = place.open();
    file.append(&lines(1..=3)).expect("appends");
    assert_eq!(fs::read_to_string(&away).expect("text").lines().count(), 2);
    assert_eq!(place.lines(), texts(3..=3));
    fs::rename(place.path(), &away).expect("renames");
    file.append(&lines(1..=4)).expect("appends");
    assert_eq!(place.lines(), texts(4..=4));
    // With `copytruncate`.
    File::create(place.path()).expect("cuts");
    file.append(&lines(1..=5)).expect("appends");
    drop(file);
    let mut file = place.open();
    file.append(&lines(1..=6)).expect("appends");
    assert_eq!(place.lines(), texts(5..=6));
    fs::remove_file(place.path()).expect("removes");
    file.append(&lines(1..=7)).expect("appends");
    assert_eq!(place.lines(), texts(7..=7));
    // What someone left there is kept, on lines of its own.
    fs::remove_file(place.path()).expect("removes");
    fs::write(place.path(), "a note").expect("writes");
    file.append(&lines(1..=8)).expect("appends");
    assert_eq!(place.lines(), ["a note".to_owned(), line(8).text]);
    drop(file);
    finish(&place, 8);
    assert_eq!(place.lines(), ["a note".to_owned(), line(8).text]);
}

#[test]
fn a_new_file_begins_at_the_present_and_a_damaged_state_is_told() {
    let place = Place::new(1 << 20);
    let config = config::EventsFile {
        path: place.path(),
        ..config::EventsFile::default()
    };
    let state = place.dir.path().join("state");
    let mut file = LineFile::new(&config, state.clone(), 77);
    file.recover().expect("recovers");
    assert_eq!(file.cursor(), 77);
    // Also where nothing came before the next start.
    let mut file = LineFile::new(&config, state.clone(), 99);
    file.recover().expect("recovers");
    assert_eq!(file.cursor(), 77);
    fs::write(&state, "{").expect("writes");
    let mut file = LineFile::new(&config, state, 99);
    let error = file.recover().expect_err("refused").to_string();
    assert!(
        error.contains("damaged") && error.contains("remove it"),
        "{error}"
    );
}
