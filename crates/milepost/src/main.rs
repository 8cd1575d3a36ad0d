//! `milepost`: the server, its demo, and the commands of an operator, in one binary.
//!
//! Data goes to stdout, talk to stderr. Exit status: 0 done, 1 failed, 2 wrong usage. A closed pipe
//! is not an error.

mod api;
mod command;
mod drive;
mod logging;
mod output;
mod stop;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The connected-vehicle cloud as one program.
#[derive(Parser)]
#[command(
    name = "milepost",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: command::Command,
}

fn main() -> ExitCode {
    // clap prints help on stdout with status 0 and usage errors on stderr with status 2.
    let cli = Cli::parse();
    // Two providers are linked (the lake's object store brings ring): every TLS set-up that does not
    // name one means this.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("error: another TLS provider was installed first");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cli.command.run());
    // Blocking helpers (a DNS look-up, a file read) must not hold up the exit.
    runtime.shutdown_background();
    logging::finish();
    match outcome {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
