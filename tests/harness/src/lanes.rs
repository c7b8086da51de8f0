//! S7 of a history: records of a key, or of a partition, come one after another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

/// What a lane is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Records of one key of one partition. A null key is no lane.
    Key,
    /// Records of one partition.
    Partition,
}

/// A delivery, or a settlement by which the record was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Topic and partition.
    pub partition: (String, i32),
    /// Its epoch.
    pub epoch: i64,
    /// Its offset.
    pub offset: i64,
    /// Whether it was settled; else delivered.
    pub done: bool,
    /// Whether the lease of this delivery was taken back, or its session ended: it may have been read late.
    pub stale: bool,
}

/// In one lane and epoch.
#[derive(Debug, Default)]
struct Epoch {
    last: Option<i64>,
    done: BTreeSet<i64>,
}

/// The first step that breaks the order. `keys`: of every record there is.
///
/// - A record is delivered for the first time only when each earlier one of its lane was settled for good by a client.
/// - Within an epoch a lane goes on to a later record only after the one before it was settled for good, and never goes
///   back. In a new epoch (a rebalance, a crash) it may begin at an earlier record again.
pub fn check(lane: Lane, keys: &BTreeMap<(String, i32, i64), Option<Bytes>>, steps: &[Step]) -> Result<(), String> {
    type Name = ((String, i32), Option<Bytes>);
    let name = |step: &Step| -> Option<Name> {
        let (topic, partition) = step.partition.clone();
        let key = keys.get(&(topic.clone(), partition, step.offset))?.clone();
        match lane {
            Lane::Key => key.map(|key| ((topic, partition), Some(key))),
            Lane::Partition => Some(((topic, partition), None)),
        }
    };
    // What was never settled for good, of each lane.
    let mut open: HashMap<Name, BTreeSet<i64>> = HashMap::new();
    for (topic, partition, offset) in keys.keys() {
        let partition = (topic.clone(), *partition);
        let step = Step { partition, epoch: 0, offset: *offset, done: false, stale: false };
        if let Some(name) = name(&step) {
            open.entry(name).or_default().insert(*offset);
        }
    }
    let mut epochs: HashMap<(Name, i64), Epoch> = HashMap::new();
    let mut delivered = BTreeSet::new();
    for step in steps {
        let Some(name) = name(step) else { continue };
        let open = open.entry(name.clone()).or_default();
        let epoch = epochs.entry((name.clone(), step.epoch)).or_default();
        if step.done {
            open.remove(&step.offset);
            epoch.done.insert(step.offset);
            continue;
        }
        if delivered.insert((step.partition.clone(), step.offset))
            && let Some(earlier) = open.range(..step.offset).next()
        {
            return Err(format!("{name:?}: {step:?} came first while {earlier} was not settled"));
        }
        match epoch.last {
            Some(last) if step.offset > last && !epoch.done.contains(&last) => {
                return Err(format!("{name:?}: {step:?} came while {last} was not settled in this epoch"));
            }
            Some(last) if step.offset < last => {
                if !step.stale {
                    return Err(format!("{name:?}: {step:?} came after {last} in one epoch"));
                }
            }
            _ => epoch.last = Some(step.offset),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(epoch: i64, offset: i64, done: bool) -> Step {
        Step { partition: ("t".into(), 0), epoch, offset, done, stale: false }
    }

    fn told(lane: Lane, steps: &[(i64, i64, bool)]) -> Result<(), String> {
        let key =
            |offset: i64| (offset != 9).then(|| Bytes::from_static(if offset % 2 == 0 { b"even" } else { b"odd" }));
        let keys = (0..10).map(|offset| (("t".to_owned(), 0, offset), key(offset))).collect();
        check(lane, &keys, &steps.iter().map(|(epoch, offset, done)| step(*epoch, *offset, *done)).collect::<Vec<_>>())
    }

    #[test]
    fn keys_go_on_side_by_side_and_null_keys_as_they_like() {
        told(Lane::Key, &[(1, 0, false), (1, 1, false), (1, 9, false), (1, 0, true), (1, 2, false)]).unwrap();
        told(Lane::Partition, &[(1, 0, false), (1, 1, false)]).unwrap_err();
    }

    #[test]
    fn a_record_before_its_turn_is_seen() {
        told(Lane::Key, &[(1, 2, false)]).unwrap_err();
        told(Lane::Key, &[(1, 0, false), (1, 2, false)]).unwrap_err();
    }

    #[test]
    fn a_new_epoch_may_begin_earlier_and_goes_on_in_order() {
        let before = [(1, 0, false), (1, 0, true), (1, 2, false), (1, 2, true), (1, 4, false)];
        let with = |more: &[(i64, i64, bool)]| told(Lane::Key, &[&before[..], more].concat());
        with(&[(2, 2, false), (2, 2, true), (2, 4, false)]).unwrap();
        with(&[(2, 0, false), (2, 2, false)]).unwrap_err();
        with(&[(1, 2, false)]).unwrap_err();
        with(&[(2, 6, false)]).unwrap_err();
    }
}
