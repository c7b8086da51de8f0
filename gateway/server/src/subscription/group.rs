//! The group as Kafka describes it: which of its members are nodes, and whether they have the same policy. For people, and for
//! nodes that look for each other; no lease and no commit rests on it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use sluice_kafka::GroupMember;
use tokio::sync::{Notify, watch};

/// What a node appends to the `client.id` of its member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// See `SubscriptionConfig::policy_hash`.
    pub(crate) policy: u32,
    /// Where its peers find it; `None`: it has none.
    pub(crate) peer: Option<Arc<str>>,
}

/// A member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) client_id: String,
    pub(crate) host: String,
    pub(crate) partitions: usize,
    /// `None`: it is no node.
    pub(crate) mark: Option<Mark>,
}

/// All members, as they were described last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) members: Vec<Member>,
}

/// What a member is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    SamePolicy,
    OtherPolicy,
    Foreign,
}

/// Looks at each description, and says what is new and not as it should be.
#[derive(Debug)]
pub(super) struct Watch {
    own: u32,
    group: watch::Sender<Arc<Group>>,
    /// Told when members have come or gone; `None`: the node is alone.
    news: Option<Arc<Notify>>,
    warned: BTreeSet<String>,
}

// === impl Mark ===

const POLICY: &str = ";policy=";
const PEER: &str = ";peer=";

impl Mark {
    pub(crate) fn of(client_id: &str) -> Option<Self> {
        let (_, mark) = client_id.rsplit_once(POLICY)?;
        let (policy, peer) = match mark.split_once(PEER) {
            Some((policy, peer)) => (policy, Some(peer.into())),
            None => (mark, None),
        };
        let is_hash = policy.len() == 8 && policy.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self { policy: u32::from_str_radix(policy, 16).ok().filter(|_| is_hash)?, peer })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{POLICY}{:08x}", self.policy)?;
        self.peer.as_ref().map_or(Ok(()), |peer| write!(f, "{PEER}{peer}"))
    }
}

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::SamePolicy, Self::OtherPolicy, Self::Foreign];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SamePolicy => "same_policy",
            Self::OtherPolicy => "other_policy",
            Self::Foreign => "foreign",
        }
    }
}

// === impl Member ===

impl Member {
    fn new(of: GroupMember) -> Self {
        let GroupMember { client_id, host, partitions } = of;
        Self { mark: Mark::of(&client_id), client_id, host, partitions }
    }

    pub(crate) fn kind(&self, own: u32) -> Kind {
        match &self.mark {
            None => Kind::Foreign,
            Some(mark) if mark.policy == own => Kind::SamePolicy,
            Some(_) => Kind::OtherPolicy,
        }
    }
}

// === impl Group ===

impl Group {
    /// Where the nodes among them say that they are found.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter_map(|member| member.mark.as_ref()?.peer.as_ref())
    }
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(own: u32, group: watch::Sender<Arc<Group>>, news: Option<Arc<Notify>>) -> Self {
        Self { own, group, news, warned: BTreeSet::new() }
    }

    pub(super) fn see(&mut self, subscription: &str, members: Vec<GroupMember>) {
        let group = Group { members: members.into_iter().map(Member::new).collect() };
        let strange: Vec<_> = group.members.iter().filter(|member| member.kind(self.own) != Kind::SamePolicy).collect();
        for member in &strange {
            if self.warned.insert(member.client_id.clone()) {
                self.warn(subscription, member);
            }
        }
        self.warned.retain(|known| {
            let is_there = strange.iter().any(|member| member.client_id == *known);
            if !is_there {
                tracing::info!(
                    subscription,
                    client_id = known,
                    "a member of the group that did not belong there has gone"
                );
            }
            is_there
        });
        self.group.send_replace(Arc::new(group));
        if let Some(news) = &self.news {
            news.notify_one();
        }
    }

    fn warn(&self, subscription: &str, member: &Member) {
        let Member { client_id, host, partitions, mark } = member;
        match mark {
            None => tracing::warn!(
                subscription,
                client_id,
                host,
                partitions,
                "a member of the group is no node of sluice: what it is given no client here gets"
            ),
            Some(mark) => tracing::warn!(
                subscription,
                client_id,
                host,
                policy = format!("{:08x}", mark.policy),
                own = format!("{:08x}", self.own),
                "a node of the group has another policy for this subscription: give all nodes the same config"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_whatever_stands_before_it() {
        for peer in [None, Some("sluice-0.sluice-peers:7072"), Some("[::1]:7072")] {
            let mark = Mark { policy: 0x00ab_cdef, peer: peer.map(Into::into) };
            assert_eq!(Mark::of(&format!("team;policy=x-sluice-a{mark}")), Some(mark));
        }
        for foreign in
            ["", "rdkafka", "x;policy=", "x;policy=12", "x;policy=+2345678", "x;policy=123456789", ";peer=a:1"]
        {
            assert_eq!(Mark::of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn who_does_not_belong_is_warned_of_once_and_again_when_it_comes_back() {
        let (sender, group) = watch::channel(Arc::default());
        let mut watch = Watch::new(1, sender, None);
        let member =
            |client_id: &str| GroupMember { client_id: client_id.to_owned(), host: "/h".to_owned(), partitions: 1 };
        let seen = [member("a;policy=00000001;peer=a:1"), member("b;policy=00000002"), member("consumer-1")];
        watch.see("orders", seen.to_vec());
        watch.see("orders", seen.to_vec());
        let kinds: Vec<_> = group.borrow().members.iter().map(|member| member.kind(1)).collect();
        assert_eq!(kinds, Kind::ALL);
        assert_eq!(group.borrow().peers().map(|peer| &**peer).collect::<Vec<_>>(), ["a:1"]);
        assert_eq!(watch.warned, ["b;policy=00000002".to_owned(), "consumer-1".to_owned()].into());
        watch.see("orders", seen[..2].to_vec());
        assert_eq!(watch.warned, ["b;policy=00000002".to_owned()].into());
    }
}
