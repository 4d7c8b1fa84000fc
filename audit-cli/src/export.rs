//! `hostaudit export`: the sealed batches of a store in a folder that anybody can verify, and how such a
//! folder is read again. docs/ledger.md has the format.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use audit_ledger::{Batches, batch_file, batch_files};
use audit_proto::{
    Message as _,
    v1::{Batch, ExportEnd, ExportRequest},
};
use serde::{Deserialize, Serialize};

use crate::{
    client::{self, Target},
    display,
    terminal::Terminal,
    when::Clock,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit export evidence                    everything, as it was sealed
  hostaudit export evidence --host web --from 2026-05-01 --to 2026-05-02
  hostaudit verify --export evidence           check it, on any machine

What is exported are the batches that agents have sealed and signed: whoever has the folder can show
that nothing in it was changed or left out, with hostaudit or with a program of their own
(docs/ledger.md; tests/verifier/verify.py is one).";

/// A file is ended when it is this large.
const FILE_BYTES: u64 = 64 << 20;
/// Between signs of life on a terminal.
const PROGRESS: Duration = Duration::from_secs(1);
const ABOUT: &str = "export.json";
const FORKS: &str = "forks";

/// Write the sealed batches to a folder, as evidence
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Export {
    /// Folder to make; it must not be there yet
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    part: Part,
}

/// Which batches.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Part {
    /// Only this host: its name or its id
    #[arg(long)]
    host: Option<String>,
    /// From the first batch sealed at this time: 10m, 2h, 1d, RFC 3339 or local time
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// To the last batch sealed before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

impl Part {
    pub fn request(&self) -> Result<ExportRequest> {
        let clock = Clock::system();
        let time = |name: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(|text| clock.parse(text));
            parsed.transpose().map_err(|e| anyhow!("--{name} {e}"))
        };
        Ok(ExportRequest {
            from_time: time("from", &self.from)?,
            to_time: time("to", &self.to)?,
            host: self.host.clone().unwrap_or_default(),
        })
    }

    /// Do histories have to begin with their first batch?
    pub fn is_whole(&self) -> bool {
        self.from.is_none()
    }
}

/// What is known of an export beyond its batches.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct About {
    /// When it was made or up to when it goes, microseconds since the Unix epoch.
    pub time: i64,
    pub whole: bool,
    pub unreadable: Vec<String>,
}

/// Takes batches one by one.
pub trait Sink {
    fn batch(&mut self, batch: Batch) -> Result<()>;
}

/// Every batch of `part`, as the collector sends them; then what it knows beyond them. A collector whose
/// clock is behind, or that says so, must not hide that agents are silent: the later of its time and ours
/// counts.
pub async fn receive(
    target: &Target,
    part: &Part,
    terminal: &Terminal,
    sink: &mut impl Sink,
) -> Result<ExportEnd> {
    let mut client = target.ledger().await?;
    let request = part.request()?;
    let to_time = request.to_time.unwrap_or(i64::MAX);
    // Reading it all may take longer than an agent is silent.
    let begun = Clock::system().now.as_microsecond();
    let answers = client.export(request).await;
    let mut answers = answers.map_err(|s| client::plain(&s))?.into_inner();
    let (mut batches, mut said) = (0, Instant::now());
    loop {
        let answer = answers.message().await.map_err(|s| client::plain(&s))?;
        let Some(answer) = answer else {
            bail!("the collector ended the answer before it was whole");
        };
        batches += answer.batches.len() as i64;
        for batch in answer.batches {
            sink.batch(batch)?;
        }
        if let Some(mut end) = answer.end {
            end.time = end.time.max(begun.min(to_time));
            return Ok(end);
        }
        if terminal.error_is_terminal && said.elapsed() >= PROGRESS {
            said = Instant::now();
            eprintln!("... {} batches", display::count(batches));
        }
    }
}

pub async fn run(args: &Export, target: &Target, terminal: &Terminal) -> Result<()> {
    let mut folder = Folder::create(&args.dir)?;
    let end = receive(target, &args.part, terminal, &mut folder).await?;
    let about = About {
        time: end.time,
        whole: args.part.is_whole(),
        unreadable: end.unreadable,
    };
    let batches = folder.finish(&about, &end.forks)?;
    let dir = args.dir.display();
    println!(
        "{}, in {dir}",
        display::plural(batches, "batch").replace("batchs", "batches")
    );
    println!("check it with: hostaudit verify --export {dir}");
    for what in &about.unreadable {
        eprintln!("hostaudit: not exported, because it cannot be read: {what}");
    }
    Ok(())
}

/// A folder that is being written.
struct Folder {
    dir: PathBuf,
    file: Option<BufWriter<File>>,
    bytes: u64,
    files: u64,
    batches: i64,
}

impl Folder {
    fn create(dir: &Path) -> Result<Self> {
        if let Err(error) = fs::create_dir(dir) {
            match error.kind() {
                io::ErrorKind::AlreadyExists => bail!(
                    "{} is there already; name a folder that is not, so that no two exports mix",
                    dir.display()
                ),
                _ => return Err(error).with_context(|| dir.display().to_string()),
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            file: None,
            bytes: 0,
            files: 0,
            batches: 0,
        })
    }

    fn finish(mut self, about: &About, forks: &[Batch]) -> Result<i64> {
        self.end_file()?;
        let mut evidence = BufWriter::new(File::create(self.dir.join(FORKS))?);
        for fork in forks {
            write(&mut evidence, fork)?;
        }
        evidence.into_inner()?.sync_all()?;
        // Last: a folder with it is whole.
        let mut file = File::create(self.dir.join(ABOUT))?;
        file.write_all(&serde_json::to_vec_pretty(about)?)?;
        file.sync_all()?;
        Ok(self.batches)
    }

    fn end_file(&mut self) -> Result<()> {
        if let Some(file) = self.file.take() {
            file.into_inner()?.sync_all()?;
        }
        Ok(())
    }
}

impl Sink for Folder {
    fn batch(&mut self, batch: Batch) -> Result<()> {
        if self.bytes >= FILE_BYTES {
            self.end_file()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                self.files += 1;
                self.bytes = 0;
                let path = self.dir.join(batch_file(self.files));
                let file = File::create(&path).with_context(|| path.display().to_string())?;
                none.insert(BufWriter::new(file))
            }
        };
        self.bytes += write(file, &batch)?;
        self.batches += 1;
        Ok(())
    }
}

fn write(file: &mut impl io::Write, batch: &Batch) -> Result<u64> {
    let encoded = batch.encode_to_vec();
    let length = u32::try_from(encoded.len())?;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(&encoded)?;
    Ok(4 + u64::from(length))
}

/// Reads a folder back.
pub fn read(dir: &Path, sink: &mut impl Sink) -> Result<(About, Vec<Batch>)> {
    let about = dir.join(ABOUT);
    let text = fs::read(&about).with_context(|| {
        format!(
            "{}: not an export, or one that was not finished; make one with `hostaudit export DIR`",
            about.display()
        )
    })?;
    let mut about: About =
        serde_json::from_slice(&text).with_context(|| about.display().to_string())?;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        // The names of what belongs to an export are all text.
        names.extend(entry?.file_name().into_string());
    }
    let (names, absent) = batch_files(names.iter().map(String::as_str));
    about.unreadable.extend(absent);
    for name in names {
        read_file(dir, &name, &mut about.unreadable, |batch| sink.batch(batch))?;
    }
    let mut forks = Vec::new();
    read_file(dir, FORKS, &mut about.unreadable, |batch| {
        forks.push(batch);
        Ok(())
    })?;
    Ok((about, forks))
}

/// What cannot be read of it is told.
fn read_file(
    dir: &Path,
    name: &str,
    unreadable: &mut Vec<String>,
    mut each: impl FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let file = match File::open(dir.join(name)) {
        Ok(file) => file,
        Err(error) => {
            unreadable.push(format!("{name}: {error}"));
            return Ok(());
        }
    };
    for batch in Batches::new(BufReader::new(file)) {
        match batch {
            Ok(batch) => each(batch)?,
            Err(error) => unreadable.push(format!("{name}: {error}")),
        }
    }
    Ok(())
}
