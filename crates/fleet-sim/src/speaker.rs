//! Speaker: the voice of a vehicle. Turns its messages into publications: topic, content type, and
//! an id by which the server tells a repetition from something new.

use mqtt::Utf8;

use crate::client::{Client, ClientError, ClientOptions, Delivery, Outgoing, Server, Transport};
use crate::credentials::{Credentials, CredentialsError};
use crate::message::{Channel, Message};

/// Name of the user property with a message's id.
const ID: Utf8 = Utf8::from_static("id");

/// Options of a vehicle's connection: mTLS as its device.
pub(crate) fn options(
    server: &Server,
    credentials: &Credentials,
) -> Result<ClientOptions, CredentialsError> {
    let transport = Transport::Tls(credentials.client_config()?);
    Ok(ClientOptions::new(
        server.clone(),
        transport,
        credentials.device_id.as_str(),
    ))
}

/// What speaks for one device in one run.
pub(crate) struct Speaker {
    client: Client,
    /// `{device}-{run}-`.
    prefix: String,
    spoken: u64,
    topics: [Utf8; Channel::ALL.len()],
}

impl Speaker {
    pub(crate) fn new(client: Client, credentials: &Credentials, run: &str) -> Self {
        let vehicle = credentials.vehicle_id.as_str();
        Self {
            client,
            prefix: format!("{}-{run}-", credentials.device_id),
            spoken: 0,
            topics: Channel::ALL.map(|channel| channel.topic(vehicle).into()),
        }
    }

    /// Says it if there is room in the queue.
    pub(crate) fn try_say(&mut self, message: Message) -> Result<(), ClientError> {
        let outgoing = self.outgoing(message);
        self.client.try_publish(outgoing)
    }

    /// Says it, waiting for room in the queue.
    pub(crate) async fn say(&mut self, message: Message) -> Result<(), ClientError> {
        let outgoing = self.outgoing(message);
        self.client.post(outgoing).await
    }

    pub(crate) fn into_client(self) -> Client {
        self.client
    }

    fn outgoing(&mut self, message: Message) -> Outgoing {
        let id = format!("{}{}", self.prefix, self.spoken);
        self.spoken += 1;
        Outgoing {
            topic: self.topics[message.channel as usize].clone(),
            payload: message.payload,
            delivery: Delivery::AtLeastOnce,
            retained: false,
            content_type: Some(Utf8::from_static(message.channel.content_type())),
            user_properties: vec![(ID, Utf8::from(id))],
        }
    }
}

/// A name for one run of this process, so that ids of two runs never meet: its start in
/// milliseconds, in hexadecimal.
pub(crate) fn run_name() -> String {
    format!("{:x}", jiff::Timestamp::now().as_millisecond())
}
