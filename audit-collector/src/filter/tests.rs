use audit_proto::filter::parse;

use super::*;

fn refusal(text: &str) -> String {
    let filter = parse(text).expect("a filter");
    expression(&[], &[filter]).expect_err(text).to_string()
}

#[test]
fn what_cannot_be_filtered_by_is_refused_with_the_nearest_name() {
    for (text, words) in [
        (
            "proces_exe=x",
            "no column `proces_exe`; did you mean `process_exe`?",
        ),
        ("process.exe=x", "did you mean `process_exe`?"),
        ("zzzzzzzz=x", "hostaudit query --columns"),
        ("kind=exce", "no kind `exce`; did you mean `exec`?"),
        ("kind=zzzzzzzz", "there are: exec, "),
        ("process_uid=root", "\"root\" is not a whole number"),
        ("process_uid^=1", "`prefixes` is for text"),
        ("process_exe>=1", "for numbers and times"),
        ("process_exe_memfd=yes", "`true` or `false`"),
        ("process_exe~=(", "unclosed group"),
        ("process_exe~=\\w{999}{999}{999}", "size limit"),
        ("socket_peer_address<<=10.0.0.0", "ADDRESS/BITS"),
        ("kind=exec,time=now", "deny[0].conditions[1] (time)"),
    ] {
        let error = refusal(text);
        assert!(error.contains(words), "{text}: {error}");
    }
    let empty = expression(&[EventFilter::default()], &[]).expect_err("refused");
    assert!(
        empty.to_string().contains("allow[0]: it is empty"),
        "{empty}"
    );
    let none = EventFilter {
        kinds: vec![0],
        ..EventFilter::default()
    };
    assert!(expression(&[none], &[]).is_err());
}

#[test]
fn more_than_the_bounds_is_refused() {
    let one = parse("kind=exec").expect("a filter");
    let many = vec![one; MAX_FILTERS + 1];
    assert!(expression(&many, &[]).is_err());
    expression(&many[1..], &many[1..]).expect("as many as there may be");
    let long = parse(&format!("process_exe={}", "x".repeat(MAX_VALUE_BYTES + 1)));
    assert!(expression(&[long.expect("a filter")], &[]).is_err());
    let values = vec!["x"; MAX_VALUES + 1].join("|");
    let values = parse(&format!("process_exe={values}")).expect("a filter");
    assert!(expression(&[values], &[]).is_err());
}

#[test]
fn a_mask_is_columns_and_objects_and_keeps_what_identifies() {
    let mask = |fields: &[&str]| {
        let fields: Vec<String> = fields.iter().map(|&f| f.to_owned()).collect();
        super::mask(&fields)
    };
    assert!(mask(&[]).expect("valid").is_none());
    let columns = mask(&["socket_peer", "process_exe"])
        .expect("valid")
        .expect("a mask");
    let names: Vec<&str> = columns.iter().map(|at| COLUMNS[*at].name).collect();
    assert_eq!(
        names,
        [
            "id",
            "time",
            "time_remainder_ns",
            "boot_time_ns",
            "kind",
            "process_exe",
            "socket_peer_address",
            "socket_peer_port",
            "socket_peer_name"
        ]
    );
    let error = mask(&["proces"]).expect_err("refused").to_string();
    assert!(error.contains("did you mean `process`?"), "{error}");
    let error = mask(&["process.exe"]).expect_err("refused").to_string();
    assert!(error.contains("did you mean `process_exe`?"), "{error}");
}
