//! Columns that line up, printed row by row as results come in.

/// A table whose column widths are known before the first row.
pub struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// Prints the head: a name and a width for each column. The first column is flush left, the others right.
    pub fn head(columns: &[(&str, usize)]) -> Self {
        let table = Self { widths: columns.iter().map(|(name, width)| name.len().max(*width)).collect() };
        table.row(&columns.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
        println!("{}", table.widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("  "));
        table
    }

    /// Prints one row.
    pub fn row(&self, cells: &[String]) {
        let padded = cells.iter().zip(&self.widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Bytes as whole MiB.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", (bytes + (1 << 19)) >> 20)
}
