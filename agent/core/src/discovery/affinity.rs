//! The endpoints that one client keeps to, of services with `sessionAffinity: ClientIP`. The time is an argument; which endpoint
//! is the first is left to routing.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::ObjectName;

/// Services of which one client keeps an endpoint in mind at a time.
const SERVICES: usize = 1024;

/// What one client keeps to.
#[derive(Debug, Default)]
pub struct Affinity(HashMap<ObjectName, Kept>);

#[derive(Debug)]
struct Kept {
    endpoint: IpAddr,
    until: Instant,
}

impl Affinity {
    /// The endpoint of a service that the client keeps to, if its time is not over.
    pub fn endpoint(&self, service: &ObjectName, now: Instant) -> Option<IpAddr> {
        self.0.get(service).filter(|kept| now < kept.until).map(|kept| kept.endpoint)
    }

    /// The client connects to `endpoint`, and keeps to it for so long from `now` on. Where there is no room for another service,
    /// the one goes whose time is over first.
    pub fn keep(&mut self, service: &ObjectName, endpoint: IpAddr, timeout: Duration, now: Instant) {
        let until = now + timeout;
        if let Some(kept) = self.0.get_mut(service) {
            *kept = Kept { endpoint, until };
            return;
        }
        if self.0.len() >= SERVICES {
            self.0.retain(|_, kept| now < kept.until);
        }
        if self.0.len() >= SERVICES {
            let first = self.0.iter().min_by_key(|(_, kept)| kept.until).map(|(name, _)| name.clone());
            first.and_then(|name| self.0.remove(&name));
        }
        self.0.insert(service.clone(), Kept { endpoint, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_until_the_time_after_the_last_connection_is_over() {
        let (mut affinity, start) = (Affinity::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (service, one, two) = (ObjectName::new("shop", "web"), "10.0.0.1", "10.0.0.2");
        assert_eq!(affinity.endpoint(&service, start), None);
        affinity.keep(&service, one.parse().unwrap(), Duration::from_secs(10), start);
        assert_eq!(affinity.endpoint(&service, at(9)), one.parse().ok());
        affinity.keep(&service, one.parse().unwrap(), Duration::from_secs(10), at(9));
        assert_eq!(affinity.endpoint(&service, at(18)), one.parse().ok());
        assert_eq!(affinity.endpoint(&service, at(19)), None);
        affinity.keep(&service, two.parse().unwrap(), Duration::from_secs(10), at(20));
        assert_eq!(affinity.endpoint(&service, at(21)), two.parse().ok());
        assert_eq!(affinity.endpoint(&ObjectName::new("shop", "other"), at(21)), None);
    }

    #[test]
    fn as_many_services_as_there_is_room_for() {
        let (mut affinity, start) = (Affinity::default(), Instant::now());
        let name = |number: usize| ObjectName::new("shop", format!("web-{number}"));
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        for number in 0..SERVICES + 10 {
            affinity.keep(&name(number), ip, Duration::from_secs(60 + number as u64), start);
        }
        assert_eq!(affinity.0.len(), SERVICES);
        assert_eq!(affinity.endpoint(&name(9), start), None);
        assert_eq!(affinity.endpoint(&name(10), start), Some(ip));
    }
}
