//! A range of network addresses, as an operator writes it: `10.0.0.0/8`, `2001:db8::/32`, `::1`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses in CIDR notation (RFC 4632 section 3.1, RFC 4291 section 2.3), or one address.
///
/// An IPv4 address that comes in IPv6 clothes (`::ffff:10.0.0.1`, what a socket for both families
/// shows) counts as the IPv4 address it is, in the range and in what is looked for. So `0.0.0.0/0` is
/// every IPv4 address, `::/0` every other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The bits behind the prefix are zero; never an IPv4-mapped address.
    network: IpAddr,
    prefix: u8,
}

/// Text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressRangeError {
    /// What stands before the slash is no address.
    #[error("`{0}` is no IP address; write a range as `10.0.0.0/8` or `2001:db8::/32`")]
    Address(String),
    /// What stands behind the slash is no number of bits.
    #[error("`/{given}` is no prefix of this address; write 0 to {max}")]
    Prefix {
        /// What was written.
        given: String,
        /// Bits of the address.
        max: u8,
    },
    /// Bits are set behind the prefix: whether the address or the prefix is wrong cannot be known.
    #[error(
        "`{given}` names an address within a range; write `{range}` for the range or `{address}` for the address alone"
    )]
    HostBits {
        /// What was written.
        given: String,
        /// The range that the prefix would make.
        range: AddressRange,
        /// The address without the prefix.
        address: IpAddr,
    },
}

impl AddressRange {
    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(_), address @ IpAddr::V4(_)) | (IpAddr::V6(_), address @ IpAddr::V6(_)) => {
                masked(address, self.prefix) == self.network
            }
            _ => false,
        }
    }

    /// The first address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Bits that all addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

/// One address.
impl From<IpAddr> for AddressRange {
    fn from(address: IpAddr) -> AddressRange {
        let network = address.to_canonical();
        AddressRange {
            network,
            prefix: bits(network),
        }
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<AddressRange, AddressRangeError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| AddressRangeError::Address(address.to_owned()))?;
        let Some(prefix) = prefix else {
            return Ok(AddressRange::from(address));
        };
        let max = bits(address);
        let wrong = || AddressRangeError::Prefix {
            given: prefix.to_owned(),
            max,
        };
        // Not `+8`, which `parse` would take.
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > max {
            return Err(wrong());
        }
        let canonical = address.to_canonical();
        let (network, prefix) = match (address, canonical) {
            // A range of IPv4 addresses in IPv6 clothes; a wider one is a range of IPv6 addresses.
            (IpAddr::V6(_), IpAddr::V4(_)) if prefix >= 96 => (canonical, prefix - 96),
            _ => (address, prefix),
        };
        let range = AddressRange {
            network: masked(network, prefix),
            prefix,
        };
        if range.network != network {
            return Err(AddressRangeError::HostBits {
                given: text.to_owned(),
                range,
                address: network,
            });
        }
        Ok(range)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits(self.network) {
            self.network.fmt(f)
        } else {
            write!(f, "{}/{}", self.network, self.prefix)
        }
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with only its first `prefix` bits.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        // A shift by all bits is what `checked_shl` calls too far: nothing is left then.
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_which_range() {
        let rows = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "::10.1.2.3", false),
            ("::ffff:10.0.0.0/104", "10.1.2.3", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("192.0.2.6/31", "192.0.2.7", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.9", false),
            ("::1", "::1", true),
            ("::1", "::2", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ];
        for (range, address, inside) in rows {
            let parsed: AddressRange = range.parse().expect(range);
            let address: IpAddr = address.parse().expect(address);
            assert_eq!(parsed.contains(address), inside, "{address} in {range}");
        }
    }

    #[test]
    fn a_range_is_written_as_it_is_read() {
        let rows = [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::1", "::1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ];
        for (text, shown) in rows {
            let range: AddressRange = text.parse().expect(text);
            assert_eq!(range.to_string(), shown);
            assert_eq!(shown.parse(), Ok(range));
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_the_remedy() {
        let rows = [
            ("", "`` is no IP address"),
            ("proxy.example", "`proxy.example` is no IP address"),
            ("10.0.0/8", "`10.0.0` is no IP address"),
            ("10.0.0.0/", "write 0 to 32"),
            ("10.0.0.0/33", "write 0 to 32"),
            ("10.0.0.0/+8", "write 0 to 32"),
            ("10.0.0.0/8/8", "write 0 to 32"),
            ("::/129", "write 0 to 128"),
            (
                "10.1.2.3/8",
                "write `10.0.0.0/8` for the range or `10.1.2.3`",
            ),
            ("::1/64", "write `::/64` for the range or `::1`"),
        ];
        for (text, says) in rows {
            match text.parse::<AddressRange>() {
                Ok(range) => panic!("{text} became {range}"),
                Err(error) => assert!(error.to_string().contains(says), "{text}: {error}"),
            }
        }
    }
}
