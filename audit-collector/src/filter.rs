//! Which events does a reader want? `allow`, `deny`, `where` and a time as one expression over the
//! columns, which leaves out files by their statistics and is tried on fresh rows alike.
//!
//! Bounds: [`MAX_FILTERS`], [`MAX_CONDITIONS`], [`MAX_VALUES`], [`MAX_VALUE_BYTES`], and what a
//! regular expression may need ([`text`]). There is no code per event kind.

mod condition;
mod text;

use std::sync::Arc;

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch, RecordBatchOptions},
    datatypes::{DataType, Schema},
};
use audit_columns::table_schema;
use audit_proto::{
    columns::{self, COLUMNS, OBJECTS},
    v1::EventFilter,
};
use datafusion::{
    common::{DFSchema, DataFusionError},
    logical_expr::{Expr, ExprSchemable as _, col, lit},
    physical_plan::PhysicalExpr,
    prelude::SessionContext,
    scalar::ScalarValue,
};

use crate::store::{Chunk, fresh_columns};

/// Filters in one list: an expression is as deep as it has alternatives.
const MAX_FILTERS: usize = 64;
/// Conditions of one request, in all its filters.
const MAX_CONDITIONS: usize = 256;
/// Values of one request, in all its conditions.
const MAX_VALUES: usize = 4096;
/// One value: as long as a path may be.
const MAX_VALUE_BYTES: usize = 4096;

/// What cannot be filtered by; says what could.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct InvalidFilter {
    pub place: String,
    pub reason: String,
}

fn invalid(place: impl Into<String>, reason: impl Into<String>) -> InvalidFilter {
    InvalidFilter {
        place: place.into(),
        reason: reason.into(),
    }
}

/// Why there is no [`Filter`].
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Invalid(#[from] InvalidFilter),
    /// Of `where`.
    #[error(transparent)]
    Sql(#[from] DataFusionError),
}

/// Compiled once over the columns it uses.
pub struct Filter {
    pub expr: Expr,
    columns: Vec<usize>,
    physical: Arc<dyn PhysicalExpr>,
}

/// What a request says of the events it wants.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    pub allow: &'a [EventFilter],
    pub deny: &'a [EventFilter],
    pub sql: &'a str,
    pub since: Option<i64>,
}

/// A column that does not exist, with the nearest that does.
fn unknown_column(name: &str) -> String {
    let known = COLUMNS.iter().map(|column| column.name);
    match audit_config::nearest(name, known) {
        Some(near) => format!("no column `{name}`; did you mean `{near}`?"),
        None => format!("no column `{name}`; `hostaudit query --columns` lists them"),
    }
}

/// The columns of a mask, in order; `None` where nothing is left out.
pub fn mask(fields: &[String]) -> Result<Option<Vec<usize>>, InvalidFilter> {
    const ALWAYS: [&str; 5] = ["id", "kind", "time", "time_remainder_ns", "boot_time_ns"];
    if fields.is_empty() {
        return Ok(None);
    }
    let mut mask = Vec::new();
    for name in fields.iter().map(|field| field.trim()).chain(ALWAYS) {
        let columns = columns::select(name).ok_or_else(|| {
            let known = COLUMNS.iter().map(|column| column.name).chain(OBJECTS);
            let reason = match audit_config::nearest(name, known) {
                Some(near) => format!("no column or object `{name}`; did you mean `{near}`?"),
                None => unknown_column(name),
            };
            invalid("fields", reason)
        })?;
        mask.extend(columns);
    }
    mask.sort_unstable();
    mask.dedup();
    Ok(Some(mask))
}

/// True for events that match any of `allow`, or there is none, and none of `deny`.
pub fn expression(
    allow: &[EventFilter],
    deny: &[EventFilter],
) -> Result<Option<Expr>, InvalidFilter> {
    check_sizes(allow, deny)?;
    let compile = |list: &'static str, filters: &[EventFilter]| {
        let each = filters.iter().enumerate();
        each.map(|(at, filter)| condition::every(&format!("{list}[{at}]"), filter))
            .collect::<Result<Vec<Expr>, _>>()
    };
    let allowed = compile("allow", allow)?.into_iter().reduce(Expr::or);
    // An absent column makes a comparison unknown, which denies nothing.
    let denied = compile("deny", deny)?.into_iter().map(Expr::is_not_true);
    Ok(allowed.into_iter().chain(denied).reduce(Expr::and))
}

fn check_sizes(allow: &[EventFilter], deny: &[EventFilter]) -> Result<(), InvalidFilter> {
    let all = || allow.iter().chain(deny);
    let conditions = || all().flat_map(|filter| &filter.conditions);
    let count = [
        ("filters in `allow`", allow.len(), MAX_FILTERS),
        ("filters in `deny`", deny.len(), MAX_FILTERS),
        ("conditions", conditions().count(), MAX_CONDITIONS),
        (
            "values",
            all().map(|filter| filter.kinds.len()).sum::<usize>()
                + conditions().flat_map(condition::values).count(),
            MAX_VALUES,
        ),
    ];
    for (what, found, most) in count {
        if found > most {
            let reason =
                format!("{found} {what} are more than the {most} that one reader may have");
            return Err(invalid("filters", reason));
        }
    }
    let long = conditions().find(|condition| {
        condition::values(condition)
            .into_iter()
            .any(|value| value.len() > MAX_VALUE_BYTES)
    });
    match long {
        Some(condition) => Err(invalid(
            &condition.column,
            format!("a value is longer than {MAX_VALUE_BYTES} bytes"),
        )),
        None => Ok(()),
    }
}

impl Filter {
    /// `None` where everything is wanted.
    pub fn new(wanted: &Wanted<'_>, session: &SessionContext) -> Result<Option<Self>, FilterError> {
        let schema = table_schema();
        let df_schema = DFSchema::try_from(schema.clone())?;
        let mut parts = Vec::new();
        parts.extend(expression(wanted.allow, wanted.deny)?);
        if !wanted.sql.trim().is_empty() {
            let expr = session
                .state()
                .create_logical_expr(wanted.sql, &df_schema)?;
            let ty = expr.get_type(&df_schema)?;
            if ty != DataType::Boolean {
                return Err(FilterError::Sql(DataFusionError::Plan(format!(
                    "`where` gives {ty} instead of true or false; example: kind = 'exec'"
                ))));
            }
            parts.push(expr);
        }
        parts.extend(wanted.since.map(|since| col("time").gt_eq(time(since))));
        let Some(expr) = parts.into_iter().reduce(Expr::and) else {
            return Ok(None);
        };
        let columns = expr.column_refs().into_iter();
        let mut columns: Vec<usize> = columns
            .map(|column| schema.index_of(&column.name))
            .collect::<Result<_, _>>()
            .map_err(DataFusionError::from)?;
        columns.sort_unstable();
        let part = schema.project(&columns).map_err(DataFusionError::from)?;
        let physical = session.create_physical_expr(expr.clone(), &DFSchema::try_from(part)?)?;
        Ok(Some(Self {
            expr,
            columns,
            physical,
        }))
    }

    /// Of the rows from `first` on, those that pass.
    pub fn rows(&self, chunk: &Chunk, first: usize) -> Result<Vec<usize>, DataFusionError> {
        let schema = table_schema();
        let arrays = fresh_columns(chunk, &schema, &self.columns)?;
        let options = RecordBatchOptions::new().with_row_count(Some(chunk.rows()));
        let part = Arc::new(Schema::project(&schema, &self.columns)?);
        let batch = RecordBatch::try_new_with_options(part, arrays, &options)?;
        let passed = self.physical.evaluate(&batch)?.into_array(chunk.rows())?;
        let passed = passed.as_boolean();
        Ok((first..chunk.rows())
            .filter(|&row| passed.is_valid(row) && passed.value(row))
            .collect())
    }
}

/// A literal of the type of time columns.
fn time(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(
        Some(micros),
        Some("+00:00".into()),
    ))
}

#[cfg(test)]
mod tests;
