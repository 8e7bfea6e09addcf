//! Asks the API whether a resource's definition stands: whether what goes was removed, or goes with it.

use std::time::Duration;

use kube::{Api, Client, core::ApiResource};
use tokio::time::timeout;

use super::{last_known::Standing, object::ApiObject};
use crate::{cluster::sentence, discovery::kinds::Row};

/// How long the API may take to answer: events wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the definition of `row` stands at this moment.
pub(super) async fn standing(client: &Client, row: &Row) -> Standing {
    let resource = ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    let definitions: Api<ApiObject> = Api::all_with(client.clone(), &resource);
    let name = format!("{}.{}", row.plural, row.group);
    let Ok(answer) = timeout(PATIENCE, definitions.get_metadata_opt(&name)).await else {
        return Standing::Unknown(format!("the API has not answered for {PATIENCE:?}"));
    };
    match answer {
        Ok(None) => Standing::Absent,
        Ok(Some(found)) if found.metadata.deletion_timestamp.is_some() => Standing::Ending,
        Ok(Some(found)) => match found.metadata.uid {
            Some(uid) => Standing::Stands(uid),
            None => Standing::Unknown("the API shows no UID of it".to_owned()),
        },
        Err(kube::Error::Api(status)) if status.code == 403 => Standing::Unknown(format!(
            "{}; the agent's account needs the verb get on customresourcedefinitions (apiGroup apiextensions.k8s.io) in a \
             ClusterRole",
            status.message
        )),
        Err(error) => Standing::Unknown(sentence(&error)),
    }
}
