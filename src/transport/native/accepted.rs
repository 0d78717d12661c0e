//! The accepted links of an endpoint by owner, within the shares of the owners, and the links that are evicted at the
//! caps.

use core::{cmp::Reverse, net::IpAddr};

use super::{EndpointCaps, SocketRoute};
use crate::base::{AtCap, LinkId, Owned, Owner};

/// The order in which the links of an owner are evicted, with the number of each link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LinkRank {
    /// The core has closed the link: the oldest first.
    Closing(LinkId),
    /// The oldest first: an honest handshake takes a few round trips.
    HalfOpen(LinkId),
    /// The youngest first.
    Open(Reverse<LinkId>),
    /// The peer of the open link is a listed relay. The youngest first.
    OpenListed(Reverse<LinkId>),
}

/// The links to evict for a new one.
pub(super) type Evicted = [Option<SocketRoute>; 2];

/// The accepted links, by owner. At a cap, the owner closest to its share loses a link.
pub(super) struct AcceptedLinks {
    all: Owned<LinkRank, SocketRoute>,
    /// The half-open ones among them.
    half_open: Owned<LinkRank, SocketRoute>,
}

impl AcceptedLinks {
    pub(super) fn new(caps: &EndpointCaps) -> Self {
        Self { all: Owned::new(caps.links), half_open: Owned::new(caps.half_open) }
    }

    /// The links to evict before a new half-open link from `address` may be added, none if there is room. The new link
    /// replaces one of the same address if `replaced` is the rank of that link.
    ///
    /// At the cap of half-open links, the first is half-open, so that there is also room among all links then. A second
    /// one ends if another source of the network must lose a link.
    ///
    /// # Errors
    /// [`AtCap::Share`] if the source or network of `address` holds its share and would not stay below another source.
    /// [`AtCap::All`] if a link that is not half-open would be evicted although its owner is no fuller.
    pub(super) fn to_evict(&self, address: IpAddr, replaced: Option<LinkRank>) -> Result<Evicted, AtCap> {
        let owner = Owner::of_address(address);
        if matches!(replaced, Some(LinkRank::HalfOpen(_))) {
            return Ok([None; 2]);
        }
        let from_half_open = self.half_open.to_evict(&owner)?;
        let is_at_share = self.all.check(&owner) == Err(AtCap::Share);
        if replaced.is_some() || (from_half_open.is_some() && !is_at_share) {
            return Ok([from_half_open, None]);
        }
        // A half-open link of the owner that must lose a link makes room in both shares.
        let half_open_owner = from_half_open.map(|route| Owner::of_address(route.remote.ip()));
        let loser = self.all.to_lose(&owner)?.filter(|loser| Some(*loser) != half_open_owner);
        let from_all = loser.and_then(|loser| self.all.lowest_of(&loser)).map(|(_, route)| route);
        Ok([from_half_open, from_all])
    }

    /// Adds a link, for which there is room.
    pub(super) fn add(&mut self, route: SocketRoute, rank: LinkRank) {
        let owner = Owner::of_address(route.remote.ip());
        self.all.add(owner, rank, route);
        if matches!(rank, LinkRank::HalfOpen(_)) {
            self.half_open.add(owner, rank, route);
        }
    }

    /// Changes the rank of a link.
    pub(super) fn set_rank(&mut self, route: SocketRoute, before: LinkRank, rank: LinkRank) {
        let owner = Owner::of_address(route.remote.ip());
        self.all.set_rank(&owner, before, rank, route);
        if matches!(before, LinkRank::HalfOpen(_)) {
            self.half_open.remove(&owner, before, route);
        }
    }

    /// Removes a link.
    pub(super) fn remove(&mut self, route: SocketRoute, rank: LinkRank) {
        let owner = Owner::of_address(route.remote.ip());
        self.all.remove(&owner, rank, route);
        if matches!(rank, LinkRank::HalfOpen(_)) {
            self.half_open.remove(&owner, rank, route);
        }
    }

    /// The number of half-open links.
    pub(super) fn half_open(&self) -> usize {
        self.half_open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepted links with the default caps, and the next number of a link.
    struct Accepted {
        links: AcceptedLinks,
        next: u64,
    }

    impl Accepted {
        fn new() -> Self {
            Self { links: AcceptedLinks::new(&EndpointCaps::default()), next: 0 }
        }

        /// Adds a link if there is room, at a cap instead of another one. Returns the link and the evicted one.
        fn admit(&mut self, address: &str) -> Result<(Listed, Option<SocketRoute>), AtCap> {
            let address = address.parse().unwrap();
            let evicted = self.links.to_evict(address, None)?;
            assert!(evicted.iter().flatten().count() <= 1, "one link makes room");
            self.next += 1;
            let port = u16::try_from(self.next).unwrap();
            let listed = Listed {
                route: SocketRoute { port: 0, remote: (address, port).into() },
                rank: LinkRank::HalfOpen(LinkId(self.next)),
            };
            self.links.add(listed.route, listed.rank);
            Ok((listed, evicted[0].or(evicted[1])))
        }

        /// Adds up to `count` links; returns those that found room.
        fn fill(&mut self, count: usize, address: impl Fn(usize) -> String) -> Vec<Listed> {
            (0..count).filter_map(|number| self.admit(&address(number)).ok()).map(|(listed, _)| listed).collect()
        }

        fn open(&mut self, listed: &Listed) -> LinkRank {
            let LinkRank::HalfOpen(id) = listed.rank else { panic!("the link is open") };
            self.links.set_rank(listed.route, listed.rank, LinkRank::Open(Reverse(id)));
            LinkRank::Open(Reverse(id))
        }
    }

    struct Listed {
        route: SocketRoute,
        rank: LinkRank,
    }

    #[test]
    fn one_source_cannot_use_up_the_half_open_links() {
        let mut accepted = Accepted::new();
        // One /64 is one source.
        assert_eq!(accepted.fill(100, |n| format!("2001:db8::{n:x}")).len(), 32);
        assert_eq!(accepted.fill(100, |_| "192.0.2.1".to_owned()).len(), 32);
        assert_eq!(accepted.fill(100, |_| "::ffff:192.0.2.1".to_owned()).len(), 0, "the same address");
    }

    #[test]
    fn many_sources_of_one_network_cannot_use_up_the_half_open_links() {
        let mut accepted = Accepted::new();
        assert_eq!(accepted.fill(256, |n| format!("2001:db8:0:{n:x}::1")).len(), 128);
        assert_eq!(accepted.fill(256, |n| format!("192.0.2.{n}")).len(), 128);
        assert!(accepted.admit("192.0.3.1").is_ok() && accepted.admit("2001:db8:1::1").is_ok());
    }

    #[test]
    fn at_the_cap_the_fullest_source_loses_its_oldest_half_open_link() {
        let mut accepted = Accepted::new();
        let filled = accepted.fill(512, |n| format!("198.51.{}.{}", n % 4, n / 4 % 4));
        assert_eq!(filled.len(), 512);
        assert_eq!(accepted.admit("198.51.1.1").err(), Some(AtCap::Share));
        for number in 0..64 {
            let (honest, evicted) = accepted.admit(&format!("203.0.{number}.1")).unwrap();
            let evicted = filled.iter().find(|listed| Some(listed.route) == evicted).unwrap();
            let oldest = filled.iter().find(|listed| listed.route.remote.ip() == evicted.route.remote.ip()).unwrap();
            if number < 16 {
                assert!(oldest.route == evicted.route);
            }
            accepted.links.remove(evicted.route, evicted.rank);
            accepted.open(&honest);
            assert_eq!(accepted.links.half_open(), 511);
            let (again, none) = accepted.admit(&evicted.route.remote.ip().to_string()).unwrap();
            assert!(none.is_none());
            accepted.links.remove(again.route, again.rank);
            let (_, none) = accepted.admit(&format!("203.0.{number}.2")).unwrap();
            assert!(none.is_none());
        }
    }

    #[test]
    fn at_the_cap_of_links_the_fullest_source_loses_a_closing_a_half_open_or_its_youngest_link() {
        let mut accepted = Accepted::new();
        let address = |n: usize| format!("198.51.{}.{}", n % 4, n / 4 % 4);
        let mut ranks = Vec::new();
        for number in 0..5_120 {
            let (listed, _) = accepted.admit(&address(number)).unwrap();
            ranks.push((listed.route, accepted.open(&listed)));
        }
        let evict = |accepted: &Accepted, ranks: &[(SocketRoute, LinkRank)]| {
            let route = accepted.links.to_evict("203.0.1.1".parse().unwrap(), None).unwrap()[1].unwrap();
            ranks.iter().position(|(listed, _)| *listed == route).unwrap()
        };
        // All sources are equally full; the youngest link of one of them ends.
        let youngest = evict(&accepted, &ranks);
        assert!(youngest >= 5_104, "{youngest}");
        let older = youngest - 160;
        let (route, LinkRank::Open(Reverse(id))) = ranks[older] else { panic!("the link is not open") };
        accepted.links.set_rank(route, ranks[older].1, LinkRank::Closing(id));
        ranks[older].1 = LinkRank::Closing(id);
        assert_eq!(evict(&accepted, &ranks), older, "a closing link of the same source");
        assert_eq!(accepted.admit(&address(0)).err(), Some(AtCap::Share));
    }

    #[test]
    fn links_without_a_fuller_owner_are_not_evicted() {
        let mut accepted = Accepted::new();
        for number in (0..5_119).chain([7]) {
            let (listed, _) = accepted.admit(&format!("10.{}.{}.1", number / 256, number % 256)).unwrap();
            accepted.open(&listed);
        }
        let (listed, evicted) = accepted.admit("203.0.1.1").unwrap();
        let evicted = evicted.unwrap();
        assert_eq!(evicted.remote.ip().to_string(), "10.0.7.1", "the only source with two links");
        accepted.links.remove(evicted, LinkRank::Open(Reverse(LinkId(5_120))));
        accepted.open(&listed);
        assert_eq!(accepted.admit("203.0.2.1").err(), Some(AtCap::All), "all sources have one link");
        assert_eq!(accepted.admit("10.0.0.1").err(), Some(AtCap::All));
    }

    #[test]
    fn a_newcomer_of_a_network_at_its_share_opens_a_link_while_others_fill_the_half_open_places() {
        let mut accepted = Accepted::new();
        // A quarter of the links, five each for 256 sources of a /24, and one more for the first, less one of the last.
        for number in (0..1_279).chain([0]) {
            let (listed, _) = accepted.admit(&format!("203.0.113.{}", number % 256)).unwrap();
            accepted.open(&listed);
        }
        assert_eq!(accepted.fill(512, |n| format!("198.51.{}.1", n % 16)).len(), 512);
        let newcomer = "203.0.113.255".parse().unwrap();
        let fullest = "203.0.113.0".parse::<IpAddr>().unwrap();
        let [half_open, open] = accepted.links.to_evict(newcomer, None).unwrap().map(Option::unwrap);
        let from = half_open.remote.ip().to_string();
        assert!(from.starts_with("198.51.") && open.remote.ip() == fullest, "{from}");
        assert_eq!(
            accepted.links.to_evict("203.0.113.1".parse().unwrap(), None),
            Err(AtCap::Share),
            "no source has more"
        );
    }

    #[test]
    fn a_replaced_link_counts_once() {
        let mut accepted = Accepted::new();
        let links = accepted.fill(32, |_| "192.0.2.1".to_owned());
        let address = links[0].route.remote.ip();
        assert_eq!(accepted.links.to_evict(address, None), Err(AtCap::Share));
        assert_eq!(accepted.links.to_evict(address, Some(links[0].rank)), Ok([None; 2]), "a half-open link");
        let rank = accepted.open(&links[0]);
        assert_eq!(accepted.links.to_evict(address, Some(rank)), Ok([None; 2]), "an open link");
        assert!(accepted.admit("192.0.2.1").is_ok());
        assert_eq!(accepted.links.to_evict(address, Some(rank)), Err(AtCap::Share), "all others are half-open");
    }

    #[test]
    fn no_link_leaves_an_entry() {
        let mut accepted = Accepted::new();
        let links = accepted.fill(2, |_| "192.0.2.1".to_owned());
        let rank = accepted.open(&links[0]);
        accepted.links.remove(links[0].route, rank);
        accepted.links.remove(links[1].route, links[1].rank);
        assert_eq!((accepted.links.all.counts(), accepted.links.half_open.counts()), ((0, 0, 0), (0, 0, 0)));
    }
}
