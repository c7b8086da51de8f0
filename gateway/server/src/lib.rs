//! The gateway: gRPC services, sessions, config, admin http, metrics, command line.

pub mod config;
