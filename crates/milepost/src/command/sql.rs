//! `milepost sql`: one query, its rows on stdout.

use std::process::ExitCode;

use serde_json::Value;

use crate::{
    api::{Api, ApiArgs},
    output,
};

/// Ask the lake a question in SQL
///
/// Tables: signals, last_known_state, vehicles, messages, and by layer live.*, silver.signals,
/// bronze.messages, fleet.*. Example: milepost sql "SELECT count(*) FROM signals"
#[derive(clap::Args)]
pub struct Sql {
    /// The query
    query: String,
    #[command(flatten)]
    api: ApiArgs,
}

impl Sql {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let api = Api::new(&self.api.api)?;
        let answer = api.sql(&self.query).await?;
        if self.api.json {
            output::json(&Value::Array(answer.objects()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns: Vec<&str> = answer
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        let rows: Vec<Vec<String>> = answer
            .rows
            .iter()
            .map(|row| row.iter().map(output::cell).collect())
            .collect();
        output::table(&columns, &rows)?;
        let count = rows.len();
        eprintln!(
            "({count} {}, {} ms)",
            if count == 1 { "row" } else { "rows" },
            answer.elapsed_ms
        );
        Ok(ExitCode::SUCCESS)
    }
}
