//! Does a text pass a test that looks into it? A function of the query engine that carries its
//! compiled patterns; of a list of text, any item may pass.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray as _, BooleanArray},
    datatypes::DataType,
};
use audit_detect::Network;
use datafusion::{
    common::{Result, exec_err},
    logical_expr::{
        ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};
use regex::{RegexSet, RegexSetBuilder};

/// Of one condition, compiled: what `regex` may need for its program and for its automaton.
const REGEX_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Test {
    Equals,
    Prefixes,
    Suffixes,
    Contains,
    Matches,
    Networks,
}

impl Test {
    /// As in the proto file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equals => "equals",
            Self::Prefixes => "prefixes",
            Self::Suffixes => "suffixes",
            Self::Contains => "contains",
            Self::Matches => "matches",
            Self::Networks => "networks",
        }
    }
}

#[derive(Debug)]
enum Patterns {
    Equals(HashSet<String>),
    Prefixes(Vec<String>),
    Suffixes(Vec<String>),
    Contains(Vec<String>),
    Matches(RegexSet),
    Networks(Vec<Network>),
}

/// The test applied to `argument`; an error says why a value is none.
pub fn call(test: Test, values: &[String], argument: Expr) -> Result<Expr, String> {
    let function = TextFunction {
        patterns: Patterns::new(test, values)?,
        test,
        values: values.to_vec(),
        signature: Signature::any(1, Volatility::Immutable),
    };
    Ok(ScalarUDF::from(function).call(vec![argument]))
}

impl Patterns {
    fn new(test: Test, values: &[String]) -> Result<Self, String> {
        Ok(match test {
            Test::Equals => Self::Equals(values.iter().cloned().collect()),
            Test::Prefixes => Self::Prefixes(values.to_vec()),
            Test::Suffixes => Self::Suffixes(values.to_vec()),
            Test::Contains => Self::Contains(values.to_vec()),
            Test::Matches => Self::Matches(
                RegexSetBuilder::new(values)
                    .size_limit(REGEX_BYTES)
                    .dfa_size_limit(REGEX_BYTES)
                    .build()
                    .map_err(|error| error.to_string())?,
            ),
            Test::Networks => {
                let network = |text: &String| {
                    Network::parse(text).ok_or_else(|| {
                        format!("{text:?} is not a network; write ADDRESS/BITS, as 10.0.0.0/8")
                    })
                };
                Self::Networks(values.iter().map(network).collect::<Result<_, _>>()?)
            }
        })
    }

    fn pass(&self, text: &str) -> bool {
        match self {
            Self::Equals(values) => values.contains(text),
            Self::Prefixes(values) => values.iter().any(|v| text.starts_with(v)),
            Self::Suffixes(values) => values.iter().any(|v| text.ends_with(v)),
            Self::Contains(values) => values.iter().any(|v| text.contains(v)),
            Self::Matches(set) => set.is_match(text),
            Self::Networks(networks) => networks.iter().any(|n| n.contains(text)),
        }
    }
}

#[derive(Debug)]
struct TextFunction {
    test: Test,
    values: Vec<String>,
    patterns: Patterns,
    signature: Signature,
}

// Two of the same test and values are the same function.
impl PartialEq for TextFunction {
    fn eq(&self, other: &Self) -> bool {
        (self.test, &self.values) == (other.test, &other.values)
    }
}

impl Eq for TextFunction {}

impl Hash for TextFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.test, &self.values).hash(state);
    }
}

impl ScalarUDFImpl for TextFunction {
    fn name(&self) -> &'static str {
        self.test.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    /// An absent text does not pass.
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let array = &arrays[0];
        let passed: BooleanArray = match array.data_type() {
            DataType::Utf8View => texts(array.as_string_view().iter(), &self.patterns),
            DataType::Utf8 => texts(array.as_string::<i32>().iter(), &self.patterns),
            DataType::List(_) => {
                let lists = array.as_list::<i32>();
                let Some(items) = lists.values().as_string_opt::<i32>() else {
                    return exec_err!("{} does not take {}", self.name(), array.data_type());
                };
                let offsets = lists.value_offsets();
                (0..lists.len())
                    .map(|row| {
                        let items_of_row = offsets[row] as usize..offsets[row + 1] as usize;
                        let any = items_of_row
                            .into_iter()
                            .any(|item| self.patterns.pass(items.value(item)));
                        Some(lists.is_valid(row) && any)
                    })
                    .collect()
            }
            other => return exec_err!("{} does not take {other}", self.name()),
        };
        Ok(ColumnarValue::Array(Arc::new(passed)))
    }
}

fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>, patterns: &Patterns) -> BooleanArray {
    let passed = texts.map(|text| Some(text.is_some_and(|text| patterns.pass(text))));
    passed.collect()
}
