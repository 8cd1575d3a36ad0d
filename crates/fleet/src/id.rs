//! Names of things: parsed once where they come in, trusted afterwards.
//!
//! Ids go into topics, certificate subjects and file-system-like places, so their alphabet has no
//! `/`, no wildcard, no space and nothing that needs escaping in any of them. They are cheap to
//! clone: sessions, caches and change notices share one allocation.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use crate::FleetError;

/// Longest id, in characters. Same as an Event Grid client name; fits a topic level many times.
pub const MAX_ID_LENGTH: usize = 128;

fn check_id(field: &'static str, text: &str) -> Result<(), FleetError> {
    if text.is_empty() || text.len() > MAX_ID_LENGTH {
        let length = text.len();
        return Err(FleetError::invalid(
            field,
            format!("has {length} bytes; allowed are 1 to {MAX_ID_LENGTH}"),
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    match text.chars().find(|&c| !allowed(c)) {
        None => Ok(()),
        Some(c) => Err(FleetError::invalid(
            field,
            format!("{c:?} is not allowed; use letters A-Z a-z, digits and . _ : -"),
        )),
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 128 characters of `[A-Za-z0-9._:-]`; case matters.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and alphabet.
            ///
            /// # Errors
            /// [`FleetError::Invalid`] naming the first bad character or the length.
            pub fn parse(text: &str) -> Result<Self, FleetError> {
                check_id($field, text)?;
                Ok(Self(text.into()))
            }

            /// From our own store, where only parsed ids were ever written.
            pub(crate) fn stored(text: String) -> Self {
                Self(text.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The id as shared text, without copying it.
            pub fn to_shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = FleetError;
            fn from_str(text: &str) -> Result<Self, FleetError> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

id_type! {
    /// Names a vehicle for life: the fourth level of its topics, the key of its records.
    VehicleId, "vehicle id"
}
id_type! {
    /// Names a device for life: the subject of its certificates.
    DeviceId, "device id"
}
id_type! {
    /// Names a vehicle model.
    ModelName, "model name"
}

impl VehicleId {
    /// A new id that nobody has: UUID version 7, so ids sort by age.
    pub(crate) fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

impl DeviceId {
    /// A new id that nobody has: UUID version 7, so ids sort by age.
    pub(crate) fn fresh() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

/// A vehicle identification number (ISO 3779): 17 capital letters and digits without I, O, Q.
///
/// Lower case is accepted and stored as upper case, so that one vehicle cannot be registered twice
/// by spelling. The check digit is not verified: only North America uses it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vin(Arc<str>);

impl Vin {
    /// Checks length and alphabet.
    ///
    /// # Errors
    /// [`FleetError::Invalid`] naming what is wrong.
    pub fn parse(text: &str) -> Result<Self, FleetError> {
        let upper = text.to_ascii_uppercase();
        if upper.chars().count() != 17 {
            let length = upper.chars().count();
            return Err(FleetError::invalid(
                "vin",
                format!("has {length} characters; a VIN has 17"),
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() && !matches!(c, 'I' | 'O' | 'Q');
        match upper.chars().find(|&c| !allowed(c)) {
            None => Ok(Self(upper.into())),
            Some(c) => Err(FleetError::invalid(
                "vin",
                format!("{c:?} is not allowed; a VIN has digits and letters without I, O and Q"),
            )),
        }
    }

    pub(crate) fn stored(text: String) -> Self {
        Self(text.into())
    }

    /// The VIN as text, in upper case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Vin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Vin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vin({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_a_small_alphabet() {
        let longest = "x".repeat(MAX_ID_LENGTH);
        for good in [
            "a",
            "car-1",
            "urn:vin:1.2_3",
            "0190f5fe-7c1a-7bbb-8aaa-000000000001",
            &longest,
        ] {
            assert_eq!(VehicleId::parse(good).unwrap(), good);
        }
        let too_long = "x".repeat(MAX_ID_LENGTH + 1);
        for (bad, says) in [
            ("", "has 0 bytes"),
            (too_long.as_str(), "has 129 bytes; allowed are 1 to 128"),
            ("a/b", "'/' is not allowed"),
            ("+", "'+' is not allowed"),
            ("a#", "'#' is not allowed"),
            ("a b", "' ' is not allowed"),
            ("$sys", "'$' is not allowed"),
            ("käfer", "'ä' is not allowed"),
            ("a\0", "'\\0' is not allowed"),
        ] {
            let refusal = DeviceId::parse(bad).unwrap_err().to_string();
            assert!(refusal.starts_with("device id: "), "{refusal}");
            assert!(refusal.contains(says), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn vins_follow_iso_3779() {
        assert_eq!(
            Vin::parse("1hgcm82633a004352").unwrap().as_str(),
            "1HGCM82633A004352"
        );
        for (bad, says) in [
            ("", "has 0 characters"),
            ("1HGCM82633A00435", "has 16 characters"),
            ("1HGCM82633A0043521", "has 18 characters"),
            ("IHGCM82633A004352", "'I' is not allowed"),
            ("1HGCM82633A00435o", "'O' is not allowed"),
            ("1QGCM82633A004352", "'Q' is not allowed"),
            ("1HGCM82633A-04352", "'-' is not allowed"),
            ("1HGCM82633A00435ß", "'ß' is not allowed"),
        ] {
            let refusal = Vin::parse(bad).unwrap_err().to_string();
            assert!(refusal.contains(says), "{bad:?}: {refusal}");
        }
    }
}
