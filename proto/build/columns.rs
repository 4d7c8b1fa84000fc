//! Walks the descriptor of one message and writes a flat table of its leaves: name, type, doc,
//! and a reader and a writer for each. A column's name is its path joined by underscores.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range};

use anyhow::{Context as _, Result, bail};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

struct Leaf {
    name: String,
    doc: String,
    /// Rust expressions that lead to the message holding the field: ["process"], ["socket", "peer"].
    path: Vec<String>,
    field: String,
    shape: Shape,
    optional: bool,
}

pub enum Shape {
    Int { width: u8 },
    Bool,
    Text,
    TextList,
    Enum(String),
}

pub struct Schema<'a> {
    messages: BTreeMap<String, (&'a DescriptorProto, BTreeMap<usize, String>)>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
}

pub fn generate(schema: &Schema<'_>, root: &str) -> Result<String> {
    let mut leaves = Vec::new();
    let mut objects = Vec::new();
    schema.walk(root, &mut Vec::new(), "", &mut leaves, &mut objects)?;
    write(&leaves, &objects, schema)
}

impl<'a> Schema<'a> {
    pub fn new(set: &'a FileDescriptorSet) -> Self {
        let mut messages = BTreeMap::new();
        let mut enums = BTreeMap::new();
        for file in &set.file {
            for (at, message) in file.message_type.iter().enumerate() {
                // Source paths: 4 = message_type, 2 = field.
                let docs = file
                    .source_code_info
                    .iter()
                    .flat_map(|info| &info.location)
                    .filter(|l| {
                        l.path.len() == 4
                            && l.path[0] == 4
                            && l.path[1] as usize == at
                            && l.path[2] == 2
                    })
                    .filter_map(|l| Some((l.path[3] as usize, l.leading_comments.clone()?)))
                    .collect();
                messages.insert(
                    format!(".{}.{}", file.package(), message.name()),
                    (message, docs),
                );
            }
            for e in &file.enum_type {
                enums.insert(format!(".{}.{}", file.package(), e.name()), e);
            }
        }
        Self { messages, enums }
    }

    fn walk(
        &self,
        message: &str,
        path: &mut Vec<String>,
        prefix: &str,
        leaves: &mut Vec<Leaf>,
        objects: &mut Vec<String>,
    ) -> Result<()> {
        let (descriptor, docs) = self
            .messages
            .get(message)
            .with_context(|| format!("no message {message}"))?;
        for (at, field) in descriptor.field.iter().enumerate() {
            let name = format!("{prefix}{}", field.name());
            let repeated = field.label() == Label::Repeated;
            if field.r#type() == Type::Message && !repeated {
                path.push(identifier(field.name()));
                let prefix = format!("{name}_");
                self.walk(field.type_name(), path, &prefix, leaves, objects)?;
                path.pop();
                objects.push(name);
                continue;
            }
            let doc = docs.get(&at).map(String::as_str).unwrap_or_default();
            leaves.push(Leaf {
                shape: shape(field, repeated, &name)?,
                optional: field.proto3_optional(),
                doc: doc
                    .lines()
                    .map(str::trim)
                    .collect::<Vec<_>>()
                    .join(" ")
                    .trim()
                    .to_owned(),
                path: path.clone(),
                field: identifier(field.name()),
                name,
            });
        }
        Ok(())
    }
}

impl Schema<'_> {
    pub fn message(&self, name: &str) -> Result<&DescriptorProto> {
        let (descriptor, _) = self
            .messages
            .get(name)
            .with_context(|| format!("no message {name}"))?;
        Ok(descriptor)
    }

    /// KIND_EXEC_FAILED is "exec_failed"; 0 has no name.
    fn enum_names(&self, name: &str) -> Result<Vec<(i32, String)>> {
        let descriptor = self
            .enums
            .get(name)
            .with_context(|| format!("no enum {name}"))?;
        let prefix = format!("{}_", descriptor.name().to_uppercase());
        let named = descriptor.value.iter().filter(|v| v.number() != 0);
        named
            .map(|value| {
                let text = value
                    .name()
                    .strip_prefix(&prefix)
                    .with_context(|| format!("{} does not begin with {prefix}", value.name()))?;
                Ok((value.number(), text.to_lowercase()))
            })
            .collect()
    }
}

/// As prost names a field: a word of the language is written raw.
fn identifier(name: &str) -> String {
    match name {
        "type" => "r#type".to_owned(),
        name => name.to_owned(),
    }
}

pub fn shape(field: &FieldDescriptorProto, repeated: bool, name: &str) -> Result<Shape> {
    Ok(match (field.r#type(), repeated) {
        (Type::Int64, false) => Shape::Int { width: 64 },
        (Type::Int32, false) => Shape::Int { width: 32 },
        (Type::Bool, false) => Shape::Bool,
        (Type::String, false) => Shape::Text,
        (Type::String, true) => Shape::TextList,
        (Type::Enum, false) => Shape::Enum(field.type_name().to_owned()),
        (other, _) => bail!("{name}: {other:?} has no column type; see proto/build/columns.rs"),
    })
}

fn write(leaves: &[Leaf], objects: &[String], schema: &Schema<'_>) -> Result<String> {
    let mut table = String::new();
    let mut get = String::new();
    let mut set = String::new();
    let mut places = String::new();
    let parts = parts(leaves);
    for (at, leaf) in leaves.iter().enumerate() {
        writeln!(
            places,
            "    pub const {}: usize = {at};",
            leaf.name.to_uppercase()
        )?;
        let part = parts.iter().position(|part| part.contains(&at));
        writeln!(table, "    {},", leaf.row(part, schema)?)?;
        writeln!(get, "        {at} => {},", leaf.read()?)?;
        let (pattern, assignment) = leaf.assign();
        writeln!(set, "        ({at}, {pattern}) => {assignment},")?;
    }

    let mut out = format!(
        "/// The leaves of `Event` in the order of the descriptor.\n\
         pub static COLUMNS: [Column; {n}] = [\n{table}];\n\n\
         /// The columns of each message that is a field of `Event`, in the order of the descriptor.\n\
         pub static PARTS: [Range<usize>; {}] = {parts:?};\n\n\
         /// The messages in `Event`, named as columns are.\n\
         pub static OBJECTS: [&str; {}] = {objects:?};\n\n\
         /// Where each column is in [`COLUMNS`].\n\
         pub mod at {{\n{places}}}\n\n\
         /// The value of column `column`, or `None` where it is absent.\n\
         pub fn get(event: &Event, column: usize) -> Option<Value<'_>> {{\n    \
             Some(match column {{\n{get}        _ => return None,\n    }})\n}}\n\n\
         /// Sets column `column`; `None` when the value is not of the column's type.\n\
         pub fn set(event: &mut Event, column: usize, value: OwnedValue) -> Option<()> {{\n    \
             match (column, value) {{\n{set}        _ => return None,\n    }}\n    Some(())\n}}\n\n",
        parts.len(),
        objects.len(),
        n = leaves.len(),
    );
    let used = leaves.iter().filter_map(|l| match &l.shape {
        Shape::Enum(name) => Some(name),
        _ => None,
    });
    let mut done = Vec::new();
    for name in used {
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        out += &enum_functions(name, schema)?;
    }
    Ok(out)
}

/// Leaves that are below the same field of the root come one after the other.
fn parts(leaves: &[Leaf]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut from = 0;
    for run in leaves.chunk_by(|a, b| a.path.first() == b.path.first()) {
        let to = from + run.len();
        if !run[0].path.is_empty() {
            parts.push(from..to);
        }
        from = to;
    }
    parts
}

impl Leaf {
    /// Its row of the table; `part` is its place in `PARTS`.
    fn row(&self, part: Option<usize>, schema: &Schema<'_>) -> Result<String> {
        let ty = match &self.shape {
            Shape::Int { .. } if self.name == "time" => "Time",
            Shape::Int { .. } => "Int",
            Shape::Bool => "Bool",
            Shape::Text => "Text",
            Shape::TextList => "TextList",
            Shape::Enum(_) => "Enum",
        };
        let names = match &self.shape {
            Shape::Enum(name) => schema.enum_names(name)?,
            _ => Vec::new(),
        };
        let names: Vec<&str> = names.iter().map(|(_, name)| &**name).collect();
        Ok(format!(
            "Column {{ name: {:?}, ty: ColumnType::{ty}, part: {part:?}, values: &{names:?}, doc: {:?} }}",
            self.name, self.doc
        ))
    }

    /// The expression that reads it from `event`.
    fn read(&self) -> Result<String> {
        let mut place = "event".to_owned();
        for part in &self.path {
            place += &format!(".{part}.as_ref()?");
        }
        place += &format!(".{}", self.field);
        Ok(match (&self.shape, self.optional) {
            (Shape::Int { .. }, true) => format!("Value::Int(i64::from({place}?))"),
            (Shape::Int { .. }, false) => format!("Value::Int(i64::from({place}))"),
            (Shape::Bool, true) => format!("Value::Bool({place}?)"),
            (Shape::Text, false) => format!("Value::Text(text(&{place})?)"),
            (Shape::TextList, false) => format!("Value::TextList(list(&{place})?)"),
            (Shape::Enum(name), false) => {
                format!("Value::Text({}({place})?)", enum_fn(name, "name"))
            }
            (_, optional) => bail!(
                "{}: optional={optional} does not suit its type: text and lists are absent when \
                 empty, booleans must be optional",
                self.name
            ),
        })
    }

    /// The pattern of a value of its type, and the assignment of that value to `event`.
    fn assign(&self) -> (&'static str, String) {
        let mut place = "event".to_owned();
        for part in &self.path {
            place += &format!(".{part}.get_or_insert_default()");
        }
        place += &format!(".{}", self.field);
        let (pattern, value) = match &self.shape {
            Shape::Int { width: 64 } => ("OwnedValue::Int(v)", "v".to_owned()),
            Shape::Int { .. } => ("OwnedValue::Int(v)", "i32::try_from(v).ok()?".to_owned()),
            Shape::Bool => ("OwnedValue::Bool(v)", "v".to_owned()),
            Shape::Text => ("OwnedValue::Text(v)", "v".to_owned()),
            Shape::TextList => ("OwnedValue::TextList(v)", "v".to_owned()),
            Shape::Enum(name) => (
                "OwnedValue::Text(v)",
                format!("{}(&v)?", enum_fn(name, "number")),
            ),
        };
        let value = if self.optional {
            format!("Some({value})")
        } else {
            value
        };
        (pattern, format!("{place} = {value}"))
    }
}

pub fn enum_fn(name: &str, suffix: &str) -> String {
    let short = name.rsplit('.').next().unwrap_or(name).to_lowercase();
    format!("{short}_{suffix}")
}

/// A number of a later version is its decimal digits.
fn enum_functions(name: &str, schema: &Schema<'_>) -> Result<String> {
    let (mut names, mut numbers) = (String::new(), String::new());
    for (number, text) in schema.enum_names(name)? {
        writeln!(names, "        {number} => {text:?},")?;
        writeln!(numbers, "        {text:?} => {number},")?;
    }
    Ok(format!(
        "/// The name of a {short} by number; digits for a number of a later version.\n\
         pub fn {to_name}(number: i32) -> Option<Cow<'static, str>> {{\n    \
             Some(Cow::Borrowed(match number {{\n        0 => return None,\n{names}        \
             other => return Some(Cow::Owned(other.to_string())),\n    }}))\n}}\n\n\
         /// The number of a {short} by name, or of its digits.\n\
         pub fn {to_number}(name: &str) -> Option<i32> {{\n    \
             Some(match name {{\n{numbers}        other => return other.parse().ok(),\n    }})\n}}\n\n",
        short = name.rsplit('.').next().unwrap_or(name),
        to_name = enum_fn(name, "name"),
        to_number = enum_fn(name, "number"),
    ))
}
