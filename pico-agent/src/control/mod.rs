//! How the command line speaks to a running agent: one request line and one reply line (or several, for logs)
//! of JSON over `STATE/agent.sock`. Owns the protocol, its server and its client; knows nothing of how a
//! request is carried out, which is a [`server::Handler`]'s.

pub mod client;
pub mod lock;
pub mod protocol;
pub mod server;

#[cfg(test)]
mod tests;
