//! The gateway: gRPC services, sessions, config, admin http, metrics, command line.

mod admin;
pub mod cli;
pub mod config;
mod dev;
mod error;
mod metrics;
mod next;
pub mod node;
mod peer;
mod random;
mod services;
mod session;
mod subscription;
