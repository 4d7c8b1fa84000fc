//! Writes how an event's columns are encoded, both ways. A function that finds an event's own cells and its
//! parts, which are the messages in it, and for each message one that gives the cells of its bytes, all in the
//! one form that encoders write; what is in any other form is left to prost. And the steps in which encoders
//! write columns.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Result, bail};
use prost_types::{
    FieldDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

use crate::columns::{Schema, Shape, enum_fn, shape};

const VARINT: i32 = 0;
const LENGTH: i32 = 2;

/// The functions: `split` for the root, `part` for the messages in it.
pub fn generate(schema: &Schema<'_>, root: &str) -> Result<String> {
    let mut functions = BTreeMap::new();
    let (mut fields, mut parts, mut part) = (Fields::default(), String::new(), 0);
    for field in &schema.message(root)?.field {
        let key = |wire: i32| field.number() << 3 | wire;
        if field.r#type() != Type::Message || field.label() == Label::Repeated {
            fields.leaf(field, root, "")?;
            continue;
        }
        let columns = message(schema, field.type_name(), &mut functions)?;
        writeln!(
            fields.arms,
            "            {} => parts.push(({part}, encoded.bytes()?)),",
            key(LENGTH)
        )?;
        writeln!(
            parts,
            "        {part} => {}(bytes, {}, cells),",
            function_name(field.type_name()),
            fields.column
        )?;
        fields.column += columns;
        part += 1;
    }
    let mut text = fields.function(
        "split",
        "parts: &mut Vec<(usize, &'a [u8])>, cells: &mut Vec<Cell<'a>>",
    );
    write!(
        text,
        "pub(super) fn part<'a>(part: usize, bytes: &'a [u8], cells: &mut Vec<Cell<'a>>) -> Option<()> {{\n    \
             match part {{\n{parts}        _ => None,\n    }}\n}}\n\n"
    )?;
    text.extend(functions.into_values().map(|(_, text)| text));
    Ok(text)
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
    let mut fields = Fields::default();
    for field in &schema.message(name)?.field {
        if field.r#type() != Type::Message || field.label() == Label::Repeated {
            fields.leaf(field, name, "column + ")?;
            continue;
        }
        let columns = message(schema, field.type_name(), functions)?;
        let function = function_name(field.type_name());
        writeln!(
            fields.arms,
            "            {} => {function}(encoded.bytes()?, column + {}, cells)?,",
            field.number() << 3 | LENGTH,
            fields.column
        )?;
        fields.column += columns;
    }
    let text = fields.function(
        &function_name(name),
        "column: usize, cells: &mut Vec<Cell<'a>>",
    );
    functions.insert(name.to_owned(), (fields.column, text));
    Ok(fields.column)
}

/// What a message's function does with its fields.
#[derive(Default)]
struct Fields {
    /// Numbers that are always told, also where the message leaves them out because they are 0.
    before: String,
    arms: String,
    after: String,
    column: usize,
}

impl Fields {
    /// A field that is a column, numbered from `base` on.
    fn leaf(&mut self, field: &FieldDescriptorProto, message: &str, base: &str) -> Result<()> {
        let repeated = field.label() == Label::Repeated;
        let at = format!("{base}{}", self.column);
        let place = format!("{message}.{}", field.name());
        let (wire, read) = match (shape(field, repeated, &place)?, field.proto3_optional()) {
            (Shape::Int { width }, optional) => {
                let number = match width {
                    64 => "encoded.varint()? as i64",
                    _ => "i64::from(encoded.varint()? as i32)",
                };
                let read = if optional {
                    format!("cells.push(Cell {{ column: {at}, content: Content::Int({number}) }})")
                } else {
                    let name = format!("always_{}", self.column);
                    writeln!(self.before, "    let mut {name} = 0;")?;
                    writeln!(
                        self.after,
                        "    cells.push(Cell {{ column: {at}, content: Content::Int({name}) }});"
                    )?;
                    format!("{name} = {number}")
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
        let key = field.number() << 3 | wire;
        writeln!(self.arms, "            {key} => {read},")?;
        self.column += 1;
        Ok(())
    }

    fn function(&self, name: &str, parameters: &str) -> String {
        let Self {
            before,
            arms,
            after,
            column: _,
        } = self;
        format!(
            "pub(super) fn {name}<'a>(bytes: &'a [u8], {parameters}) -> Option<()> {{\n\
             {before}    let mut encoded = Encoded::new(bytes);\n    \
                 while let Some(key) = encoded.key()? {{\n        match key {{\n{arms}            \
                 _ => return None,\n        }}\n    }}\n{after}    Some(())\n}}\n\n"
        )
    }
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
