//! What does one condition say, as an expression? Comparisons of whole values become comparisons of
//! the table, so that statistics leave out files and pages; what looks into text is a function.

use audit_proto::{
    columns::{self, COLUMNS, Column, ColumnType},
    v1::{Condition, EventFilter},
};
use datafusion::logical_expr::{Expr, col, lit};

use super::{
    InvalidFilter, invalid,
    text::{self, Test},
    time, unknown_column,
};

/// Everything that a condition compares with.
pub fn values(condition: &Condition) -> Vec<&String> {
    let Condition {
        column: _,
        equals,
        prefixes,
        suffixes,
        contains,
        matches,
        networks,
        at_least: _,
        at_most: _,
        present: _,
    } = condition;
    let lists = [equals, prefixes, suffixes, contains, matches, networks];
    lists.into_iter().flatten().collect()
}

/// True where all of a filter is.
pub fn every(place: &str, filter: &EventFilter) -> Result<Expr, InvalidFilter> {
    let mut parts = Vec::new();
    if !filter.kinds.is_empty() {
        let names = filter.kinds.iter().map(|kind| {
            columns::kind_name(*kind)
                .ok_or_else(|| invalid(format!("{place}.kinds"), "KIND_UNSPECIFIED is no kind"))
        });
        let names = names.map(|name| Ok(lit(name?.into_owned())));
        parts.push(one_of("kind", names.collect::<Result<_, _>>()?));
    }
    for (at, condition) in filter.conditions.iter().enumerate() {
        let place = format!("{place}.conditions[{at}]");
        let column = columns::index(&condition.column)
            .map(|at| &COLUMNS[at])
            .ok_or_else(|| invalid(&place, unknown_column(&condition.column)))?;
        let compiler = Compiler {
            place: format!("{place} ({})", column.name),
            column,
        };
        parts.extend(compiler.tests(condition)?);
    }
    let all = parts.into_iter().reduce(Expr::and);
    all.ok_or_else(|| invalid(place, "it is empty; give `kinds` or `conditions`"))
}

fn one_of(column: &str, mut values: Vec<Expr>) -> Expr {
    match values.len() {
        1 => col(column).eq(values.remove(0)),
        _ => col(column).in_list(values, false),
    }
}

struct Compiler {
    place: String,
    column: &'static Column,
}

impl Compiler {
    fn tests(&self, condition: &Condition) -> Result<Vec<Expr>, InvalidFilter> {
        let mut tests = Vec::new();
        let lists = [
            (Test::Equals, &condition.equals),
            (Test::Prefixes, &condition.prefixes),
            (Test::Suffixes, &condition.suffixes),
            (Test::Contains, &condition.contains),
            (Test::Matches, &condition.matches),
            (Test::Networks, &condition.networks),
        ];
        for (test, values) in lists.into_iter().filter(|(_, values)| !values.is_empty()) {
            tests.push(self.test(test, values)?);
        }
        if let Some(least) = condition.at_least {
            tests.push(self.name().gt_eq(self.bound(least)?));
        }
        if let Some(most) = condition.at_most {
            tests.push(self.name().lt_eq(self.bound(most)?));
        }
        match condition.present {
            Some(true) => tests.push(self.name().is_not_null()),
            Some(false) => tests.push(self.name().is_null()),
            None => {}
        }
        if tests.is_empty() {
            return Err(self.invalid("it has no test; give one, for example `equals`"));
        }
        Ok(tests)
    }

    fn name(&self) -> Expr {
        col(self.column.name)
    }

    fn invalid(&self, reason: impl Into<String>) -> InvalidFilter {
        invalid(&self.place, reason)
    }

    fn test(&self, test: Test, values: &[String]) -> Result<Expr, InvalidFilter> {
        let is_text = matches!(self.column.ty, ColumnType::Text | ColumnType::Enum);
        match test {
            Test::Equals if self.column.ty != ColumnType::TextList => {
                let values = values.iter().map(|value| self.value(value));
                Ok(one_of(self.column.name, values.collect::<Result<_, _>>()?))
            }
            Test::Prefixes if is_text => {
                let ranges = values.iter().map(|prefix| self.begins(prefix));
                ranges
                    .reduce(Expr::or)
                    .ok_or_else(|| self.invalid("no prefix"))
            }
            _ if is_text || self.column.ty == ColumnType::TextList => {
                text::call(test, values, self.name()).map_err(|reason| self.invalid(reason))
            }
            _ => Err(self.invalid(format!(
                "`{}` is for text; this column has `equals`, `at_least`, `at_most` and `present`",
                test.name()
            ))),
        }
    }

    /// Text that begins with `prefix` is a range of text, in the order of its bytes.
    fn begins(&self, prefix: &str) -> Expr {
        let from = self.name().gt_eq(lit(prefix));
        match after_all_with(prefix) {
            Some(end) => from.and(self.name().lt(lit(end))),
            None => from,
        }
    }

    fn value(&self, value: &str) -> Result<Expr, InvalidFilter> {
        let refused = |what: &str| self.invalid(format!("{value:?} is not {what}"));
        Ok(match self.column.ty {
            ColumnType::Int => lit(value
                .parse::<i64>()
                .map_err(|_| refused("a whole number"))?),
            ColumnType::Time => time(
                value
                    .parse()
                    .map_err(|_| refused("a time in microseconds since the Unix epoch"))?,
            ),
            ColumnType::Bool => lit(value
                .parse::<bool>()
                .map_err(|_| refused("`true` or `false`"))?),
            ColumnType::Enum => {
                self.check_name(value)?;
                lit(value)
            }
            ColumnType::Text | ColumnType::TextList => lit(value),
        })
    }

    /// Digits are a name of a later version.
    fn check_name(&self, name: &str) -> Result<(), InvalidFilter> {
        let known = self.column.values;
        if known.contains(&name) || name.parse::<i32>().is_ok() {
            return Ok(());
        }
        Err(
            self.invalid(match audit_config::nearest(name, known.iter().copied()) {
                Some(near) => format!("no {} `{name}`; did you mean `{near}`?", self.column.name),
                None => format!(
                    "no {} `{name}`; there are: {}",
                    self.column.name,
                    known.join(", ")
                ),
            }),
        )
    }

    fn bound(&self, bound: i64) -> Result<Expr, InvalidFilter> {
        match self.column.ty {
            ColumnType::Int => Ok(lit(bound)),
            ColumnType::Time => Ok(time(bound)),
            _ => Err(self.invalid("`at_least` and `at_most` are for numbers and times")),
        }
    }
}

/// The least text after everything that begins with `prefix`; `None` where there is none.
fn after_all_with(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_prefix_is_after_all_that_has_it() {
        assert_eq!(after_all_with("/usr/").as_deref(), Some("/usr0"));
        assert_eq!(after_all_with("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(after_all_with("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(after_all_with("\u{10ffff}"), None);
        assert_eq!(after_all_with(""), None);
        let end = after_all_with("é").expect("an end");
        assert!("é\u{10ffff}" < end.as_str() && "ê" >= end.as_str());
    }
}
