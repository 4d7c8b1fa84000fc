//! Which known name did the writer probably mean?

/// The candidate closest to `name`, if one is close enough to be a likely slip of the fingers.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1) + 1;
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit || shares_a_part(name, candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "path" was meant as "file_path": one name is the other's prefix or suffix at an underscore.
fn shares_a_part(name: &str, candidate: &str) -> bool {
    let joined = |long: &str, short: &str| {
        !short.is_empty()
            && (long
                .strip_suffix(short)
                .is_some_and(|rest| rest.ends_with('_'))
                || long
                    .strip_prefix(short)
                    .is_some_and(|rest| rest.starts_with('_')))
    };
    joined(candidate, name) || joined(name, candidate)
}

/// Levenshtein distance, case ignored.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_finds_none() {
        let names = ["listen_tcp", "data_dir", "process_exe"];
        assert_eq!(nearest("listen-tpc", names), Some("listen_tcp"));
        assert_eq!(nearest("DATA_DIR", names), Some("data_dir"));
        assert_eq!(nearest("exe", names), Some("process_exe"));
        assert_eq!(nearest("zzzzzz", names), None);
    }
}
