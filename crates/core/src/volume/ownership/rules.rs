//! The safety rules, each of which the explorer can switch off to show that it is needed.

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The safety rules of the machine. All are on in production; only the explorer (feature
        /// `explore`) can make a set with one of them off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct Rules {
            $($(#[$doc])* pub(crate) $name: bool,)*
        }

        impl Rules {
            /// All rules on.
            pub const ALL: Self = Self { $($name: true,)* };

            /// The names of all rules.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// All rules but the named one.
            #[cfg(feature = "explore")]
            #[must_use]
            pub fn without(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self { $name: false, ..Self::ALL }),)*
                    _ => None,
                }
            }
        }
    };
}

rules! {
    /// An epoch that was ever reserved is never used again.
    epochs_never_reused,
    /// `granted` is durable before GRANT is sent.
    granted_before_grant,
    /// A host that has granted neither acknowledges nor answers reads, also after a restart.
    granted_is_silent,
    /// GRANT is durable at the taker before its first reply.
    accepted_before_reply,
    /// A GRANT is refused by a host that knows an epoch as high.
    refuse_known_epochs,
    /// A GRANT is accepted only for a transit that was read from the registry in this boot.
    transit_read_in_this_boot,
    /// The taker has the log up to the granted position before it owns the volume.
    caught_up_before_accepted,
    /// Nothing is aborted once `granted` is recorded.
    no_abort_after_granted,
    /// An abort is durable at the giver before it is registered.
    abort_before_registered,
    /// Only the giver aborts.
    only_giver_aborts,
    /// After a reboot local ownership counts only once the registry confirms it.
    reboot_needs_registry,
    /// Every start of an owner is a new incarnation, durable before it appends.
    new_incarnation,
    /// During a transit giver and taker both count as owner.
    transit_counts_both,
    /// A takeover is registered before the new owner starts.
    takeover_registered_first,
    /// Sessions end with a takeover: a guest that ran before it is never connected to what is left.
    takeover_ends_sessions,
    /// A new session of an attachment ends the old one.
    new_session_ends_old,
    /// A session's end is durable before its successor is answered.
    sessions_are_durable,
    /// Sessions travel in GRANT.
    sessions_travel,
    /// One attachment holds the write right.
    one_writer,
    /// The holder of the write right is durable before it writes.
    right_is_durable,
    /// The holder travels in GRANT.
    right_travels,
    /// The holder's writes are finished before the right passes.
    right_withdrawn_first,
    /// A declared migration passes the right once.
    declared_once,
}

impl Default for Rules {
    fn default() -> Self {
        Self::ALL
    }
}
