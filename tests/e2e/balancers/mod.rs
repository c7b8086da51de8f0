//! Real balancers in front of nodes, each with its file in `deploy/`.

mod drain;
mod manifests;
pub(crate) mod rolling;
mod streams;
