//! An object as the API server sends it, without the parts that nobody reads.
//!
//! Promises that any object can be read, so that one that is bad never keeps others from being heard of, and that what
//! makes pods large is passed over while reading.

use std::{borrow::Cow, fmt};

use ambit_core::model::{NETNS_ANNOTATION, ObjectName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Left out, wherever a list stands on the way. In a pod this is nine bytes out of ten.
const PRUNED: &[&[&str]] = &[
    // Whoever may make pods in a cluster could name any namespace of the node, another pod's or the host's.
    &["metadata", "annotations", NETNS_ANNOTATION],
    &["metadata", "managedFields"],
    &["metadata", "ownerReferences"],
    &["metadata", "annotations", "kubectl.kubernetes.io/last-applied-configuration"],
    &["spec", "affinity"],
    &["spec", "tolerations"],
    &["spec", "topologySpreadConstraints"],
    &["spec", "volumes"],
    &["spec", "ephemeralContainers"],
    &["spec", "containers", "args"],
    &["spec", "containers", "command"],
    &["spec", "containers", "env"],
    &["spec", "containers", "envFrom"],
    &["spec", "containers", "lifecycle", "postStart", "exec"],
    &["spec", "containers", "lifecycle", "preStop", "exec"],
    &["spec", "containers", "resources"],
    &["spec", "containers", "securityContext"],
    &["spec", "containers", "volumeMounts"],
    &["spec", "initContainers", "args"],
    &["spec", "initContainers", "command"],
    &["spec", "initContainers", "env"],
    &["spec", "initContainers", "envFrom"],
    &["spec", "initContainers", "lifecycle", "postStart", "exec"],
    &["spec", "initContainers", "lifecycle", "preStop", "exec"],
    &["spec", "initContainers", "resources"],
    &["spec", "initContainers", "securityContext"],
    &["spec", "initContainers", "volumeMounts"],
    &["status", "containerStatuses"],
    &["status", "ephemeralContainerStatuses"],
    &["status", "initContainerStatuses"],
];

/// One object of any kind.
#[derive(Clone, Debug)]
pub(super) struct ApiObject {
    meta: ObjectMeta,
    /// The object itself; of a list's items the API server sends neither kind nor version.
    pub(super) value: Value,
}

impl ApiObject {
    /// The name under which the object is kept.
    pub(super) fn name(&self) -> ObjectName {
        let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
        ObjectName::new(text(&self.meta.namespace), text(&self.meta.name))
    }
}

impl<'de> Deserialize<'de> for ApiObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Pruning(PRUNED.to_vec()).deserialize(deserializer)?;
        let text = |field: &str| Some(value.get("metadata")?.get(field)?.as_str()?.to_owned());
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..Default::default()
        };
        Ok(Self { meta, value })
    }
}

impl Resource for ApiObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.kind)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.group)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.version)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&resource.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Reads a value without what stands at the paths.
struct Pruning(Vec<&'static [&'static str]>);

impl Pruning {
    /// What is to be passed over below a field; `None` if the field itself is.
    fn below(&self, field: &str) -> Option<Self> {
        let mut paths = Vec::new();
        for path in &self.0 {
            match path.split_first() {
                Some((first, [])) if *first == field => return None,
                Some((first, rest)) if *first == field => paths.push(rest),
                _ => {}
            }
        }
        Some(Self(paths))
    }
}

impl<'de> DeserializeSeed<'de> for Pruning {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.is_empty() { Value::deserialize(deserializer) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Pruning {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(field) = fields.next_key::<String>()? {
            match self.below(&field) {
                Some(below) => {
                    let value = fields.next_value_seed(below)?;
                    kept.insert(field, value);
                }
                None => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(Self(self.0.clone()))? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_left_out_and_the_rest_stays() {
        let text = r#"{"metadata":{"name":"a","namespace":"n","resourceVersion":"7","labels":{"env":"x","volumes":"y"},
            "managedFields":[{"a":[1,{"b":2}]}],"annotations":{"ambit.dev/netns":"/proc/1/ns/net","example.com/owner":"x"}},"spec":{"volumes":[{}],"selector":{"env":"x"},"n":1.5,"hostNetwork":true,
            "containers":[{"name":"c","env":[{"name":"e"}],"ports":[{"containerPort":80}]},null,3]},"status":null}"#;
        let object: ApiObject = serde_json::from_str(text).unwrap();
        let expected = serde_json::json!({
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": "7", "labels": {"env": "x", "volumes": "y"},
                "annotations": {"example.com/owner": "x"}},
            "spec": {"selector": {"env": "x"}, "n": 1.5, "hostNetwork": true,
                "containers": [{"name": "c", "ports": [{"containerPort": 80}]}, null, 3]},
            "status": null
        });
        assert_eq!(object.value, expected);
        assert_eq!(
            (object.name(), object.meta.resource_version.as_deref()),
            (ObjectName::new("n", "a"), Some("7"))
        );
    }

    #[test]
    fn any_object_can_be_read() {
        for text in ["{}", r#"{"metadata":3}"#, r#"{"metadata":{"name":[]},"spec":"x"}"#, "[]", "null"] {
            let object: ApiObject = serde_json::from_str(text).unwrap();
            assert_eq!(object.name(), ObjectName::new("", ""), "{text}");
        }
    }
}
