//! One stream of one client: a reader task, and the response stream that the transport pulls.
//!
//! Contract: the reader never waits for anything but the client and its own timers; what it reads goes into a bounded
//! inbox and the driver is woken. Only the driver touches the engine; it answers through [`Link::send`].

mod codec;
mod decode;
mod edge;
pub(crate) mod encode;
mod inbox;
mod link;
mod reader;
pub(crate) mod relayed;
mod silence;

pub(crate) use codec::{FrameCodec, Outgoing, to_bytes};
pub(crate) use decode::{Decoder, all_not_held, window};
pub(crate) use edge::{Answers, EdgeFrames};
pub(crate) use inbox::Flood;
pub(crate) use inbox::Input;
pub(crate) use link::{ConsumeStream, Frame, Link, Permit, Profile, channel};
pub(crate) use reader::{Timing, consume};
