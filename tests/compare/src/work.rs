//! What a process of workers is told to do: arguments NAME=VALUE, the same on both sides.

use std::collections::HashMap;

/// Workers, and what they do with a record. While it runs, `down`, `up`, `pause`, `go` and `report` may be
/// said on its stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How many workers this process has: each with a consumer of its own, and one record in work at a time.
    pub workers: usize,
    /// How long a worker sleeps over a record.
    pub work_us: u64,
    /// The first delivery of each record whose offset this divides fails. 0: none does.
    pub fail_first_every: i64,
    /// Takes what it is given, renews it for ever and settles nothing.
    pub hold: bool,
    /// Begins as after the word `down`: every record fails.
    pub down: bool,
    /// Says totals in place of a line for each record, which would be measured too.
    pub quiet: bool,
}

impl Work {
    /// So many workers that each sleep so long over a record, and then acknowledge it.
    pub fn of(workers: usize, work_us: u64) -> Self {
        Self { workers, work_us, fail_first_every: 0, hold: false, down: false, quiet: false }
    }

    /// As the processes take it.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            format!("workers={}", self.workers),
            format!("work_us={}", self.work_us),
            format!("fail_first_every={}", self.fail_first_every),
            format!("hold={}", self.hold),
            format!("down={}", self.down),
            format!("quiet={}", self.quiet),
        ]
    }

    /// Reads what `arguments` wrote.
    pub fn parse(arguments: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            workers: arguments.get("workers")?.parse().ok()?,
            work_us: arguments.get("work_us")?.parse().ok()?,
            fail_first_every: arguments.get("fail_first_every")?.parse().ok()?,
            hold: arguments.get("hold")?.parse().ok()?,
            down: arguments.get("down")?.parse().ok()?,
            quiet: arguments.get("quiet")?.parse().ok()?,
        })
    }
}

/// NAME=VALUE, as a map.
pub fn named(arguments: &[String]) -> HashMap<String, String> {
    let pairs = arguments.iter().filter_map(|argument| argument.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_back() {
        let work = Work { fail_first_every: 3, hold: true, quiet: true, ..Work::of(7, 5_000) };
        assert_eq!(Work::parse(&named(&work.arguments())), Some(work));
        assert_eq!(Work::parse(&named(&["workers=2".into()])), None);
    }
}
