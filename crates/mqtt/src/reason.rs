//! Why something was refused, or how it went well: the reason codes of MQTT 5 and the CONNACK return
//! codes of 3.1.1.

use std::fmt;

use crate::packet::PacketType;

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// A reason code of MQTT 5 (section 2.4, Table 2-6). Codes from 0x80 on are failures.
        ///
        /// Packets of 3.1.1 use the same type: a SUBACK failure reads as
        /// [`UnspecifiedError`](Self::UnspecifiedError), CONNACK return codes map as
        /// [`ConnectReturnCode`] says, and acknowledgements, which have no code there, read as
        /// [`Success`](Self::Success).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $value,)*
        }

        impl ReasonCode {
            /// Every code, in the order of its value.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code of a byte on the wire.
            pub const fn from_u8(value: u8) -> Option<Self> {
                match value {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The name the specification gives it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reason_codes! {
    /// Also "Normal disconnection" and "Granted QoS 0".
    #[default]
    Success = 0x00, "Success";
    /// A SUBACK grants QoS 1.
    GrantedQoS1 = 0x01, "Granted QoS 1";
    /// A SUBACK grants QoS 2.
    GrantedQoS2 = 0x02, "Granted QoS 2";
    /// The client leaves and wants its will published.
    DisconnectWithWill = 0x04, "Disconnect with Will Message";
    /// Accepted, but nobody was there to get it.
    NoMatchingSubscribers = 0x10, "No matching subscribers";
    /// UNSUBSCRIBE of a filter that was not subscribed.
    NoSubscriptionExisted = 0x11, "No subscription existed";
    /// AUTH: another step is needed.
    ContinueAuthentication = 0x18, "Continue authentication";
    /// AUTH: the client starts over on an open connection.
    ReAuthenticate = 0x19, "Re-authenticate";
    /// Failed, and the sender does not say why or no other code fits.
    UnspecifiedError = 0x80, "Unspecified error";
    /// The packet could not be parsed.
    MalformedPacket = 0x81, "Malformed Packet";
    /// The packet was parsed and says something the protocol does not allow.
    ProtocolError = 0x82, "Protocol Error";
    /// Valid, but this receiver does not accept it.
    ImplementationSpecificError = 0x83, "Implementation specific error";
    /// CONNECT asks for a version the server does not speak.
    UnsupportedProtocolVersion = 0x84, "Unsupported Protocol Version";
    /// A valid string the server does not take as client identifier.
    ClientIdentifierNotValid = 0x85, "Client Identifier not valid";
    /// The user name or password is not accepted.
    BadUserNameOrPassword = 0x86, "Bad User Name or Password";
    /// Not allowed to do that.
    NotAuthorized = 0x87, "Not authorized";
    /// The server cannot serve now.
    ServerUnavailable = 0x88, "Server unavailable";
    /// The server has too much to do; try again later.
    ServerBusy = 0x89, "Server busy";
    /// This client was banned by an operator.
    Banned = 0x8A, "Banned";
    /// The server stops.
    ServerShuttingDown = 0x8B, "Server shutting down";
    /// Unknown authentication method, or not the one of CONNECT.
    BadAuthenticationMethod = 0x8C, "Bad authentication method";
    /// Nothing came for one and a half times the keep alive.
    KeepAliveTimeout = 0x8D, "Keep Alive timeout";
    /// Another connection took over the same client identifier.
    SessionTakenOver = 0x8E, "Session taken over";
    /// Well-formed, but not accepted as topic filter.
    TopicFilterInvalid = 0x8F, "Topic Filter invalid";
    /// Well-formed, but not accepted as topic name.
    TopicNameInvalid = 0x90, "Topic Name invalid";
    /// The packet identifier is in use.
    PacketIdentifierInUse = 0x91, "Packet Identifier in use";
    /// The packet identifier is not known.
    PacketIdentifierNotFound = 0x92, "Packet Identifier not found";
    /// More unacknowledged messages than the receive maximum.
    ReceiveMaximumExceeded = 0x93, "Receive Maximum exceeded";
    /// A topic alias of 0 or above the maximum.
    TopicAliasInvalid = 0x94, "Topic Alias invalid";
    /// Larger than the receiver's maximum packet size.
    PacketTooLarge = 0x95, "Packet too large";
    /// Data comes too fast.
    MessageRateTooHigh = 0x96, "Message rate too high";
    /// A limit set by the implementation or an operator was passed.
    QuotaExceeded = 0x97, "Quota exceeded";
    /// Closed by an operator.
    AdministrativeAction = 0x98, "Administrative action";
    /// The payload is not of the format its indicator promises.
    PayloadFormatInvalid = 0x99, "Payload format invalid";
    /// The server keeps no retained messages.
    RetainNotSupported = 0x9A, "Retain not supported";
    /// The server does not serve that quality.
    QoSNotSupported = 0x9B, "QoS not supported";
    /// Go to another server, for now.
    UseAnotherServer = 0x9C, "Use another server";
    /// Go to another server, for good.
    ServerMoved = 0x9D, "Server moved";
    /// The server has no shared subscriptions.
    SharedSubscriptionsNotSupported = 0x9E, "Shared Subscriptions not supported";
    /// Too many connections in too little time.
    ConnectionRateExceeded = 0x9F, "Connection rate exceeded";
    /// The longest allowed connection time is over.
    MaximumConnectTime = 0xA0, "Maximum connect time";
    /// The server has no subscription identifiers.
    SubscriptionIdentifiersNotSupported = 0xA1, "Subscription Identifiers not supported";
    /// The server has no wildcard subscriptions.
    WildcardSubscriptionsNotSupported = 0xA2, "Wildcard Subscriptions not supported";
}

impl ReasonCode {
    /// [`Success`](Self::Success) by the name it has in DISCONNECT.
    pub const NORMAL_DISCONNECTION: Self = Self::Success;
    /// [`Success`](Self::Success) by the name it has in SUBACK.
    pub const GRANTED_QOS_0: Self = Self::Success;

    /// The byte on the wire.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// Whether the code says that something failed: 0x80 and above.
    pub const fn is_error(self) -> bool {
        self.as_u8() >= 0x80
    }

    /// The SUBACK code that grants `qos`.
    pub const fn granted(qos: crate::QoS) -> Self {
        match qos {
            crate::QoS::AtMostOnce => Self::Success,
            crate::QoS::AtLeastOnce => Self::GrantedQoS1,
            crate::QoS::ExactlyOnce => Self::GrantedQoS2,
        }
    }

    /// Whether `packet` may carry this code, whoever sends it (the tables of sections 3.2.2.2, 3.4.2.1,
    /// 3.5.2.1, 3.6.2.1, 3.7.2.1, 3.9.3, 3.11.3, 3.14.2.1, 3.15.2.1).
    pub const fn fits(self, packet: PacketType) -> bool {
        let code = self.as_u8();
        match packet {
            PacketType::ConnAck => {
                matches!(code, 0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F)
            }
            PacketType::PubAck | PacketType::PubRec => {
                matches!(
                    code,
                    0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99
                )
            }
            PacketType::PubRel | PacketType::PubComp => matches!(code, 0x00 | 0x92),
            PacketType::SubAck => matches!(
                code,
                0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2
            ),
            PacketType::UnsubAck => {
                matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
            }
            PacketType::Disconnect => {
                self.may_client_disconnect_with() || self.may_server_disconnect_with()
            }
            PacketType::Auth => matches!(code, 0x00 | 0x18 | 0x19),
            _ => false,
        }
    }

    /// Whether a client may say this in DISCONNECT (section 3.14.2.1, Table 3-10).
    pub const fn may_client_disconnect_with(self) -> bool {
        matches!(self.as_u8(), 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
    }

    /// Whether a server may say this in DISCONNECT (section 3.14.2.1, Table 3-10, and Table 2-6,
    /// which adds "Bad authentication method").
    pub const fn may_server_disconnect_with(self) -> bool {
        matches!(
            self.as_u8(),
            0x00 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B..=0x90 | 0x93..=0xA2
        )
    }

    /// How a CONNACK of 3.1.1 says this; `None` where 3.1.1 has the server close without a word.
    pub const fn connect_return_code(self) -> Option<ConnectReturnCode> {
        Some(match self {
            Self::Success => ConnectReturnCode::Accepted,
            Self::UnsupportedProtocolVersion => ConnectReturnCode::UnacceptableProtocolVersion,
            Self::ClientIdentifierNotValid => ConnectReturnCode::IdentifierRejected,
            Self::ServerUnavailable
            | Self::ServerBusy
            | Self::ServerShuttingDown
            | Self::UseAnotherServer
            | Self::ServerMoved
            | Self::QuotaExceeded
            | Self::ConnectionRateExceeded => ConnectReturnCode::ServerUnavailable,
            Self::BadUserNameOrPassword => ConnectReturnCode::BadUserNameOrPassword,
            Self::NotAuthorized | Self::Banned | Self::BadAuthenticationMethod => {
                ConnectReturnCode::NotAuthorized
            }
            _ => return None,
        })
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.name(), self.as_u8())
    }
}

/// The return code of a CONNACK of MQTT 3.1.1 (`v3.1.1` section 3.2.2.3, Table 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectReturnCode {
    /// Connected.
    Accepted = 0,
    /// The server does not speak the protocol level.
    UnacceptableProtocolVersion = 1,
    /// The client identifier is not allowed.
    IdentifierRejected = 2,
    /// The MQTT service is not available.
    ServerUnavailable = 3,
    /// The user name or password is malformed or wrong.
    BadUserNameOrPassword = 4,
    /// The client may not connect.
    NotAuthorized = 5,
}

impl ConnectReturnCode {
    /// The byte on the wire.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// The code of a byte on the wire; 6 to 255 are reserved.
    pub const fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Accepted,
            1 => Self::UnacceptableProtocolVersion,
            2 => Self::IdentifierRejected,
            3 => Self::ServerUnavailable,
            4 => Self::BadUserNameOrPassword,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }
}

impl From<ConnectReturnCode> for ReasonCode {
    fn from(code: ConnectReturnCode) -> Self {
        match code {
            ConnectReturnCode::Accepted => Self::Success,
            ConnectReturnCode::UnacceptableProtocolVersion => Self::UnsupportedProtocolVersion,
            ConnectReturnCode::IdentifierRejected => Self::ClientIdentifierNotValid,
            ConnectReturnCode::ServerUnavailable => Self::ServerUnavailable,
            ConnectReturnCode::BadUserNameOrPassword => Self::BadUserNameOrPassword,
            ConnectReturnCode::NotAuthorized => Self::NotAuthorized,
        }
    }
}
