//! Arrow values as text: cells of a table, and lists as JSON where a format has none.

use std::sync::Arc;

use anyhow::Result;
use arrow::{
    array::{Array, ArrayRef, AsArray as _, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
    util::display::{ArrayFormatter, FormatOptions},
};

use crate::display;

/// The rows of a batch as text; an absent value is empty, a list of text a command line.
pub fn rows(batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::new().with_null("").with_display_error(true);
    let columns: Vec<(Option<StringArray>, &ArrayRef)> = batch
        .columns()
        .iter()
        .map(|c| (text_list(c, command_line), c))
        .collect();
    let formatters = batch
        .columns()
        .iter()
        .map(|c| ArrayFormatter::try_new(c.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let cell = |column: usize, row: usize| match &columns[column].0 {
        Some(text) if text.is_null(row) => String::new(),
        Some(text) => text.value(row).to_owned(),
        None => formatters[column].value(row).to_string(),
    };
    Ok((0..batch.num_rows())
        .map(|row| {
            (0..batch.num_columns())
                .map(|column| cell(column, row))
                .collect()
        })
        .collect())
}

/// The batch with every nested column as text.
pub fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        }
        let text = match text_list(column, |list| serde_json::json!(list).to_string()) {
            Some(text) => text,
            None => formatted(column)?,
        };
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(text));
    }
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns,
    )?)
}

fn formatted(column: &ArrayRef) -> Result<StringArray> {
    let options = FormatOptions::new().with_display_error(true);
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    Ok((0..column.len())
        .map(|row| (!column.is_null(row)).then(|| formatter.value(row).to_string()))
        .collect())
}

fn command_line(list: Vec<Option<String>>) -> String {
    let list: Vec<String> = list.into_iter().map(Option::unwrap_or_default).collect();
    display::command_line(&list)
}

/// None where the column is no list of text.
fn text_list(
    column: &ArrayRef,
    join: impl Fn(Vec<Option<String>>) -> String,
) -> Option<StringArray> {
    let list = column.as_list_opt::<i32>()?;
    if !matches!(
        list.value_type(),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8
    ) {
        return None;
    }
    let texts = |row: usize| -> Option<Vec<Option<String>>> {
        let values = arrow::compute::cast(&list.value(row), &DataType::Utf8).ok()?;
        Some(
            values
                .as_string::<i32>()
                .iter()
                .map(|v| v.map(str::to_owned))
                .collect(),
        )
    };
    Some(
        (0..list.len())
            .map(|row| {
                (!list.is_null(row))
                    .then(|| texts(row).map(&join))
                    .flatten()
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListBuilder, StringBuilder};

    use super::*;

    fn batch() -> RecordBatch {
        let mut argv = ListBuilder::new(StringBuilder::new());
        argv.append_value([Some("sh"), Some("-c"), Some("a b,\"")]);
        argv.append(false);
        RecordBatch::try_from_iter([
            (
                "pid",
                Arc::new(Int64Array::from(vec![Some(7), None])) as ArrayRef,
            ),
            ("argv", Arc::new(argv.finish()) as ArrayRef),
        ])
        .expect("a batch")
    }

    #[test]
    fn cells_read_as_a_person_expects() {
        assert_eq!(
            rows(&batch()).expect("rows"),
            [["7", "sh -c 'a b,\"'"], ["", ""]]
        );
    }

    #[test]
    fn lists_are_json_where_a_format_has_none() {
        let flat = flat(&batch()).expect("flat");
        let text = flat.column(1).as_string::<i32>();
        assert_eq!(text.value(0), r#"["sh","-c","a b,\""]"#);
        assert!(text.is_null(1));
    }
}
