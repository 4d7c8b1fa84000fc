//! `hostaudit rules`: are detection rules sound, do they find what their samples say, can they fire?

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use audit_detect::{
    Report, RuleSet,
    samples::{self, Expect},
};

use crate::{color::Style, display, output::Output, table::Table, terminal::Terminal};

const EXAMPLES: &str = "\
Examples:
  hostaudit rules check                      the built-in pack
  hostaudit rules check ./my-rules a.yml     files and folders of Sigma rules
  hostaudit rules test ./my-rules            run the samples in my-rules/tests
  hostaudit rules list                       id, level, title, and whether each can fire here

Use your own rules with: hostaudit up -o 'collector.detect.rules_dirs=[./my-rules]'";

/// Where samples are when no path is given: the repository's, else the installed ones.
const PACKS: [&str; 2] = ["rules", "/usr/share/hostaudit/rules"];

/// Check, test and list Sigma rules
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Rules {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Say for each file whether its rules are sound, and what to repair; exit code 1 on errors
    #[command(after_help = "Example:\n  hostaudit rules check ./my-rules")]
    Check(Paths),
    /// Run the samples that belong to the rules; exit code 1 when one is not as expected
    #[command(after_help = "Example:\n  hostaudit rules test ./my-rules")]
    Test(Paths),
    /// List the rules: id, level, title, and whether each can fire here
    #[command(after_help = "Example:\n  hostaudit rules list ./my-rules")]
    List(Paths),
}

#[derive(Debug, clap::Args)]
struct Paths {
    /// Rule files and folders; without any, the rules that come with hostaudit
    paths: Vec<PathBuf>,
}

impl Paths {
    fn load(&self) -> (RuleSet, Report) {
        match self.paths.as_slice() {
            [] => RuleSet::compile(&audit_collector::builtin_rules()),
            paths => RuleSet::load(paths),
        }
    }

    /// Samples are not part of the program.
    fn with_samples(&self) -> Result<Vec<PathBuf>> {
        if !self.paths.is_empty() {
            return Ok(self.paths.clone());
        }
        match PACKS.iter().map(PathBuf::from).find(|p| p.is_dir()) {
            Some(pack) => Ok(vec![pack]),
            None => bail!(
                "no rules with samples at {}; name a folder: hostaudit rules test PATH",
                PACKS.join(" or ")
            ),
        }
    }
}

pub fn run(args: &Rules, terminal: &Terminal) -> Result<ExitCode> {
    let mut out = Output::new();
    let sound = match &args.what {
        What::Check(paths) => check(paths, terminal, &mut out)?,
        What::Test(paths) => test(&paths.with_samples()?, terminal, &mut out)?,
        What::List(paths) => list(paths, terminal, &mut out)?,
    };
    out.flush()?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is said of one file, the worst last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Active(String),
    Inert(String),
    Idle(String),
    Broken(String),
}

fn check(paths: &Paths, terminal: &Terminal, out: &mut Output) -> Result<bool> {
    let (rules, report) = paths.load();
    let mut files: BTreeMap<PathBuf, Vec<Verdict>> = BTreeMap::new();
    let mut say = |file: &PathBuf, verdict| files.entry(file.clone()).or_default().push(verdict);
    for info in rules.iter() {
        say(&info.file, Verdict::Active(info.rule.title.clone()));
    }
    for inert in &report.inert {
        say(
            &inert.file,
            Verdict::Inert(format!(
                "{}: no event here has {}, so that part never matches",
                inert.title, inert.field
            )),
        );
    }
    for idle in &report.idle {
        say(
            &idle.file,
            Verdict::Idle(format!(
                "line {}: {} cannot fire: {}",
                idle.line, idle.title, idle.why
            )),
        );
    }
    for broken in &report.broken {
        say(
            &broken.file,
            Verdict::Broken(format!(
                "line {}: {}; {}",
                broken.line, broken.problem, broken.fix
            )),
        );
    }
    for (file, mut verdicts) in files {
        verdicts.sort();
        for verdict in verdicts {
            let (style, word, text) = match verdict {
                Verdict::Active(text) => (Style::Green, "ok    ", text),
                Verdict::Inert(text) => (Style::Yellow, "part  ", text),
                Verdict::Idle(text) => (Style::Yellow, "idle  ", text),
                Verdict::Broken(text) => (Style::Alarm, "BROKEN", text),
            };
            let name = file.display().to_string();
            out.line(&format!(
                "{} {}: {}",
                terminal.palette.paint(style, word),
                display::safe(&name),
                display::safe(&text)
            ))?;
        }
    }
    out.line(&format!(
        "{} in {}: {} active, {} cannot fire here, {} to repair",
        display::plural((rules.len() + report.idle.len()) as i64, "rule"),
        display::plural(report.files as i64, "file"),
        rules.len(),
        report.idle.len(),
        report.broken.len(),
    ))?;
    Ok(report.is_sound())
}

fn list(paths: &Paths, terminal: &Terminal, out: &mut Output) -> Result<bool> {
    let (rules, report) = paths.load();
    let mut rows: Vec<[String; 4]> = rules
        .iter()
        .map(|i| {
            [
                i.rule.id.clone(),
                i.rule.level.clone(),
                i.rule.title.clone(),
                format!("active ({})", i.bucket.name()),
            ]
        })
        .collect();
    rows.extend(report.idle.iter().map(|idle| {
        [
            idle.id.clone(),
            "-".to_owned(),
            idle.title.clone(),
            format!("idle: {}", idle.why),
        ]
    }));
    rows.sort_by(|a, b| rank(&a[1]).cmp(&rank(&b[1])).then_with(|| a[2].cmp(&b[2])));
    let mut table = Table::new(["id", "level", "title", "state"]);
    for row in rows {
        table.row(row);
    }
    out.text(&table.render(terminal.width, terminal.palette, terminal.glyphs))?;
    if !report.is_sound() {
        out.line(&format!(
            "{} cannot be read; see hostaudit rules check",
            display::plural(report.broken.len() as i64, "document")
        ))?;
    }
    Ok(true)
}

/// The most urgent first.
fn rank(level: &str) -> usize {
    let levels = ["critical", "high", "medium", "low", "informational"];
    levels
        .iter()
        .position(|l| *l == level)
        .unwrap_or(levels.len())
}

fn test(paths: &[PathBuf], terminal: &Terminal, out: &mut Output) -> Result<bool> {
    let fail = terminal.palette.paint(Style::Alarm, "FAIL");
    let mut passed = true;
    for path in paths {
        if !path.is_dir() {
            bail!(
                "{} is not a folder; samples are in the folder tests beside the rules",
                path.display()
            );
        }
        let outcome = samples::run(path);
        for broken in &outcome.report.broken {
            out.line(&format!("{fail} {}", display::safe(&broken.to_string())))?;
        }
        for problem in &outcome.problems {
            out.line(&format!("{fail} {}", display::safe(problem)))?;
        }
        for result in outcome.failed() {
            let why = match result.expected {
                Expect::Match => "its rule must fire and did not".to_owned(),
                Expect::NoMatch => format!("must not fire: {}", result.fired.join(", ")),
            };
            let text = format!("{}: {:?}: {why}", result.file.display(), result.name);
            out.line(&format!("{fail} {}", display::safe(&text)))?;
        }
        out.line(&format!(
            "{}: {} loaded, {} of {} as expected, {}",
            path.display(),
            display::plural(outcome.report.loaded as i64, "rule"),
            outcome.results.len() - outcome.failed().count(),
            display::plural(outcome.results.len() as i64, "sample"),
            display::plural(
                (outcome.problems.len() + outcome.report.broken.len()) as i64,
                "problem"
            ),
        ))?;
        passed &= outcome.passed();
    }
    Ok(passed)
}
