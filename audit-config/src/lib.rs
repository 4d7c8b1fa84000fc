//! How a daemon's configuration is found, layered and checked.
//!
//! Layers, later ones win: `T::default()`, the main file, each `*.yaml` of the drop-in directory in
//! name order, each `key.sub=value` override. Mappings merge key by key; everything else, lists
//! included, is replaced whole.
//!
//! Invariants: a key that `T` does not know is an error in whichever layer it stands, naming the
//! file, the key and the nearest known key. A key without a value changes nothing.
//!
//! `T` and the structs in it carry `#[serde(default, deny_unknown_fields)]`, so that one layer may
//! be checked without the others.

#![forbid(unsafe_code)]

mod nearest;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use yaml_serde::{Mapping, Value};

pub use nearest::nearest;

/// Largest configuration file read: one larger was surely meant to be something else.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Each names the file or override and the key, and says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration {}: {error}{}", path.display(), hint_for(error))]
    Read { path: PathBuf, error: io::Error },
    #[error("configuration {origin}: not readable as YAML: {message}")]
    Syntax { origin: String, message: String },
    #[error("configuration {origin}: unknown key `{key}`{}", suggestion(.nearest, .known))]
    UnknownKey {
        origin: String,
        key: String,
        nearest: Option<String>,
        known: Vec<String>,
    },
    #[error("configuration {origin}: {message}")]
    Value { origin: String, message: String },
    #[error(
        "override {text:?} is not of the form key=value or key.sub=value; example: -o log.level=debug"
    )]
    Override { text: String },
}

fn hint_for(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; create it or leave --config out to run with defaults",
        io::ErrorKind::PermissionDenied => "; make it readable for this user",
        _ => "",
    }
}

fn suggestion(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!("; known here: {}", known.join(", ")),
    }
}

/// Loads a configuration from its layers. A drop-in directory that does not exist is no layer; a
/// main file that does not exist is an error.
pub fn load<T>(
    main: Option<&Path>,
    drop_in_dir: Option<&Path>,
    overrides: &[String],
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let defaults = yaml_serde::to_value(T::default()).map_err(|error| ConfigError::Value {
        origin: "defaults".to_owned(),
        message: error.to_string(),
    })?;
    let mut merged = defaults.clone();
    let drop_ins = match drop_in_dir {
        Some(dir) => drop_ins(dir)?,
        None => Vec::new(),
    };
    for path in main.map(Path::to_path_buf).into_iter().chain(drop_ins) {
        let layer = read_layer::<T>(&path, &defaults)?;
        merge(&mut merged, layer);
    }
    for text in overrides {
        let layer = override_layer::<T>(text, &defaults)?;
        merge(&mut merged, layer);
    }
    yaml_serde::from_value(merged).map_err(|error| value_error("as a whole", &error))
}

/// `*.yaml` and `*.yml` in name order; hidden files (an editor's) are left out.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |error| ConfigError::Read {
        path: dir.to_path_buf(),
        error,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_layer<T: DeserializeOwned>(path: &Path, defaults: &Value) -> Result<Value, ConfigError> {
    let failed = |error| ConfigError::Read {
        path: path.to_path_buf(),
        error,
    };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(ConfigError::Value {
            origin: path.display().to_string(),
            message: format!(
                "{bytes} bytes long, more than {MAX_FILE_BYTES}; is it the right file?"
            ),
        });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let origin = path.display().to_string();
    let mut layer: Value = yaml_serde::from_str(&text).map_err(|error| ConfigError::Syntax {
        origin: origin.clone(),
        message: error.to_string(),
    })?;
    check_keys(&origin, "", &layer, defaults)?;
    drop_empty(&mut layer, defaults);
    if layer.is_null() {
        return Ok(layer);
    }
    // From the text where it can be, because those errors carry line and column.
    if let Err(error) = yaml_serde::from_value::<T>(layer.clone()) {
        let located = yaml_serde::from_str::<T>(&text).err();
        return Err(value_error(&origin, located.as_ref().unwrap_or(&error)));
    }
    Ok(layer)
}

/// "log.level=debug" as a layer. The value is YAML; where that has the wrong type, plain text.
fn override_layer<T: DeserializeOwned>(text: &str, defaults: &Value) -> Result<Value, ConfigError> {
    let malformed = || ConfigError::Override {
        text: text.to_owned(),
    };
    let (path, raw) = text.split_once('=').ok_or_else(malformed)?;
    if path.split('.').any(|part| part.trim().is_empty()) {
        return Err(malformed());
    }
    let origin = format!("override `{text}`");
    let nest = |value: Value| {
        path.rsplit('.').fold(value, |inner, part| {
            let mut map = Mapping::new();
            map.insert(Value::String(part.trim().to_owned()), inner);
            Value::Mapping(map)
        })
    };
    let parsed = yaml_serde::from_str(raw).unwrap_or(Value::String(raw.to_owned()));
    let layer = nest(parsed);
    check_keys(&origin, "", &layer, defaults)?;
    let Err(error) = yaml_serde::from_value::<T>(layer.clone()) else {
        return Ok(layer);
    };
    let plain = nest(Value::String(raw.to_owned()));
    match yaml_serde::from_value::<T>(plain.clone()) {
        Ok(_) => Ok(plain),
        Err(_) => Err(value_error(&origin, &error)),
    }
}

/// Compares keys with those of the defaults. Where a default is empty (an unset option, a free
/// map, a list) its keys are unknown here, and deserialisation checks them.
fn check_keys(origin: &str, at: &str, layer: &Value, known: &Value) -> Result<(), ConfigError> {
    let Value::Mapping(known) = known else {
        return Ok(());
    };
    if known.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = known
        .keys()
        .filter_map(|k| k.as_str().map(str::to_owned))
        .collect();
    let map = match layer {
        Value::Mapping(map) => map,
        Value::Null => return Ok(()),
        _ => {
            let place = if at.is_empty() { "the top level" } else { at };
            return Err(ConfigError::Value {
                origin: origin.to_owned(),
                message: format!("{place} must be a mapping with keys {}", names.join(", ")),
            });
        }
    };
    for (key, value) in map {
        let name = key
            .as_str()
            .map_or_else(|| format!("{key:?}"), str::to_owned);
        let path = if at.is_empty() {
            name.clone()
        } else {
            format!("{at}.{name}")
        };
        let Some(below) = known.get(key) else {
            let nearest = nearest(&name, names.iter().map(String::as_str)).map(|near| {
                if at.is_empty() {
                    near.to_owned()
                } else {
                    format!("{at}.{near}")
                }
            });
            return Err(ConfigError::UnknownKey {
                origin: origin.to_owned(),
                key: path,
                nearest,
                known: names,
            });
        };
        check_keys(origin, &path, value, below)?;
    }
    Ok(())
}

/// Removes keys without a value where the default is not empty: `sinks:` with every line below it
/// commented out means "as it was".
fn drop_empty(layer: &mut Value, known: &Value) {
    let (Value::Mapping(map), Value::Mapping(known)) = (layer, known) else {
        return;
    };
    map.retain(|key, value| !(value.is_null() && known.get(key).is_some_and(|k| !k.is_null())));
    for (key, value) in map.iter_mut() {
        if let Some(below) = known.get(key) {
            drop_empty(value, below);
        }
    }
}

fn merge(base: &mut Value, layer: Value) {
    match (base, layer) {
        (_, Value::Null) => {}
        (Value::Mapping(base), Value::Mapping(layer)) => {
            for (key, value) in layer {
                match base.get_mut(&key) {
                    // An explicit null on a leaf unsets it.
                    Some(slot) if value.is_null() => *slot = value,
                    Some(slot) => merge(slot, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, layer) => *base = layer,
    }
}

/// Adds the nearest name to serde's "unknown field `x`, expected one of `a`, `b`".
fn value_error(origin: &str, error: &yaml_serde::Error) -> ConfigError {
    let mut message = error.to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if (message.contains("unknown field") || message.contains("unknown variant"))
        && let Some((wrong, known)) = quoted.split_first()
        && let Some(near) = nearest(wrong, known.iter().copied())
    {
        message = format!("{message}; did you mean `{near}`?");
    }
    ConfigError::Value {
        origin: origin.to_owned(),
        message,
    }
}
