//! Results of CNI plugins: read as far as needed, and passed on in the version that the configuration asks for
//! (CNI specification, section 5 and its earlier versions).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// The versions of CNI that the plugin speaks.
pub(super) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The shape of results, which several versions share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// 0.1 and 0.2: `ip4` and `ip6`.
    Oldest,
    /// 0.3 and 0.4: `ips` with their version.
    Older,
    /// 1.0: `ips` without.
    One,
    /// 1.1: more fields.
    OneOne,
}

/// Whether the plugin speaks a version.
pub(super) fn speaks(version: &str) -> bool {
    shape(version).is_some()
}

/// The addresses that a result gives to the pod itself, not to the node's end of it.
pub(super) fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let on_the_node = |ip: &Value| {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| interfaces?.get(index));
        interface.is_some_and(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
    };
    let listed = result["ips"].as_array().into_iter().flatten().filter(|ip| !on_the_node(ip));
    let listed = listed.map(|ip| &ip["address"]);
    let oldest = ["ip4", "ip6"].into_iter().map(|family| &result[family]["ip"]);
    let addresses = listed.chain(oldest).filter_map(|address| {
        let address = address.as_str()?;
        address.split_once('/').map_or(address, |(ip, _)| ip).parse().ok()
    });
    addresses.map(|ip: IpAddr| ip.to_canonical()).collect()
}

/// `result` in the shape of `version`, which the plugin [`speaks`]. What that shape has no place for is left out.
pub(super) fn convert(result: Value, version: &str) -> Value {
    let from = result["cniVersion"].as_str().and_then(shape).unwrap_or_else(|| guess(&result));
    let to = shape(version).unwrap_or(Shape::OneOne);
    let result = match (from, to) {
        _ if from == to => result,
        (Shape::Oldest, _) => reshape(lift(&result), to),
        (_, Shape::Oldest) => lower(&result),
        _ => reshape(result, to),
    };
    match result {
        Value::Object(mut fields) => {
            fields.insert("cniVersion".to_owned(), version.into());
            Value::Object(fields)
        }
        // No plugin before this one.
        _ => json!({ "cniVersion": version }),
    }
}

fn shape(version: &str) -> Option<Shape> {
    Some(match version {
        "0.1.0" | "0.2.0" => Shape::Oldest,
        "0.3.0" | "0.3.1" | "0.4.0" => Shape::Older,
        "1.0.0" => Shape::One,
        "1.1.0" => Shape::OneOne,
        _ => return None,
    })
}

/// The shape of a result that does not tell its version.
fn guess(result: &Value) -> Shape {
    let has_version = |ip: &Value| ip.get("version").is_some();
    match (result.get("ip4").or(result.get("ip6")), result["ips"].as_array()) {
        (Some(_), _) => Shape::Oldest,
        (None, Some(ips)) if ips.iter().any(has_version) => Shape::Older,
        _ => Shape::OneOne,
    }
}

/// Between the shapes that have `ips`.
fn reshape(mut result: Value, to: Shape) -> Value {
    let list = |result: &mut Value, name: &str, change: &dyn Fn(&mut Map<String, Value>)| {
        let items = result.get_mut(name).and_then(Value::as_array_mut);
        items.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
    };
    list(&mut result, "ips", &|ip| {
        if to >= Shape::One {
            ip.remove("version");
        } else {
            let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
            ip.insert("version".to_owned(), if v6 { "6" } else { "4" }.into());
        }
    });
    if to < Shape::OneOne {
        list(&mut result, "interfaces", &|interface| {
            interface.retain(|field, _| ["name", "mac", "sandbox"].contains(&field.as_str()));
        });
        list(&mut result, "routes", &|route| {
            route.retain(|field, _| ["dst", "gw"].contains(&field.as_str()))
        });
    }
    result
}

/// From the oldest shape to the older one.
fn lift(result: &Value) -> Value {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for (family, version) in [("ip4", "4"), ("ip6", "6")] {
        let Some(found) = result[family].as_object() else { continue };
        let mut ip = Map::from_iter([("version".to_owned(), version.into())]);
        ip.extend(found.get("ip").map(|address| ("address".to_owned(), address.clone())));
        ip.extend(found.get("gateway").map(|gateway| ("gateway".to_owned(), gateway.clone())));
        ips.push(Value::Object(ip));
        routes.extend(found.get("routes").and_then(Value::as_array).into_iter().flatten().cloned());
    }
    let mut lifted = json!({ "ips": ips });
    if !routes.is_empty() {
        lifted["routes"] = routes.into();
    }
    if let Some(dns) = result.get("dns") {
        lifted["dns"] = dns.clone();
    }
    lifted
}

/// To the oldest shape, which has room for one address of a family.
fn lower(result: &Value) -> Value {
    let mut lowered = json!({});
    for (family, v6) in [("ip4", false), ("ip6", true)] {
        let of_family = |value: &Value| value.as_str().is_some_and(|address| address.contains(':') == v6);
        let mut ips = result["ips"].as_array().into_iter().flatten();
        let Some(ip) = ips.find(|ip| of_family(&ip["address"])) else { continue };
        let mut fields = Map::from_iter([("ip".to_owned(), ip["address"].clone())]);
        fields.extend(ip.get("gateway").map(|gateway| ("gateway".to_owned(), gateway.clone())));
        let mut routes = reshape(json!({ "routes": result["routes"] }), Shape::Older)["routes"].take();
        if let Some(routes) = routes.as_array_mut() {
            routes.retain(|route| of_family(&route["dst"]));
            fields.insert("routes".to_owned(), std::mem::take(routes).into());
        }
        lowered[family] = Value::Object(fields);
    }
    if let Some(dns) = result.get("dns") {
        lowered["dns"] = dns.clone();
    }
    lowered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "veth1", "mac": "aa", "mtu": 1500 },
                { "name": "eth0", "mac": "bb", "sandbox": "/run/netns/x", "socketPath": "s", "pciID": "p" },
            ],
            "ips": [
                { "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 1 },
                { "address": "fd00::5/64", "interface": 1 },
                { "address": "169.254.1.1/32", "interface": 0 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400 }, { "dst": "::/0" }],
            "dns": { "nameservers": ["10.0.0.10"] },
        })
    }

    #[test]
    fn the_same_version_passes_unchanged_with_what_nobody_knows() {
        let mut result = full();
        result["example.com/extra"] = json!([1, 2.5]);
        assert_eq!(convert(result.clone(), "1.1.0"), result);
    }

    #[test]
    fn nothing_before_us_is_an_empty_result() {
        assert_eq!(convert(Value::Null, "1.0.0"), json!({ "cniVersion": "1.0.0" }));
    }

    #[test]
    fn versions_are_converted_down() {
        let one = convert(full(), "1.0.0");
        assert_eq!(one["interfaces"][0], json!({ "name": "veth1", "mac": "aa" }));
        assert_eq!(one["routes"][0], json!({ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }));
        assert_eq!(one["ips"], full()["ips"]);
        let older = convert(full(), "0.4.0");
        assert_eq!((&older["cniVersion"], &older["ips"][1]["version"]), (&json!("0.4.0"), &json!("6")));
        assert_eq!(older["ips"][0]["version"], "4");
        let oldest = convert(full(), "0.2.0");
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip4": { "ip": "10.0.0.5/24", "gateway": "10.0.0.1", "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }] },
            "ip6": { "ip": "fd00::5/64", "routes": [{ "dst": "::/0" }] },
            "dns": { "nameservers": ["10.0.0.10"] },
        });
        assert_eq!(oldest, expected);
    }

    #[test]
    fn versions_are_converted_up() {
        let older = convert(full(), "0.3.1");
        let one = convert(older, "1.1.0");
        assert!(one["ips"][0].get("version").is_none());
        let oldest = convert(full(), "0.1.0");
        let up = convert(oldest, "1.0.0");
        let expected =
            json!([{ "address": "10.0.0.5/24", "gateway": "10.0.0.1" }, { "address": "fd00::5/64" }]);
        assert_eq!(up["ips"], expected);
        assert_eq!(up["routes"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn the_pod_s_own_addresses_are_found_in_every_version() {
        let expected: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        for version in VERSIONS {
            let found = addresses(&convert(full(), version));
            // The oldest shape has no interfaces, and room for one address of a family.
            assert_eq!(found, expected, "{version}");
        }
        assert!(addresses(&Value::Null).is_empty());
        assert!(addresses(&json!({ "ips": [{ "address": 5 }, "x", { "address": "nonsense" }] })).is_empty());
    }
}
