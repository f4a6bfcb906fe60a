//! The life of each app: one state machine per app, and the only place where states change. Uses the gate,
//! the sandbox, CRIU, the pager and the store; none of those knows another. What can be decided without
//! looking at the host is in the pure parts: [`state`], [`policy`], [`record`].

pub mod policy;
pub mod record;
pub mod state;
