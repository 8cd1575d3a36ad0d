//! Door: where a broker is, and how clients are let in.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use mqtt::Version;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::PeersError;
use super::frame::{self, Keeping};
use super::line::Line;
use crate::client::Server;

/// How clients prove who they are.
#[derive(Clone)]
pub enum Access {
    /// Plain TCP, no proof.
    Plain,
    /// TLS, all with this configuration: no certificate, or the same one.
    Tls(Arc<ClientConfig>),
    /// TLS, each with a certificate of its own.
    Own(Vec<Own>),
}

/// Who has a certificate of its own.
#[derive(Clone)]
pub struct Own {
    /// The client id it must use.
    pub client_id: String,
    /// The vehicle it belongs to: its topics are the ones it may subscribe to.
    pub vehicle: String,
    /// Its certificate, and whom it trusts.
    pub config: Arc<ClientConfig>,
}

/// Where a broker is and how one comes in.
pub struct Door {
    address: SocketAddr,
    name: ServerName<'static>,
    pub(super) version: Version,
    access: Access,
}

/// Who comes in.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// Number among those with a certificate of their own.
    pub(super) number: usize,
    pub(super) client_id: String,
    pub(super) keeping: Keeping,
}

impl Door {
    /// The door of `server`.
    ///
    /// # Errors
    /// [`PeersError::Options`] if the name is none, or has no address.
    pub fn new(server: &Server, version: Version, access: Access) -> Result<Self, PeersError> {
        let unknown = |problem: String| PeersError::Options { problem };
        let host = server.host();
        let address = (host, server.port())
            .to_socket_addrs()
            .map_err(|error| unknown(format!("`{server}` has no address: {error}")))?
            // By name, but where brokers listen.
            .find(SocketAddr::is_ipv4)
            .ok_or_else(|| unknown(format!("`{server}` has no IPv4 address")))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| unknown(format!("`{host}` is no name of a server: {error}")))?;
        Ok(Self {
            address,
            name,
            version,
            access,
        })
    }

    /// How many may be connected at once, if not any number.
    pub(super) fn most(&self) -> Option<usize> {
        match &self.access {
            Access::Own(all) => Some(all.len()),
            _ => None,
        }
    }

    /// The vehicle of number `number` among those with a certificate of their own.
    pub(super) fn vehicle(&self, number: usize) -> Option<&str> {
        match &self.access {
            Access::Own(all) => all.get(number).map(|own| own.vehicle.as_str()),
            _ => None,
        }
    }

    /// So many guests called `{role}-{number}`.
    pub(super) fn guests(&self, role: &str, count: usize, keeping: Keeping) -> Vec<Guest> {
        (0..count)
            .map(|number| self.guest(role, number, keeping))
            .collect()
    }

    pub(super) fn guest(&self, role: &str, number: usize, keeping: Keeping) -> Guest {
        let client_id = match &self.access {
            Access::Own(all) => all[number % all.len()].client_id.clone(),
            _ => format!("{role}-{number}"),
        };
        Guest {
            number,
            client_id,
            keeping,
        }
    }

    pub(super) fn open(&self, guest: &Guest) -> Result<Line, PeersError> {
        let tls = match &self.access {
            Access::Plain => None,
            Access::Tls(config) => Some(config),
            Access::Own(all) => Some(&all[guest.number % all.len()].config),
        };
        Line::open(self.address, tls.map(|config| (config, &self.name)))
            .map_err(|source| PeersError::Broken { source })
    }

    pub(super) fn connect(&self, guest: &Guest) -> Result<Vec<u8>, PeersError> {
        frame::connect(self.version, &guest.client_id, guest.keeping)
    }
}
