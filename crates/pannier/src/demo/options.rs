//! The demo's options: the link in the words that people use.

use crate::output::Failure;
use pannier_wan::LinkConfig;
use std::time::Duration;

/// The link between the sites.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Link {
    /// Round trip in milliseconds.
    pub(super) rtt_ms: f64,
    /// Rate in Mbit/s.
    pub(super) rate_mbit: f64,
    /// Share of packets that are lost, 0 to 1.
    pub(super) loss: f64,
}

impl Link {
    pub(super) fn parse(rtt: &str, rate: &str, loss: Option<&str>) -> Result<Self, Failure> {
        Ok(Self {
            rtt_ms: parse_rtt(rtt)?,
            rate_mbit: parse_rate(rate)?,
            loss: loss.map_or(Ok(0.0), parse_loss)?,
        })
    }

    /// One direction of it.
    pub(super) fn config(&self) -> LinkConfig {
        LinkConfig {
            delay: Duration::from_secs_f64(self.rtt_ms / 2000.0),
            rate_bits: Some((self.rate_mbit * 1e6) as u64),
            queue_bytes: None,
            loss: self.loss,
        }
    }
}

/// The number in front of one of the units, times the unit's factor, if it is within the bounds.
fn number(text: &str, units: &[(&str, f64)], least: f64, most: f64) -> Option<f64> {
    let lower = text.trim().to_ascii_lowercase();
    let (unit, factor) = units.iter().find(|(unit, _)| lower.ends_with(unit))?;
    let value = lower[..lower.len() - unit.len()].trim().parse::<f64>().ok()? * factor;
    (least..=most).contains(&value).then_some(value)
}

fn parse_rtt(text: &str) -> Result<f64, Failure> {
    number(text, &[("ms", 1.0), ("s", 1000.0)], 0.0, 2000.0).ok_or_else(|| {
        Failure::invalid(format!(
            "`{text}` is not a round trip time; write it like 40ms, at most 2s"
        ))
    })
}

fn parse_rate(text: &str) -> Result<f64, Failure> {
    let units = [("gbit", 1000.0), ("mbit", 1.0), ("kbit", 0.001)];
    number(text, &units, 1.0, 10_000.0).ok_or_else(|| {
        Failure::invalid(format!(
            "`{text}` is not a rate; write it like 200mbit, from 1mbit to 10gbit"
        ))
    })
}

fn parse_loss(text: &str) -> Result<f64, Failure> {
    number(text, &[("%", 0.01), ("", 1.0)], 0.0, 0.5).ok_or_else(|| {
        Failure::invalid(format!(
            "`{text}` is not a share of packets; write it like 0.5%, at most 50%"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_words() {
        let link = Link::parse("40ms", "200mbit", Some("0.5%")).unwrap();
        assert_eq!(link, Link { rtt_ms: 40.0, rate_mbit: 200.0, loss: 0.005 });
        assert_eq!(link.config().delay, Duration::from_millis(20));
        assert_eq!(link.config().rate_bits, Some(200_000_000));
        let link = Link::parse("0.1s", "1Gbit", None).unwrap();
        assert_eq!(link, Link { rtt_ms: 100.0, rate_mbit: 1000.0, loss: 0.0 });
        for (rtt, rate, loss) in [
            ("40", "1gbit", None),
            ("-1ms", "1gbit", None),
            ("40ms", "200", None),
            ("40ms", "0mbit", None),
            ("40ms", "1gbit", Some("80%")),
            ("40ms", "nanmbit", None),
        ] {
            assert!(Link::parse(rtt, rate, loss).is_err(), "{rtt} {rate} {loss:?}");
        }
    }
}
