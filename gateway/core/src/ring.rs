//! Whose turn it is: sessions that may have free window, in two rings. Those of this node come first, and what they have no
//! room for goes to those that other nodes relay: a record is not sent over the network while somebody here waits for one.

use std::collections::VecDeque;

use crate::types::SessionId;

/// The rings; the next to be dealt to stands first.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    local: VecDeque<SessionId>,
    relayed: VecDeque<SessionId>,
}

impl Rings {
    /// The ring of sessions that are relayed, or of those that are not.
    pub(crate) fn of(&mut self, relayed: bool) -> &mut VecDeque<SessionId> {
        if relayed { &mut self.relayed } else { &mut self.local }
    }

    /// Nobody has room.
    pub(crate) fn is_empty(&self) -> bool {
        self.local.is_empty() && self.relayed.is_empty()
    }

    pub(crate) fn remove(&mut self, id: SessionId, relayed: bool) {
        self.of(relayed).retain(|other| *other != id);
    }

    pub(crate) fn contains(&self, id: SessionId, relayed: bool) -> bool {
        let ring = if relayed { &self.relayed } else { &self.local };
        ring.contains(&id)
    }
}
