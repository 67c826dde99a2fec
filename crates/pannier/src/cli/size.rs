//! Sizes, times and pairs on the command line and in the configuration.

use pannier_core::map::SIZE_BLOCKS_MAX;
use pannier_core::units::BLOCK_BYTES;
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A size in bytes. Units are powers of 1024, as in QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

/// A size, or how much is added to the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// That size.
    Is(u64),
    /// So much more.
    Plus(u64),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || {
            format!(
                "`{text}` is not a size; write it like 20G, 512M or 1.5T. Units are K, M, G, T, P \
                 and E, powers of 1024; GiB and GB are the same as G"
            )
        };
        let large = || {
            let largest = Self(SIZE_BLOCKS_MAX * BLOCK_BYTES);
            format!("`{text}` is too much; the largest volume has {largest}")
        };
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (digits, unit) = text.split_at(unit_at);
        let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
        let shift = match unit.as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            "e" | "eb" | "eib" => 60,
            _ => return Err(fail()),
        };
        if let Ok(count) = digits.parse::<u64>() {
            return count.checked_mul(1 << shift).map(Self).ok_or_else(large);
        }
        let count: f64 = digits.parse().map_err(|_not_a_number| fail())?;
        let bytes = count * (1u64 << shift) as f64;
        if bytes >= u64::MAX as f64 {
            return Err(large());
        }
        if bytes.fract() != 0.0 {
            return Err(fail());
        }
        Ok(Self(bytes as u64))
    }
}

impl FromStr for NewSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('+') {
            Some(more) => Ok(Self::Plus(more.parse::<Size>()?.0)),
            None => Ok(Self::Is(text.parse::<Size>()?.0)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if value.fract() < 0.05 || unit == 0 {
            write!(f, "{value:.0} {}", UNITS[unit])
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Bytes(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A time such as `30s`, `15m`, `1h` or `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("`{text}` is not a time; write it like 30s, 15m, 1h or 2d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().map_err(|_not_a_number| fail())?;
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(fail()),
    };
    count.checked_mul(seconds).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(fail)
}

/// `HOST=ADDR:PORT`.
pub(crate) fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((host, address)) if !host.is_empty() && address.contains(':') => {
            Ok((host.to_owned(), address.to_owned()))
        }
        _ => Err(format!("`{text}` is not HOST=ADDR:PORT, such as east1=192.0.2.7:7810")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("20G", 20 << 30),
            ("20GiB", 20 << 30),
            ("1.5T", 3 << 39),
            ("7b", 7),
            ("10GB", 10 << 30),
            ("10 GB", 10 << 30),
            ("1 g", 1 << 30),
            ("8E", 8 << 60),
            ("0.5EiB", 1 << 59),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "20X", "1e3", "0.3", "1  G", "1ib", ".", "nan", "inf"] {
            let refused = text.parse::<Size>().unwrap_err();
            assert!(refused.contains("K, M, G, T, P and E"), "{refused}");
        }
        for text in ["16E", "99999999999P", "18446744073709551616", "16.5 EiB"] {
            let refused = text.parse::<Size>().unwrap_err();
            assert!(refused.contains("the largest volume has 256 TiB"), "{refused}");
        }
        assert_eq!("+1G".parse(), Ok(NewSize::Plus(1 << 30)));
        assert_eq!("1G".parse(), Ok(NewSize::Is(1 << 30)));
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1 << 30, "1 GiB"), (3 << 39, "1.5 TiB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn times_and_peers() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for text in ["", "5", "0s", "s", "1w", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(peer("a=1.2.3.4:5"), Ok(("a".into(), "1.2.3.4:5".into())));
        for text in ["", "a", "=1:2", "a=1"] {
            assert!(peer(text).is_err(), "{text}");
        }
    }
}
