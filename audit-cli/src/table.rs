//! Rows and columns of text as a person reads them: aligned, within the terminal's width, and
//! turned on its side where the columns do not fit.

use std::borrow::Cow;

use crate::{
    color::{Palette, Style},
    display::{self, Glyphs},
};

/// Narrower than this a column says nothing.
const COLUMN_MIN: usize = 8;
const GAP: &str = "  ";

#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    /// Rows that are printed already, and with which widths.
    printed: usize,
    layout: Option<Layout>,
}

#[derive(Debug, Clone)]
enum Layout {
    /// Column widths.
    Lines(Vec<usize>),
    /// The columns do not fit beside each other.
    Records,
}

#[derive(Debug)]
struct Column {
    name: String,
    right: bool,
}

impl Table {
    /// A name that begins with ">" is of a column aligned to the right.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let column = |name: &str| match name.strip_prefix('>') {
            Some(name) => Column {
                name: display::safe(name).into_owned(),
                right: true,
            },
            None => Column {
                name: display::safe(name).into_owned(),
                right: false,
            },
        };
        Self {
            columns: names.into_iter().map(column).collect(),
            ..Self::default()
        }
    }

    /// Missing cells are empty; cells are made safe for a terminal here.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(|cell| display::safe(cell.as_ref()).into_owned())
            .collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Rows, printed ones included.
    pub fn len(&self) -> usize {
        self.printed + self.rows.len()
    }

    /// Rows that [`Table::print`] has not given yet.
    pub fn waiting(&self) -> usize {
        self.rows.len()
    }

    /// Lines, each ended; nothing exceeds `width` where one is given.
    pub fn render(mut self, width: Option<usize>, palette: Palette, glyphs: Glyphs) -> String {
        self.print(width, palette, glyphs)
    }

    /// The same, a piece at a time: the rows since the last call, in the widths of the first.
    pub fn print(&mut self, width: Option<usize>, palette: Palette, glyphs: Glyphs) -> String {
        let first = self.layout.is_none();
        let layout = self
            .layout
            .take()
            .unwrap_or_else(|| self.widths(width).map_or(Layout::Records, Layout::Lines));
        let text = match &layout {
            Layout::Lines(widths) => {
                let head = match first {
                    true => self.head(widths, palette, glyphs),
                    false => String::new(),
                };
                head + &self.lines(widths, width.is_some(), palette, glyphs)
            }
            Layout::Records => self.records(width, palette, glyphs),
        };
        self.layout = Some(layout);
        self.printed += self.rows.len();
        self.rows.clear();
        text
    }

    /// Column widths; None where they cannot be made to fit.
    fn widths(&self, width: Option<usize>) -> Option<Vec<usize>> {
        let wanted: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let cells = self.rows.iter().map(|row| display::width(&row[at]));
                cells
                    .max()
                    .unwrap_or(0)
                    .max(display::width(&self.columns[at].name))
            })
            .collect();
        let Some(width) = width else {
            return Some(wanted);
        };
        let gaps = GAP.len() * wanted.len().saturating_sub(1);
        let room = width.checked_sub(gaps)?;
        if wanted.iter().map(|w| (*w).min(COLUMN_MIN)).sum::<usize>() > room {
            return None;
        }
        Some(shrink(wanted, room))
    }

    fn head(&self, widths: &[usize], palette: Palette, glyphs: Glyphs) -> String {
        let names = self.columns.iter().map(|c| &*c.name).collect::<Vec<_>>();
        let rules: Vec<String> = widths.iter().map(|w| glyphs.rule.repeat(*w)).collect();
        let rules: Vec<&str> = rules.iter().map(|r| &**r).collect();
        let names = self.line(&names, widths, Some(glyphs));
        let rules = self.line(&rules, widths, Some(glyphs));
        let names = palette.paint(Style::Bold, &names);
        format!("{names}\n{}\n", palette.paint(Style::Dim, &rules))
    }

    /// A cell that is wider than its column is cut, or pushes the next ones aside.
    fn lines(&self, widths: &[usize], cut: bool, palette: Palette, glyphs: Glyphs) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(|c| &**c).collect();
            let line = self.line(&cells, widths, cut.then_some(glyphs));
            out.push_str(&palette.paint(Style::Plain, &line));
            out.push('\n');
        }
        out
    }

    fn line(&self, cells: &[&str], widths: &[usize], cut: Option<Glyphs>) -> String {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let text = match cut {
                Some(glyphs) => display::fit(cell, *width, glyphs.ellipsis),
                None => Cow::Borrowed(*cell),
            };
            let blank = width.saturating_sub(display::width(&text));
            if at > 0 {
                line.push_str(GAP);
            }
            if self.columns[at].right {
                line.push_str(&format!("{:blank$}{text}", ""));
            } else {
                line.push_str(&format!("{text}{:blank$}", ""));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// One block of "name  value" lines per row, empty values left out.
    fn records(&self, width: Option<usize>, palette: Palette, glyphs: Glyphs) -> String {
        let names = self
            .columns
            .iter()
            .map(|c| display::width(&c.name))
            .max()
            .unwrap_or(0);
        let room = width.map_or(usize::MAX, |w| {
            w.saturating_sub(names + GAP.len()).max(COLUMN_MIN)
        });
        let mut out = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let title = format!("{0}{0} row {1}", glyphs.rule, self.printed + number + 1);
            out.push_str(&palette.paint(Style::Dim, &title));
            out.push('\n');
            for (column, cell) in self
                .columns
                .iter()
                .zip(row)
                .filter(|(_, cell)| !cell.is_empty())
            {
                let name = format!("{:<names$}", column.name);
                out.push_str(&palette.paint(Style::Bold, &name));
                out.push_str(GAP);
                out.push_str(&display::fit(cell, room, glyphs.ellipsis));
                out.push('\n');
            }
        }
        out
    }
}

/// Takes from the widest columns until all fit.
fn shrink(mut widths: Vec<usize>, room: usize) -> Vec<usize> {
    let mut over = widths.iter().sum::<usize>().saturating_sub(room);
    while over > 0 {
        let widest = widths.iter().copied().max().unwrap_or(0);
        let next = widths
            .iter()
            .copied()
            .filter(|w| *w < widest)
            .max()
            .unwrap_or(0);
        let many = widths.iter().filter(|w| **w == widest).count();
        // All the widest come down together, to the next or as far as needed.
        let step = (widest - next.max(COLUMN_MIN.min(widest - 1)))
            .min(over.div_ceil(many))
            .max(1);
        for width in widths.iter_mut().filter(|w| **w == widest) {
            let take = step.min(over);
            *width -= take;
            over -= take;
        }
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::UNICODE;

    fn render(table: Table, width: Option<usize>) -> String {
        table.render(width, Palette::OFF, UNICODE)
    }

    #[test]
    fn numbers_stand_right_and_text_left() {
        let mut t = Table::new(["kind", ">count"]);
        t.row(["exec", "12"]);
        t.row(["open", "1234567"]);
        assert_eq!(
            render(t, None),
            "kind    count\n────  ───────\nexec       12\nopen  1234567\n"
        );
    }

    #[test]
    fn wide_columns_give_way_first() {
        let mut t = Table::new(["a", "b"]);
        t.row(["short", &"x".repeat(500)]);
        let text = render(t, Some(40));
        assert!(text.lines().all(|l| display::width(l) <= 40), "{text}");
        assert!(text.contains("short") && text.contains('…'), "{text}");
    }

    #[test]
    fn every_width_is_kept() {
        for width in 30..140 {
            let mut t = Table::new(["one", "two", "three"]);
            t.row(["漢字漢字漢字", "b\nc", &"y".repeat(99)]);
            let text = render(t, Some(width));
            assert!(
                text.lines().all(|l| display::width(l) <= width),
                "{width}\n{text}"
            );
            assert!(!text.contains("b\nc"));
        }
    }

    #[test]
    fn too_many_columns_turn_on_their_side() {
        let names: Vec<String> = (0..30).map(|n| format!("column_{n}")).collect();
        let mut t = Table::new(names.iter().map(|n| &**n));
        t.row((0..30).map(|n| {
            if n == 3 {
                String::new()
            } else {
                format!("value {n}")
            }
        }));
        let text = render(t, Some(80));
        assert!(text.starts_with("── row 1\ncolumn_0   value 0\n"), "{text}");
        assert!(!text.contains("column_3 "), "{text}");
    }

    #[test]
    fn pieces_are_one_table_in_the_widths_of_the_first() {
        let mut t = Table::new(["kind", ">count"]);
        t.row(["exec", "12"]);
        assert_eq!(
            t.print(None, Palette::OFF, UNICODE),
            "kind  count\n────  ─────\nexec     12\n"
        );
        t.row(["exec_failed", "1"]);
        assert_eq!((t.len(), t.waiting()), (2, 1));
        let more = t.print(None, Palette::OFF, UNICODE);
        assert_eq!(
            more, "exec_failed      1\n",
            "nothing is cut where no width is kept"
        );
        assert_eq!(t.len(), 2);
        let mut t = Table::new(["kind"]);
        t.row(["exec"]);
        let first = t.print(Some(10), Palette::OFF, UNICODE);
        t.row(["exec_failed"]);
        let more = t.print(Some(10), Palette::OFF, UNICODE);
        assert_eq!((first.lines().count(), more.as_str()), (3, "exe…\n"));
    }
}
