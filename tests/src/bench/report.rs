//! Tables and numbers for people.

use std::iter;

/// Columns padded to their widest cell; the first is text, the rest numbers.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let columns = header.len();
    let width = |column: usize| {
        iter::once(&header)
            .chain(rows)
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in iter::once(&header).chain(rows) {
        let mut line = format!("  {:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Microseconds with as many digits as matter.
pub fn micros(ns: f64) -> String {
    let us = ns / 1000.0;
    match us.abs() {
        size if size >= 100.0 => format!("{us:.0}"),
        size if size >= 10.0 => format!("{us:.1}"),
        size if size >= 1.0 => format!("{us:.2}"),
        _ => format!("{us:.3}"),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// 1234567 as 1,234,567.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(-999), "-999");
        assert_eq!(micros(2_912.0), "2.91");
        assert_eq!(micros(85_400.0), "85.4");
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn tables_align() {
        let rows = vec![
            vec!["a".to_owned(), "100".to_owned()],
            vec!["long".to_owned(), "7".to_owned()],
        ];
        assert_eq!(
            table(&["mode", "us"], &rows),
            "  mode   us\n  a     100\n  long    7\n"
        );
    }
}
