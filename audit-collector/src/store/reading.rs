//! What did one question read, and what could it not? So that an answer that lacks something, or an
//! error of a file, can say so by name.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use datafusion::{
    common::Result,
    datasource::{
        listing::PartitionedFile,
        physical_plan::parquet::{DefaultParquetFileReaderFactory, ParquetFileReaderFactory},
    },
    object_store::ObjectStore,
    parquet::arrow::async_reader::AsyncFileReader,
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{TableFile, lock};

/// Files opened last that an error may be of: each CPU reads one and has opened the next.
const RECENT: usize = 64;

/// Of one session, while its questions run.
#[derive(Debug, Default)]
pub struct Reading {
    opened: Mutex<VecDeque<PathBuf>>,
    /// Events by path; not more than the manifest has files.
    missing: Mutex<BTreeMap<String, i64>>,
}

impl Reading {
    /// The question is about events that this file had.
    pub fn lacks(&self, file: &TableFile) {
        lock(&self.missing).insert(file.path.clone(), file.rows as i64);
    }

    /// Events that the question may be about and that are in no file any more.
    pub fn missing_events(&self) -> i64 {
        lock(&self.missing).values().sum()
    }

    fn opens(&self, path: PathBuf) {
        let mut opened = lock(&self.opened);
        opened.retain(|other| *other != path);
        opened.push_front(path);
        opened.truncate(RECENT);
    }

    /// Of the files opened last, the first that cannot be read to its end, and why. Reads them.
    pub fn damaged(&self) -> Option<(PathBuf, String)> {
        let opened = lock(&self.opened).clone();
        opened
            .into_iter()
            .find_map(|path| Some((path.clone(), flaw(&path)?)))
    }
}

fn flaw(path: &Path) -> Option<String> {
    // Of damaged bytes the decoder may also panic.
    let read = std::panic::catch_unwind(|| read(path));
    match read {
        Ok(read) => read.err(),
        Err(_) => Some("its content cannot be decoded".to_owned()),
    }
}

fn read(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
    for batch in reader.map_err(|error| error.to_string())? {
        batch.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// DataFusion's own readers, noted in a [`Reading`] as they are made.
#[derive(Debug)]
pub struct Readers {
    factory: DefaultParquetFileReaderFactory,
    reading: Arc<Reading>,
}

impl Readers {
    pub fn new(store: Arc<dyn ObjectStore>, reading: Arc<Reading>) -> Self {
        Self {
            factory: DefaultParquetFileReaderFactory::new(store),
            reading,
        }
    }
}

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let location = file.object_meta.location.as_ref();
        self.reading.opens(Path::new("/").join(location));
        self.factory
            .create_reader(partition, file, metadata_size_hint, metrics)
    }
}
