//! Loads rules and evaluates events against them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use audit_columns::View;
use audit_proto::{
    columns::Row,
    v1::{self, Event},
};
use rsigma_parser::{FilterRule, FilterRuleTarget, LogSource, SigmaCollection, SigmaRule};

use crate::{
    compile::{CompileError, Compiler},
    expr::Expr,
    files::{self, Document, Source},
    index::{Atoms, FieldValues, Fields, Index, IndexError, IndexScratch},
    logsource::{Bucket, Gist},
    report::{Broken, Idle, Inert, Report, Why},
};

/// A rule's position in its [`RuleSet`].
pub type RuleIndex = usize;

/// A loaded rule.
#[derive(Debug)]
pub struct RuleInfo {
    /// As an alert carries it.
    pub rule: v1::Rule,
    pub file: PathBuf,
    pub bucket: Bucket,
    pub false_positives: Vec<String>,
}

/// Compiled rules.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<RuleInfo>,
    buckets: Vec<Compiled>,
    fields: Fields,
}

#[derive(Debug)]
struct Compiled {
    bucket: Bucket,
    index: Index,
    /// From the index's numbers to the set's.
    rules: Vec<RuleIndex>,
}

/// Working memory of one evaluating thread; made by [`RuleSet::scratch`] for that set alone.
#[derive(Debug)]
pub struct Scratch {
    event: FieldValues,
    indexes: Vec<IndexScratch>,
}

impl Scratch {
    /// Rows of another batch follow, whose parts have numbers of their own.
    pub fn begin_rows(&mut self) {
        self.indexes.iter_mut().for_each(IndexScratch::begin_rows);
    }
}

impl RuleSet {
    /// Loads the files and folders at `paths`. Never fails as a whole: see [`Report::broken`].
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> (RuleSet, Report) {
        RuleSet::load_over(&[], paths)
    }

    /// As [`RuleSet::load`], on top of the rules of `base`: a rule with the id of one in `base`
    /// replaces it, and filters apply to both.
    pub fn load_over<P: AsRef<Path>>(base: &[Source], paths: &[P]) -> (RuleSet, Report) {
        let mut broken = Vec::new();
        let sources = files::read(paths, &mut broken);
        let mut loader = Loader::default();
        for source in &sources {
            loader.file(source, false);
        }
        for source in base {
            loader.file(source, true);
        }
        let (rules, mut report) = loader.finish();
        report.broken.splice(0..0, broken);
        (rules, report)
    }

    /// Compiles rule files already in memory.
    pub fn compile(sources: &[Source]) -> (RuleSet, Report) {
        let mut loader = Loader::default();
        for source in sources {
            loader.file(source, false);
        }
        loader.finish()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &RuleInfo> {
        self.rules.iter()
    }

    /// The rule as alerts carry it.
    pub fn rule(&self, index: RuleIndex) -> &v1::Rule {
        &self.rules[index].rule
    }

    pub fn info(&self, index: RuleIndex) -> &RuleInfo {
        &self.rules[index]
    }

    /// Working memory for [`RuleSet::evaluate`].
    pub fn scratch(&self) -> Scratch {
        Scratch {
            event: self.fields.values(),
            indexes: self.buckets.iter().map(|c| c.index.scratch()).collect(),
        }
    }

    /// Replaces `matched` by all rules that match an event, in order of their index.
    pub fn evaluate(&self, event: &Event, scratch: &mut Scratch, matched: &mut Vec<RuleIndex>) {
        self.matching(event, scratch, matched);
    }

    /// The same of a row, after [`Scratch::begin_rows`]. Two functions of a type each, so that both are
    /// compiled in this crate, with its optimisation.
    pub fn evaluate_row(
        &self,
        row: &View<'_>,
        scratch: &mut Scratch,
        matched: &mut Vec<RuleIndex>,
    ) {
        self.matching(row, scratch, matched);
    }

    fn matching(&self, row: &impl Row, scratch: &mut Scratch, matched: &mut Vec<RuleIndex>) {
        matched.clear();
        let gist = Gist::of(row);
        let Scratch { event, indexes } = scratch;
        event.begin();
        for (compiled, scratch) in self.buckets.iter().zip(indexes) {
            if compiled.bucket.contains(&gist) {
                let found = |rule: u32| matched.push(compiled.rules[rule as usize]);
                let index = &compiled.index;
                index.evaluate(row, &self.fields, event, scratch, found);
            }
        }
        matched.sort_unstable();
    }
}

/// A parsed document and where it came from.
#[derive(Clone)]
struct Place {
    file: PathBuf,
    line: usize,
    text: String,
    /// Gives way to another rule of its id.
    base: bool,
}

#[derive(Default)]
struct Loader {
    report: Report,
    rules: Vec<(SigmaRule, Place)>,
    filters: Vec<(FilterRule, Place)>,
}

struct Group {
    bucket: Bucket,
    atoms: Atoms,
    exprs: Vec<Expr>,
    rules: Vec<RuleIndex>,
}

impl Loader {
    fn file(&mut self, source: &Source, base: bool) {
        self.report.files += 1;
        for document in files::documents(&source.text) {
            match rsigma_parser::parse_sigma_yaml(document.text) {
                Ok(collection) => self.collection(collection, source, &document, base),
                Err(error) => self.parse_error(&error.to_string(), source, &document),
            }
        }
    }

    fn collection(
        &mut self,
        found: SigmaCollection,
        source: &Source,
        document: &Document<'_>,
        base: bool,
    ) {
        for error in &found.errors {
            self.parse_error(error, source, document);
        }
        let place = || Place {
            file: source.file.clone(),
            line: document.line,
            text: document.text.to_owned(),
            base,
        };
        for rule in found.rules {
            self.rules.push((rule, place()));
        }
        for filter in found.filters {
            self.filters.push((filter, place()));
        }
        for correlation in found.correlations {
            self.report.idle.push(Idle {
                file: source.file.clone(),
                line: document.line,
                title: correlation.title,
                id: correlation.id.unwrap_or_default(),
                why: Why::Unsupported("correlation".to_owned()),
            });
        }
    }

    fn parse_error(&mut self, error: &str, source: &Source, document: &Document<'_>) {
        let (line, fix) = explain(error, document);
        self.report.broken.push(Broken {
            file: source.file.clone(),
            line,
            problem: error.to_owned(),
            fix: fix.to_owned(),
        });
    }

    fn finish(mut self) -> (RuleSet, Report) {
        let mut set = RuleSet::default();
        let mut groups = BTreeMap::<Bucket, Group>::new();
        let mut ids = BTreeMap::<String, PathBuf>::new();
        let mut used = vec![false; self.filters.len()];
        for (rule, place) in std::mem::take(&mut self.rules) {
            if let Some(first) = rule.id.as_ref().and_then(|id| ids.get(id)) {
                if place.base {
                    let by = first.display().to_string();
                    self.idle(&rule, &place, Why::Replaced(by));
                    continue;
                }
                let problem = format!("rule id is that of {}", first.display());
                let line = place.document().line_of("id:");
                self.broken_at(&place, line, problem, "give it an id of its own (uuidgen)");
                continue;
            }
            let bucket = match Bucket::of(&rule.logsource) {
                Ok(bucket) => bucket,
                Err(source) => {
                    self.idle(&rule, &place, Why::LogSource(source));
                    continue;
                }
            };
            let group = groups.entry(bucket).or_insert_with(|| Group {
                bucket,
                atoms: Atoms::default(),
                exprs: Vec::new(),
                rules: Vec::new(),
            });
            let Some(expr) = self.expression(&rule, &place, &mut group.atoms, &mut used) else {
                continue;
            };
            if let Some(id) = &rule.id {
                ids.insert(id.clone(), place.file.clone());
            }
            group.exprs.push(expr);
            group.rules.push(set.rules.len());
            set.rules.push(info(rule, place, bucket));
        }
        self.unused_filters(&used);
        for group in groups.into_values() {
            self.build(group, &mut set);
        }
        self.report.loaded = set.buckets.iter().map(|c| c.rules.len()).sum();
        (set, self.report)
    }

    /// Cannot happen for rules that compiled one by one, unless all together exceed what the
    /// matchers hold; then the group is lost and the report says so.
    fn build(&mut self, group: Group, set: &mut RuleSet) {
        let Group {
            bucket,
            atoms,
            exprs,
            rules,
        } = group;
        match Index::build(atoms, exprs, &mut set.fields) {
            Ok(index) if index.is_empty() => {}
            Ok(index) => set.buckets.push(Compiled {
                bucket,
                index,
                rules,
            }),
            Err(error @ (IndexError::Regex(_) | IndexError::Literals(_))) => {
                self.report.broken.push(Broken {
                    file: PathBuf::from(format!("(all {} rules)", bucket.name())),
                    line: 0,
                    problem: format!("cannot be compiled together: {error}"),
                    fix: "load fewer rules".to_owned(),
                });
            }
        }
    }

    /// The rule with its filters, or `None` once the report says why not.
    fn expression(
        &mut self,
        rule: &SigmaRule,
        place: &Place,
        atoms: &mut Atoms,
        used: &mut [bool],
    ) -> Option<Expr> {
        let mut compiler = Compiler {
            atoms,
            unknown_fields: BTreeSet::new(),
        };
        let mut result = compiler.detections(&rule.detection);
        let mut blamed = place.clone();
        for (at, (filter, filter_place)) in self.filters.iter().enumerate() {
            if result.is_err() || !applies(filter, rule) {
                continue;
            }
            used[at] = true;
            let condition = compiler.detections(&filter.detection);
            if condition.is_err() {
                blamed = filter_place.clone();
            }
            result = result.and_then(|expr| Ok(Expr::all([expr, condition?])));
        }
        let unknown = compiler.unknown_fields;
        match result {
            Ok(Expr::Const(false)) => {
                let names: Vec<_> = unknown.into_iter().collect();
                self.idle(rule, place, Why::Field(names.join(", ")));
            }
            Ok(Expr::Const(true)) => {
                let problem = "matches every event".to_owned();
                self.broken_at(
                    place,
                    place.line,
                    problem,
                    "name a field that events here have",
                );
            }
            Ok(expr) => {
                self.report
                    .inert
                    .extend(unknown.into_iter().map(|field| Inert {
                        file: place.file.clone(),
                        title: rule.title.clone(),
                        field,
                    }));
                return Some(expr);
            }
            Err(CompileError::Unsupported(what)) => self.idle(rule, place, Why::Unsupported(what)),
            Err(CompileError::Invalid {
                problem,
                fix,
                blame,
            }) => {
                let line = blamed.document().line_of(&blame);
                self.broken_at(&blamed, line, problem, &fix);
            }
        }
        None
    }

    fn unused_filters(&mut self, used: &[bool]) {
        for ((filter, place), used) in self.filters.iter().zip(used) {
            if *used {
                self.report.filters += 1;
                continue;
            }
            self.report.idle.push(Idle {
                file: place.file.clone(),
                line: place.line,
                title: filter.title.clone(),
                id: filter.id.clone().unwrap_or_default(),
                why: Why::NoTarget,
            });
        }
    }

    fn idle(&mut self, rule: &SigmaRule, place: &Place, why: Why) {
        self.report.idle.push(Idle {
            file: place.file.clone(),
            line: place.line,
            title: rule.title.clone(),
            id: rule.id.clone().unwrap_or_default(),
            why,
        });
    }

    fn broken_at(&mut self, place: &Place, line: usize, problem: String, fix: &str) {
        let file = place.file.clone();
        self.report.broken.push(Broken {
            file,
            line,
            problem,
            fix: fix.to_owned(),
        });
    }
}

impl Place {
    fn document(&self) -> Document<'_> {
        Document {
            line: self.line,
            text: &self.text,
        }
    }
}

fn applies(filter: &FilterRule, rule: &SigmaRule) -> bool {
    let named = match &filter.rules {
        FilterRuleTarget::Any => true,
        FilterRuleTarget::Specific(targets) => targets.iter().any(|target| {
            *target == rule.title
                || rule.id.as_ref() == Some(target)
                || rule.name.as_ref() == Some(target)
        }),
    };
    let same = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
    named
        && filter.logsource.as_ref().is_none_or(
            |LogSource {
                 category,
                 product,
                 service,
                 ..
             }| {
                same(category, &rule.logsource.category)
                    && same(product, &rule.logsource.product)
                    && same(service, &rule.logsource.service)
            },
        )
}

fn info(rule: SigmaRule, place: Place, bucket: Bucket) -> RuleInfo {
    RuleInfo {
        file: place.file,
        bucket,
        false_positives: rule.falsepositives,
        rule: v1::Rule {
            id: rule.id.unwrap_or_default(),
            title: rule.title,
            author: rule.author.unwrap_or_default(),
            level: rule.level.map_or("", |level| level.as_str()).to_owned(),
            tags: rule.tags,
            link: rule.references.into_iter().next().unwrap_or_default(),
            description: rule.description.unwrap_or_default(),
        },
    }
}

/// Line and remedy for a message of the parser.
fn explain(error: &str, document: &Document<'_>) -> (usize, &'static str) {
    let quoted = error.split('\'').nth(1).unwrap_or_default();
    if let Some(rest) = error.split("at line ").nth(1) {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let line = digits.parse::<usize>().unwrap_or(1);
        return (
            document.line + line.saturating_sub(1),
            "repair the YAML there (indentation, quotes around * ? : #)",
        );
    }
    if error.starts_with("Missing required field") {
        return (
            document.line,
            "add it; title, logsource, detection and condition are required",
        );
    }
    if error.starts_with("Unknown modifier") {
        return (
            document.line_of(quoted),
            "use contains, startswith, endswith, all, re, cidr, base64, base64offset, wide, \
             windash, cased, exists, fieldref, lt, lte, gt or gte",
        );
    }
    if error.contains("invalid level") {
        let fix = "use informational, low, medium, high or critical";
        return (document.line_of("level:"), fix);
    }
    if error.contains("invalid status") {
        let fix = "use stable, test, experimental, deprecated or unsupported";
        return (document.line_of("status:"), fix);
    }
    if error.contains("ondition") {
        let fix = "combine names of the detection with and, or, not, 1 of, all of";
        return (document.line_of("condition:"), fix);
    }
    (
        document.line_of(quoted),
        "see the Sigma rules specification",
    )
}
