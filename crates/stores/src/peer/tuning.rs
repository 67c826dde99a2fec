//! QUIC's settings for links between data centres: up to 1 Gbit/s at 100 ms.

use crate::limits::{
    CONNECTION_WINDOW_BYTES, IDLE_TIMEOUT, INITIAL_RTT, INITIAL_WINDOW_BYTES, KEEP_ALIVE,
    STREAM_WINDOW_BYTES, STREAMS_MAX,
};
use quinn::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::sync::Arc;

/// Which of quinn's congestion controllers paces a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Congestion {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// NewReno (RFC 9002, section 7).
    NewReno,
    /// BBR version 1.
    Bbr,
}

/// The settings of every connection.
pub(super) fn transport(congestion: Congestion) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        // Streams of one class in order of their requests: the first is whole the soonest.
        .send_fairness(false)
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()));
    match congestion {
        Congestion::Cubic => {
            let mut controller = CubicConfig::default();
            controller.initial_window(INITIAL_WINDOW_BYTES);
            config.congestion_controller_factory(Arc::new(controller));
        }
        Congestion::NewReno => {
            let mut controller = NewRenoConfig::default();
            controller.initial_window(INITIAL_WINDOW_BYTES);
            config.congestion_controller_factory(Arc::new(controller));
        }
        Congestion::Bbr => {
            let mut controller = BbrConfig::default();
            controller.initial_window(INITIAL_WINDOW_BYTES);
            config.congestion_controller_factory(Arc::new(controller));
        }
    }
    config
}
