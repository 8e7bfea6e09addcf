//! Virtual addresses for hosts of ServiceEntries that state none.
//!
//! Promises that the same hosts have the same addresses wherever and in whatever order they were learnt, and that a younger host
//! never takes the address of an older one. Who needs an address is left to others.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use rpds::{HashTrieMapSync, RedBlackTreeSetSync};

use super::service_entry::Prefix;

/// The most hosts that can have addresses: what a /12 of IPv4 has.
const MAX_SLOTS: u32 = 1 << 20;

/// Where addresses are allocated from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipRanges {
    v4: Option<Prefix>,
    v6: Option<Prefix>,
}

impl Default for VipRanges {
    /// Those of Istio: reserved IPv4 (RFC 1112 §4), and IPv6 for benchmarks (RFC 5180), which nobody routes.
    fn default() -> Self {
        Self {
            v4: Prefix::new(Ipv4Addr::new(240, 240, 0, 0).into(), 16),
            v6: Prefix::new(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0).into(), 48),
        }
    }
}

impl VipRanges {
    /// No addresses are allocated.
    pub const NONE: Self = Self { v4: None, v6: None };

    /// One network of a family at most; `None` if a family comes twice, or a network has too little room: less than a /30 or /126.
    pub fn new(networks: &[Prefix]) -> Option<Self> {
        let mut ranges = Self::NONE;
        for network in networks {
            let range = if network.address().is_ipv4() { &mut ranges.v4 } else { &mut ranges.v6 };
            if range.replace(*network).is_some() || room(*network) == 0 {
                return None;
            }
        }
        Some(ranges)
    }

    /// How many hosts can have addresses of each family that there is.
    fn slots(&self) -> u32 {
        let rooms = [self.v4, self.v6].into_iter().flatten().map(room);
        rooms.min().unwrap_or(0)
    }

    /// The addresses of a slot, one of each family.
    fn addresses(self, slot: u32) -> impl Iterator<Item = IpAddr> {
        // The first address is the network's own.
        let nth = move |network: Prefix| match network.address() {
            IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + slot + 1)),
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() + u128::from(slot) + 1)),
        };
        [self.v4, self.v6].into_iter().flatten().map(nth)
    }

    fn slot_of(&self, ip: IpAddr) -> Option<u32> {
        let network = [self.v4, self.v6].into_iter().flatten().find(|network| network.contains(ip))?;
        let offset = match (ip, network.address()) {
            (IpAddr::V4(ip), IpAddr::V4(first)) => ip.to_bits() - first.to_bits(),
            (IpAddr::V6(ip), IpAddr::V6(first)) => u32::try_from(ip.to_bits() - first.to_bits()).ok()?,
            _ => return None,
        };
        offset.checked_sub(1).filter(|slot| *slot < self.slots())
    }
}

/// How many addresses a network has to give: not its first, nor its last, which may mean all of it.
fn room(network: Prefix) -> u32 {
    let bits = if network.address().is_ipv4() { 32 } else { 128 } - u32::from(network.len());
    let all = 1_u32.checked_shl(bits).filter(|_| bits < 20).unwrap_or(MAX_SLOTS + 2);
    all.saturating_sub(2).min(MAX_SLOTS)
}

/// A host of a namespace's ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct VipHost {
    pub(super) namespace: Arc<str>,
    pub(super) host: Arc<str>,
}

/// A host that wants addresses. The older one goes first, then the name: the order of fields is what counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: i64,
    host: VipHost,
}

/// Who has which addresses. A table of hashes with linear probing, in which of two claims to a slot the older one has it, whichever
/// came first.
#[derive(Clone, Debug, Default)]
pub(super) struct Vips {
    ranges: VipRanges,
    by_slot: HashTrieMapSync<u32, Claim>,
    by_host: HashTrieMapSync<VipHost, (u32, i64)>,
    /// Those for which there is no room.
    left_out: RedBlackTreeSetSync<Claim>,
}

impl Vips {
    pub(super) fn new(ranges: VipRanges) -> Self {
        Self { ranges, ..Self::default() }
    }

    /// The host whose address that is.
    pub(super) fn holder(&self, ip: IpAddr) -> Option<&VipHost> {
        self.by_slot.get(&self.ranges.slot_of(ip)?).map(|claim| &claim.host)
    }

    /// The addresses of a host, one of each family.
    pub(super) fn of(&self, host: &VipHost) -> impl Iterator<Item = IpAddr> + use<> {
        let slot = self.by_host.get(host).map(|(slot, _)| *slot);
        let ranges = self.ranges;
        slot.into_iter().flat_map(move |slot| ranges.addresses(slot))
    }

    /// Has `host` have addresses, as of when it was created, or none. Answers the addresses that changed hands.
    pub(super) fn set(&mut self, host: &VipHost, created: Option<i64>) -> Vec<IpAddr> {
        let before = self.by_host.get(host).map(|(_, created)| *created);
        let waiting = self.left_out.iter().find(|claim| claim.host == *host).cloned();
        if before == created && waiting.is_none() {
            return Vec::new();
        }
        let mut changed = Vec::new();
        if let Some(waiting) = waiting {
            self.left_out.remove_mut(&waiting);
        }
        if before.is_some() {
            self.withdraw(host, &mut changed);
        }
        if let Some(created) = created {
            self.place(Claim { created, host: host.clone() }, &mut changed);
        }
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().flat_map(|slot| self.ranges.addresses(slot)).collect()
    }

    fn place(&mut self, claim: Claim, changed: &mut Vec<u32>) {
        let slots = self.ranges.slots();
        let mut claim = claim;
        let Some(mut slot) = hash(&claim.host).checked_rem(u64::from(slots)).map(|slot| slot as u32) else {
            return;
        };
        // Every step goes to a slot that was not looked at before for this claim: one that is displaced has been refused, or has
        // given way, at all before its own.
        for _ in 0..slots {
            match self.by_slot.get(&slot) {
                Some(holder) if *holder < claim => {}
                holder => {
                    let displaced = holder.cloned();
                    self.by_host.insert_mut(claim.host.clone(), (slot, claim.created));
                    self.by_slot.insert_mut(slot, claim);
                    changed.push(slot);
                    match displaced {
                        None => return,
                        Some(displaced) => claim = displaced,
                    }
                }
            }
            slot = (slot + 1) % slots;
        }
        self.by_host.remove_mut(&claim.host);
        self.left_out.insert_mut(claim);
    }

    /// What stands behind the gap without one between may belong further in front.
    fn withdraw(&mut self, host: &VipHost, changed: &mut Vec<u32>) {
        let Some((slot, _)) = self.by_host.get(host).copied() else { return };
        let slots = self.ranges.slots();
        self.by_host.remove_mut(host);
        self.by_slot.remove_mut(&slot);
        changed.push(slot);
        let mut again: Vec<Claim> = self.left_out.iter().cloned().collect();
        self.left_out = RedBlackTreeSetSync::default();
        let mut next = (slot + 1) % slots;
        while let Some(claim) = self.by_slot.get(&next).cloned() {
            self.by_host.remove_mut(&claim.host);
            self.by_slot.remove_mut(&next);
            changed.push(next);
            again.push(claim);
            next = (next + 1) % slots;
        }
        for claim in again {
            self.place(claim, changed);
        }
    }
}

/// The same on every machine and in every version (FNV-1a, and a last step by which every bit counts for every other).
fn hash(host: &VipHost) -> u64 {
    let bytes = host.namespace.bytes().chain([b'/']).chain(host.host.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn host(number: u64) -> VipHost {
        VipHost {
            namespace: format!("ns{}", number % 3).into(),
            host: format!("h{number}.example.com").into(),
        }
    }

    fn ranges(networks: &[&str]) -> Option<VipRanges> {
        let prefix = |text: &&str| {
            let (ip, len) = text.split_once('/').unwrap();
            Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
        };
        VipRanges::new(&networks.iter().map(prefix).collect::<Vec<_>>())
    }

    fn all(vips: &Vips, hosts: u64) -> Vec<Vec<IpAddr>> {
        (0..hosts).map(|number| vips.of(&host(number)).collect()).collect()
    }

    /// Numbers that are the same in every run (Knuth's multiplier for 64 bits).
    fn next(state: &mut u64, end: u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % end
    }

    #[test]
    fn who_has_which_address_depends_on_who_there_is_alone() {
        // Small networks, so that everybody is in everybody's way and some find no room.
        for network in ["198.18.0.0/28", "198.18.0.0/26", "198.18.0.0/24"] {
            let ranges = ranges(&[network]).unwrap();
            for seed in 0..20 {
                let (mut vips, mut state) = (Vips::new(ranges), seed);
                let mut there: BTreeMap<u64, i64> = BTreeMap::new();
                for _ in 0..300 {
                    let (number, created) = (next(&mut state, 40), next(&mut state, 9) as i64);
                    let before = all(&vips, 40);
                    let change = (next(&mut state, 3) != 0).then_some(created);
                    let told = vips.set(&host(number), change);
                    match change {
                        Some(created) => there.insert(number, created),
                        None => there.remove(&number),
                    };
                    let after = all(&vips, 40);
                    for (before, after) in before.iter().zip(&after).filter(|(before, after)| before != after)
                    {
                        let moved = before.iter().chain(after);
                        moved
                            .for_each(|ip| assert!(told.contains(ip), "{ip} changed hands and was not told"));
                    }
                }
                let mut anew = Vips::new(ranges);
                for (number, created) in there.iter().rev() {
                    anew.set(&host(*number), Some(*created));
                }
                assert_eq!(all(&vips, 40), all(&anew, 40), "{network}, seed {seed}");
                for (number, addresses) in all(&vips, 40).iter().enumerate() {
                    for ip in addresses {
                        assert_eq!(vips.holder(*ip), Some(&host(number as u64)));
                    }
                }
                let held = all(&vips, 40).iter().flatten().count();
                assert_eq!(held, there.len().min(ranges.slots() as usize), "nobody is left out without need");
            }
        }
    }

    #[test]
    fn an_older_host_keeps_its_address_whoever_comes() {
        let mut vips = Vips::new(ranges(&["198.18.0.0/27"]).unwrap());
        let mut addresses = Vec::new();
        for number in 0..30 {
            vips.set(&host(number), Some(number as i64));
            addresses.push(vips.of(&host(number)).next().unwrap());
            assert_eq!(all(&vips, number + 1).concat(), addresses);
        }
        vips.set(&host(30), Some(30));
        assert_eq!(vips.of(&host(30)).count(), 0, "there is no room left");
        vips.set(&host(7), None);
        assert_eq!(vips.of(&host(30)).count(), 1);
    }

    #[test]
    fn ten_thousand_hosts_find_room_by_both_families() {
        let mut vips = Vips::new(VipRanges::default());
        for number in 0..10_000 {
            vips.set(&host(number), Some(0));
        }
        let found = all(&vips, 10_000);
        assert!(found.iter().all(|addresses| addresses.len() == 2));
        assert!(found.iter().flatten().all(|ip| match ip {
            IpAddr::V4(v4) => v4.octets()[..2] == [240, 240],
            IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 2, 0],
        }));
        // What stands here must not differ between versions: agents of two of them serve one cluster.
        let known: Vec<String> = vips.of(&host(1)).map(|ip| ip.to_string()).collect();
        assert_eq!(known, KNOWN);
    }

    const KNOWN: [&str; 2] = ["240.240.230.186", "2001:2::e6ba"];

    #[test]
    fn ranges_have_one_network_of_a_family_with_room() {
        assert!(ranges(&["198.18.0.0/16", "fd00::/64"]).is_some());
        assert_eq!(ranges(&[]), Some(VipRanges::NONE));
        for bad in [&["198.18.0.0/16", "198.19.0.0/16"][..], &["198.18.0.0/31"], &["fd00::/127"]] {
            assert_eq!(ranges(bad), None, "{bad:?}");
        }
        assert_eq!(ranges(&["198.18.0.0/30"]).unwrap().slots(), 2);
        assert_eq!(ranges(&["10.0.0.0/8", "fd00::/64"]).unwrap().slots(), MAX_SLOTS);
        assert_eq!(VipRanges::default().slots(), 65_534);
    }
}
