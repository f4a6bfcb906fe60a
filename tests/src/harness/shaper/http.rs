//! HTTP/1.1 framing (RFC 9112): heads, and where bodies end.

use std::io::{self, BufRead, Read};

/// No head of a well-behaved peer is longer.
const MAX_HEAD: u64 = 64 * 1024;

/// The first line and headers of a message, with the bytes they came in.
#[derive(Debug)]
pub struct Head {
    /// As received, with the empty line at the end.
    pub raw: Vec<u8>,
    first: String,
    headers: Vec<(String, String)>,
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// By its length.
    Length(u64),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Head {
    /// Reads the next head. Nothing when the peer closed the connection before it.
    ///
    /// # Errors
    /// When it is malformed, cut short, or too long.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        let mut from = from.take(MAX_HEAD);
        loop {
            let start = raw.len();
            from.read_until(b'\n', &mut raw)?;
            if raw.is_empty() {
                return Ok(None);
            }
            if !raw.ends_with(b"\n") {
                return Err(bad("a head without an end"));
            }
            if matches!(&raw[start..], b"\r\n" | b"\n") {
                break;
            }
        }
        let text = String::from_utf8_lossy(&raw);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Some(Head { first, headers, raw }))
    }

    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Method and target of a request.
    pub fn request_line(&self) -> (&str, &str) {
        let mut words = self.first.split(' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// Status of a response; 0 when there is none.
    pub fn status(&self) -> u16 {
        self.first
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0)
    }

    /// Whether the peer closes the connection after this message.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The body of a request.
    ///
    /// # Errors
    /// When its length is no number.
    pub fn request_body(&self) -> io::Result<Body> {
        Ok(self.framing()?.unwrap_or(Body::Length(0)))
    }

    /// The body of the response to a request with `method`.
    ///
    /// # Errors
    /// When its length is no number.
    pub fn response_body(&self, method: &str) -> io::Result<Body> {
        if method == "HEAD" || matches!(self.status(), 100..=199 | 204 | 304) {
            return Ok(Body::Length(0));
        }
        Ok(self.framing()?.unwrap_or(Body::UntilClose))
    }

    fn framing(&self) -> io::Result<Option<Body>> {
        if self
            .header("transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
        {
            return Ok(Some(Body::Chunked));
        }
        let length = self.header("content-length").map(str::parse);
        length
            .transpose()
            .map(|length| length.map(Body::Length))
            .map_err(|_| bad("Content-Length is no number"))
    }
}

/// Reads a body piece by piece and hands each piece on, chunk framing included.
///
/// # Errors
/// When the body is cut short or malformed, or `sink` refuses a piece.
pub fn each_piece(
    body: Body,
    from: &mut impl BufRead,
    mut sink: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    match body {
        Body::Length(length) => exactly(length, from, &mut sink),
        Body::UntilClose => {
            let mut piece = vec![0; 16 * 1024];
            loop {
                match from.read(&mut piece)? {
                    0 => return Ok(()),
                    length => sink(&mut piece[..length])?,
                }
            }
        }
        Body::Chunked => loop {
            let mut line = chunk_line(from)?;
            let digits = line
                .split(|byte| !byte.is_ascii_hexdigit())
                .next()
                .unwrap_or_default();
            let size =
                u64::from_str_radix(&String::from_utf8_lossy(digits), 16).map_err(|_| bad("chunk size"))?;
            sink(&mut line)?;
            if size > 0 {
                exactly(size + 2, from, &mut sink)?;
                continue;
            }
            loop {
                let mut trailer = chunk_line(from)?;
                sink(&mut trailer)?;
                if trailer.as_slice() == b"\r\n" {
                    return Ok(());
                }
            }
        },
    }
}

fn chunk_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.take(4096).read_until(b'\n', &mut line)?;
    if line.ends_with(b"\n") {
        Ok(line)
    } else {
        Err(bad("a chunk without an end"))
    }
}

fn exactly(
    mut left: u64,
    from: &mut impl BufRead,
    sink: &mut impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        match from.read(&mut piece[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                sink(&mut piece[..length])?;
                left -= length as u64;
            }
        }
    }
    Ok(())
}
