//! What an operator may write, and what is said when it is wrong.

use std::{collections::BTreeMap, fs, path::Path};

use audit_config::{ConfigError, load};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    data_dir: String,
    listen: Listen,
    rules_dirs: Vec<String>,
    labels: BTreeMap<String, String>,
    webhooks: Vec<Webhook>,
    user: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Listen {
    tcp: String,
    port: u16,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Webhook {
    url: String,
    timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/data".into(),
            listen: Listen::default(),
            rules_dirs: vec!["a".into()],
            labels: BTreeMap::new(),
            webhooks: Vec::new(),
            user: None,
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            tcp: "127.0.0.1".into(),
            port: 4620,
        }
    }
}

fn with(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("main.yaml");
    fs::write(&path, text).expect("write");
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    load(Some(&path), None, &overrides)
}

fn message(result: Result<Config, ConfigError>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn nothing_given_is_the_defaults() {
    assert_eq!(
        load::<Config>(None, None, &[]).expect("loads"),
        Config::default()
    );
    assert_eq!(
        with("# only a comment\n", &[]).expect("loads"),
        Config::default()
    );
}

#[test]
fn later_layers_win_key_by_key() {
    let dir = tempfile::tempdir().expect("tempdir");
    let main = dir.path().join("main.yaml");
    let drop_ins = dir.path().join("main.d");
    fs::create_dir(&drop_ins).expect("mkdir");
    fs::write(&main, "listen: {port: 1}\nrules_dirs: [b, c]\n").expect("write");
    fs::write(drop_ins.join("20.yaml"), "listen: {port: 3}\n").expect("write");
    fs::write(drop_ins.join("10.yaml"), "listen: {port: 2, tcp: '::1'}\n").expect("write");
    fs::write(drop_ins.join(".20.yaml.swp"), "garbage: [").expect("write");
    let config: Config =
        load(Some(&main), Some(&drop_ins), &["data_dir=/else".to_owned()]).expect("loads");
    assert_eq!(
        config.listen,
        Listen {
            tcp: "::1".into(),
            port: 3
        }
    );
    assert_eq!(config.rules_dirs, ["b", "c"]);
    assert_eq!(config.data_dir, "/else");
}

#[test]
fn an_unknown_key_names_file_path_and_nearest() {
    let text = message(with("listen:\n  prot: 1\n", &[]));
    assert!(text.contains("main.yaml"), "{text}");
    assert!(text.contains("`listen.prot`"), "{text}");
    assert!(text.contains("did you mean `listen.port`"), "{text}");
    let text = message(with("", &["data_dri=x"]));
    assert!(
        text.contains("override `data_dri=x`") && text.contains("`data_dir`"),
        "{text}"
    );
    let text = message(with("webhooks: [{urll: x}]", &[]));
    assert!(
        text.contains("urll") && text.contains("did you mean `url`"),
        "{text}"
    );
    let text = message(with("zzzzzzzz: 1", &[]));
    assert!(text.contains("known here: data_dir, listen"), "{text}");
}

#[test]
fn a_wrong_type_names_the_key_and_line() {
    let text = message(with("listen:\n  port: many\n", &[]));
    assert!(
        text.contains("listen.port") && text.contains("line 2"),
        "{text}"
    );
    let text = message(with("listen: 7\n", &[]));
    assert!(
        text.contains("listen must be a mapping with keys tcp, port"),
        "{text}"
    );
    assert!(message(with("a: [", &[])).contains("not readable as YAML"));
}

#[test]
fn overrides_take_yaml_and_fall_back_to_text() {
    let config = with(
        "",
        &[
            "listen.port=7",
            "rules_dirs=[x, y]",
            "user=123",
            "labels.a=b=c",
        ],
    );
    let config = config.expect("loads");
    assert_eq!(config.listen.port, 7);
    assert_eq!(config.rules_dirs, ["x", "y"]);
    assert_eq!(config.user.as_deref(), Some("123"));
    assert_eq!(config.labels["a"], "b=c");
    assert!(message(with("", &["nonsense"])).contains("key=value"));
    assert!(message(with("", &["listen.port=70000"])).contains("listen.port=70000"));
}

#[test]
fn a_key_without_value_changes_nothing() {
    assert_eq!(
        with("listen:\nrules_dirs:\n", &[]).expect("loads"),
        Config::default()
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = load::<Config>(Some(Path::new("/nonexistent/x.yaml")), None, &[]);
    let text = error.expect_err("must fail").to_string();
    assert!(
        text.contains("/nonexistent/x.yaml") && text.contains("create it"),
        "{text}"
    );
}
