//! Compiles the contract without protoc, and writes the descriptor set that reflection serves.
use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=sluice");
    let of_clients = ["sluice/v1/consumer.proto", "sluice/v1/subscription.proto"];
    // What reflection serves: clients have no use for what nodes say to each other.
    let served = protox::compile(of_clients, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("sluice_descriptor.bin"), served.encode_to_vec())?;
    let descriptors = protox::compile(of_clients.into_iter().chain(["sluice/peer/v1/peer.proto"]), ["."])?;
    let is_next = env::var_os("CARGO_FEATURE_NEXT_PROTOCOL").is_some();
    let codec = if is_next { "crate::next::NextCodec" } else { "tonic_prost::ProstCodec" };
    tonic_prost_build::configure().bytes(".").codec_path(codec).compile_fds(descriptors)?;
    Ok(())
}
