//! Makes a CA, a server certificate for `localhost` and credentials of vehicles, for a server that
//! signs none itself:
//! ```text
//! certificates --prefix connects --count 64 DIR
//! connects --server mqtts://localhost:8883 --credentials DIR
//! ```

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use fleet_sim::load::Identities;
use fleet_sim::private_ca::PrivateCa;

/// Makes certificates for a server and its clients
#[derive(Parser)]
struct Arguments {
    /// Where to; existing files are replaced
    dir: PathBuf,
    /// What vehicles are called, before their number; may be given several times
    #[arg(long, required = true)]
    prefix: Vec<String>,
    /// How many of each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    count: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.dir)
        .with_context(|| format!("cannot make {}", arguments.dir.display()))?;
    let count = arguments.count as usize;
    let prefixes = arguments.prefix.iter();
    let vehicles = prefixes
        .flat_map(|prefix| (0..count).map(move |index| Identities::anonymous_id(prefix, index)));
    PrivateCa::new()?.keep(&arguments.dir, vehicles)?;
    Ok(())
}
