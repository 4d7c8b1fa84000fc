//! How are the object's maps reached by name, pinned, and filled before programs run?

use std::{fs, path::Path};

use audit_common::limits::WATCHED_NAME_BYTES;
use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};

use super::{ProbeError, error::chain, pins::Making};
use crate::{Config, filter};

/// Out of the object: what is needed after it is dropped.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, ProbeError> {
    ebpf.take_map(name)
        .ok_or_else(|| ProbeError::Load(format!("the object has no map {name}")))
}

pub(super) fn typed<T>(name: &str, map: Map) -> Result<T, ProbeError>
where
    T: TryFrom<Map, Error = MapError>,
{
    T::try_from(map).map_err(|error| ProbeError::Load(format!("map {name}: {error}")))
}

/// A map that is pinned.
pub(super) fn open(path: &Path) -> Result<Map, ProbeError> {
    let map = MapData::from_pin(path).and_then(Map::from_map_data);
    map.map_err(|error| ProbeError::Load(format!("{}: {}", path.display(), chain(&error))))
}

/// All of them, so that whoever takes over finds what it needs; shared ones have been pinned when
/// they were made.
pub(super) fn pin_all(ebpf: &Ebpf, pins: &Making) -> Result<(), ProbeError> {
    for (name, map) in ebpf.maps() {
        let Some(path) = pins.map(name) else { continue };
        map.pin(&path)
            .map_err(|error| ProbeError::Load(format!("{}: {}", path.display(), chain(&error))))?;
    }
    Ok(())
}

/// Names whose opens for reading are told too.
pub(super) fn watch_names(ebpf: &mut Ebpf, config: &Config) -> Result<(), ProbeError> {
    let names = filter::watch_names(&config.capture.watch_reads)
        .map_err(|error| ProbeError::Watch(error.to_string()))?;
    // Borrowed, not taken: the programs that use it are loaded later.
    let map = ebpf
        .map_mut("WATCHED")
        .ok_or_else(|| ProbeError::Load("the object has no map WATCHED".to_owned()))?;
    let mut watched: HashMap<_, [u8; WATCHED_NAME_BYTES], u8> = HashMap::try_from(map)
        .map_err(|error| ProbeError::Load(format!("map WATCHED: {error}")))?;
    for name in names {
        let mut key = [0; WATCHED_NAME_BYTES];
        let room = key
            .get_mut(..name.len())
            .filter(|_| name.len() < WATCHED_NAME_BYTES);
        let Some(room) = room else {
            return Err(ProbeError::Watch(format!(
                "the name {:?} is longer than {} bytes",
                String::from_utf8_lossy(&name),
                WATCHED_NAME_BYTES - 1
            )));
        };
        room.copy_from_slice(&name);
        watched
            .insert(key, 1, 0)
            .map_err(|error| ProbeError::Watch(error.to_string()))?;
    }
    Ok(())
}

/// Tells the programs which maps are ours: all that this process has open.
pub(super) fn guard(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let failed = |error: &dyn std::error::Error| ProbeError::Load(format!("map OWN_MAPS: {error}"));
    let mut own: HashMap<_, u32, u8> = typed("OWN_MAPS", take(ebpf, "OWN_MAPS")?)?;
    for entry in fs::read_dir("/proc/self/fdinfo").map_err(|error| failed(&error))? {
        let path = entry.map_err(|error| failed(&error))?.path();
        // The one that lists this folder is gone already.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
        if let Some(id) = id.and_then(|id| id.trim().parse::<u32>().ok()) {
            own.insert(id, 1, 0).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}
