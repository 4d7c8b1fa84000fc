//! What expression over atoms is a rule?
//!
//! Fields that events here cannot have are constants, so that a rule which can never match, or
//! always would, is recognised by its simplified form.

use std::collections::BTreeSet;

use rsigma_parser::{
    ConditionExpr, Detection, DetectionItem, Detections, Modifier, Quantifier, SelectorPattern,
    SigmaValue,
};

use crate::{
    expr::Expr,
    field::Field,
    index::Atoms,
    pattern::{self, PatternError, Test},
};

/// Why a rule was not compiled.
#[derive(Debug, PartialEq, Eq)]
pub enum CompileError {
    /// Sound, but not for us.
    Unsupported(String),
    /// To be repaired; `blame` is a text of the line that is wrong.
    Invalid {
        problem: String,
        fix: String,
        blame: String,
    },
}

/// Compiles detection sections of one bucket.
pub struct Compiler<'a> {
    pub atoms: &'a mut Atoms,
    /// Fields met that no event has.
    pub unknown_fields: BTreeSet<String>,
}

impl Compiler<'_> {
    /// The detection section as one expression; several conditions are alternatives.
    pub fn detections(&mut self, detections: &Detections) -> Result<Expr, CompileError> {
        if detections.timeframe.is_some() {
            return unsupported("timeframe (write a correlation rule instead)");
        }
        let mut alternatives = Vec::new();
        for condition in &detections.conditions {
            alternatives.push(self.condition(condition, detections)?);
        }
        Ok(Expr::any(alternatives))
    }

    fn condition(
        &mut self,
        condition: &ConditionExpr,
        all: &Detections,
    ) -> Result<Expr, CompileError> {
        match condition {
            ConditionExpr::And(parts) => Ok(Expr::all(self.conditions(parts, all)?)),
            ConditionExpr::Or(parts) => Ok(Expr::any(self.conditions(parts, all)?)),
            ConditionExpr::Not(inner) => Ok(self.condition(inner, all)?.negate()),
            ConditionExpr::Identifier(name) => match all.named.get(name) {
                Some(detection) => self.detection(detection),
                None => undefined(name, all),
            },
            ConditionExpr::Selector {
                quantifier,
                pattern,
            } => self.selector(quantifier, pattern, all),
        }
    }

    fn conditions(
        &mut self,
        parts: &[ConditionExpr],
        all: &Detections,
    ) -> Result<Vec<Expr>, CompileError> {
        parts.iter().map(|part| self.condition(part, all)).collect()
    }

    fn selector(
        &mut self,
        quantifier: &Quantifier,
        pattern: &SelectorPattern,
        all: &Detections,
    ) -> Result<Expr, CompileError> {
        let mut names: Vec<_> = all
            .named
            .keys()
            .filter(|name| pattern.matches_detection_name(name))
            .collect();
        names.sort();
        if names.is_empty() {
            return undefined(&pattern.to_string(), all);
        }
        let mut parts = Vec::new();
        for name in names {
            parts.push(self.detection(&all.named[name])?);
        }
        Ok(match quantifier {
            Quantifier::Any => Expr::any(parts),
            Quantifier::All => Expr::all(parts),
            Quantifier::Count(count) => {
                Expr::at_least(usize::try_from(*count).unwrap_or(usize::MAX), parts)
            }
        })
    }

    fn detection(&mut self, detection: &Detection) -> Result<Expr, CompileError> {
        match detection {
            Detection::AllOf(items) => {
                let parts = items.iter().map(|item| self.item(item));
                Ok(Expr::all(parts.collect::<Result<Vec<_>, _>>()?))
            }
            Detection::AnyOf(parts) => {
                let parts = parts.iter().map(|part| self.detection(part));
                Ok(Expr::any(parts.collect::<Result<Vec<_>, _>>()?))
            }
            Detection::And(parts) => {
                let parts = parts.iter().map(|part| self.detection(part));
                Ok(Expr::all(parts.collect::<Result<Vec<_>, _>>()?))
            }
            Detection::Keywords(values) => self.keywords(&[], values),
            Detection::ArrayMatch { .. } | Detection::Conditional { .. } => {
                unsupported("array matching (sigma-version 3)")
            }
        }
    }

    fn item(&mut self, item: &DetectionItem) -> Result<Expr, CompileError> {
        let modifiers = &item.field.modifiers;
        let Some(name) = &item.field.name else {
            return self.keywords(modifiers, &item.values);
        };
        let values = item
            .values
            .iter()
            .map(|value| self.value(name, modifiers, value));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        if values.is_empty() {
            return Err(CompileError::Invalid {
                problem: format!("{name} has an empty list of values"),
                fix: "give at least one value or remove the line".to_owned(),
                blame: name.clone(),
            });
        }
        let joined = match modifiers.contains(&Modifier::All) {
            true => Expr::all(values),
            false => Expr::any(values),
        };
        Ok(match modifiers.contains(&Modifier::Neq) {
            true => joined.negate(),
            false => joined,
        })
    }

    /// Keywords are found anywhere in any text of the event.
    fn keywords(
        &mut self,
        modifiers: &[Modifier],
        values: &[SigmaValue],
    ) -> Result<Expr, CompileError> {
        let mut contains = modifiers.to_vec();
        if !modifiers.contains(&Modifier::Re) && !modifiers.contains(&Modifier::Contains) {
            contains.push(Modifier::Contains);
        }
        let mut parts = Vec::new();
        for value in values {
            let tests = pattern::tests(&contains, value).map_err(|e| blame(e, value))?;
            parts.push(self.tests(Field::AnyText, tests));
        }
        Ok(match modifiers.contains(&Modifier::All) {
            true => Expr::all(parts),
            false => Expr::any(parts),
        })
    }

    fn value(
        &mut self,
        name: &str,
        modifiers: &[Modifier],
        value: &SigmaValue,
    ) -> Result<Expr, CompileError> {
        let tests = pattern::tests(modifiers, value).map_err(|e| blame(e, value))?;
        match Field::named(name) {
            Some(field) => Ok(self.tests(field, tests)),
            None => {
                self.unknown_fields.insert(name.to_owned());
                Ok(Expr::Const(tests.contains(&Test::Absent)))
            }
        }
    }

    fn tests(&mut self, field: Field, tests: Vec<Test>) -> Expr {
        Expr::any(
            tests
                .into_iter()
                .map(|test| Expr::Atom(self.atoms.id(field, test))),
        )
    }
}

fn unsupported<T>(what: &str) -> Result<T, CompileError> {
    Err(CompileError::Unsupported(what.to_owned()))
}

fn undefined<T>(name: &str, all: &Detections) -> Result<T, CompileError> {
    let mut known: Vec<_> = all.named.keys().map(String::as_str).collect();
    known.sort_unstable();
    Err(CompileError::Invalid {
        problem: format!("the condition names {name:?}, which the detection does not define"),
        fix: format!("define it or use one of: {}", known.join(", ")),
        blame: "condition:".to_owned(),
    })
}

fn blame(error: PatternError, value: &SigmaValue) -> CompileError {
    match error {
        PatternError::Unsupported(what) => CompileError::Unsupported(what),
        PatternError::Invalid { problem, fix } => CompileError::Invalid {
            problem,
            fix,
            blame: value.to_string(),
        },
    }
}
