//! A commit by someone else: any bytes as its metadata, which no client library would send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::kafka::client::Kafka;
use crate::{SOON, eventually_blocking};

const OFFSET_COMMIT: i16 = 8;
/// The lowest that Kafka 4 speaks: no tags, no compact strings.
const VERSION: i16 = 2;

impl Kafka {
    /// Commits an offset of a group without members, with these bytes beside it.
    pub fn plant_commit(&self, group: &str, topic: &str, partition: i32, offset: i64, metadata: &[u8]) {
        // Asking for the group's offsets makes `__consumer_offsets`, where there is none yet.
        let _nothing_yet = self.committed(group, topic);
        let request = request(group, topic, partition, offset, metadata);
        eventually_blocking("the coordinator takes the commit", SOON, || match self.ask(&request) {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The error code of the only partition of the answer.
    fn ask(&self, request: &[u8]) -> std::io::Result<i16> {
        let mut stream = TcpStream::connect(self.bootstrap())?;
        stream.write_all(&i32::try_from(request.len()).expect("small").to_be_bytes())?;
        stream.write_all(request)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("not negative")];
        stream.read_exact(&mut answer)?;
        Ok(i16::from_be_bytes(*answer.last_chunk().expect("an answer ends with a code")))
    }
}

fn request(group: &str, topic: &str, partition: i32, offset: i64, metadata: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(OFFSET_COMMIT.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(7_i32.to_be_bytes());
    string(&mut bytes, b"another-product");
    string(&mut bytes, group.as_bytes());
    // No generation, no member: a plain commit. Kept as long as the broker keeps offsets.
    bytes.extend((-1_i32).to_be_bytes());
    string(&mut bytes, b"");
    bytes.extend((-1_i64).to_be_bytes());
    bytes.extend(1_i32.to_be_bytes());
    string(&mut bytes, topic.as_bytes());
    bytes.extend(1_i32.to_be_bytes());
    bytes.extend(partition.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    string(&mut bytes, metadata);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend(i16::try_from(text.len()).expect("at most 32,767 bytes").to_be_bytes());
    bytes.extend(text);
}
