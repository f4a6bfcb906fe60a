//! What an owner may say of an app's sleep and wakes: who wakes it, who is answered without it, and what becomes of its
//! connections. How each is written, and nothing of what is done with it.

use serde::{Deserialize, Serialize};

use crate::cron::Cron;
use crate::waking::{Source, WakeRate};

/// `[app.wake]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeSection {
    /// Only these wake the app; empty: everybody.
    pub allow: Vec<Source>,
    /// These do not.
    pub deny: Vec<Source>,
    /// How often each source may wake it.
    pub rate: Option<WakeRate>,
    /// It wakes by itself at these times.
    pub at: Vec<Cron>,
}

/// `[[app.probe]]`: who is answered while the app sleeps, without waking it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSection {
    /// Where they ask from.
    pub from: Source,
    /// The status of an HTTP answer; `None`: connections are accepted, and that is all.
    pub http: Option<u16>,
    /// The content of the HTTP answer.
    #[serde(default)]
    pub body: String,
}

/// What becomes of established connections when an app sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionPolicy {
    /// They go on: silence looks like silence, data wake the app.
    #[default]
    Keep,
    /// They are reset, for both ends.
    Close,
    /// The app does not sleep while there are any.
    StayAwake,
}

/// Which timers wake a sleeping app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimerPolicy {
    /// Its owner's `wake.at`, and those of its own timers that are long
    /// ([`LONG`](crate::criu::timers::LONG)).
    #[default]
    Declared,
    /// Every timer of its own besides.
    All,
    /// None.
    None,
}
