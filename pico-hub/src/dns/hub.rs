//! [`Names`] of the hub's directory.

use std::sync::Arc;

use pico_proto::v1::{AppState, WakeOnDns};

use super::{Named, Names, Soon};
use crate::directory::{Directory, Entry};

/// What the name server knows of the hub.
pub struct HubNames<D>(pub Arc<D>);

impl<D: Directory> Names for HubNames<D> {
    fn find(&self, label: &str) -> Option<Named> {
        let entry = self.0.lookup(label)?;
        Some(Named {
            app: label.into(),
            v4: entry.ipv4,
            v6: entry.ipv6,
            ports: self.0.ports(label).into(),
            soon: soon(&entry),
        })
    }

    fn serial(&self) -> u32 {
        *self.0.serial().borrow()
    }

    fn soon(&self, app: &str, wake: bool) {
        if let Some(entry) = self.0.lookup(app) {
            // Where the message is not on its way, the packet that follows wakes the app all the same.
            self.0.prefetch(&entry, wake);
        }
    }
}

/// What a query does: nothing while the app is awake, or on its way there.
fn soon(entry: &Entry) -> Option<Soon> {
    let asleep = matches!(
        entry.state,
        AppState::Dozing | AppState::Warm | AppState::Cold | AppState::SwappingOut
    );
    match entry.wake_on_dns {
        _ if !asleep => None,
        WakeOnDns::Off => None,
        WakeOnDns::Prefetch | WakeOnDns::Unspecified => Some(Soon::Prefetch),
        WakeOnDns::Wake => Some(Soon::Wake),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AppId;

    #[test]
    fn only_a_sleeping_app_whose_owner_wants_it_is_prepared() {
        let entry = |state, wake_on_dns| Entry {
            app: AppId::from_number(1),
            agent: None,
            ipv4: None,
            ipv6: None,
            state,
            wake_on_dns,
        };
        for (state, wish, then) in [
            (AppState::Cold, WakeOnDns::Prefetch, Some(Soon::Prefetch)),
            (AppState::Warm, WakeOnDns::Wake, Some(Soon::Wake)),
            (AppState::Cold, WakeOnDns::Off, None),
            (AppState::Hot, WakeOnDns::Wake, None),
            (AppState::Stopped, WakeOnDns::Wake, None),
            (AppState::SwappingIn, WakeOnDns::Prefetch, None),
        ] {
            assert_eq!(soon(&entry(state, wish)), then, "{state:?} {wish:?}");
        }
    }
}
