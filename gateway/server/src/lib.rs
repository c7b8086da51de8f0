//! The gateway: gRPC services, sessions, config, admin http, metrics, command line.

mod admin;
pub mod config;
mod error;
mod metrics;
pub mod node;
mod random;
mod services;
mod session;
mod subscription;
