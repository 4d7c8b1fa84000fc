//! `hostaudit query`: SQL over the record, as a table, JSON lines, CSV or a Parquet file.

mod cells;

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, Result, anyhow, bail};
use arrow::{
    array::RecordBatch,
    buffer::Buffer,
    datatypes::{Field, SchemaRef},
    ipc::reader::StreamDecoder,
};
use audit_proto::{
    columns::{COLUMNS, ColumnType},
    v1::{QueryRequest, QueryResponse},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use tonic::Streaming;

use crate::{
    client::{self, Client, Target},
    display,
    output::Output,
    table::Table,
    terminal::Terminal,
};

const EXAMPLES: &str = "\
Examples:
  hostaudit query \"select kind, count(*) from events group by kind order by 2 desc\"
  hostaudit query \"select time, process_user, process_argv from events
                   where kind = 'exec' order by time desc limit 20\"
  hostaudit query \"select distinct socket_peer_address from events where kind = 'connect'\"
  hostaudit query \"select count(*) from events where time > now() - interval '1 hour'\"
  hostaudit query -o csv \"select time, file_path from events where kind = 'unlink'\" > unlinked.csv
  hostaudit query -o parquet \"select * from events\" > events.parquet
  echo 'select 1' | hostaudit query -
  hostaudit query --columns               every column, its type and what it means

Tables: `events` (rows of this second included) and `alerts`. The dialect is DataFusion's.";

/// Ask the record a question in SQL
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Query {
    /// The question; "-" reads it from standard input
    #[arg(required_unless_present = "columns")]
    sql: Option<String>,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Rows at most; 0 for as many as the collector allows
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    limit: u32,
    /// List the columns of `events` instead
    #[arg(long)]
    columns: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned, cut to the terminal's width
    Table,
    /// One object a line; an absent value has no key
    Json,
    /// With a header; lists as JSON
    Csv,
    /// A file, to be redirected
    Parquet,
}

pub async fn run(args: &Query, target: &Target, terminal: &Terminal) -> Result<()> {
    if args.columns {
        return columns(terminal);
    }
    if args.output == Format::Parquet && io::stdout().is_terminal() {
        bail!("Parquet is not for a terminal; redirect it: hostaudit query -o parquet … > FILE");
    }
    let sql = match args.sql.as_deref() {
        Some("-") | None => {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .context("reading SQL from standard input")?;
            text
        }
        Some(text) => text.to_owned(),
    };
    if sql.trim().is_empty() {
        bail!("the query is empty; for example: hostaudit query \"select count(*) from events\"");
    }
    let mut client = target.connect().await?;
    let request = QueryRequest {
        sql,
        limit: args.limit.into(),
    };
    let mut answer = Answer::ask(&mut client, request).await?;
    let rows = match args.output {
        Format::Table => table(&mut answer, terminal).await?,
        Format::Json => json(&mut answer).await?,
        Format::Csv => csv(&mut answer).await?,
        Format::Parquet => parquet_file(&mut answer).await?,
    };
    if answer.limited {
        eprintln!(
            "hostaudit: the answer was cut after {}; narrow the question, or raise --limit or the \
             collector's query.max_rows",
            display::plural(rows as i64, "row")
        );
    }
    Ok(())
}

/// The rows of a small answer as JSON objects; absent values have no key.
pub async fn fetch(client: &mut Client, sql: String) -> Result<Vec<serde_json::Value>> {
    let request = QueryRequest { sql, limit: 0 };
    let mut answer = Answer::ask(client, request).await?;
    let mut rows = Vec::new();
    while let Some(batch) = answer.next().await? {
        let mut bytes = Vec::new();
        let mut writer = arrow::json::ArrayWriter::new(&mut bytes);
        writer.write(&batch)?;
        writer.finish()?;
        let page: Vec<serde_json::Value> =
            serde_json::from_slice(&bytes).context("the answer as JSON")?;
        rows.extend(page);
    }
    Ok(rows)
}

/// An Arrow stream that comes in pieces.
struct Answer {
    stream: Streaming<QueryResponse>,
    decoder: StreamDecoder,
    left: Buffer,
    limited: bool,
}

impl Answer {
    async fn ask(client: &mut Client, request: QueryRequest) -> Result<Self> {
        let stream = client
            .query(request)
            .await
            .map_err(|s| client::plain(&s))?
            .into_inner();
        Ok(Self {
            stream,
            decoder: StreamDecoder::new(),
            left: Buffer::default(),
            limited: false,
        })
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self
                .decoder
                .decode(&mut self.left)
                .context("the answer is not an Arrow stream")?
            {
                return Ok(Some(batch));
            }
            let Some(piece) = self.stream.message().await.map_err(|s| client::plain(&s))? else {
                self.decoder.finish().context("the answer ends early")?;
                return Ok(None);
            };
            self.limited |= piece.limited;
            if piece.missing_events > 0 {
                eprintln!(
                    "hostaudit: {} that this may be about could not be looked at: their files are \
                     missing; `hostaudit status` names them",
                    display::plural(piece.missing_events, "stored event")
                );
            }
            self.left = Buffer::from_vec(piece.arrow_ipc);
        }
    }

    fn schema(&self) -> Result<SchemaRef> {
        self.decoder
            .schema()
            .ok_or_else(|| anyhow!("the collector sent no answer"))
    }
}

/// Rows by whose cells columns get their widths; the first are printed when so many are there.
const WIDTH_ROWS: usize = 500;

async fn table(answer: &mut Answer, terminal: &Terminal) -> Result<usize> {
    let mut batch = answer.next().await?;
    let schema = answer.schema()?;
    let name = |field: &Field| match field.data_type().is_numeric() {
        true => format!(">{}", field.name()),
        false => field.name().clone(),
    };
    let names: Vec<String> = schema.fields().iter().map(|f| name(f)).collect();
    let mut table = Table::new(names.iter().map(|n| &**n));
    let print = |table: &mut Table| {
        write(
            table
                .print(terminal.width, terminal.palette, terminal.glyphs)
                .as_bytes(),
        )
    };
    while let Some(rows) = batch {
        for row in cells::rows(&rows)? {
            table.row(row);
            if table.waiting() >= WIDTH_ROWS {
                print(&mut table)?;
            }
        }
        batch = answer.next().await?;
    }
    print(&mut table)?;
    let rows = table.len();
    write(format!("({})\n", display::plural(rows as i64, "row")).as_bytes())?;
    Ok(rows)
}

async fn json(answer: &mut Answer) -> Result<usize> {
    let mut rows = 0;
    while let Some(batch) = answer.next().await? {
        rows += batch.num_rows();
        let mut bytes = Vec::new();
        let mut writer = arrow::json::LineDelimitedWriter::new(&mut bytes);
        writer.write(&batch)?;
        writer.finish()?;
        write(&bytes)?;
    }
    Ok(rows)
}

async fn csv(answer: &mut Answer) -> Result<usize> {
    let mut rows = 0;
    let mut header = true;
    while let Some(batch) = answer.next().await? {
        rows += batch.num_rows();
        let mut bytes = Vec::new();
        let mut writer = arrow::csv::WriterBuilder::new()
            .with_header(header)
            .build(&mut bytes);
        writer.write(&cells::flat(&batch)?)?;
        drop(writer);
        header = false;
        write(&bytes)?;
    }
    if header {
        let empty = cells::flat(&RecordBatch::new_empty(answer.schema()?))?;
        let mut bytes = Vec::new();
        arrow::csv::Writer::new(&mut bytes).write(&empty)?;
        write(&bytes)?;
    }
    Ok(rows)
}

async fn parquet_file(answer: &mut Answer) -> Result<usize> {
    let mut rows = 0;
    let first = answer.next().await?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build();
    let mut writer = ArrowWriter::try_new(io::stdout(), answer.schema()?, Some(properties))?;
    let mut next = first;
    while let Some(batch) = next {
        rows += batch.num_rows();
        writer.write(&batch)?;
        next = answer.next().await?;
    }
    writer.close()?;
    Ok(rows)
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn columns(terminal: &Terminal) -> Result<()> {
    let mut table = Table::new(["column", "type", "meaning"]);
    for column in &COLUMNS {
        let ty = match column.ty {
            ColumnType::Int => "bigint",
            ColumnType::Time => "timestamp",
            ColumnType::Bool => "boolean",
            ColumnType::Text | ColumnType::Enum => "text",
            ColumnType::TextList => "text[]",
        };
        table.row([column.name, ty, column.doc]);
    }
    table.row([
        "position",
        "bigint",
        "Place in this collector's record; as text it is a cursor for tail --cursor",
    ]);
    let mut out = Output::new();
    out.text(&table.render(terminal.width, terminal.palette, terminal.glyphs))?;
    out.flush()?;
    Ok(())
}
