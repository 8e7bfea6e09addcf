//! An API server in memory whose answers a test gives one by one. For failures that a real one cannot be brought to.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame},
};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// A client of such a server, and the requests that the test has to answer: those on `resource`, and every write. For
/// other resources the server has no objects, and watches that are silent.
pub(crate) fn scripted(resource: &'static str) -> (Client, mpsc::UnboundedReceiver<Call>) {
    scripted_under(resource, Definition::default())
}

/// The same, where the definitions of custom resources stand as told.
pub(crate) fn scripted_under(
    resource: &'static str,
    definition: Definition,
) -> (Client, mpsc::UnboundedReceiver<Call>) {
    let (calls, script) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (calls, definition) = (calls.clone(), definition.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let (answer, answered) = oneshot::channel();
            let call = Call {
                method: head.method,
                path: head.uri.path().to_owned(),
                query: pairs(head.uri.query().unwrap_or_default()),
                body: serde_json::from_slice(&body).unwrap_or_default(),
                answer,
            };
            if call.path.contains("/customresourcedefinitions/") {
                definition.answer(call);
            } else if call.method != Method::GET || call.path.ends_with(&format!("/{resource}")) {
                // Without a test that listens there is no server.
                calls.send(call).ok();
            } else {
                let events = call.stream();
                if events.initial {
                    events.end_of_list("1");
                }
                std::mem::forget(events);
            }
            answered.await.map_err(|_| io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused"))
        }
    });
    (Client::new(service, "default"), script)
}

/// How the definitions of custom resources stand; at first they do.
#[derive(Clone, Debug)]
pub(crate) struct Definition(Arc<Mutex<(u16, Value)>>);

impl Default for Definition {
    fn default() -> Self {
        let definition = Self(Arc::default());
        definition.stands("first");
        definition
    }
}

impl Definition {
    /// There is one of this UID.
    pub(crate) fn stands(&self, uid: &str) {
        self.set(200, json!({"metadata": {"name": "any", "uid": uid}}));
    }

    /// It is being removed.
    pub(crate) fn ends(&self, uid: &str) {
        self.set(
            200,
            json!({"metadata": {"name": "any", "uid": uid, "deletionTimestamp": "2026-01-31T12:00:00Z"}}),
        );
    }

    /// There is none.
    pub(crate) fn is_gone(&self) {
        self.fails(404, "NotFound");
    }

    /// The API does not tell.
    pub(crate) fn fails(&self, code: u16, reason: &str) {
        self.set(code, status(code, reason, "no answer"));
    }

    fn set(&self, code: u16, mut value: Value) {
        if code == 200 {
            value["kind"] = "PartialObjectMetadata".into();
            value["apiVersion"] = "meta.k8s.io/v1".into();
        }
        *self.0.lock().unwrap() = (code, value);
    }

    fn answer(&self, call: Call) {
        let (code, value) = self.0.lock().unwrap().clone();
        call.answer(code, &value);
    }
}

fn pairs(query: &str) -> HashMap<String, String> {
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    query.split('&').filter_map(pair).collect()
}

/// One request. Dropped without an answer it fails as a refused connection does.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) body: Value,
    answer: oneshot::Sender<Response<Lines>>,
}

impl Call {
    pub(crate) fn asks_for(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }

    /// Answers with one value.
    pub(crate) fn answer(self, code: u16, value: &Value) {
        let (lines, body) = mpsc::unbounded_channel();
        lines.send(value.to_string().into()).ok();
        self.respond(code, body);
    }

    /// Answers with an error as API servers write them.
    pub(crate) fn refuse(self, code: u16, reason: &str, message: &str) {
        self.answer(code, &status(code, reason, message));
    }

    /// Answers with a watch.
    pub(crate) fn stream(self) -> Events {
        let (lines, body) = mpsc::unbounded_channel();
        let initial = self.asks_for("sendInitialEvents") == Some("true");
        self.respond(200, body);
        Events { lines, initial }
    }

    fn respond(self, code: u16, body: mpsc::UnboundedReceiver<Bytes>) {
        let mut response = Response::new(Lines(body));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        // The client may have given up.
        self.answer.send(response).ok();
    }
}

/// A watch under way; it ends when this is dropped.
pub(crate) struct Events {
    lines: mpsc::UnboundedSender<Bytes>,
    /// It begins with what there is.
    pub(crate) initial: bool,
}

impl Events {
    pub(crate) fn send(&self, kind: &str, object: &Value) {
        self.lines.send(format!("{}\n", json!({"type": kind, "object": object})).into()).ok();
    }

    pub(crate) fn end_of_list(&self, version: &str) {
        self.bookmark(version, &json!({"k8s.io/initial-events-end": "true"}));
    }

    pub(crate) fn bookmark(&self, version: &str, annotations: &Value) {
        let metadata = json!({"resourceVersion": version, "annotations": annotations});
        self.send("BOOKMARK", &json!({"kind": "Any", "apiVersion": "v1", "metadata": metadata}));
    }

    pub(crate) fn fail(&self, code: u16, reason: &str, message: &str) {
        self.send("ERROR", &status(code, reason, message));
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

/// A body that is written while it is read.
pub(crate) struct Lines(mpsc::UnboundedReceiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
