//! The proxy before a tiny in-process server that answers `/NUMBER` with so many bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};

use super::http::{Body, Head, each_piece};
use super::*;

/// Answers GET `/N` with N bytes, by length or (`/N?chunked`) in chunks; PUT with the length of its body.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn serve(mut stream: TcpStream) {
    let mut from = BufReader::new(stream.try_clone().unwrap());
    while let Ok(Some(head)) = Head::read(&mut from) {
        let (method, target) = head.request_line();
        if head.header("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        }
        let mut sent = 0;
        each_piece(head.request_body().unwrap(), &mut from, |piece| {
            sent += piece.len();
            Ok(())
        })
        .unwrap();
        let body = if method == "PUT" {
            sent.to_string().into_bytes()
        } else {
            content(target)
        };
        if target.ends_with("?chunked") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .unwrap();
            for chunk in body.chunks(1000) {
                stream
                    .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
                    .unwrap();
                stream.write_all(&[chunk, b"\r\n"].concat()).unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        } else {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        }
    }
}

fn content(target: &str) -> Vec<u8> {
    let length = target
        .trim_start_matches('/')
        .split('?')
        .next()
        .unwrap()
        .parse()
        .unwrap_or(0);
    (0..length).map(|index: u32| index.to_le_bytes()[0]).collect()
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(shaper: &Shaper) -> Self {
        Client {
            stream: BufReader::new(TcpStream::connect(shaper.address()).unwrap()),
        }
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> std::io::Result<(u16, Vec<u8>)> {
        let head = Head::read(&mut self.stream)?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let body = head.response_body("GET")?;
        let mut received = Vec::new();
        each_piece(body, &mut self.stream, |piece| {
            received.extend_from_slice(piece);
            Ok(())
        })?;
        if body == Body::Chunked {
            received = unchunked(&received);
        }
        Ok((head.status(), received))
    }

    fn get(&mut self, target: &str) -> std::io::Result<(u16, Vec<u8>)> {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", "proxy"));
        self.answer()
    }
}

fn unchunked(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        raw.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        if size == 0 {
            return body;
        }
        let mut chunk = vec![0; size + 2];
        raw.read_exact(&mut chunk).unwrap();
        body.extend_from_slice(&chunk[..size]);
    }
}

#[test]
fn requests_pass_unchanged_on_one_connection_and_are_logged() {
    let shaper = Shaper::start(&server()).unwrap();
    let mut client = Client::new(&shaper);
    for target in ["/100000", "/0", "/5000?chunked", "/3"] {
        assert_eq!(client.get(target).unwrap(), (200, content(target)), "{target}");
    }
    client.send("PUT /key HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer().unwrap(), (200, b"5".to_vec()));
    client.send("GET /10 HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n");
    client.answer().unwrap();
    crate::harness::until("log", Duration::from_secs(5), || {
        Ok((shaper.requests().len() == 6).then_some(()))
    })
    .unwrap();
    let log = shaper.take_requests();
    let lines: Vec<_> = log
        .iter()
        .map(|r| (r.method.as_str(), r.path.as_str(), r.status, r.sent, r.received))
        .collect();
    assert_eq!(lines[0], ("GET", "/100000", 200, 0, 100_000));
    assert_eq!(lines[4], ("PUT", "/key", 200, 5, 1));
    assert_eq!(log[2].query, "chunked");
    assert_eq!(log[5].range.as_deref(), Some("bytes=0-9"));
    assert_eq!((shaper.requests().len(), shaper.in_flight()), (0, 0));
}

#[test]
fn a_body_announced_with_expect_is_sent_after_continue() {
    let shaper = Shaper::start(&server()).unwrap();
    let mut client = Client::new(&shaper);
    client.send("PUT /k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.answer().unwrap().0, 100);
    client.send("abc");
    assert_eq!(client.answer().unwrap(), (200, b"3".to_vec()));
}

#[test]
fn the_first_byte_waits_and_the_rest_is_paced() {
    let shaper = Shaper::start(&server()).unwrap();
    shaper.set_delay(Duration::from_millis(80));
    let mut client = Client::new(&shaper);
    let start = Instant::now();
    client.get("/10").unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(80),
        "{:?}",
        start.elapsed()
    );
    shaper.set_delay(Duration::ZERO);
    shaper.set_bandwidth(Some(2_000_000));
    let start = Instant::now();
    client.get("/200000").unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(90),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn faults_strike_the_requests_they_are_for() {
    let shaper = Shaper::start(&server()).unwrap();
    shaper.inject(Rule::new("GET", "/100", Fault::Status(503)).after(1).times(1));
    let mut client = Client::new(&shaper);
    let statuses: Vec<_> = (0..3).map(|_| client.get("/100").unwrap().0).collect();
    assert_eq!(statuses, [200, 503, 200]);

    shaper.inject(Rule::new("GET", "/40000", Fault::FlipBit(20_001)).times(1));
    let mut expected = content("/40000");
    expected[20_001] ^= 1;
    assert_eq!(client.get("/40000").unwrap(), (200, expected));
    assert_eq!(client.get("/40000").unwrap(), (200, content("/40000")));

    shaper.inject(Rule::new("GET", "/500", Fault::Truncate(499)));
    assert_eq!(
        client.get("/500").unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );
    shaper.inject(Rule::new("GET", "/7", Fault::Reset));
    let error = Client::new(&shaper).get("/7").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    shaper.clear();
    assert_eq!(Client::new(&shaper).get("/500").unwrap(), (200, content("/500")));
}

#[test]
fn a_request_that_hangs_is_let_go_by_clear() {
    let shaper = Shaper::start(&server()).unwrap();
    shaper.inject(Rule::new("GET", "/9", Fault::Hang));
    let mut client = Client::new(&shaper);
    client.send("GET /9 HTTP/1.1\r\nHost: x\r\n\r\n");
    let flying = || Ok((shaper.in_flight() == 1).then_some(()));
    crate::harness::until("the request to arrive", Duration::from_secs(5), flying).unwrap();
    shaper.clear();
    assert!(client.answer().is_err());
}
