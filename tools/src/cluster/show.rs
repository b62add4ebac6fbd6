//! What is shown: short tables, or JSON.

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::exit;

/// Rows below their heads, in columns as wide as they need.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these heads.
    pub fn new<const COLUMNS: usize>(heads: [&str; COLUMNS]) -> Table {
        Table { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub fn row<const COLUMNS: usize>(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells.to_vec());
    }

    /// As it is printed.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths);
            let padded = cells.map(|(cell, &width)| format!("{cell:<width$}"));
            format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// Numbers with commas between; a dash for none.
pub fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "-".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(","),
    }
}

/// What there may be; a dash for nothing.
pub fn optional<T: ToString>(item: Option<&T>) -> String {
    item.map_or("-".to_owned(), T::to_string)
}

/// Prints JSON, or a text.
pub fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if !json {
        return exit::print_last(&text());
    }
    let mut text = serde_json::to_string_pretty(value).context("what is shown")?;
    text.push('\n');
    exit::print_last(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let mut table = Table::new(["node", "role"]);
        table.row(["1".to_owned(), "leader".to_owned()]);
        table.row(["100000".to_owned(), list::<u64>(&[])]);
        assert_eq!(table.text(), "node    role\n1       leader\n100000  -\n");
        assert_eq!(list(&[1, 2]), "1,2");
        assert_eq!(optional::<u64>(None), "-");
    }
}
