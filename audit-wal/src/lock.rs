//! Is this process the only one that writes here? An advisory lock that ends with the process.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::WalError;

const NAME: &str = "LOCK";

pub fn take(dir: &Path) -> Result<File, WalError> {
    let path = dir.join(NAME);
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(WalError::at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(WalError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(WalError::at(&path)(source)),
    }
}
