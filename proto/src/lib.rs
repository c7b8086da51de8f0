//! The wire contract of Sluice: messages, client and server stubs, and the descriptor set.
//!
//! The meaning of every field stands in `sluice/v1/*.proto`.

/// `sluice.v1`.
#[expect(clippy::allow_attributes, clippy::large_enum_variant, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("sluice.v1");
}

/// `sluice.peer.v1`: what the nodes of a cluster say to each other.
pub mod peer {
    /// See the module above.
    #[expect(clippy::allow_attributes, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("sluice.peer.v1");
    }
}

#[cfg(any(test, feature = "next-protocol"))]
pub mod next;

/// The serialized `FileDescriptorSet` of `sluice.v1`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sluice_descriptor.bin"));

/// The revision of the contract that this crate speaks.
pub const REVISION: u32 = if cfg!(feature = "next-protocol") { 2 } else { 1 };
