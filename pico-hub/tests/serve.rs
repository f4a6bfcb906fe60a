//! The `pico-hub serve` program: how it starts and ends, and what clients that are slow, broken or too many cannot do.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod program;

use std::path::Path;

use bytes::{Buf, BufMut};
use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use program::{Hub, SOON};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Status};

async fn create(hub: &Hub, channel: Channel, name: &str) -> Result<(), Status> {
    let spec = v1::AppSpec {
        name: name.to_owned(),
        root: "host".to_owned(),
        command: vec!["/bin/sleep".to_owned(), "1000".to_owned()],
        ..Default::default()
    };
    let message = v1::CreateAppRequest {
        owner: "ann".to_owned(),
        spec: Some(spec),
        ..Default::default()
    };
    let created = AppServiceClient::new(channel)
        .create_app(hub.request(message))
        .await;
    created.map(drop)
}

/// Four times as many silent connections as there are places: who asks is answered, and they are closed.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_silent_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path(), "[limits]\nconnections = 500\n").await;
    let before = hub.channel().await;
    create(&hub, before.clone(), "before").await.unwrap();
    let mut silent = Vec::new();
    for number in 0..2000 {
        let mut stream = TcpStream::connect(hub.address()).await.unwrap();
        // Some begin to speak, and never get to a call.
        if number % 2 == 0 {
            let _ = stream.write_all(b"PRI * HTTP/2.0\r\n").await;
        }
        silent.push(stream);
    }
    let asked = async {
        create(&hub, before, "old").await.unwrap();
        create(&hub, hub.channel().await, "new").await.unwrap();
    };
    timeout(SOON, asked).await.unwrap();
    let closed = async {
        for stream in &mut silent[..1000] {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    timeout(SOON, closed).await.unwrap();
}

/// Calls whose messages are bytes.
#[derive(Debug, Default, Clone)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

async fn raw(hub: &Hub, path: &'static str, message: Vec<u8>) -> Code {
    let mut client = tonic::client::Grpc::new(hub.channel().await);
    client.ready().await.unwrap();
    let request = hub.request(message);
    let path = path.parse().unwrap();
    let answer = client.unary(request, path, Raw).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_messages_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(dir.path(), "").await;
    let create_app = "/pico.v1.AppService/CreateApp";
    // A field that says it is longer than the message; one of a wrong type; text that is no text.
    for malformed in [
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[0x08, 0x01],
        &[0x0a, 0x02, 0xc3, 0x28],
    ] {
        let code = raw(&hub, create_app, malformed.to_vec()).await;
        assert!(matches!(code, Code::Internal | Code::InvalidArgument), "{code:?}");
    }
    let code = raw(&hub, create_app, vec![0; 64 << 20]).await;
    // Refused by what its head says, so that the caller may have been cut off in the middle of sending it.
    let refused = matches!(
        code,
        Code::OutOfRange | Code::ResourceExhausted | Code::Unknown | Code::Internal
    );
    assert!(refused, "{code:?}");
    // A call that no policy names is nobody's.
    for path in ["/pico.v1.AppService/NoSuchCall", "/no-such-service/Call"] {
        let code = raw(&hub, path, Vec::new()).await;
        assert!(
            matches!(code, Code::PermissionDenied | Code::Unimplemented),
            "{path}: {code:?}"
        );
    }
    // What is no HTTP/2 at all.
    let noise: Vec<u8> = (0..100_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for bytes in [
        &noise[..],
        b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut stream = TcpStream::connect(hub.address()).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        timeout(SOON, stream.read_to_end(&mut Vec::new()))
            .await
            .unwrap()
            .ok();
    }
    let mut client = AppServiceClient::new(hub.channel().await);
    let apps = client
        .list_apps(hub.request(v1::ListAppsRequest::default()))
        .await
        .unwrap();
    assert_eq!(apps.into_inner().apps, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hub_has_a_state_directory_and_it_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(dir.path(), "").await;
    let second = hub.second();
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("another hub uses"), "{text}");
    hub.signal("-TERM");
    assert_eq!(hub.child.wait().unwrap().code(), Some(0));
}

/// Writes a new certificate for this host, and gives what it is to be checked by.
fn certify(dir: &Path) -> Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (name, text) in [
        ("hub.key", made.signing_key.serialize_pem()),
        ("hub.crt", made.cert.pem()),
    ] {
        let new = dir.join(format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, dir.join(name)).unwrap();
    }
    Certificate::from_pem(made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_while_calls_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = certify(dir.path());
    let hub = Hub::start(dir.path(), "[tls]\ncert = \"hub.crt\"\nkey = \"hub.key\"\n").await;
    let connect = async |authority: &Certificate| {
        let tls = ClientTlsConfig::new()
            .domain_name("localhost")
            .ca_certificate(authority.clone());
        hub.endpoint().tls_config(tls).unwrap().connect().await
    };
    let channel = connect(&first).await.unwrap();
    create(&hub, channel.clone(), "one").await.unwrap();
    let second = certify(dir.path());
    let taken = async {
        while connect(&second).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, taken).await.unwrap();
    assert!(connect(&first).await.is_err());
    create(&hub, channel, "two").await.unwrap();
    create(&hub, connect(&second).await.unwrap(), "three")
        .await
        .unwrap();
    // One that is broken changes nothing.
    std::fs::write(dir.path().join("hub.crt"), "no certificate").unwrap();
    create(&hub, connect(&second).await.unwrap(), "four")
        .await
        .unwrap();
}
