//! Does each rule of a folder fire on its positive samples and stay silent on its negative ones?
//!
//! Samples of `NAME.yml` are in `tests/NAME.yml`; events in `tests/ordinary.yml` are daily work on
//! which no rule of the folder may fire. The format is in `rules/README.md`.
//!
//! Invariant: a rule without both a positive and a negative sample is a problem, as is a sample
//! that cannot be read; neither hides the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use audit_proto::{
    columns::{self, COLUMNS, ColumnType, OwnedValue},
    v1::Event,
};
use serde::Deserialize;
use yaml_serde::Value;

use crate::{
    files::{self, TESTS},
    report::Report,
    ruleset::RuleSet,
};

/// Samples that belong to no rule: none may fire on them.
const ORDINARY: &str = "ordinary";

/// What a run over a folder found.
#[derive(Debug)]
pub struct Outcome {
    /// Of loading the rules.
    pub report: Report,
    pub results: Vec<SampleResult>,
    /// Rules without samples, samples without rule, unreadable files.
    pub problems: Vec<String>,
}

/// One sample and what became of it.
#[derive(Debug)]
pub struct SampleResult {
    /// The sample file.
    pub file: PathBuf,
    pub name: String,
    pub expected: Expect,
    /// Titles of the rules that fired: for an ordinary sample all, else those of its own file.
    pub fired: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    Match,
    NoMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleFile {
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    name: String,
    /// Left out in `ordinary.yml` only.
    expect: Option<Expect>,
    event: BTreeMap<String, Value>,
}

/// Why a sample could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}; write `samples:` with name, expect (match or no-match) and event each")]
    Yaml(#[from] yaml_serde::Error),
    #[error("{column:?} is not a column of events (docs/events.md lists them)")]
    Column { column: String },
    #[error("column {column:?} cannot be {value}; it is {ty}")]
    Value {
        column: String,
        value: String,
        ty: &'static str,
    },
    #[error("sample {name:?} has no `expect`; write match or no-match")]
    Expect { name: String },
}

impl SampleResult {
    pub fn passed(&self) -> bool {
        self.fired.is_empty() == (self.expected == Expect::NoMatch)
    }
}

impl Outcome {
    /// Everything loaded, nothing missing, each sample as expected.
    pub fn passed(&self) -> bool {
        self.report.is_sound()
            && self.report.idle.is_empty()
            && self.problems.is_empty()
            && self.results.iter().all(SampleResult::passed)
    }

    pub fn failed(&self) -> impl Iterator<Item = &SampleResult> {
        self.results.iter().filter(|result| !result.passed())
    }
}

/// Loads the rules in `rules_dir` and runs the samples in its folder `tests`.
pub fn run(rules_dir: &Path) -> Outcome {
    let (rules, report) = RuleSet::load(&[rules_dir]);
    let mut outcome = Outcome {
        report,
        results: Vec::new(),
        problems: Vec::new(),
    };
    let files = match sample_files(&rules_dir.join(TESTS)) {
        Ok(files) => files,
        Err(error) => {
            let tests = rules_dir.join(TESTS);
            outcome
                .problems
                .push(format!("{}: {error}", tests.display()));
            return outcome;
        }
    };
    let mut stems: BTreeSet<String> = rules.iter().map(|info| stem(&info.file)).collect();
    for file in files {
        let name = stem(&file);
        if name != ORDINARY && !stems.contains(&name) {
            let text = format!(
                "{}: there is no loaded rule file {name}.yml",
                file.display()
            );
            outcome.problems.push(text);
            continue;
        }
        match run_file(&rules, &file) {
            Ok(results) => {
                missing(&file, &results, &mut outcome.problems);
                outcome.results.extend(results);
            }
            Err(error) => outcome
                .problems
                .push(format!("{}: {error}", file.display())),
        }
        stems.remove(&name);
    }
    for name in stems {
        outcome.problems.push(format!(
            "{name}.yml has no samples; write {TESTS}/{name}.yml"
        ));
    }
    outcome
}

fn sample_files(tests: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(tests)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| files::is_yaml(file));
    files.sort();
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn missing(file: &Path, results: &[SampleResult], problems: &mut Vec<String>) {
    if stem(file) == ORDINARY {
        return;
    }
    for (expect, name) in [(Expect::Match, "match"), (Expect::NoMatch, "no-match")] {
        if !results.iter().any(|result| result.expected == expect) {
            problems.push(format!(
                "{}: no sample with `expect: {name}`",
                file.display()
            ));
        }
    }
}

fn run_file(rules: &RuleSet, file: &Path) -> Result<Vec<SampleResult>, SampleError> {
    let ordinary = stem(file) == ORDINARY;
    let samples: SampleFile = yaml_serde::from_str(&files::read_bounded(file)?)?;
    let mut scratch = rules.scratch();
    let mut matched = Vec::new();
    let mut results = Vec::new();
    for sample in samples.samples {
        let expected = match sample.expect {
            Some(expect) => expect,
            None if ordinary => Expect::NoMatch,
            None => return Err(SampleError::Expect { name: sample.name }),
        };
        let event = event(&sample.event)?;
        rules.evaluate(&event, &mut scratch, &mut matched);
        let own = |index: &&usize| ordinary || stem(&rules.info(**index).file) == stem(file);
        let fired = matched
            .iter()
            .filter(own)
            .map(|i| rules.rule(*i).title.clone())
            .collect();
        results.push(SampleResult {
            file: file.to_owned(),
            name: sample.name,
            expected,
            fired,
        });
    }
    Ok(results)
}

/// An event from columns by name, as in a sample.
pub fn event(row: &BTreeMap<String, Value>) -> Result<Event, SampleError> {
    let mut event = Event::default();
    for (name, value) in row {
        let unknown = || SampleError::Column {
            column: name.clone(),
        };
        let at = columns::index(name).ok_or_else(unknown)?;
        let ty = COLUMNS[at].ty;
        let refused = || SampleError::Value {
            column: name.clone(),
            value: format!("{value:?}"),
            ty: describe(ty),
        };
        let cell = cell(ty, value).ok_or_else(refused)?;
        columns::set(&mut event, at, cell).ok_or_else(refused)?;
    }
    Ok(event)
}

fn describe(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Int | ColumnType::Time => "a number",
        ColumnType::Bool => "true or false",
        ColumnType::Text => "text (quote numbers)",
        ColumnType::Enum => "one of the names in proto/audit/v1/event.proto, in lower case",
        ColumnType::TextList => "a list of texts (quote numbers)",
    }
}

fn cell(ty: ColumnType, value: &Value) -> Option<OwnedValue> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(match ty {
        ColumnType::Int | ColumnType::Time => OwnedValue::Int(value.as_i64()?),
        ColumnType::Bool => OwnedValue::Bool(value.as_bool()?),
        ColumnType::Text | ColumnType::Enum => OwnedValue::Text(text(value)?),
        ColumnType::TextList => OwnedValue::TextList(
            value
                .as_sequence()?
                .iter()
                .map(text)
                .collect::<Option<_>>()?,
        ),
    })
}
