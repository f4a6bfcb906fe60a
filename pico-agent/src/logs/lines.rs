//! The lines of an app as a reader wants them: the last ones, and then those that come.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::Stream;
use super::read::{Follower, Line, tail};
use super::watch::Watcher;

/// Lines on their way to a reader.
#[derive(Debug)]
pub struct Lines {
    found: VecDeque<Vec<Line>>,
    coming: Option<(Follower, Watcher)>,
}

impl Lines {
    /// The last `count` lines of the streams in `dir`; with `follow` also all that come.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn open(dir: &Path, streams: &[Stream], count: usize, follow: bool) -> io::Result<Lines> {
        let (dir, streams) = (dir.to_owned(), streams.to_vec());
        let open = move || {
            if !follow {
                let found = VecDeque::from([tail(&dir, &streams, count)?]);
                return Ok(Lines { found, coming: None });
            }
            // Watched before it is read: no line falls between the two.
            let watcher = Watcher::new(&dir)?;
            let (found, follower) = Follower::open(&dir, &streams, count)?;
            Ok(Lines {
                found: VecDeque::from([found]),
                coming: Some((follower, watcher)),
            })
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(io::Error::other)?
    }

    /// The next lines, at least one; `None`: there are no more. Nothing is lost when it is dropped while it waits.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn next(&mut self) -> io::Result<Option<Vec<Line>>> {
        loop {
            if let Some(lines) = self.found.pop_front().filter(|lines| !lines.is_empty()) {
                return Ok(Some(lines));
            }
            let Some((follower, watcher)) = &mut self.coming else {
                return Ok(None);
            };
            let lines = follower.poll()?;
            if lines.is_empty() {
                watcher.changed().await?;
            } else {
                self.found.push_back(lines);
            }
        }
    }
}
