//! The server's side of TLS: reads certificate, key and authorities, and reads them again when they change. Knows
//! files; not who listens.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Tls;

/// Why TLS cannot begin, or goes on with what it had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {} ({source})", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has not what it should have.
    #[error("{} holds no {what} in PEM form ({source})", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Certificate or private key.
        what: &'static str,
        /// What the parser said.
        source: pem::Error,
    },
    /// Certificate and key do not go together, or are of no known kind.
    #[error("the certificate in {} cannot be used ({source}); try: the key that belongs to it as tls.key", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The authority of callers is none.
    #[error("the authorities in {} cannot be used ({source})", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        source: VerifierBuilderError,
    },
    /// The directories of the files cannot be watched.
    #[error("cannot watch {} for changes ({source})", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
}

/// What new connections are served with. What was read last and was right.
#[derive(Debug)]
pub struct Reloading {
    files: Tls,
    current: RwLock<Arc<ServerConfig>>,
    watch: Arc<Inotify>,
}

impl Reloading {
    /// Reads the files, and watches their directories from before that on.
    ///
    /// # Errors
    /// [`TlsError`], saying which file is wrong and how.
    pub fn load(files: &Tls) -> Result<Self, TlsError> {
        let watch = watch(files)?;
        let contents = Contents::read(files)?;
        Ok(Reloading {
            files: files.clone(),
            current: RwLock::new(Arc::new(contents.config(files)?)),
            watch: Arc::new(watch),
        })
    }

    /// For a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again whenever they have changed, until `stop`. While they are wrong (a certificate is there and
    /// its key is not yet), what was right goes on being served.
    ///
    /// # Errors
    /// The watch is broken.
    pub async fn follow(&self, stop: CancellationToken) -> io::Result<()> {
        let mut changes = Changes::of(&self.watch)?;
        let mut served = Contents::read(&self.files).ok();
        loop {
            tokio::select! {
                changed = changes.next() => changed?,
                () = stop.cancelled() => return Ok(()),
            }
            let read = Contents::read(&self.files);
            if read.as_ref().ok() == served.as_ref() {
                continue;
            }
            match read.and_then(|contents| Ok((contents.config(&self.files)?, contents))) {
                Ok((config, contents)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    served = Some(contents);
                    tracing::info!(cert = %self.files.cert.display(), "TLS files read again: new connections get them");
                }
                Err(error) => {
                    tracing::warn!(%error, "TLS files changed and cannot be used; serving with those before")
                }
            }
        }
    }
}

/// Events of a watch, waited for by a thread: tokio waits for descriptors of other kinds only by unsafe code. The thread
/// ends when this is dropped.
struct Changes {
    told: mpsc::Receiver<io::Result<()>>,
    _alive: UnixStream,
}

impl Changes {
    fn of(watch: &Arc<Inotify>) -> io::Result<Self> {
        let (alive, ended) = UnixStream::pair()?;
        let (tell, told) = mpsc::channel(1);
        let watch = Arc::clone(watch);
        std::thread::Builder::new()
            .name("tls-files".into())
            .spawn(move || wait(&watch, &ended, &tell))?;
        Ok(Changes { told, _alive: alive })
    }

    async fn next(&mut self) -> io::Result<()> {
        let ended = || Err(io::Error::other("the thread that watches has ended"));
        self.told.recv().await.unwrap_or_else(ended)
    }
}

fn wait(watch: &Inotify, ended: &UnixStream, tell: &mpsc::Sender<io::Result<()>>) {
    loop {
        let mut sources = [
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut sources, PollTimeout::NONE);
        if sources[1].any().unwrap_or(true) {
            return;
        }
        let happened = match polled.and_then(|_| watch.read_events()) {
            Ok(_) => Ok(()),
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(error) => Err(error.into()),
        };
        let broken = happened.is_err();
        if tell.blocking_send(happened).is_err() || broken {
            return;
        }
    }
}

/// Watches directories and not files: most tools replace a file, or a symbolic link to it, by another.
fn watch(files: &Tls) -> Result<Inotify, TlsError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Watch { path, source }
    };
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(fail(&files.cert))?;
    let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
    for file in [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()]
        .into_iter()
        .flatten()
    {
        let dir = file.parent().unwrap_or(Path::new("/"));
        watch.add_watch(dir, events).map_err(fail(dir))?;
    }
    Ok(watch)
}

/// The bytes of the files.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &Tls) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| {
            let path = path.clone();
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Contents {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_ref().map(read).transpose()?,
        })
    }

    fn config(&self, files: &Tls) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| TlsError::Pem {
            path: files.key.clone(),
            what: "private key",
            source,
        })?;
        let wrong = |source| TlsError::Certificate {
            path: files.cert.clone(),
            source,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem, path)? {
                    roots.add(certificate).map_err(wrong)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|source| TlsError::ClientCa {
                    path: path.clone(),
                    source,
                })?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(wrong)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    match chain.is_empty() {
        true => Err(wrong(pem::Error::NoItemsFound)),
        false => Ok(chain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Tls {
        Tls {
            cert: dir.join("hub.crt"),
            key: dir.join("hub.key"),
            client_ca: None,
        }
    }

    fn write_pair(files: &Tls) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path());
        let says = |files: &Tls| Reloading::load(files).unwrap_err().to_string();
        assert!(says(&files).contains("cannot read"));
        write_pair(&files);
        assert!(Reloading::load(&files).is_ok());
        let key = std::fs::read(&files.key).unwrap();
        write_pair(&files);
        std::fs::write(&files.key, key).unwrap();
        assert!(
            says(&files).contains("the key that belongs to it"),
            "{}",
            says(&files)
        );
        std::fs::write(&files.key, "nothing").unwrap();
        assert!(says(&files).contains("no private key"), "{}", says(&files));
        std::fs::write(&files.cert, "").unwrap();
        assert!(says(&files).contains("no certificate"), "{}", says(&files));
        write_pair(&files);
        files.client_ca = Some(dir.path().join("ca.crt"));
        std::fs::write(dir.path().join("ca.crt"), "").unwrap();
        assert!(says(&files).contains("ca.crt"), "{}", says(&files));
    }
}
