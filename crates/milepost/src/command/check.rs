//! `milepost check`: would this configuration start?

use std::{path::PathBuf, process::ExitCode};

use server::config::{Config, ConfigError, Source};

/// Check a configuration without starting anything
///
/// Reports every wrong key and value, unreadable file and port in use, each with its place and what
/// to do about it. Exits 0 when `serve` would start.
#[derive(clap::Args)]
pub struct Check {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where data would be kept, stronger than the configuration
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Check {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let source = Source {
            file: Some(self.config.clone()),
            data_dir: self.data_dir,
        };
        let checked = Config::load(&source)
            .and_then(|config| server::preflight::check(&config).map_err(ConfigError::from));
        match checked {
            Ok(()) => {
                eprintln!("{}: ok", self.config.display());
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                eprintln!("{error}");
                Ok(ExitCode::FAILURE)
            }
        }
    }
}
