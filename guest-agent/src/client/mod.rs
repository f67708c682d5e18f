//! The host's side of the protocol: dialling an agent, requests, sessions.
//!
//! Everything here blocks, with deadlines, on `poll`; there is no runtime and
//! there are no threads. A [`Client`] makes requests; [`Client::exec`] and its
//! siblings turn it into a [`Session`].
//!
//! What an agent sends is untrusted. Text in its failures is shown to people
//! by [`ClientError`]'s `Display` with control characters replaced; the bytes
//! of a session's output are passed on as they are, as with `ssh`.

mod attach;
mod dial;
mod error;
mod files;
mod patience;
mod request;
mod session;
mod signals;
mod terminal;
mod wire;

pub use attach::{Attach, Outcome};
pub use dial::Endpoint;
pub use error::ClientError;
pub use patience::wait_longer;
pub use request::Client;
pub use session::{Captured, Events, Session};
pub use terminal::terminal_size;
