//! What became of the records of a class, and what a filter rule hid: the lines of a heartbeat's
//! `class_totals` and `filter_totals`, as the agent writes and everyone else reads them.

use std::{fmt, str::FromStr};

/// Totals of one class since the start of a run. Of file, network and process: seen = filtered +
/// shed + lost + sent, where each record is one event (pieces of DNS and of long arguments are not).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassTotals {
    pub class: String,
    pub seen: i64,
    pub filtered: i64,
    pub shed: i64,
    pub lost: i64,
    pub sent: i64,
}

impl fmt::Display for ClassTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            class,
            seen,
            filtered,
            shed,
            lost,
            sent,
        } = self;
        write!(
            f,
            "{class} seen={seen} filtered={filtered} shed={shed} lost={lost} sent={sent}"
        )
    }
}

impl FromStr for ClassTotals {
    type Err = NotTotals;

    /// Unknown numbers are those of a newer agent.
    fn from_str(line: &str) -> Result<Self, NotTotals> {
        let (class, numbers) = line.split_once(' ').ok_or(NotTotals)?;
        let mut totals = Self {
            class: class.to_owned(),
            ..Self::default()
        };
        for pair in numbers.split(' ') {
            let (name, number) = pair.split_once('=').ok_or(NotTotals)?;
            let number = number.parse().map_err(|_| NotTotals)?;
            match name {
                "seen" => totals.seen = number,
                "filtered" => totals.filtered = number,
                "shed" => totals.shed = number,
                "lost" => totals.lost = number,
                "sent" => totals.sent = number,
                _ => {}
            }
        }
        Ok(totals)
    }
}

/// What one rule of `capture.filters` hid since the start of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterTotal {
    pub rule: String,
    pub hidden: i64,
}

impl fmt::Display for FilterTotal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hidden={}", self.rule, self.hidden)
    }
}

impl FromStr for FilterTotal {
    type Err = NotTotals;

    fn from_str(line: &str) -> Result<Self, NotTotals> {
        let (rule, hidden) = line.split_once(" hidden=").ok_or(NotTotals)?;
        Ok(Self {
            rule: rule.to_owned(),
            hidden: hidden.parse().map_err(|_| NotTotals)?,
        })
    }
}

/// The line is not one of totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotTotals;

impl fmt::Display for NotTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a line of totals")
    }
}

impl std::error::Error for NotTotals {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_and_newer_ones_are_read() {
        let totals = ClassTotals {
            class: "file".to_owned(),
            seen: 15,
            filtered: 1,
            shed: 2,
            lost: 3,
            sent: 9,
        };
        assert_eq!(totals.to_string().parse(), Ok(totals.clone()));
        assert_eq!(format!("{totals} delayed=4").parse(), Ok(totals));
        assert_eq!("file".parse::<ClassTotals>(), Err(NotTotals));
        assert_eq!("file seen=x".parse::<ClassTotals>(), Err(NotTotals));
        let rule = FilterTotal {
            rule: "noise".to_owned(),
            hidden: 7,
        };
        assert_eq!(rule.to_string().parse(), Ok(rule));
        assert_eq!("noise".parse::<FilterTotal>(), Err(NotTotals));
    }
}
