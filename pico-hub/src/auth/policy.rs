//! Which roles may make which call. A call that is not here may be made by nobody.

use crate::registry::Role;

const OWNERS: &[Role] = &[Role::Admin, Role::Owner];
const ADMINS: &[Role] = &[Role::Admin];

/// Every call of `pico.v1`, with who may make it.
pub const CALLS: &[(&str, &[Role])] = &[
    ("/pico.v1.AppService/CreateApp", OWNERS),
    ("/pico.v1.AppService/GetApp", OWNERS),
    ("/pico.v1.AppService/ListApps", OWNERS),
    ("/pico.v1.AppService/UpdateApp", OWNERS),
    ("/pico.v1.AppService/DeleteApp", OWNERS),
    ("/pico.v1.AppService/StartApp", OWNERS),
    ("/pico.v1.AppService/StopApp", OWNERS),
    ("/pico.v1.AppService/RestartApp", OWNERS),
    ("/pico.v1.AppService/SleepApp", OWNERS),
    ("/pico.v1.AppService/WakeApp", OWNERS),
    ("/pico.v1.AppService/WaitApp", OWNERS),
    ("/pico.v1.AppService/ExplainApp", OWNERS),
    ("/pico.v1.AppService/ReadLogs", OWNERS),
    ("/pico.v1.AppService/Exec", OWNERS),
    ("/pico.v1.OperationService/GetOperation", OWNERS),
    ("/pico.v1.OperationService/WaitOperation", OWNERS),
    ("/pico.v1.EventService/WatchEvents", OWNERS),
    ("/pico.v1.TokenService/CreateToken", ADMINS),
    ("/pico.v1.TokenService/ListTokens", ADMINS),
    ("/pico.v1.TokenService/RevokeToken", ADMINS),
    ("/pico.v1.TokenService/WhoAmI", &Role::ALL),
    ("/pico.v1.AgentService/Join", &[Role::Join]),
    ("/pico.v1.AgentService/Attach", &[Role::Agent]),
    ("/pico.v1.AgentService/ListAgents", ADMINS),
    ("/pico.v1.AgentService/RemoveAgent", ADMINS),
];

/// Who may make the call at this path.
pub fn roles(path: &str) -> &'static [Role] {
    CALLS
        .iter()
        .find(|(call, _)| *call == path)
        .map_or(&[], |(_, roles)| roles)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    #[test]
    fn every_call_there_is_stands_in_the_table_once_and_no_other() {
        let set = prost_types::FileDescriptorSet::decode(pico_proto::DESCRIPTORS).unwrap();
        let mut calls = BTreeSet::new();
        for file in set.file.iter().filter(|file| file.package() == "pico.v1") {
            for service in &file.service {
                for method in &service.method {
                    calls.insert(format!("/pico.v1.{}/{}", service.name(), method.name()));
                }
            }
        }
        let listed: BTreeSet<String> = CALLS.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(listed, calls);
        assert_eq!(CALLS.len(), calls.len());
    }

    #[test]
    fn an_unknown_call_is_nobodys() {
        assert!(roles("/pico.v1.AppService/Destroy").is_empty());
        assert!(roles("").is_empty());
    }
}
