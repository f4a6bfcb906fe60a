//! Which calls there are, and which of them are one message each way: read from the descriptors of all services, so
//! that labels and deadlines know a new call without being told.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// One call of a service.
#[derive(Debug, Clone)]
pub(super) struct Method {
    /// `/pico.v1.AppService/GetApp`; `unknown` for what no service has.
    pub(super) path: Arc<String>,
    /// The request is one message.
    pub(super) asks_once: bool,
    /// It is a call of `pico.v1` that ends when either side wants, like following events.
    pub(super) endless: bool,
}

/// All of them, by path.
#[derive(Debug)]
pub(super) struct Methods {
    known: HashMap<String, Method>,
    unknown: Method,
}

impl Methods {
    /// Those of the API, of health and of reflection.
    ///
    /// # Errors
    /// A descriptor cannot be read: the program was built wrong.
    pub(super) fn load() -> Result<Self, prost::DecodeError> {
        let mut known = HashMap::new();
        let sets = [
            pico_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        for set in sets {
            for file in FileDescriptorSet::decode(set)?.file {
                let package = file.package().to_owned();
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{package}.{}/{}", service.name(), method.name());
                        let streams = method.client_streaming() || method.server_streaming();
                        let method = Method {
                            path: Arc::new(path.clone()),
                            asks_once: !method.client_streaming(),
                            endless: streams && package == "pico.v1",
                        };
                        known.insert(path, method);
                    }
                }
            }
        }
        let unknown = Method {
            path: Arc::new("unknown".to_owned()),
            asks_once: true,
            endless: false,
        };
        Ok(Methods { known, unknown })
    }

    /// The call with this path.
    pub(super) fn find(&self, path: &str) -> &Method {
        self.known.get(path).unwrap_or(&self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_of_the_api_have_no_end() {
        let methods = Methods::load().unwrap();
        let is = |path| {
            let method = methods.find(path);
            (*method.path == path, method.asks_once, method.endless)
        };
        assert_eq!(is("/pico.v1.AppService/GetApp"), (true, true, false));
        assert_eq!(is("/pico.v1.AppService/ReadLogs"), (true, true, true));
        assert_eq!(is("/pico.v1.AppService/Exec"), (true, false, true));
        assert_eq!(is("/grpc.health.v1.Health/Watch"), (true, true, false));
        assert_eq!(
            is("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
            (true, false, false)
        );
        assert_eq!(is("/pico.v1.AppService/Nothing"), (false, true, false));
    }
}
