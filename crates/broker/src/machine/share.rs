//! One shared subscription: who of its members gets a message, and what waits for one of them.
//!
//! A message for `$share/name/filter` goes to exactly one member (section 4.8.2). Only members that
//! are online are chosen: what is given to a sleeping member would wait for it while others are
//! awake. Only when all are away does a message wait, in one queue of the group, for whoever comes
//! first; and only if a member is stored, that is, will still be a member when it comes back.
//!
//! ```text
//! choose ─► Member  ─► that session's queue
//!        └► Nobody  ─► can_wait? ─► waiting ──(a member comes online)──► take_first ─► choose
//! ```
//! The turn of a member is a number: lowest is next, and who was served gets the highest. So members
//! that join, leave, sleep and wake never shift the others, which an index into a list of members
//! does: each change would skip one or serve it twice.
//!
//! Cost: all workers stand in line for a group with every message of it, so round robin is a few instructions:
//! the first of the line goes to its end. Who leaves the line leaves a gap, which is passed over when it is
//! first, and closed up when there are as many gaps as members. The other two strategies look at each member
//! for each message, which is meant for groups of tens, and done for groups of any size.
//!
//! Not here: how many may wait and what is dropped then (the limits of its keeper), messages that a
//! member has but did not acknowledge (its session).

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How the member that gets a message of a shared subscription is chosen, among those online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShareStrategy {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest unacknowledged messages; among equals, one after the other. For
    /// members that are not equally fast.
    LeastInFlight,
    /// All messages of a publisher to the same member, so that it sees them in order. When a member
    /// goes, only its publishers move; when one comes, it takes its share of them from the others.
    StickyByPublisher,
}

/// Whether a member can be sent something now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Online,
    Away,
}

/// How long somebody stays a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    /// As long as its connection.
    Transient,
    /// Also without connection: what waits will be fetched.
    Stored,
}

/// What became of a member that joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    New,
    /// It was a member; its options, membership and presence are the new ones, its turn the old.
    Replaced,
}

/// Who gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice<I, O> {
    Member(I, O),
    /// No member is online.
    Nobody,
}

/// The members of one shared subscription (`I`, with options `O`), and the items `T` waiting for one.
#[derive(Debug)]
pub(crate) struct Group<I, O, T> {
    strategy: ShareStrategy,
    /// Where each member is.
    places: HashMap<I, u32>,
    /// Free where `None`.
    members: Vec<Option<Member<I, O>>>,
    free: Vec<u32>,
    line: Line,
    /// The turn of whoever comes to the end of the line next. Counts on for centuries.
    next_turn: u64,
    /// How many members are stored.
    stored: usize,
    /// Oldest first.
    waiting: VecDeque<T>,
}

#[derive(Debug)]
struct Member<I, O> {
    who: I,
    /// Hash of the member, for rendezvous with publishers.
    seed: u64,
    options: O,
    membership: Membership,
    /// Its turn in `line`; `None` while it is away.
    turn: Option<u64>,
}

/// Members online by turn, and gaps.
#[derive(Debug, Default)]
struct Line {
    places: VecDeque<(u64, Option<u32>)>,
    gaps: usize,
}

/// Gaps that a line may have in any case.
const GAPS: usize = 16;

impl Line {
    /// Somebody with the highest turn so far.
    fn join(&mut self, turn: u64, member: u32) {
        debug_assert!(self.places.back().is_none_or(|(last, _)| *last < turn));
        self.places.push_back((turn, Some(member)));
    }

    fn leave(&mut self, turn: u64) {
        if let Ok(at) = self.places.binary_search_by_key(&turn, |(turn, _)| *turn) {
            self.leave_at(at);
        }
    }

    fn leave_at(&mut self, at: usize) {
        match at {
            0 => {
                self.places.pop_front();
            }
            _ => {
                self.places[at].1 = None;
                self.gaps += 1;
            }
        }
        while let Some((_, None)) = self.places.front() {
            self.places.pop_front();
            self.gaps -= 1;
        }
        if self.gaps > GAPS && self.gaps > self.places.len() / 2 {
            self.places.retain(|(_, member)| member.is_some());
            self.gaps = 0;
        }
    }

    /// Who is in the line, first the first; with the place of each.
    fn iter(&self) -> impl Iterator<Item = (usize, u32)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(at, (_, member))| Some((at, (*member)?)))
    }
}

impl<I: Copy + Eq + Hash, O: Copy, T> Group<I, O, T> {
    /// Without members.
    pub(crate) fn new(strategy: ShareStrategy) -> Group<I, O, T> {
        Group {
            strategy,
            places: HashMap::new(),
            members: Vec::new(),
            free: Vec::new(),
            line: Line::default(),
            next_turn: 0,
            stored: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Adds a member, or replaces what is known of it.
    pub(crate) fn join(
        &mut self,
        who: I,
        options: O,
        membership: Membership,
        presence: Presence,
    ) -> Joined {
        self.stored += usize::from(membership == Membership::Stored);
        let joined = match self.member(who) {
            Some(member) => {
                let before = std::mem::replace(&mut member.membership, membership);
                member.options = options;
                self.stored -= usize::from(before == Membership::Stored);
                Joined::Replaced
            }
            None => {
                let member = Some(Member {
                    who,
                    seed: seed(who),
                    options,
                    membership,
                    turn: None,
                });
                let place = self.free.pop().unwrap_or_else(|| {
                    self.members.push(None);
                    (self.members.len() - 1) as u32
                });
                self.members[place as usize] = member;
                self.places.insert(who, place);
                Joined::New
            }
        };
        self.set_presence(who, presence);
        joined
    }

    fn member(&mut self, who: I) -> Option<&mut Member<I, O>> {
        let place = self.places.get(&who)?;
        self.members.get_mut(*place as usize)?.as_mut()
    }

    /// The options of a member.
    pub(crate) fn options(&self, who: I) -> Option<O> {
        let place = self.places.get(&who)?;
        let member = self.members.get(*place as usize)?.as_ref();
        member.map(|member| member.options)
    }

    /// Changes what is known of a member.
    pub(crate) fn update(&mut self, who: I, change: impl FnOnce(&mut O)) {
        if let Some(member) = self.member(who) {
            change(&mut member.options);
        }
    }

    /// Removes a member; says whether it was one. When the last stored one has left, what still
    /// waits will not be fetched: see [`can_wait`](Self::can_wait).
    pub(crate) fn leave(&mut self, who: I) -> bool {
        let Some(place) = self.places.remove(&who) else {
            return false;
        };
        let Some(member) = self.members[place as usize].take() else {
            debug_assert!(false, "whoever has a place is a member");
            return false;
        };
        self.free.push(place);
        if let Some(turn) = member.turn {
            self.line.leave(turn);
        }
        self.stored -= usize::from(member.membership == Membership::Stored);
        true
    }

    /// A member connected or lost its connection. Who comes joins the end of the line. Nothing
    /// happens for somebody who is no member.
    pub(crate) fn set_presence(&mut self, who: I, presence: Presence) {
        let Some(place) = self.places.get(&who).copied() else {
            return;
        };
        let Some(member) = &mut self.members[place as usize] else {
            return;
        };
        match (presence, member.turn) {
            (Presence::Online, None) => {
                member.turn = Some(self.next_turn);
                self.line.join(self.next_turn, place);
                self.next_turn += 1;
            }
            (Presence::Away, Some(turn)) => {
                member.turn = None;
                self.line.leave(turn);
            }
            (Presence::Online, Some(_)) | (Presence::Away, None) => {}
        }
    }

    /// Whether nobody is a member, so that the group can go.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether a message that [nobody](Choice::Nobody) can get now may wait: somebody will come back
    /// for it.
    pub(crate) fn can_wait(&self) -> bool {
        self.stored > 0
    }

    /// Chooses who gets a message of `publisher` (a hash of it), among those that are `eligible`.
    /// `in_flight` says how many messages a member has not acknowledged; asked only by
    /// [`ShareStrategy::LeastInFlight`].
    pub(crate) fn choose(
        &mut self,
        publisher: u64,
        mut in_flight: impl FnMut(I) -> u32,
        eligible: impl Fn(I) -> bool,
    ) -> Choice<I, O> {
        let members = &self.members;
        let mut line = self.line.iter().filter_map(|(at, place)| {
            let member = members[place as usize].as_ref()?;
            eligible(member.who).then_some((at, place, member))
        });
        // Of equals, `min_by_key` takes the first: whose turn it is.
        let chosen = match self.strategy {
            ShareStrategy::RoundRobin => line.next(),
            ShareStrategy::LeastInFlight => line
                .by_ref()
                .min_by_key(|(_, _, member)| in_flight(member.who)),
            ShareStrategy::StickyByPublisher => line
                .by_ref()
                .min_by_key(|(_, _, member)| mix(member.seed ^ publisher)),
        };
        let Some((at, place)) = chosen.map(|(at, place, _)| (at, place)) else {
            return Choice::Nobody;
        };
        drop(line);
        let Some(member) = &mut self.members[place as usize] else {
            return Choice::Nobody;
        };
        self.line.leave_at(at);
        self.line.join(self.next_turn, place);
        member.turn = Some(self.next_turn);
        self.next_turn += 1;
        Choice::Member(member.who, member.options)
    }

    /// Keeps `item` until somebody comes. Call only while [`can_wait`](Self::can_wait); how many may
    /// wait is the caller's to say.
    #[cfg(test)]
    pub(crate) fn wait(&mut self, item: T) {
        debug_assert!(self.can_wait(), "nobody would come for it");
        self.waiting.push_back(item);
    }

    /// Whether a member other than `not` is online.
    pub(crate) fn has_online_besides(&self, not: I) -> bool {
        let mut online = self.line.iter();
        online.any(|(_, place)| {
            let member = self.members[place as usize].as_ref();
            member.is_some_and(|member| member.who != not)
        })
    }

    /// How many members there are.
    pub(crate) fn members(&self) -> usize {
        self.places.len()
    }

    /// How many items wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Puts items back between those that wait, where `age` (the order in which they came) says.
    pub(crate) fn wait_again(&mut self, items: Vec<T>, age: impl Fn(&T) -> u64) {
        for item in items {
            let place = self
                .waiting
                .partition_point(|other| age(other) < age(&item));
            self.waiting.insert(place, item);
        }
    }

    /// Takes the oldest item that is wanted.
    pub(crate) fn take_first(&mut self, wanted: impl FnMut(&T) -> bool) -> Option<T> {
        let place = self.waiting.iter().position(wanted)?;
        let item = self.waiting.remove(place);
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new(); // a night of messages gives its room back
        }
        item
    }
}

/// The same in every run of a release: simulations repeat.
fn seed(member: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    member.hash(&mut hasher);
    hasher.finish()
}

/// Spreads the bits, as the last step of SplitMix64 does.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::Membership::{Stored, Transient};
    use super::Presence::{Away, Online};
    use super::*;

    type TestGroup = Group<u32, char, u32>;

    fn group(strategy: ShareStrategy, online: &[u32]) -> TestGroup {
        let mut group = Group::new(strategy);
        for &who in online {
            assert_eq!(group.join(who, 'o', Transient, Online), Joined::New);
        }
        group
    }

    fn chosen(choice: Choice<u32, char>) -> Option<u32> {
        match choice {
            Choice::Member(who, _) => Some(who),
            Choice::Nobody => None,
        }
    }

    fn next(group: &mut TestGroup) -> Option<u32> {
        chosen(group.choose(0, |_| 0, |_| true))
    }

    fn turns(group: &mut TestGroup, count: usize) -> Vec<u32> {
        (0..count).filter_map(|_| next(group)).collect()
    }

    #[test]
    fn round_robin_goes_on_fairly_whoever_comes_and_goes() {
        type Change = fn(&mut TestGroup);
        // Of 1, 2, 3 two were served when the change comes: what the next four are.
        let rows: &[(&str, Change, &[u32])] = &[
            ("nothing", |_| {}, &[3, 1, 2, 3]),
            ("served leaves", |g| assert!(g.leave(1)), &[3, 2, 3, 2]),
            ("next leaves", |g| assert!(g.leave(3)), &[1, 2, 1, 2]),
            ("a stranger leaves", |g| assert!(!g.leave(9)), &[3, 1, 2, 3]),
            (
                "one joins",
                |g| assert_eq!(g.join(4, 'o', Transient, Online), Joined::New),
                &[3, 1, 2, 4],
            ),
            (
                "one joins away",
                |g| assert_eq!(g.join(4, 'o', Stored, Away), Joined::New),
                &[3, 1, 2, 3],
            ),
            (
                "one joins again",
                |g| assert_eq!(g.join(3, 'p', Stored, Online), Joined::Replaced),
                &[3, 1, 2, 3],
            ),
            ("next sleeps", |g| g.set_presence(3, Away), &[1, 2, 1, 2]),
            (
                "next sleeps and wakes",
                |g| {
                    g.set_presence(3, Away);
                    g.set_presence(3, Online);
                },
                &[1, 2, 3, 1],
            ),
            (
                "one is there twice",
                |g| g.set_presence(3, Online),
                &[3, 1, 2, 3],
            ),
            (
                "another is asked for",
                |g| assert_eq!(chosen(g.choose(0, |_| 0, |member| member != 3)), Some(1)),
                &[3, 2, 1, 3],
            ),
        ];
        for (name, change, expected) in rows {
            let mut group = group(ShareStrategy::RoundRobin, &[1, 2, 3]);
            assert_eq!(turns(&mut group, 2), [1, 2]);
            change(&mut group);
            assert_eq!(turns(&mut group, 4), *expected, "{name}");
        }
    }

    #[test]
    fn least_in_flight_takes_the_idlest_and_among_equals_the_next() {
        for (in_flight, expected) in [
            ([0, 0, 0], [1, 2, 3, 1]),
            ([1, 0, 0], [2, 3, 2, 3]),
            ([2, 1, 0], [3, 3, 3, 3]),
            ([5, 5, 9], [1, 2, 1, 2]),
        ] {
            let mut group = group(ShareStrategy::LeastInFlight, &[1, 2, 3]);
            let served: Vec<_> = (0..4)
                .filter_map(|_| {
                    chosen(group.choose(0, |who| in_flight[who as usize - 1], |_| true))
                })
                .collect();
            assert_eq!(served, expected, "{in_flight:?}");
        }
    }

    #[test]
    fn all_away_means_nobody_and_waiting_needs_a_stored_member() {
        let mut group: TestGroup = Group::new(ShareStrategy::RoundRobin);
        assert!(group.is_empty() && !group.can_wait());
        assert_eq!(next(&mut group), None);

        group.join(1, 'a', Transient, Online);
        assert!(!group.can_wait());
        group.join(2, 'b', Stored, Online);
        group.leave(1);
        group.set_presence(2, Away);
        assert_eq!(next(&mut group), None);
        assert!(group.can_wait());
        for item in [10, 11, 12] {
            group.wait(item);
        }
        assert_eq!(group.waiting(), 3);

        group.set_presence(2, Online);
        assert_eq!(group.choose(0, |_| 0, |_| true), Choice::Member(2, 'b'));
        assert_eq!(group.choose(0, |_| 0, |member| member != 2), Choice::Nobody);
        let fetched: Vec<_> = std::iter::from_fn(|| group.take_first(|_| true)).collect();
        assert_eq!(fetched, [10, 11, 12]);
        assert_eq!(group.waiting(), 0);

        group.join(2, 'c', Transient, Online);
        assert!(!group.can_wait(), "it became transient");
        assert_eq!(group.choose(0, |_| 0, |_| true), Choice::Member(2, 'c'));
        assert!(group.leave(2));
        assert!(group.is_empty());
    }

    #[test]
    fn publishers_spread_over_the_members_they_stick_to() {
        let members: Vec<u32> = (0..10).collect();
        let mut group = group(ShareStrategy::StickyByPublisher, &members);
        let mut share = BTreeMap::new();
        // Neighbouring numbers are the worst hashes a caller could hand in.
        for publisher in 0..10_000 {
            let who = chosen(group.choose(publisher, |_| 0, |_| true)).expect("ten are online");
            *share.entry(who).or_insert(0) += 1;
        }
        // 1,000 each, give or take five standard deviations of 30.
        assert_eq!(share.len(), 10);
        assert!(share.values().all(|n| (850..1150).contains(n)), "{share:?}");
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Join(u32, Presence),
        Leave(u32),
        Presence(u32, Presence),
        Publish,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let who = 0..6_u32;
        let presence = prop_oneof![3 => Just(Online), 1 => Just(Away)];
        let step = prop_oneof![
            2 => (who.clone(), presence.clone()).prop_map(|(who, p)| Step::Join(who, p)),
            1 => who.clone().prop_map(Step::Leave),
            1 => (who, presence).prop_map(|(who, p)| Step::Presence(who, p)),
            8 => Just(Step::Publish),
        ];
        prop::collection::vec(step, 1..120)
    }

    /// Carries out a step that is no publish; tells who is online afterwards.
    fn change(group: &mut TestGroup, present: &mut BTreeMap<u32, Presence>, step: Step) {
        match step {
            Step::Join(who, presence) => {
                let joined = group.join(who, 'o', Stored, presence);
                let before = present.insert(who, presence);
                assert_eq!(joined == Joined::New, before.is_none());
            }
            Step::Leave(who) => {
                assert_eq!(group.leave(who), present.remove(&who).is_some());
            }
            Step::Presence(who, presence) => {
                group.set_presence(who, presence);
                present.entry(who).and_modify(|p| *p = presence);
            }
            Step::Publish => {}
        }
        assert_eq!(group.is_empty(), present.is_empty());
        assert_eq!(group.can_wait(), !present.is_empty());
        assert_eq!(group.members(), present.len());
    }

    fn online(present: &BTreeMap<u32, Presence>) -> BTreeSet<u32> {
        present
            .iter()
            .filter(|(_, presence)| **presence == Online)
            .map(|(who, _)| *who)
            .collect()
    }

    proptest! {
        /// Nobody is served twice before everybody who was online all the while is served once.
        #[test]
        fn round_robin_never_overtakes(steps in steps()) {
            let mut group: TestGroup = Group::new(ShareStrategy::RoundRobin);
            let mut present = BTreeMap::new();
            // For each who was served and stayed: who was online then, stayed, and was not since.
            let mut owed: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
            for step in steps {
                change(&mut group, &mut present, step);
                let online = online(&present);
                owed.retain(|who, _| online.contains(who));
                owed.values_mut().for_each(|first| first.retain(|who| online.contains(who)));
                prop_assert_eq!(group.line.iter().count(), online.len());
                let gaps = group.line.places.len() - online.len();
                prop_assert_eq!(group.line.gaps, gaps);
                prop_assert!(gaps <= GAPS.max(online.len()), "{gaps} gaps");
                if let Step::Publish = step {
                    let served = next(&mut group);
                    prop_assert_eq!(served.is_some(), !online.is_empty());
                    let Some(served) = served else { continue };
                    prop_assert!(online.contains(&served));
                    let first = owed.remove(&served).unwrap_or_default();
                    prop_assert!(first.is_empty(), "{} before {:?}", served, first);
                    owed.values_mut().for_each(|first| { first.remove(&served); });
                    let others = online.into_iter().filter(|&who| who != served).collect();
                    owed.insert(served, others);
                }
            }
        }

        /// A publisher changes its member only if that one went, or to one that came.
        #[test]
        fn publishers_stick(steps in steps(), publishers in prop::collection::vec(any::<u64>(), 1..20)) {
            let mut group: TestGroup = Group::new(ShareStrategy::StickyByPublisher);
            let mut present = BTreeMap::new();
            let mut served: BTreeMap<u64, u32> = BTreeMap::new();
            for step in steps {
                let before = online(&present);
                change(&mut group, &mut present, step);
                let now = online(&present);
                for &publisher in &publishers {
                    let Some(who) = chosen(group.choose(publisher, |_| 0, |_| true)) else {
                        prop_assert!(now.is_empty());
                        served.remove(&publisher);
                        continue;
                    };
                    prop_assert!(now.contains(&who));
                    if let Some(old) = served.insert(publisher, who) && old != who {
                        prop_assert!(
                            !now.contains(&old) || !before.contains(&who),
                            "{} left {} for {}", publisher, old, who
                        );
                    }
                    let other = chosen(group.choose(publisher, |_| 0, |member| member != who));
                    prop_assert_eq!(other.is_some(), now.len() > 1);
                    prop_assert_ne!(other, Some(who));
                }
            }
        }
    }
}
