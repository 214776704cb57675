//! The report: rows of figures, as Markdown.

use std::fmt::Write as _;

/// One table of the report.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(title: &str, heading: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            heading: heading.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        eprintln!("  {}", cells.join("  "));
        self.rows.push(cells);
    }

    /// A sentence below the table.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n", self.title);
        text.push_str(&line(&self.heading));
        let rule: Vec<String> = self.heading.iter().map(|_| "---".to_owned()).collect();
        text.push_str(&line(&rule));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        for note in &self.notes {
            write!(text, "\n{note}\n").expect("a String takes what is written");
        }
        text
    }
}

/// Everything measured in one run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    tables: Vec<Table>,
}

impl Report {
    /// Adds a table.
    pub(crate) fn add(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// The page.
    pub(crate) fn markdown(&self, machine: &str, quick: bool) -> String {
        let mut text = String::from("# Benchmarks\n\n");
        text.push_str(
            "Made by `make bench`: every figure of this page is from one run on one machine, with \
             the whole\ncluster and the load on it. Compare figures of the same machine only.\n\n",
        );
        if quick {
            text.push_str("**A quick run, a tenth of everything: not for comparison.**\n\n");
        }
        text.push_str(machine);
        for table in &self.tables {
            text.push('\n');
            text.push_str(&table.markdown());
        }
        text
    }
}

/// A number with a precision that fits its size, and thousands apart.
pub(crate) fn figure(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The middle of some values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(figure(1.234), "1.23");
        assert_eq!(figure(45.67), "45.7");
        assert_eq!(figure(999.6), "1,000");
        assert_eq!(figure(1_234_567.0), "1,234,567");
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn a_report_is_markdown() {
        let mut report = Report::default();
        let mut table = Table::new("T", &["a", "b"]);
        table.row(["1".to_owned(), "2".to_owned()]);
        table.note("said");
        report.add(table);
        let text = report.markdown("machine\n", false);
        assert!(text.contains("## T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nsaid\n"), "{text}");
    }
}
