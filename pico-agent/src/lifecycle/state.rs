//! The states of an app and the events that change them. Pure: what an event makes of a state, and nothing
//! of how it comes about.
//!
//! ```text
//!   stopped ──start──► starting ──started──► hot ──swap out──► swapping-out
//!      ▲                  │                  ▲ ▲                 │      │
//!      │ ended            │ start failed     │ └─swap-out failed─┘      │ slept
//!   stopping              ▼                  │                          ▼
//!                       failed               │ woken                   warm ──went cold──► cold
//!                            ▲               │                          │ ◄────fetched───── │
//!                            │               │                          │ wake              │ wake
//!                            │               │                          ▼                   ▼
//!                            └─wake refused─ swapping-in ◄──────────────┴───────────────────┘
//!                                            └─wake failed, exited, lost──► warm or cold, as before
//!
//!   starting, hot, swapping-out               ──exited──► stopped (status 0) or failed
//!   starting, hot, swapping-out               ──lost────► warm or cold (goes on from its checkpoint) or failed
//!   starting, hot, swapping-out, swapping-in  ──stop────► stopping
//!   warm, cold, failed                        ──stop────► stopped
//!   failed                                    ──start───► starting
//!   failed with a checkpoint                  ──wake────► swapping-in
//! ```
//!
//! Two rules hold whatever happens, and are tested for every event in every state:
//! * an app's memory is given up only for a checkpoint, or because the process ended, was lost or was stopped;
//! * a checkpoint that an app would wake from is given up only by `stop` and `start` (anew), which an owner
//!   asks for, or for memory that it became.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Timestamp;

/// Where the checkpoint of a sleeping app lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// On this host's disk.
    Warm,
    /// In object storage only.
    Cold,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Warm => "warm",
            Tier::Cold => "cold",
        })
    }
}

impl From<Tier> for State {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Warm => State::Warm,
            Tier::Cold => State::Cold,
        }
    }
}

/// What an app is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum State {
    /// Its process is being made, from its files.
    Starting,
    /// It runs.
    Hot,
    /// A checkpoint of it is being made; until that is verified it may go on at any moment.
    SwappingOut,
    /// It is only a checkpoint, on this host's disk.
    Warm,
    /// It is only a checkpoint, in object storage.
    Cold,
    /// Its process is being made, from its checkpoint, which stays until that has succeeded.
    SwappingIn {
        /// Where the checkpoint lies.
        from: Tier,
    },
    /// Its process is being ended.
    Stopping,
    /// Its owner stopped it, or it ended by itself. Packets do not wake it.
    Stopped,
    /// Something went wrong that needs its owner, or the next start after a backoff.
    Failed {
        /// The checkpoint that `wake` would try again, if any.
        checkpoint: Option<Tier>,
    },
}

impl State {
    /// The word for it in the API and in tables.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Hot => "hot",
            State::SwappingOut => "swapping-out",
            State::Warm => "warm",
            State::Cold => "cold",
            State::SwappingIn { .. } => "swapping-in",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed { .. } => "failed",
        }
    }

    /// Whether a running process holds the app's memory, and no checkpoint has all of it.
    pub fn holds_memory(self) -> bool {
        matches!(
            self,
            State::Starting | State::Hot | State::SwappingOut | State::Stopping
        )
    }

    /// The checkpoint that the app would wake from.
    pub fn checkpoint(self) -> Option<Tier> {
        match self {
            State::Warm => Some(Tier::Warm),
            State::Cold => Some(Tier::Cold),
            State::SwappingIn { from } => Some(from),
            State::Failed { checkpoint } => checkpoint,
            State::Starting | State::Hot | State::SwappingOut | State::Stopping | State::Stopped => None,
        }
    }

    /// Whether it sleeps, so that a packet wakes it.
    pub fn asleep(self) -> bool {
        matches!(self, State::Warm | State::Cold)
    }

    /// Whether the actor is at work on it and an event of that work must follow.
    pub fn in_transit(self) -> bool {
        matches!(
            self,
            State::Starting | State::SwappingOut | State::SwappingIn { .. } | State::Stopping
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its owner, its restart policy or the agent's start wants it to run anew, from its files.
    Start,
    /// Its process runs.
    Started,
    /// Its process could not be made.
    StartFailed,
    /// Idleness or its owner wants it asleep.
    SwapOut,
    /// Its checkpoint is verified and synced, and its process is gone.
    Slept,
    /// The swap-out was refused, cancelled or failed before the point of no return: it goes on running.
    SwapOutFailed,
    /// Its checkpoint is in object storage, verified, and gone from this host.
    WentCold,
    /// What it needs first of its checkpoint is on this host's disk again.
    Fetched,
    /// A packet or its owner wants it awake.
    Wake,
    /// Its process runs again and the gate is open.
    Woken,
    /// Nothing of the half-made process is left; the next packet may try again.
    WakeFailed,
    /// As [`Event::WakeFailed`], and trying again cannot help until its owner does something.
    WakeRefused,
    /// Its last process ended by itself.
    Exited {
        /// Whether with status 0.
        clean: bool,
    },
    /// Its process was killed because its pager was lost, or is gone after a crash of the host.
    Lost {
        /// The last checkpoint, if the app is to go on from there.
        resume: Option<Tier>,
    },
    /// Its owner wants it to end.
    Stop,
    /// Its processes are gone after [`Event::Stop`].
    Ended,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Event::Start => "start",
            Event::Started => "started",
            Event::StartFailed => "start failed",
            Event::SwapOut => "swap out",
            Event::Slept => "slept",
            Event::SwapOutFailed => "swap-out failed",
            Event::WentCold => "went cold",
            Event::Fetched => "fetched",
            Event::Wake => "wake",
            Event::Woken => "woken",
            Event::WakeFailed => "wake failed",
            Event::WakeRefused => "wake refused",
            Event::Exited { .. } => "exited",
            Event::Lost { .. } => "lost",
            Event::Stop => "stop",
            Event::Ended => "ended",
        }
    }
}

/// An event that cannot happen, or must not be asked for, in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an app that is {state} cannot take the event '{}'", event.name())]
pub struct InvalidTransition {
    /// The state, which stays.
    pub state: State,
    /// The event.
    pub event: Event,
}

/// What an event makes of a state.
///
/// # Errors
/// [`InvalidTransition`]; the state stays as it is.
pub fn transition(state: State, event: Event) -> Result<State, InvalidTransition> {
    use State::{Cold, Failed, Hot, Starting, Stopped, Stopping, SwappingIn, SwappingOut, Warm};
    let next = match (state, event) {
        (Stopped | Failed { .. }, Event::Start) => Starting,
        (Starting, Event::Started) => Hot,
        (Starting, Event::StartFailed) => Failed { checkpoint: None },

        (Hot, Event::SwapOut) => SwappingOut,
        (SwappingOut, Event::SwapOutFailed) => Hot,
        (SwappingOut, Event::Slept) => Warm,
        (Warm, Event::WentCold) => Cold,
        (Cold, Event::Fetched) => Warm,

        (Warm, Event::Wake) => SwappingIn { from: Tier::Warm },
        (Cold, Event::Wake) => SwappingIn { from: Tier::Cold },
        (
            Failed {
                checkpoint: Some(from),
            },
            Event::Wake,
        ) => SwappingIn { from },
        (SwappingIn { .. }, Event::Woken) => Hot,
        (SwappingIn { from }, Event::WakeFailed) => from.into(),
        (SwappingIn { from }, Event::WakeRefused) => Failed {
            checkpoint: Some(from),
        },

        (Starting | Hot | SwappingOut, Event::Exited { clean: true }) => Stopped,
        (Starting | Hot | SwappingOut, Event::Exited { clean: false }) => Failed { checkpoint: None },
        (Starting | Hot | SwappingOut, Event::Lost { resume: Some(tier) }) => tier.into(),
        (Starting | Hot | SwappingOut, Event::Lost { resume: None }) => Failed { checkpoint: None },
        // A half-made process that ends or is lost is a wake that failed: its checkpoint is untouched.
        (SwappingIn { from }, Event::Exited { .. } | Event::Lost { .. }) => from.into(),

        (Starting | Hot | SwappingOut | SwappingIn { .. }, Event::Stop) => Stopping,
        (Warm | Cold | Failed { .. }, Event::Stop) => Stopped,
        (Stopping, Event::Ended | Event::Exited { .. } | Event::Lost { .. }) => Stopped,

        (state, event) => return Err(InvalidTransition { state, event }),
    };
    Ok(next)
}

/// A state, since when, and why: what `app show` tells first and what the wake record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Situation {
    /// The state.
    pub state: State,
    /// When it was entered.
    pub since: Timestamp,
    /// Why it was entered, in words for the owner.
    pub reason: String,
}

impl Situation {
    /// Where a new app begins.
    pub fn new(now: Timestamp) -> Self {
        Situation {
            state: State::Stopped,
            since: now,
            reason: "never started".to_owned(),
        }
    }

    /// Takes an event; the reason is in words for the owner.
    ///
    /// # Errors
    /// [`InvalidTransition`]; nothing changes.
    pub fn apply(
        &mut self,
        event: Event,
        reason: impl Into<String>,
        now: Timestamp,
    ) -> Result<State, InvalidTransition> {
        self.state = transition(self.state, event)?;
        self.since = now;
        self.reason = reason.into();
        Ok(self.state)
    }
}

#[cfg(test)]
mod tests;
