//! How results look: JSON for scripts, aligned columns for people.

use std::io::{self, Write};

use serde_json::Value;

/// Writes a line to stdout. An error is returned, not a panic: the reader may have gone.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Whether writing failed because nobody reads any more (`milepost … | head`).
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One JSON document, indented.
pub fn json(value: &Value) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// The text of a cell: strings bare, nothing for null, other values as JSON.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns aligned to their widest cell, a header above.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let mut widths: Vec<usize> = header.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        line(padded.join("  ").trim_end())
    };
    print(&mut header.iter().copied())?;
    let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    print(&mut rules.iter().map(String::as_str))?;
    for row in rows {
        print(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}

/// A list of objects as a table of the named fields, or as one JSON array.
pub fn list(items: &[Value], fields: &[&str], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&Value::Array(items.to_vec()));
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| fields.iter().map(|field| cell(&item[*field])).collect())
        .collect();
    table(fields, &rows)
}

/// One object: `field: value` lines, or JSON.
pub fn object(value: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(value);
    }
    let Value::Object(fields) = value else {
        return json(value);
    };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        line(format!("{name:<width$}  {}", cell(value)))?;
    }
    Ok(())
}
