//! Nodes with their metadata store, and their clients: `node`, `cluster`, `topic`, `broker`, `key`,
//! `watermark`, `status`, `transfer-leader`, `member`, `fast-path`.

mod asking;
mod commands;
mod files;
mod local;
mod majority;
mod membership;
mod node;
mod show;

pub use commands::{broker, key, topic, watermark};
pub use local::run as local;
pub use majority::run as recover_majority;
pub use membership::{fast_path, member, status, transfer_leader};
pub use node::run as node;
