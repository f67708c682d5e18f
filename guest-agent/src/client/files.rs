//! Files to and from the machine.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use super::error::ClientError;
use super::request::{Client, unexpected};
use crate::protocol::{CHUNK, Get, Message, Put};

/// How long the agent may be silent while a file moves.
const STALL: Duration = Duration::from_mins(1);

impl Client {
    /// Writes what `source` yields to `path` of the machine, with permission
    /// bits `mode`; returns the number of bytes. It appears whole or not at all.
    ///
    /// # Errors
    /// `source` cannot be read, or the agent cannot write.
    pub fn put(self, source: &mut dyn Read, path: &str, mode: u32) -> Result<u64, ClientError> {
        let mut session = self.session(Message::Put(Put {
            path: path.into(),
            mode,
        }));
        let mut total = 0;
        let mut buffer = vec![0; CHUNK];
        let mut ended = false;
        let doing = "writing a file of the machine";
        loop {
            while !ended && session.window() >= CHUNK {
                let count = source
                    .read(&mut buffer)
                    .map_err(|source| ClientError::Local {
                        doing: "read the data for",
                        path: path.into(),
                        source,
                    })?;
                if count == 0 {
                    session.send(Message::StdinEof);
                    ended = true;
                } else {
                    session.send_stdin(&buffer[..count]);
                    total += count as u64;
                    session.wire.flush(doing)?;
                }
            }
            match session.next(Some(STALL))? {
                Message::Done => return Ok(total),
                Message::StdinCredit(_) | Message::Started(_) => {}
                other => return Err(unexpected(&session.wire, &other, doing)),
            }
        }
    }

    /// Copies the local file `from` to `to` of the machine, permission bits
    /// `mode`; returns its size.
    ///
    /// # Errors
    /// The local file cannot be read, or the agent cannot write.
    pub fn put_file(self, from: &Path, to: &str, mode: u32) -> Result<u64, ClientError> {
        let mut file = File::open(from).map_err(|source| ClientError::Local {
            doing: "open",
            path: from.to_owned(),
            source,
        })?;
        self.put(&mut file, to, mode)
    }

    /// Reads `path` of the machine into `sink`; returns the number of bytes.
    ///
    /// # Errors
    /// The agent cannot read it, or `sink` cannot be written.
    pub fn get(self, path: &str, sink: &mut dyn Write) -> Result<u64, ClientError> {
        let mut session = self.session(Message::Get(Get { path: path.into() }));
        let mut total = 0;
        loop {
            match session.next(Some(STALL))? {
                Message::Stdout(bytes) => {
                    sink.write_all(&bytes)
                        .map_err(|source| ClientError::Local {
                            doing: "write the copy of",
                            path: path.into(),
                            source,
                        })?;
                    total += bytes.len() as u64;
                }
                Message::Done => return Ok(total),
                Message::Started(_) => {}
                other => {
                    return Err(unexpected(
                        &session.wire,
                        &other,
                        "reading a file of the machine",
                    ));
                }
            }
        }
    }

    /// Copies `from` of the machine to the local file `to`, through a
    /// temporary name beside it; returns its size.
    ///
    /// # Errors
    /// The agent cannot read it, or the local file cannot be written.
    pub fn get_file(self, from: &str, to: &Path) -> Result<u64, ClientError> {
        let local = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ClientError::Local {
                doing,
                path,
                source,
            }
        };
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = to.with_file_name(name);
        let mut file = File::create(&part).map_err(local("create", &part))?;
        let copied = self.get(from, &mut file).and_then(|size| {
            std::fs::rename(&part, to)
                .map_err(local("put in place", to))
                .map(|()| size)
        });
        if copied.is_err() {
            // The error at hand matters more than a leftover.
            let _ = std::fs::remove_file(&part);
        }
        copied
    }
}
