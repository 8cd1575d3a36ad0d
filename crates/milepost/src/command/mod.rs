//! The commands, one file each.

mod cert;
mod check;
mod client;
mod demo;
mod device;
mod model;
mod serve;
mod simulate;
mod sql;
mod vehicle;

use std::process::ExitCode;

use clap::Subcommand;

/// What `milepost` can do.
#[derive(Subcommand)]
pub enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Demo(demo::Demo),
    Simulate(simulate::Simulate),
    Sql(sql::Sql),
    #[command(subcommand)]
    Vehicle(vehicle::Vehicle),
    #[command(subcommand)]
    Device(device::Device),
    #[command(subcommand)]
    Model(model::Model),
    #[command(subcommand)]
    Cert(cert::Cert),
    #[command(subcommand)]
    Client(client::Client),
}

impl Command {
    /// Runs to the end; the code is what the process exits with.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Serve(command) => command.run().await,
            Self::Check(command) => command.run(),
            Self::Demo(command) => Box::pin(command.run()).await,
            Self::Simulate(command) => Box::pin(command.run()).await,
            Self::Sql(command) => command.run().await,
            Self::Vehicle(command) => command.run().await,
            Self::Device(command) => command.run().await,
            Self::Model(command) => command.run().await,
            Self::Cert(command) => command.run().await,
            Self::Client(command) => Box::pin(command.run()).await,
        }
    }
}
