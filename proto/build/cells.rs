//! Writes how an event's columns are encoded, both ways. For each message that an event holds, a function
//! that gives the cells of encoded bytes in the one form that encoders write; what is in any other form it
//! leaves to prost. And the steps in which encoders write columns.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Result, bail};
use prost_types::field_descriptor_proto::{Label, Type};

use crate::columns::{Schema, Shape, enum_fn, shape};

const VARINT: i32 = 0;
const LENGTH: i32 = 2;

/// The functions, `root`'s named `event`.
pub fn generate(schema: &Schema<'_>, root: &str) -> Result<String> {
    let mut functions = BTreeMap::new();
    message(schema, root, &mut functions)?;
    Ok(functions.into_values().map(|(_, text)| text).collect())
}

/// Adds the function of `name` and of what it holds, unless there; how many columns it has.
fn message(
    schema: &Schema<'_>,
    name: &str,
    functions: &mut BTreeMap<String, (usize, String)>,
) -> Result<usize> {
    if let Some((columns, _)) = functions.get(name) {
        return Ok(*columns);
    }
    let descriptor = schema.message(name)?;
    // Numbers that are always told, also where the message leaves them out because they are 0.
    let (mut before, mut arms, mut after) = (String::new(), String::new(), String::new());
    let mut column = 0;
    for field in &descriptor.field {
        let key = |wire: i32| field.number() << 3 | wire;
        let repeated = field.label() == Label::Repeated;
        if field.r#type() == Type::Message && !repeated {
            let columns = message(schema, field.type_name(), functions)?;
            let function = function_name(field.type_name());
            writeln!(
                arms,
                "            {} => {function}(encoded.bytes()?, column + {column}, cells)?,",
                key(LENGTH)
            )?;
            column += columns;
            continue;
        }
        let at = format!("column + {column}");
        let place = format!("{name}.{}", field.name());
        let (wire, read) = match (shape(field, repeated, &place)?, field.proto3_optional()) {
            (Shape::Int { width }, optional) => {
                let number = match width {
                    64 => "encoded.varint()? as i64",
                    _ => "i64::from(encoded.varint()? as i32)",
                };
                let read = if optional {
                    format!("cells.push(Cell {{ column: {at}, content: Content::Int({number}) }})")
                } else {
                    writeln!(before, "    let mut always_{column} = 0;")?;
                    writeln!(
                        after,
                        "    cells.push(Cell {{ column: {at}, content: Content::Int(always_{column}) }});"
                    )?;
                    format!("always_{column} = {number}")
                };
                (VARINT, read)
            }
            (Shape::Bool, true) => (
                VARINT,
                format!(
                    "cells.push(Cell {{ column: {at}, content: Content::Bool(encoded.varint()? != 0) }})"
                ),
            ),
            (Shape::Text, false) => (LENGTH, format!("encoded.text({at}, cells)?")),
            (Shape::TextList, false) => (LENGTH, format!("encoded.item({at}, cells)?")),
            (Shape::Enum(name), false) => (
                VARINT,
                format!(
                    "name({at}, {}(encoded.varint()? as i32), cells)?",
                    enum_fn(&name, "name")
                ),
            ),
            (_, optional) => bail!("{place}: optional={optional} does not suit its type"),
        };
        writeln!(arms, "            {} => {read},", key(wire))?;
        column += 1;
    }
    let function = format!(
        "pub(super) fn {}<'a>(bytes: &'a [u8], column: usize, cells: &mut Vec<Cell<'a>>) -> Option<()> {{\n\
         {before}    let mut encoded = Encoded::new(bytes);\n    \
             while let Some(key) = encoded.key()? {{\n        match key {{\n{arms}            \
             _ => return None,\n        }}\n    }}\n{after}    Some(())\n}}\n\n",
        function_name(name)
    );
    functions.insert(name.to_owned(), (column, function));
    Ok(column)
}

/// The steps of an encoder, in the order of field numbers.
pub fn steps(schema: &Schema<'_>, root: &str) -> Result<String> {
    let mut all = Vec::new();
    message_steps(schema, root, &mut 0, &mut all)?;
    Ok(format!(
        "/// An encoded event is these steps, in this order.\n\
         pub static STEPS: [Step; {}] = [\n    {},\n];\n",
        all.len(),
        all.join(",\n    ")
    ))
}

fn message_steps(
    schema: &Schema<'_>,
    name: &str,
    column: &mut usize,
    all: &mut Vec<String>,
) -> Result<()> {
    let mut fields = BTreeMap::new();
    // Columns are numbered as fields are declared.
    for field in &schema.message(name)?.field {
        let key = |wire: i32| field.number() << 3 | wire;
        let repeated = field.label() == Label::Repeated;
        let mut steps = Vec::new();
        if field.r#type() == Type::Message && !repeated {
            steps.push(format!("Step::Enter {{ key: {} }}", key(LENGTH)));
            message_steps(schema, field.type_name(), column, &mut steps)?;
            steps.push("Step::Leave".to_owned());
        } else {
            let place = format!("{name}.{}", field.name());
            let (wire, form) = match shape(field, repeated, &place)? {
                Shape::Int { .. } if !field.proto3_optional() => {
                    (VARINT, "Form::Unless0".to_owned())
                }
                Shape::Int { .. } | Shape::Bool => (VARINT, "Form::Always".to_owned()),
                Shape::Text | Shape::TextList => (LENGTH, "Form::Always".to_owned()),
                Shape::Enum(name) => (VARINT, format!("Form::Enum({})", enum_fn(&name, "number"))),
            };
            steps.push(format!(
                "Step::Field {{ column: {column}, key: {}, form: {form} }}",
                key(wire)
            ));
            *column += 1;
        }
        fields.insert(field.number(), steps);
    }
    all.extend(fields.into_values().flatten());
    Ok(())
}

fn function_name(message: &str) -> String {
    let short = message.rsplit('.').next().unwrap_or(message);
    let mut name = String::new();
    for letter in short.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}
