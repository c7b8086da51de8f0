//! A worker in ten lines: `cargo run -p sluice-client --example ten_lines`, with a node on port 7070.

use sluice_client::{Consumer, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut consumer = Consumer::builder("http://127.0.0.1:7070", "orders").window(100).connect().await?;
    while let Some(record) = consumer.next().await? {
        println!("{}/{}@{}: {:?}", record.topic(), record.partition(), record.offset(), record.value());
        record.ack();
    }
    Ok(())
}
