//! The table `events` for DataFusion: files of the manifest and fresh rows, as of one snapshot.
//!
//! Filters are used to leave out files (by time and position), row groups and pages; DataFusion
//! applies them again to what is left, so leaving out too little is only slow.

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::SchemaRef,
    error::ArrowError,
};
use audit_columns::{POSITION, POSITION_INDEX, RAW_INDEX};
use audit_proto::columns::COLUMNS;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{DFSchema, DataFusionError, Result, ScalarValue},
    datasource::{
        TableType,
        listing::PartitionedFile,
        memory::MemorySourceConfig,
        object_store::ObjectStoreUrl,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
    },
    logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, utils::conjunction},
    object_store::{ObjectMeta, path::Path as ObjectPath},
    physical_plan::{ExecutionPlan, union::UnionExec},
};

use super::{
    Chunk, Snapshot, TableFile,
    reading::{Readers, Reading},
};

#[derive(Debug)]
pub struct EventsTable {
    schema: SchemaRef,
    snapshot: Snapshot,
    reading: Arc<Reading>,
}

impl EventsTable {
    /// As SQL sees it.
    pub fn new(snapshot: Snapshot, reading: Arc<Reading>) -> Self {
        Self {
            schema: audit_columns::table_schema(),
            snapshot,
            reading,
        }
    }

    /// With the column `raw`, from which alone some events come back exactly.
    pub fn with_raw(snapshot: Snapshot, reading: Arc<Reading>) -> Self {
        let mut fields = audit_columns::table_schema().fields().to_vec();
        fields.push(audit_columns::file_schema().fields()[RAW_INDEX].clone());
        Self {
            schema: Arc::new(arrow::datatypes::Schema::new(fields)),
            snapshot,
            reading,
        }
    }

    fn files(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let bounds = Bounds::of(filters);
        let missing = self.snapshot.missing.files().iter();
        missing
            .filter(|f| bounds.touch_file(f))
            .for_each(|f| self.reading.lacks(f));
        let served = self.snapshot.files();
        let files: Vec<&TableFile> = served.filter(|f| bounds.touch_file(f)).collect();
        if files.is_empty() {
            return Ok(None);
        }
        let url = ObjectStoreUrl::local_filesystem();
        let readers = Readers::new(
            state.runtime_env().object_store(&url)?,
            self.reading.clone(),
        );
        let mut source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(filter) = conjunction(filters.to_vec()) {
            let schema = DFSchema::try_from(self.schema.clone())?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let partitions = state.config().target_partitions().max(1);
        let mut groups = vec![Vec::new(); partitions.min(files.len())];
        let count = groups.len();
        for (at, file) in files.into_iter().enumerate() {
            groups[at % count].push(partitioned_file(&self.snapshot.dir, file)?);
        }
        let mut builder = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit.filter(|_| filters.is_empty()));
        for group in groups {
            builder = builder.with_file_group(FileGroup::new(group));
        }
        Ok(Some(DataSourceExec::from_data_source(builder.build())))
    }

    fn fresh(
        &self,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let bounds = Bounds::of(filters);
        let batches: Vec<RecordBatch> = self
            .snapshot
            .chunks
            .iter()
            .filter(|chunk| bounds.touch_chunk(chunk))
            .map(|chunk| {
                let options = RecordBatchOptions::new().with_row_count(Some(chunk.rows()));
                let arrays = fresh_columns(chunk, &self.schema, projection)?;
                RecordBatch::try_new_with_options(schema.clone(), arrays, &options)
            })
            .collect::<Result<_, ArrowError>>()?;
        Ok(MemorySourceConfig::try_new_exec(&[batches], schema, None)?)
    }
}

fn partitioned_file(dir: &Path, file: &TableFile) -> Result<PartitionedFile> {
    let location = ObjectPath::from_absolute_path(std::path::absolute(dir.join(&file.path))?)
        .map_err(|error| DataFusionError::External(Box::new(error)))?;
    Ok(PartitionedFile::new_from_meta(ObjectMeta {
        location,
        last_modified: Default::default(),
        size: file.bytes,
        e_tag: None,
        version: None,
    }))
}

/// Columns `projection` of a chunk in the types of `schema`.
pub fn fresh_columns(
    chunk: &Chunk,
    schema: &SchemaRef,
    projection: &[usize],
) -> Result<Vec<ArrayRef>, ArrowError> {
    projection
        .iter()
        .map(|&at| {
            let ty = schema.field(at).data_type();
            let rows = chunk.rows();
            let array = match at {
                POSITION_INDEX => Some(chunk.positions.clone()),
                at if at < COLUMNS.len() => chunk.columns.array(at, 0..rows, ty)?,
                _ => None,
            };
            Ok(array.unwrap_or_else(|| new_null_array(ty, rows)))
        })
        .collect()
}

/// Ranges outside of which no row can pass the filters.
struct Bounds {
    time: RangeInclusive<i64>,
    position: RangeInclusive<i64>,
}

impl Bounds {
    fn of(filters: &[Expr]) -> Self {
        let mut bounds = Self {
            time: i64::MIN..=i64::MAX,
            position: i64::MIN..=i64::MAX,
        };
        for filter in filters {
            bounds.narrow(filter);
        }
        bounds
    }

    fn narrow(&mut self, filter: &Expr) {
        match filter {
            Expr::BinaryExpr(BinaryExpr {
                left,
                op: Operator::And,
                right,
            }) => {
                self.narrow(left);
                self.narrow(right);
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                if let (Expr::Column(column), Expr::Literal(value, _)) = (&**left, &**right) {
                    self.compare(&column.name, *op, value);
                } else if let (Expr::Literal(value, _), Expr::Column(column)) = (&**left, &**right)
                    && let Some(op) = op.swap()
                {
                    self.compare(&column.name, op, value);
                }
            }
            Expr::Between(between) if !between.negated => {
                if let (Expr::Column(column), Expr::Literal(low, _), Expr::Literal(high, _)) =
                    (&*between.expr, &*between.low, &*between.high)
                {
                    self.compare(&column.name, Operator::GtEq, low);
                    self.compare(&column.name, Operator::LtEq, high);
                }
            }
            _ => {}
        }
    }

    /// Bounds stay closed, so strict comparisons keep one value too many.
    fn compare(&mut self, column: &str, op: Operator, value: &ScalarValue) {
        let (range, value) = match (column, value) {
            ("time", ScalarValue::TimestampMicrosecond(Some(v), _)) => (&mut self.time, *v),
            ("time", ScalarValue::TimestampNanosecond(Some(v), _)) => {
                (&mut self.time, v.div_euclid(1000))
            }
            (POSITION, ScalarValue::Int64(Some(v))) => (&mut self.position, *v),
            _ => return,
        };
        let (mut low, mut high) = (*range.start(), *range.end());
        match op {
            Operator::Gt | Operator::GtEq => low = low.max(value),
            Operator::Lt | Operator::LtEq => high = high.min(value.saturating_add(1)),
            Operator::Eq => (low, high) = (low.max(value), high.min(value.saturating_add(1))),
            _ => {}
        }
        *range = low..=high;
    }

    fn touch(&self, time: (i64, i64), position: (i64, i64)) -> bool {
        let meets = |range: &RangeInclusive<i64>, (first, last)| {
            *range.start() <= last && first <= *range.end()
        };
        meets(&self.time, time) && meets(&self.position, position)
    }

    fn touch_file(&self, file: &TableFile) -> bool {
        self.touch(
            (file.first_time, file.last_time),
            (file.first_position, file.last_position),
        )
    }

    fn touch_chunk(&self, chunk: &Chunk) -> bool {
        let position = (
            super::position(chunk.first_index(), 0),
            super::end_position(chunk.last_index()),
        );
        self.touch((chunk.first_time, chunk.last_time), position)
    }
}

#[async_trait::async_trait]
impl TableProvider for EventsTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let fresh = self.fresh(projection, filters)?;
        match self.files(state, projection, filters, limit)? {
            Some(files) => UnionExec::try_new(vec![files, fresh]),
            None => Ok(fresh),
        }
    }
}
