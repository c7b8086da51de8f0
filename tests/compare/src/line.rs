//! What workers say on stdout, on both sides alike: one line each, times in microseconds since 1970.
//!
//! | line | meaning |
//! | --- | --- |
//! | `ready` | every worker has subscribed |
//! | `d AT WORKER PARTITION OFFSET` | a record was given to a worker, which begins |
//! | `a AT WORKER PARTITION OFFSET` | the worker is done with it and acknowledges it |
//! | `c AT WORKER PARTITION OFFSET` | the worker heard that its ack is stored: `commitSync` returned, or a durable ack is answered |
//! | `f AT WORKER PARTITION OFFSET` | the worker failed, and gives it back |
//! | `n AT TOTAL` | quiet workers: so many records were worked on so far |
//! | `w WORKER COUNT BUSY` | after `report`: what this worker did since the last one, and for how long |
//! | `error TEXT` | what a person must know |

/// What happened to a record at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Delivered,
    Acked,
    Confirmed,
    Failed,
}

/// A record at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub what: What,
    pub at_us: i64,
    pub worker: usize,
    pub partition: i32,
    pub offset: i64,
}

impl Event {
    /// Which record.
    pub fn record(&self) -> (i32, i64) {
        (self.partition, self.offset)
    }
}

/// What one worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub worker: usize,
    pub count: u64,
    pub busy_us: i64,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Ready,
    Record(Event),
    Total { at_us: i64, total: u64 },
    Share(Share),
    Error(String),
}

/// Reads a line. What is none is told as an error: a process that dies says why in words of its own.
pub fn parse(line: &str) -> Line {
    let fields: Vec<&str> = line.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<i64>().ok());
    let known = match (fields[0], number(1), number(2), number(3), number(4)) {
        ("ready", ..) => Some(Line::Ready),
        ("n", Some(at_us), Some(total), None, _) => u64::try_from(total).ok().map(|total| Line::Total { at_us, total }),
        ("w", Some(worker), Some(count), Some(busy_us), None) => share(worker, count, busy_us),
        ("d", Some(at), Some(worker), Some(partition), Some(offset)) => {
            event(What::Delivered, at, worker, partition, offset)
        }
        ("a", Some(at), Some(worker), Some(partition), Some(offset)) => {
            event(What::Acked, at, worker, partition, offset)
        }
        ("c", Some(at), Some(worker), Some(partition), Some(offset)) => {
            event(What::Confirmed, at, worker, partition, offset)
        }
        ("f", Some(at), Some(worker), Some(partition), Some(offset)) => {
            event(What::Failed, at, worker, partition, offset)
        }
        _ => None,
    };
    known.unwrap_or_else(|| Line::Error(line.strip_prefix("error ").unwrap_or(line).to_owned()))
}

fn share(worker: i64, count: i64, busy_us: i64) -> Option<Line> {
    Some(Line::Share(Share { worker: worker.try_into().ok()?, count: count.try_into().ok()?, busy_us }))
}

fn event(what: What, at_us: i64, worker: i64, partition: i64, offset: i64) -> Option<Line> {
    let (worker, partition) = (worker.try_into().ok()?, partition.try_into().ok()?);
    Some(Line::Record(Event { what, at_us, worker, partition, offset }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_workers_write_them() {
        assert_eq!(parse("ready"), Line::Ready);
        let event = Event { what: What::Acked, at_us: 5, worker: 1, partition: 2, offset: 3 };
        assert_eq!(parse("a 5 1 2 3"), Line::Record(event));
        assert_eq!(parse("n 5 7"), Line::Total { at_us: 5, total: 7 });
        assert_eq!(parse("w 1 2 3"), Line::Share(Share { worker: 1, count: 2, busy_us: 3 }));
        assert_eq!(parse("error worker 0: gone"), Line::Error("worker 0: gone".into()));
        assert_eq!(parse("d 5 1"), Line::Error("d 5 1".into()));
        assert_eq!(parse(""), Line::Error(String::new()));
    }
}
