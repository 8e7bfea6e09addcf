//! Tables for people. Nothing in a value can move the cursor.

/// Aligned columns under their names.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).into()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(if cell.is_empty() { "-" } else { &cell })).into());
    }

    /// The rows of all `tables`, each with its node in front; `None` of no table.
    pub(super) fn by_node(tables: Vec<(String, Self)>) -> Option<Self> {
        let head = tables.first()?.1.rows.first()?.clone();
        let body = tables.into_iter().flat_map(|(node, table)| {
            let rows = table.rows.into_iter().skip(1);
            rows.map(move |row| [vec![printable(&node)], row].concat())
        });
        let rows = std::iter::once([vec!["NODE".to_owned()], head].concat()).chain(body).collect();
        Some(Self { rows })
    }

    pub(super) fn draw(&self, out: &mut String) {
        if self.rows.len() == 1 {
            out.push_str("  none\n");
            return;
        }
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            line(out, &format!("  {}", cells.join("  ")));
        }
    }
}

/// Adds `text` as one line.
pub(super) fn line(out: &mut String, text: &str) {
    out.push_str(printable(text).trim_end());
    out.push('\n');
}

/// Names and messages come from manifests and peers: control characters in them are shown, not obeyed.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_shown() {
        let mut table = Table::new(["A", "LONGER"]);
        table.row(["bell \x07".to_owned(), String::new()]);
        let mut out = String::new();
        table.draw(&mut out);
        assert_eq!(out, "  A           LONGER\n  bell \\u{7}  -\n");
    }
}
